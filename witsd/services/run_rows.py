"""Runs and items as rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apsw
import msgspec

from witsd.journal.journal import Tx
from witsd.services.run_state import LiveRun, _moment
from witsd.values.clock import rfc3339
from witsd.values.ids import AgentName, RunId, SessionId
from witsd.values.items import Item
from witsd.values.spec import Budget
from witsd.values.wire.budgets import BudgetState
from witsd.values.wire.common import UNSET
from witsd.values.wire.runs import ErrorInfo, Run, RunInput, Usage

_encode = msgspec.json.Encoder().encode
_items = msgspec.json.Decoder(Item)

UPSERT_ITEM = (
    "INSERT INTO items(run_id, n, item_id, data) VALUES (?,?,?,?) "
    "ON CONFLICT(run_id, item_id) DO UPDATE SET data = excluded.data"
)
_COLUMNS = (
    "n, run_id, agent, session_id, status, input, output, error, reason, usage, created_us, started_us, ended_us, "
    "parent, spent"
)


def item_statement(run_id: str, n: int, item: Item) -> tuple[str, Sequence[Any]]:
    return UPSERT_ITEM, (run_id, n, item.item_id, _encode(item))


def insert(tx: Tx, run: LiveRun) -> None:
    tx.execute(
        "INSERT INTO runs(run_id, agent, session_id, status, input, usage, stream, timeout_s, actor, created_us, "
        "parent, budget) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
        (
            run.run_id,
            run.agent,
            run.session_id,
            run.status,
            _encode(run.input),
            _encode(run.usage),
            run.stream,
            run.timeout_s,
            run.actor,
            run.created_us,
            run.parent,
            _encode(run.budget),
        ),
    )


def finish(tx: Tx, run: LiveRun) -> None:
    budget = run.final
    tx.execute(
        "UPDATE runs SET status = ?, output = ?, error = ?, reason = ?, usage = ?, spent = ?, ended_us = ? "
        "WHERE run_id = ?",
        (
            run.status,
            None if run.output is UNSET else _encode(run.output),
            None if run.error is None else _encode(run.error),
            run.reason or None,
            _encode(run.usage),
            None if budget in (UNSET, None) else _encode(budget),
            run.ended_us,
            run.run_id,
        ),
    )


def load(db: apsw.Connection, run_id: str) -> Run | None:
    """A run with its items, as written."""
    row = db.execute(f"SELECT {_COLUMNS} FROM runs WHERE run_id = ?", (run_id,)).fetchone()
    return None if row is None else view(row, load_items(db, run_id))


def asked_by(db: apsw.Connection, run_id: str) -> tuple[str, str] | None:
    """Its agent, and the label of the actor that started it."""
    return db.execute("SELECT agent, actor FROM runs WHERE run_id = ?", (run_id,)).fetchone()


def load_items(db: apsw.Connection, run_id: str) -> tuple[Item, ...]:
    return tuple(
        _items.decode(data) for (data,) in db.execute("SELECT data FROM items WHERE run_id = ? ORDER BY n", (run_id,))
    )


def view(row: Sequence[Any], items: tuple[Item, ...]) -> Run:
    _, run_id, agent, session_id, status, given, output, error, reason, usage, *rest = row
    created, started, ended, parent, spent = rest
    return Run(
        run_id=run_id,
        agent=agent,
        session_id=session_id or UNSET,
        status=status,
        input=msgspec.json.decode(given, type=RunInput),
        output=UNSET if output is None else msgspec.json.decode(output),
        error=UNSET if error is None else msgspec.json.decode(error, type=ErrorInfo),
        reason=reason or UNSET,
        items=items,
        usage=msgspec.json.decode(usage, type=Usage),
        parent_run_id=parent or UNSET,
        budget=UNSET if spent is None else msgspec.json.decode(spent, type=BudgetState),
        created_at=rfc3339(created),
        started_at=_moment(started),
        ended_at=_moment(ended),
    )


def page(
    db: apsw.Connection,
    *,
    before_n: int | None,
    limit: int,
    agent: str | None,
    session_id: str | None,
    status: str | None,
) -> list[tuple[int, Run]]:
    """Latest first, without items: ``(n, run)``, where ``n`` is the cursor."""
    wheres, values = ["1"], []
    for clause, value in (
        ("n < ?", before_n),
        ("agent = ?", agent),
        ("session_id = ?", session_id),
        ("status = ?", status),
    ):
        if value is not None:
            wheres.append(clause)
            values.append(value)
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM runs WHERE {' AND '.join(wheres)} ORDER BY n DESC LIMIT ?", (*values, limit)
    )
    return [(row[0], view(row, ())) for row in rows]


def unfinished(db: apsw.Connection) -> list[LiveRun]:
    """Runs that were not over when the daemon ended, oldest first, without their items."""
    found = db.execute(
        "SELECT run_id, agent, session_id, status, input, usage, stream, timeout_s, actor, created_us, started_us, "
        "parent, budget "
        "FROM runs WHERE status IN ('queued', 'running', 'waiting') ORDER BY n"
    )
    return [
        LiveRun(
            run_id=RunId(run_id),
            agent=AgentName(agent),
            session_id=SessionId(session_id) if session_id else None,
            input=msgspec.json.decode(given, type=RunInput),
            actor=actor,
            stream=bool(stream),
            timeout_s=timeout_s,
            created_us=created,
            started_us=started,
            status=status,
            usage=msgspec.json.decode(usage, type=Usage),
            parent=RunId(parent) if parent else None,
            budget=Budget() if budget is None else msgspec.json.decode(budget, type=Budget),
        )
        for run_id, agent, session_id, status, given, usage, stream, timeout_s, actor, created, started, parent, budget
        in found
    ]


def counts(db: apsw.Connection) -> dict[str, int]:
    return dict(db.execute("SELECT status, count(*) FROM runs GROUP BY status"))
