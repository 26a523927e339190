"""Calls that act: what becomes of one whose caller goes, what an answer is bound to, and what a delete leaves of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.doubles.clock import FakeClock
from tests.support.journal import PATIENCE_S, journal_at, table
from witsd.journal.journal import Journal
from witsd.services.approvals import Approvals
from witsd.services.memory import redaction
from witsd.services.tools.acting import Acting, Begun, Call
from witsd.services.tools.defined import made
from witsd.services.tools.results import failure
from witsd.values.actor import OWNER
from witsd.values.errors import Conflict
from witsd.values.ids import TimeOrderedIds
from witsd.values.wire.tools import ToolsDefineParams

SECRET = "The zebracornish umbrella belongs to Quuxolomew"


@asynccontextmanager
async def acting_at(path: Path) -> AsyncIterator[tuple[Journal, Acting]]:
    """Without runs: none of these calls is one's."""
    clock = FakeClock()
    ids = TimeOrderedIds(clock.wall_us)
    async with journal_at(path) as journal:
        book: Any = None
        yield journal, Acting(journal, Approvals(journal, clock, ids), book, ids)


def call(call_id: str, *, key: str | None, ask: bool = False, version: str = "") -> Call:
    return Call(
        call_id=call_id,
        tool="act",
        arguments={"text": SECRET},
        actor=OWNER,
        cwd=None,
        run=None,
        ask=ask,
        key=key,
        timeout_s=None,
        version=version,
    )


async def gone(acting: Acting, wanted: Call) -> None:
    """Call, and go before it is written that it was begun."""
    with trio.CancelScope() as scope:
        scope.cancel()
        await acting.begin(wanted)


async def test_what_was_begun_for_nobody_can_be_begun_again(tmp_path: Path) -> None:
    async with acting_at(tmp_path / "j.db") as (_, acting):
        await gone(acting, call("call_1", key="k"))
        with trio.fail_after(PATIENCE_S):
            assert await acting.begin(call("call_2", key="k")) == Begun("call_1")
        acting.end("call_1", failure("it was called"))
        assert await acting.begin(call("call_3", key="k")) == failure("it was called")


async def test_nobody_is_asked_for_one_who_has_gone(tmp_path: Path) -> None:
    async with acting_at(tmp_path / "j.db") as (journal, acting):
        await gone(acting, call("call_1", key=None, ask=True))
        with trio.fail_after(PATIENCE_S):
            await journal.write(lambda tx: None)  # behind which comes what undoes the first
            await journal.write(lambda tx: None)
        assert await table(journal, "SELECT status FROM approvals") == [("cancelled",)]


async def test_an_answer_is_for_the_code_that_was_asked_for(tmp_path: Path) -> None:
    one, other = (
        made("act", "owner", ToolsDefineParams(name="act", description="", code=code)).version for code in ("1", "2")
    )
    assert one != other
    async with acting_at(tmp_path / "j.db") as (_, acting):
        await gone(acting, call("call_1", key="k", ask=True, version=one))
        with trio.fail_after(PATIENCE_S), pytest.raises(Conflict):
            await acting.begin(call("call_2", key="k", ask=True, version=other))


async def test_a_text_that_is_deleted_is_blotted_out_of_requests_answers_and_rules(tmp_path: Path) -> None:
    async with acting_at(tmp_path / "j.db") as (journal, acting):
        await gone(acting, call("call_1", key="k", ask=True))
        assert await acting.begin(call("call_2", key="done")) == Begun("call_2")
        acting.end("call_2", failure(f"it said: {SECRET}"))
        rule = ("rule_1", "a", "act", "allow", b"[]", b'{"text":"%s"}' % SECRET.encode(), "owner", 0)
        await journal.write(lambda tx: tx.execute("INSERT INTO tool_rules VALUES (?,?,?,?,?,?,?,?)", rule))
        texts = [redaction.Gone(SECRET, None, None, None)]
        places = await journal.store.read(lambda db: redaction.search(db, texts))
        assert await journal.write(lambda tx: redaction.blot_rows(tx, texts, places)) == 3
        held = [
            bytes(row[0]).decode()
            for sql in (
                "SELECT arguments FROM approvals",
                "SELECT result FROM tool_calls WHERE result IS NOT NULL",
                "SELECT arguments FROM tool_rules",
            )
            for row in await table(journal, sql)
        ]
        assert len(held) == 3
        assert all("[deleted]" in text and "Quux" not in text for text in held), held
