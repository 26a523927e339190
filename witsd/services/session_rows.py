"""Sessions and messages as rows, and what changes in them when a run begins or ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apsw
import attrs
import msgspec

from witsd.journal.event import entry
from witsd.journal.journal import Tx
from witsd.services.memory import turns
from witsd.services.run_state import LiveRun
from witsd.values.clock import rfc3339
from witsd.values.errors import Conflict, NotFound
from witsd.values.ids import Ids
from witsd.values.wire import event_types as types
from witsd.values.wire import sessions as wire
from witsd.values.wire.common import UNSET

_encode = msgspec.json.Encoder().encode
_settings = msgspec.json.Decoder(wire.SessionSettings)
_attachments = msgspec.json.Decoder(tuple[wire.Attachment, ...])

#: What of a conversation an agent is given when it has to rebuild it.
HISTORY_BYTES = 1 << 20

SESSION_COLUMNS = (
    "n, session_id, agent, title, settings, status, run_id, parent_id, origin, messages, created_us, updated_us"
)
MESSAGE_COLUMNS = (
    "m.message_id, m.session_id, m.n, m.role, m.author, m.text, m.status, m.run_id, m.model, "
    "m.attachments, m.created_us"
)


def session_view(row: Sequence[Any]) -> wire.Session:
    _, session_id, agent, title, settings, status, run_id, parent_id, origin, messages, created, updated = row
    return wire.Session(
        session_id=session_id,
        agent=agent,
        title=title,
        status=status,
        settings=_settings.decode(settings),
        messages=messages,
        created_at=rfc3339(created),
        updated_at=rfc3339(updated),
        run_id=run_id or UNSET,
        parent_id=parent_id or UNSET,
        origin=origin,
    )


def message_view(row: Sequence[Any]) -> wire.Message:
    message_id, session_id, n, role, author, text, status, run_id, model, attachments, created = row
    return wire.Message(
        message_id=message_id,
        session_id=session_id,
        n=n,
        role=role,
        author=author,
        text=text,
        status=status,
        created_at=rfc3339(created),
        run_id=run_id or UNSET,
        model=model or UNSET,
        attachments=_attachments.decode(attachments) if attachments else UNSET,
    )


def find(db: apsw.Connection, session_id: str) -> wire.Session | None:
    row = db.execute(f"SELECT {SESSION_COLUMNS} FROM sessions WHERE session_id = ?", (session_id,)).fetchone()
    return None if row is None else session_view(row)


def load(db: apsw.Connection, session_id: str) -> wire.Session:
    """Raises ``NotFound``."""
    session = find(db, session_id)
    if session is None:
        raise missing(session_id)
    return session


def load_tx(tx: Tx, session_id: str) -> wire.Session:
    """As ``load``, inside a write transaction."""
    rows = tx.execute(f"SELECT {SESSION_COLUMNS} FROM sessions WHERE session_id = ?", (session_id,))
    if not rows:
        raise missing(session_id)
    return session_view(rows[0])


def missing(session_id: str) -> NotFound:
    return NotFound(f"there is no session {session_id!r}", kind="session", id=session_id)


def require(tx: Tx, session_id: str, agent: str) -> wire.Session:
    """Raises ``NotFound``, or ``Conflict`` for a session with another agent."""
    session = load_tx(tx, session_id)
    if session.agent != agent:
        raise Conflict(f"the session is with {session.agent}, not with {agent}", agent=session.agent)
    return session


def set_status(tx: Tx, session_id: str, status: wire.SessionStatus, run_id: str | None) -> None:
    changed = tx.execute(
        "UPDATE sessions SET status = ?, run_id = ? WHERE session_id = ? RETURNING 1",
        (status, run_id, session_id),
    )
    if changed:
        data = types.SessionStatusData(session_id=session_id, status=status, run_id=run_id or UNSET)
        tx.emit(entry(f"session:{session_id}", "session.status", data))


@attrs.frozen(kw_only=True)
class NewMessage:
    message_id: str
    role: str
    author: str
    text: str
    status: str = "completed"
    run_id: str | None = None
    model: str | None = None
    attachments: tuple[wire.Attachment, ...] = ()


def add_message(tx: Tx, session_id: str, new: NewMessage, *, remember: bool, ids: Ids) -> None:
    """Append to the conversation; the message's number comes from its session, so it has no gap.

    ``remember`` is what the agent's definition says; the session's own settings come before it.
    """
    rows = tx.execute(
        "UPDATE sessions SET last_n = last_n + 1, messages = messages + 1, updated_us = ? "
        "WHERE session_id = ? RETURNING last_n, agent, settings",
        (tx.now_us, session_id),
    )
    if not rows:
        return  # deleted while its run was ending
    row = (
        new.message_id,
        session_id,
        rows[0][0],
        new.role,
        new.author,
        new.text,
        new.status,
        new.run_id,
        new.model,
        _encode(new.attachments) if new.attachments else None,
        tx.now_us,
    )
    tx.execute(
        "INSERT INTO messages(message_id, session_id, n, role, author, text, status, run_id, model, "
        "attachments, created_us) VALUES (?,?,?,?,?,?,?,?,?,?,?)",
        row,
    )
    message = message_view(row)
    tx.emit(entry(f"session:{session_id}", "session.message", types.SessionMessageData(message=message)))
    said = _settings.decode(rows[0][2]).memory
    if said == "on" or (said in (None, UNSET) and remember):
        turns.record(tx, rows[0][1], message, ids)


def add_question(tx: Tx, run: LiveRun, ids: Ids, attachments: tuple[wire.Attachment, ...] = ()) -> str:
    """What a run was asked becomes a turn of its conversation; returns the message's id."""
    assert run.session_id is not None
    question = NewMessage(
        message_id=ids.new("msg"),
        role="user",
        author=run.actor,
        text=run.input.text,
        run_id=run.run_id,
        attachments=attachments,
    )
    add_message(tx, run.session_id, question, remember=run.remember, ids=ids)
    return question.message_id


