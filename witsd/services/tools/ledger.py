"""The calls of tools that act, as rows: begun before they act and ended after, so that a crash between is known.

With an ``idempotency_key`` the row is found again: a call that is repeated gets what the first one answered, waits
for it, or hears that it may have been done.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import attrs
import msgspec

from witsd.journal.event import entry
from witsd.journal.journal import Tx
from witsd.values.actor import Actor
from witsd.values.errors import Conflict
from witsd.values.wire.event_types import AuditData
from witsd.values.wire.tools import ToolsCallResult

_encode = msgspec.json.Encoder(order="deterministic").encode
_result = msgspec.json.Decoder(ToolsCallResult).decode

#: ``waiting``: for an approval; ``running``: it acts; ``done``; ``interrupted``: nobody knows how far it came.
State = Literal["waiting", "running", "done", "interrupted"]


@attrs.frozen
class Entry:
    """A row."""

    call_id: str
    state: State
    approval_id: str | None
    result: ToolsCallResult | None


def digest(tool: str, version: str, arguments: dict[str, Any], cwd: str | None, actor: Actor) -> bytes:
    """What an approval is bound to."""
    return hashlib.sha256(_encode([tool, version, arguments, cwd, actor.identity])).digest()


def find(tx: Tx, actor: Actor, key: str, hash_: bytes) -> Entry | None:
    """The call that came with this key before. Raises ``Conflict`` where it was another call."""
    rows = tx.execute(
        "SELECT call_id, state, approval_id, result, hash FROM tool_calls WHERE actor = ? AND key = ?",
        (actor.identity, key),
    )
    if not rows:
        return None
    call_id, state, approval_id, result, known = rows[0]
    if known != hash_:
        raise Conflict(
            f"the idempotency_key {key!r} was used for another call: take a fresh key", key=key
        )
    return Entry(call_id, state, approval_id, None if result is None else _result(result))


def insert(
    tx: Tx, call_id: str, actor: Actor, key: str | None, hash_: bytes, tool: str, run_id: str | None
) -> None:
    tx.execute(
        "INSERT INTO tool_calls(call_id, actor, key, hash, tool, run_id, state, created_us) VALUES (?,?,?,?,?,?,?,?)",
        (call_id, actor.identity, key, hash_, tool, run_id, "waiting", tx.now_us),
    )


def begin(tx: Tx, call_id: str, actor: Actor, tool: str) -> bool:
    """From here on it acts; False where it has begun already, by somebody else with the same key."""
    begun = tx.execute(
        "UPDATE tool_calls SET state = 'running' WHERE call_id = ? AND state = 'waiting' RETURNING approval_id",
        (call_id,),
    )
    if not begun:
        return False
    tx.execute("UPDATE approvals SET executed = 'running' WHERE approval_id = ?", begun[0])
    tx.emit(entry("audit", "audit.call", AuditData(actor=actor.label, method="tools/call", target=tool)))
    return True


def undone_statements(call_id: str) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    """It was begun for a caller who had gone by then: it has not acted, and may be begun again."""
    return (
        (
            "UPDATE approvals SET executed = 'no' "
            "WHERE approval_id = (SELECT approval_id FROM tool_calls WHERE call_id = ?)",
            (call_id,),
        ),
        ("UPDATE tool_calls SET state = 'waiting' WHERE call_id = ? AND state = 'running'", (call_id,)),
    )


def end_statements(
    call_id: str, state: State, result: ToolsCallResult | None
) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    """How it ended, to be written whatever else happens."""
    executed = "done" if state == "done" else "may_have_executed"
    return (
        (
            "UPDATE approvals SET executed = ? "
            "WHERE approval_id = (SELECT approval_id FROM tool_calls WHERE call_id = ?)",
            (executed, call_id),
        ),
        (
            # What nobody can ask for again is not kept.
            "UPDATE tool_calls SET state = ?, result = CASE WHEN key IS NULL THEN NULL ELSE ? END WHERE call_id = ?",
            (state, None if result is None else _encode(result), call_id),
        ),
    )
