"""Folding and trimming: what goes, what stays, and that a reader can always tell."""

from __future__ import annotations

import json
from pathlib import Path

import apsw
import pytest
import trio

from tests.doubles.clock import FakeClock
from tests.support.faulty_vfs import faulty_disk
from tests.support.journal import PATIENCE_S, assert_contiguous, journal_at, note, stored, table, text
from witsd.journal.event import Entry, Event
from witsd.journal.journal import Journal
from witsd.journal.upkeep import Retention, compact_due, fold, keep_up, tidy, trim_due

NOW = FakeClock().wall
FOR_EVER = Retention(max_age_s=1e9, max_bytes=1 << 40, compact_after_s=0)


def delta(stream: str, piece: str) -> Entry:
    return note(stream, piece, kind="item.delta")


async def a_run(journal: Journal, name: str, *pieces: str, over: bool = True) -> None:
    """A run that streams ``pieces``: 3 + len(pieces) events when it is over."""
    await journal.append(note(name, "begun", kind="run.started"))
    for piece in pieces:
        await journal.append(delta(name, piece))
    if over:
        await journal.append(note(name, "".join(pieces), kind="item.completed"))
        await journal.append(note(name, "done", kind="run.completed", seals=True))


def ranges(events: list[Event]) -> list[tuple[str, int, int]]:
    return [(e.type, e.first_seq or e.seq, e.seq) for e in events]


async def totals(journal: Journal) -> None:
    """The row of totals says what is there."""
    ((events, size),) = await table(journal, "SELECT events, bytes FROM journal")
    ((counted, summed),) = await table(journal, "SELECT count(*), COALESCE(sum(length(data)), 0) FROM events")
    assert (events, size) == (counted, summed)


# ---- folding --------------------------------------------------------------------------------------------


async def test_folding_leaves_ranges_without_a_gap_and_the_text(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "j.db") as journal:
        await a_run(journal, "run:a", "one ", "two ", "three")
        before = await stored(journal)
        assert await tidy(journal, FOR_EVER, NOW + 1) == (3, 0)
        events = await stored(journal)
        assert ranges(events) == [("run.started", 1, 1), ("item.completed", 2, 5), ("run.completed", 6, 6)]
        assert text(events[1]) == "one two three"
        assert "".join(text(e) for e in before if e.type == "item.delta") == text(events[1])
        assert_contiguous(events)
        await totals(journal)
        # Whoever had seen the first two of the deltas goes on as well.
        assert_contiguous(events[1:], from_seq={"run:a": 3})


async def test_folding_several_items_side_by_side(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "j.db") as journal:
        run = "run:a"
        for item in (
            note(run, kind="item.started"), delta(run, "a"), delta(run, "b"), note(run, kind="item.updated"),
            note(run, kind="item.started"), delta(run, "c"), note(run, kind="item.completed"),
            note(run, kind="item.completed"), delta(run, "late"), note(run, kind="run.completed", seals=True),
        ):  # fmt: skip
            await journal.append(item)
        assert await tidy(journal, FOR_EVER, NOW + 1) == (4, 0)
        events = await stored(journal)
        assert [(first, last) for _, first, last in ranges(events)] == [
            (1, 1), (2, 4), (5, 5), (6, 7), (8, 8), (9, 10),
        ]  # fmt: skip
        assert_contiguous(events)


async def test_deltas_at_the_very_end_stay(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "j.db") as journal:
        await a_run(journal, "run:a", "one", "two", over=False)
        ((stream_id,),) = await table(journal, "SELECT stream_id FROM streams")
        assert await journal.write(lambda tx: fold(tx, stream_id)) == 0
        assert len(await stored(journal)) == 3


async def test_folding_twice_and_after_more_has_come(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "j.db") as journal:
        await a_run(journal, "run:a", "one", "two")
        ((stream_id,),) = await table(journal, "SELECT stream_id FROM streams")
        for _ in range(2):
            await journal.write(lambda tx: fold(tx, stream_id))
        await journal.append(delta("run:a", "more"), note("run:a", kind="item.completed"))
        await journal.write(lambda tx: fold(tx, stream_id))
        events = await stored(journal)
        assert [(first, last) for _, first, last in ranges(events)] == [(1, 1), (2, 4), (5, 5), (6, 7)]
        await totals(journal)


async def test_folding_what_has_been_trimmed_in_part(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "j.db") as journal:
        await a_run(journal, "run:a", "1", "2", "3", "4")
        size = sum(len(e.data) for e in (await stored(journal))[:3])
        ((total,),) = await table(journal, "SELECT bytes FROM journal")
        assert await journal.write(lambda tx: trim_due(tx, 0, total - size)) == 3
        assert await tidy(journal, FOR_EVER, NOW + 1) == (2, 0)
        events = await stored(journal)
        assert ranges(events) == [("item.completed", 4, 6), ("run.completed", 7, 7)], "never before first_seq"
        assert await table(journal, "SELECT first_seq FROM streams") == [(4,)]
        await totals(journal)


async def test_only_what_is_over_for_long_enough_is_folded(tmp_path: Path) -> None:
    clock = FakeClock()
    retention = Retention(compact_after_s=60)
    async with journal_at(tmp_path / "j.db", clock=clock) as journal:
        await a_run(journal, "run:over", "x")
        await a_run(journal, "run:on", "x", over=False)
        clock.forward(59)
        assert await tidy(journal, retention, clock.wall) == (0, 0)
        clock.forward(1)
        assert await tidy(journal, retention, clock.wall) == (1, 0)
        clock.forward(1e6)
        assert await tidy(journal, retention, clock.wall) == (0, 0)
        assert [e.stream for e in await stored(journal) if e.type == "item.delta"] == ["run:on"]