def end_of_run(tx: Tx, run: LiveRun, ids: Ids) -> None:
    """What the agent said becomes its turn of the conversation, also when it was cut short."""
    assert run.session_id is not None
    text = run.said()
    if not text and isinstance(run.output, str):
        text = run.output
    if text:
        add_message(
            tx,
            run.session_id,
            NewMessage(
                message_id=ids.new("msg"),
                role="assistant",
                author=run.agent,
                text=text,
                status=run.status,
                run_id=run.run_id,
                model=run.model or None,
            ),
            remember=run.remember,
            ids=ids,
        )
    # A run that ends while it waits in line leaves the session to the one that is on.
    if tx.execute("SELECT 1 FROM sessions WHERE session_id = ? AND run_id = ?", (run.session_id, run.run_id)):
        set_status(tx, run.session_id, "idle", None)


@attrs.frozen
class Context:
    """What an agent needs to know of a conversation before it takes its next turn."""

    settings: wire.SessionSettings
    turns: tuple[wire.HistoryTurn, ...]


def context(db: apsw.Connection, session_id: str, run_id: str, history_messages: int) -> Context:
    """Settings and the newest turns before this run: bounded by count and size, oldest first."""
    row = db.execute("SELECT settings FROM sessions WHERE session_id = ?", (session_id,)).fetchone()
    if row is None:
        raise missing(session_id)
    turns: list[wire.HistoryTurn] = []
    size = 0
    # Messages of runs that are still to come are no past yet; this run's own text is its input.
    for role, text, attachments in db.execute(
        "SELECT m.role, m.text, m.attachments FROM messages m LEFT JOIN runs r ON r.run_id = m.run_id "
        "WHERE m.session_id = ? AND m.run_id IS NOT ? AND (r.status IS NULL OR r.ended_us IS NOT NULL) "
        "ORDER BY m.n DESC LIMIT ?",
        (session_id, run_id, history_messages),
    ):
        size += len(text) + len(attachments or b"")
        if size > HISTORY_BYTES and turns:
            break
        data = {"attachments": msgspec.json.decode(attachments)} if attachments else UNSET
        turns.append(wire.HistoryTurn(role=role, text=text, data=data))
    return Context(_settings.decode(row[0]), tuple(reversed(turns)))
