"""Coalescing, with a real journal: what goes into one event, and that whoever waits for a tick gets one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio
import trio.testing

from witsd.journal.journal import Journal, open_journal
from witsd.journal.store import open_store
from witsd.services.deltas import Deltas
from witsd.values.clock import SystemClock

PATIENCE_S = 30


@asynccontextmanager
async def ticking(folder: Path) -> AsyncIterator[tuple[Deltas, Journal]]:
    with trio.fail_after(PATIENCE_S):
        async with (
            open_store(folder / "witsd.db") as store,
            open_journal(store, SystemClock(), epoch="e") as journal,
            trio.open_nursery() as nursery,
        ):
            deltas = Deltas(journal)
            nursery.start_soon(deltas.run)
            yield deltas, journal
            nursery.cancel_scope.cancel()


async def texts(journal: Journal, count: int) -> list[str]:
    """The texts of the first ``count`` events, once there are so many."""
    while journal.hub.end < count:
        await journal.hub.wait()
    return [msgspec.json.decode(event.data)["text"] for event in journal.hub.slice(0, count)]


async def test_what_is_read_when_the_tick_begins_goes_along(tmp_path: Path) -> None:
    async with ticking(tmp_path) as (deltas, journal):
        deltas.add("a", "run", "item", "one ")
        await deltas.wait_tick("a")
        deltas.add("a", "run", "item", "two")
        assert await texts(journal, 1) == ["one two"]


async def test_items_are_kept_apart(tmp_path: Path) -> None:
    async with ticking(tmp_path) as (deltas, journal):
        for item, text in (("x", "1"), ("y", "2"), ("x", "3")):
            deltas.add("a", "run", item, text)
        assert await texts(journal, 2) == ["13", "2"]


async def test_every_tick_that_is_waited_for_comes(tmp_path: Path) -> None:
    """Also when all that is pending goes out while every reader waits, and nobody else adds anything."""

    async def reader(agent: str) -> None:
        for number in range(5):
            deltas.add(agent, agent, "item", str(number))
            await deltas.wait_tick(agent)

    async with ticking(tmp_path) as (deltas, journal):
        async with trio.open_nursery() as readers:
            for agent in "abc":
                readers.start_soon(reader, agent)
        deltas.add("last", "last", "item", "!")
        seen: dict[str, str] = {}
        while "last" not in seen:
            await texts(journal, journal.hub.end + 1)
            seen = {}
            for event in journal.hub.slice(0, journal.hub.end):
                data = msgspec.json.decode(event.data)
                seen[data["run_id"]] = seen.get(data["run_id"], "") + data["text"]
        assert seen == {"a": "01234", "b": "01234", "c": "01234", "last": "!"}


async def test_an_agent_without_pending_text_does_not_wait(tmp_path: Path) -> None:
    async with ticking(tmp_path) as (deltas, journal):
        deltas.add("a", "run", "item", "one")
        with trio.testing.assert_no_checkpoints():
            await deltas.wait_tick("b")
        assert await texts(journal, 1) == ["one"]


async def test_what_is_about_to_be_replaced_goes_out_at_once(tmp_path: Path) -> None:
    async with ticking(tmp_path) as (deltas, journal):
        deltas.add("a", "run", "item", "one")
        deltas.flush("run", "item")
        deltas.flush("run", "item")
        deltas.add("a", "run", "item", "two")
        assert await texts(journal, 2) == ["one", "two"]
