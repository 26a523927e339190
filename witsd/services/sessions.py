"""``sessions/*``: durable conversations. A prompt is a message and a run, written together."""

from __future__ import annotations

import apsw
import attrs
import msgspec

from witsd.journal.event import entry
from witsd.journal.journal import Journal, Tx
from witsd.services import session_export
from witsd.services import session_rows as rows
from witsd.services.idempotency import once
from witsd.services.run_state import LiveRun
from witsd.services.runs import Runs, cursor_number
from witsd.values.actor import Actor
from witsd.values.clock import Clock
from witsd.values.errors import InvalidParams, InvalidState, NotFound, PermissionDenied, WitsdError
from witsd.values.ids import Ids
from witsd.values.wire import event_types as types
from witsd.values.wire import sessions as wire
from witsd.values.wire.common import UNSET, Empty
from witsd.values.wire.runs import RunInput

_encode = msgspec.json.Encoder().encode

#: A session without a title is called after the beginning of its first message.
_TITLE_LENGTH = 60


@attrs.define(eq=False)
class Sessions:
    """The service."""

    _journal: Journal
    _runs: Runs
    _clock: Clock
    _ids: Ids

    async def create(self, actor: Actor, params: wire.SessionsCreateParams) -> wire.Session:
        self._runs.supervisor.obtain(params.agent)  # NotFound

        def work(tx: Tx) -> wire.Session:
            def make() -> wire.Session:
                return self._insert(tx, params.agent, params.title, params.settings, None, params.origin)

            key = params.idempotency_key
            return once(tx, actor.identity, "sessions/create", key, params, wire.Session, make)[0]

        return await self._journal.write(work)

    def _insert(
        self, tx: Tx, agent: str, title: str, settings: wire.SessionSettings | None, parent: str | None, origin: str
    ) -> wire.Session:
        session_id = self._ids.new("ses")
        tx.execute(
            "INSERT INTO sessions(session_id, agent, title, settings, status, parent_id, origin, messages, last_n, "
            "created_us, updated_us) VALUES (?,?,?,?,'idle',?,?,0,0,?,?)",
            (
                session_id,
                agent,
                title,
                _encode(_merged(wire.SessionSettings(), settings)),
                parent,
                origin,
                tx.now_us,
                tx.now_us,
            ),
        )
        session = rows.load_tx(tx, session_id)
        tx.emit(entry(f"session:{session_id}", "session.created", types.SessionData(session=session)))
        return session

    async def prompt(self, actor: Actor, params: wire.SessionsPromptParams) -> wire.PromptResult:
        """Say something: durable when this returns; the answer comes as events of the run."""
        session = await self._journal.store.read(lambda db: rows.load(db, params.session_id))
        settings_stream = session.settings.stream
        run = self._runs.new_run(
            session.agent,
            RunInput(
                text=params.text,
                cwd=params.cwd or UNSET,
                data={"attachments": params.attachments} if params.attachments else UNSET,
            ),
            actor,
            session_id=params.session_id,
            stream=settings_stream if isinstance(settings_stream, bool) else None,
            timeout_s=None,
        )

        def work(tx: Tx) -> tuple[wire.PromptResult, bool]:
            def make() -> wire.PromptResult:
                if isinstance(run, WitsdError):
                    raise run
                current = rows.load_tx(tx, params.session_id)
                if params.while_running == "reject" and tx.execute(
                    "SELECT 1 FROM runs WHERE session_id = ? AND ended_us IS NULL", (params.session_id,)
                ):
                    raise InvalidState("the session is busy with a run", state="running")
                message_id = rows.add_question(tx, run, self._ids, params.attachments)
                if not current.title:
                    self._title(tx, params.session_id, params.text)
                self._runs.book.insert(tx, run)
                return wire.PromptResult(run_id=run.run_id, message_id=message_id)

            key = params.idempotency_key
            return once(tx, actor.identity, "sessions/prompt", key, params, wire.PromptResult, make)

        def accepted(answer: tuple[wire.PromptResult, bool]) -> None:
            if not answer[1] or not isinstance(run, LiveRun):
                return
            if params.while_running == "interrupt":
                for earlier in list(self._runs.book.live.values()):
                    if earlier.session_id == params.session_id:
                        self._runs.stop(earlier, "cancelled", "interrupted by the next message")
            self._runs.enqueue(run)

        return (await self._journal.write(work, then=accepted))[0]

    def _title(self, tx: Tx, session_id: str, text: str) -> None:
        title = " ".join(text.split())
        if len(title) > _TITLE_LENGTH:
            title = title[: _TITLE_LENGTH - 1].rsplit(" ", 1)[0] + "…"
        tx.execute("UPDATE sessions SET title = ? WHERE session_id = ?", (title, session_id))
        self._updated(tx, session_id)

    def _updated(self, tx: Tx, session_id: str) -> wire.Session:
        session = rows.load_tx(tx, session_id)
        tx.emit(entry(f"session:{session_id}", "session.updated", types.SessionData(session=session)))
        return session

    async def get(self, actor: Actor, params: wire.SessionIdParams) -> wire.Session:
        return await self._journal.store.read(lambda db: rows.load(db, params.session_id))

    async def list(self, actor: Actor, params: wire.SessionsListParams) -> wire.SessionPage:
        """Latest first; the cursor holds the moment and number of the last one given."""
        before = _pair(params.cursor)

        def look(db: apsw.Connection) -> list[tuple[int, int, wire.Session]]:
            wheres, values = ["1"], []
            if before is not None:
                wheres.append("(updated_us, n) < (?, ?)")
                values += list(before)
            if params.agent is not None:
                wheres.append("agent = ?")
                values.append(params.agent)  # type: ignore[arg-type]
            found = db.execute(
                f"SELECT {rows.SESSION_COLUMNS} FROM sessions WHERE {' AND '.join(wheres)} "
                "ORDER BY updated_us DESC, n DESC LIMIT ?",
                (*values, params.limit),
            )
            return [(row[-1], row[0], rows.session_view(row)) for row in found]

        found = await self._journal.store.read(look)
        more = len(found) == params.limit
        return wire.SessionPage(
            items=tuple(session for _, _, session in found),
            next_cursor=f"{found[-1][0]}.{found[-1][1]}" if more else UNSET,
        )

    async def messages(self, actor: Actor, params: wire.SessionsMessagesParams) -> wire.MessagePage:
        """A page in the order things were said; the newest one when neither side is given."""
        if params.before is not None and params.after is not None:
            raise InvalidParams("give either before or after, not both", path="params.after")
        before, after = cursor_number(params.before), cursor_number(params.after)

        def look(db: apsw.Connection) -> list[wire.Message]:
            session = rows.load(db, params.session_id)
            if actor.agent is not None and session.agent != actor.agent:
                raise PermissionDenied(f"{actor.label} has no part in this session", needs="session")
            where, order, value = "1", "DESC", ()
            if after is not None:
                where, order, value = "m.n > ?", "ASC", (after,)  # type: ignore[assignment]
            elif before is not None:
                where, value = "m.n < ?", (before,)  # type: ignore[assignment]
            found = db.execute(
                f"SELECT {rows.MESSAGE_COLUMNS} FROM messages m WHERE m.session_id = ? AND {where} "
                f"ORDER BY m.n {order} LIMIT ?",
                (params.session_id, *value, params.limit),
            )
            page = [rows.message_view(row) for row in found]
            return page if order == "ASC" else page[::-1]

        page = await self._journal.store.read(look)
        cursor = str(page[-1].n if after is not None else page[0].n) if page else ""
        more = len(page) == params.limit and cursor != "1"
        return wire.MessagePage(items=tuple(page), next_cursor=cursor if more else UNSET)

    async def update(self, actor: Actor, params: wire.SessionsUpdateParams) -> wire.Session:
        def work(tx: Tx) -> wire.Session:
            session = rows.load_tx(tx, params.session_id)
            tx.execute(
                "UPDATE sessions SET title = ?, settings = ?, updated_us = ? WHERE session_id = ?",
                (
                    session.title if params.title is None else params.title,
                    _encode(_merged(session.settings, params.settings)),
                    tx.now_us,
                    params.session_id,
                ),
            )
            return self._updated(tx, params.session_id)

        return await self._journal.write(work)

    async def search(self, actor: Actor, params: wire.SessionsSearchParams) -> wire.SearchPage:
        """Messages that hold all the words, best first. Any text is a valid query."""
        return await self._journal.store.read(
            lambda db: session_export.search(db, params, cursor_number(params.cursor) or 0)
        )

    async def fork(self, actor: Actor, params: wire.SessionsForkParams) -> wire.Session:
        """A new session with a copy of the past; the two go their own ways from there."""

        def work(tx: Tx) -> wire.Session:
            source = rows.load_tx(tx, params.session_id)
            last = 1 << 62
            if params.message_id is not None:
                found = tx.execute(
                    "SELECT n FROM messages WHERE message_id = ? AND session_id = ?",
                    (params.message_id, params.session_id),
                )
                if not found:
                    raise NotFound(
                        f"the session has no message {params.message_id!r}", kind="message", id=params.message_id
                    )
                last = int(found[0][0])
            title = f"{source.title} (fork)" if params.title is None else params.title
            fork = self._insert(tx, source.agent, title[:200], source.settings, source.session_id, "fork")
            copies = tx.execute(
                "SELECT n, role, author, text, status, run_id, model, attachments, created_us FROM messages "
                "WHERE session_id = ? AND n <= ? ORDER BY n",
                (params.session_id, last),
            )
            for n, copy in enumerate(copies, 1):
                tx.execute(
                    "INSERT INTO messages(message_id, session_id, n, role, author, text, status, run_id, "
                    "model, attachments, created_us) VALUES (?,?,?,?,?,?,?,?,?,?,?)",
                    (self._ids.new("msg"), fork.session_id, n, *copy[1:]),
                )
            tx.execute(
                "UPDATE sessions SET messages = ?, last_n = ? WHERE session_id = ?",
                (len(copies), len(copies), fork.session_id),
            )
            return self._updated(tx, fork.session_id)

        return await self._journal.write(work)

    async def clear(self, actor: Actor, params: wire.SessionIdParams) -> wire.Session:
        """Forget what was said. A run that is on is cancelled first: its answer would have no question."""
        await self._end_runs(params.session_id, "the session was cleared")

        def work(tx: Tx) -> wire.Session:
            rows.load_tx(tx, params.session_id)
            tx.execute("DELETE FROM messages WHERE session_id = ?", (params.session_id,))
            tx.execute(
                "UPDATE sessions SET messages = 0, updated_us = ? WHERE session_id = ?",
                (tx.now_us, params.session_id),
            )
            return self._updated(tx, params.session_id)

        return await self._journal.write(work, then=lambda _: self._runs.forget_session(params.session_id))

    async def delete(self, actor: Actor, params: wire.SessionIdParams) -> Empty:
        await self._end_runs(params.session_id, "the session was deleted")

        def work(tx: Tx) -> None:
            rows.load_tx(tx, params.session_id)
            tx.execute("DELETE FROM messages WHERE session_id = ?", (params.session_id,))
            tx.execute("DELETE FROM sessions WHERE session_id = ?", (params.session_id,))
            data = types.SessionDeletedData(session_id=params.session_id)
            tx.emit(entry(f"session:{params.session_id}", "session.deleted", data, seals=True))

        await self._journal.write(work, then=lambda _: self._runs.forget_session(params.session_id))
        return Empty()

    async def _end_runs(self, session_id: str, reason: str) -> None:
        live = [run for run in self._runs.book.live.values() if run.session_id == session_id]
        for run in live:
            self._runs.stop(run, "cancelled", reason)
        for run in live:
            await run.done.wait()

    async def export(self, actor: Actor, params: wire.SessionsExportParams) -> wire.SessionsExportResult:
        """One piece at a time, so that a session of any length fits into messages of bounded size."""
        after = cursor_number(params.cursor) or 0
        return await self._journal.store.read(lambda db: session_export.export(db, params, after))

    async def typing(self, actor: Actor, params: wire.SessionsTypingParams) -> Empty:
        await self._journal.store.read(lambda db: rows.load(db, params.session_id))
        data = types.SessionTypingData(session_id=params.session_id, author=actor.label, typing=params.typing)
        self._journal.publish_nowait(f"session:{params.session_id}", "session.typing", _encode(data))
        return Empty()


def _merged(old: wire.SessionSettings, new: wire.SessionSettings | None) -> wire.SessionSettings:
    """What is absent stays, what is null goes back to the agent's definition."""
    if new is None:
        return old
    changes = {
        field.name: UNSET if getattr(new, field.name) is None else getattr(new, field.name)
        for field in msgspec.structs.fields(wire.SessionSettings)
        if getattr(new, field.name) is not UNSET
    }
    return msgspec.structs.replace(old, **changes)


def _pair(cursor: str | None) -> tuple[int, int] | None:
    if cursor is None:
        return None
    first, dot, second = cursor.partition(".")
    if not (dot and first.isdigit() and second.isdigit()):
        raise InvalidParams("not a cursor: give back next_cursor as it came", path="params.cursor")
    return int(first), int(second)