async def test_more_streams_than_a_slice(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "j.db") as journal:
        for n in range(120):
            run = f"run:{n}"
            await journal.append(delta(run, "x"), note(run, "x"), note(run, kind="run.completed", seals=True))
        assert await journal.write(lambda tx: compact_due(tx, NOW + 1)) == (50, 50)
        assert await tidy(journal, FOR_EVER, NOW + 1) == (70, 0)
        assert all(e.type != "item.delta" for e in await stored(journal))
        await totals(journal)


# ---- trimming -------------------------------------------------------------------------------------------


async def test_trimming_moves_first_seq_and_the_totals(tmp_path: Path) -> None:
    clock = FakeClock()
    async with journal_at(tmp_path / "j.db", clock=clock) as journal:
        for n in range(4):
            await journal.append(note("session:a", n), note("session:b", n))
            clock.forward(10)
        retention = Retention(max_age_s=25)  # the first two rounds are 40 and 30 seconds old
        assert await tidy(journal, retention, clock.wall) == (0, 4)
        assert [(e.stream, e.seq) for e in await stored(journal)] == [
            ("session:a", 3), ("session:b", 3), ("session:a", 4), ("session:b", 4),
        ]  # fmt: skip
        assert await table(journal, "SELECT name, first_seq, last_seq FROM streams ORDER BY name") == [
            ("session:a", 3, 4), ("session:b", 3, 4),
        ]  # fmt: skip
        assert await table(journal, "SELECT last_pos, trimmed_pos FROM journal") == [(8, 4)]
        await totals(journal)
        assert await tidy(journal, retention, clock.wall) == (0, 0)
        assert await table(journal, "SELECT trimmed_pos FROM journal") == [(4,)]


async def test_trimming_by_size_takes_the_oldest_and_no_more_than_needed(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "j.db") as journal:
        for n in range(10):
            await journal.append(Entry("session:a", "x", json.dumps({"text": n, "pad": "x" * 80}).encode()))
        size = len((await stored(journal))[0].data)
        assert await tidy(journal, Retention(max_bytes=3 * size), NOW) == (0, 7)
        assert [text(e) for e in await stored(journal)] == [7, 8, 9]
        await totals(journal)


async def test_the_newest_event_stays_and_pos_is_never_given_twice(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    async with journal_at(path) as journal:
        for n in range(10):
            await journal.append(note("session:a", n))
        assert await tidy(journal, Retention(max_age_s=0, max_bytes=0), NOW + 1) == (0, 9)
        assert [(e.seq, e.pos) for e in await stored(journal)] == [(10, 10)]
    async with journal_at(path) as journal:
        assert journal.hub.pos == 10
        (event,) = await journal.append(note("session:a"))
        assert (event.seq, event.pos) == (11, 11)
        assert await tidy(journal, Retention(max_age_s=0, max_bytes=0), NOW + 1) == (0, 1)
    async with journal_at(path) as journal:
        (event,) = await journal.append(note("session:b"))
        assert (event.seq, event.pos) == (1, 12)


async def test_runs_that_are_not_over_are_never_trimmed(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "j.db") as journal:
        await a_run(journal, "run:on", "a", "b", over=False)
        await a_run(journal, "run:over", "c")
        await journal.append(note("session:s"), note("session:s"))
        assert await tidy(journal, Retention(max_age_s=0, max_bytes=0, compact_after_s=1e9), NOW + 1) == (0, 5)
        assert [(e.stream, e.seq) for e in await stored(journal)] == [
            ("run:on", 1), ("run:on", 2), ("run:on", 3), ("session:s", 2),
        ]  # fmt: skip
        await journal.append(note("run:on", kind="run.completed", seals=True), note("session:s"))
        await tidy(journal, Retention(max_age_s=0, max_bytes=0, compact_after_s=1e9), NOW + 1)
        assert [e.stream for e in await stored(journal)] == ["session:s"]
        assert await table(journal, "SELECT first_seq FROM streams WHERE name = 'run:on'") == [(5,)]


async def test_more_events_than_a_slice(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "j.db") as journal:
        for n in range(50):
            await journal.append(*(note("session:a", n) for _ in range(101)))
        assert await journal.write(lambda tx: trim_due(tx, NOW + 1, 0)) == 2000
        assert await tidy(journal, Retention(max_age_s=0), NOW + 1) == (0, 5050 - 2000 - 1)
        await totals(journal)


async def test_old_idempotency_keys_go_with_the_events(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "j.db") as journal:
        insert = "INSERT INTO idempotency VALUES ('owner', 'runs/start', ?, x'', x'', ?)"
        await journal.append(statements=[(insert, ("old", NOW - 11_000_000)), (insert, ("new", NOW - 9_000_000))])
        await tidy(journal, Retention(max_age_s=10), NOW)
        assert await table(journal, "SELECT key FROM idempotency") == [("new",)]


async def test_a_failure_is_logged_and_upkeep_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The disk fails under one round; the next one does the work."""
    with faulty_disk() as disk:
        async with journal_at(tmp_path / "j.db") as journal:
            await a_run(journal, "run:a", "one", "two")
            disk.fail("write", lasting=False, error=apsw.FullError)
            clock = FakeClock()
            clock.forward(1)
            retention = Retention(compact_after_s=0, every_s=0.01)
            with trio.fail_after(PATIENCE_S):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(keep_up, journal, retention, clock)
                    while len(await stored(journal)) > 3:
                        pass
                    nursery.cancel_scope.cancel()
    assert any(r.getMessage().startswith("journal.upkeep_failed") for r in caplog.records)
