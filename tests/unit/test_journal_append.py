"""What ``append``, ``append_nowait`` and ``write`` promise: order, no gap, all or nothing, commit before publish."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.support.journal import (
    PATIENCE_S,
    assert_contiguous,
    events_in_file,
    journal_at,
    meta_work,
    note,
    put_meta,
    stored,
    table,
    text,
)
from witsd.journal.journal import Journal, Ticket, Tx
from witsd.values.errors import LimitExceeded


async def settled(*tickets: Ticket[None]) -> list[BaseException | None]:
    """Wait for all; what each raised."""
    outcomes: list[BaseException | None] = []
    with trio.fail_after(PATIENCE_S):
        for ticket in tickets:
            try:
                await ticket.wait()
                outcomes.append(None)
            except Exception as error:  # noqa: BLE001 - what it was is what the tests look at
                outcomes.append(error)
    return outcomes


async def metas(journal: Journal) -> set[str]:
    return {key for (key,) in await table(journal, "SELECT key FROM meta")}


async def test_append_returns_what_was_committed(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "j.db") as journal:
        first = await journal.append(note("run:a", "1"), note("run:b", "2"), note("run:a", "3"))
        second = await journal.append(note("run:b", "4"), statements=[put_meta("k", "v")])
        assert [(e.stream, e.seq, e.pos, text(e)) for e in (*first, *second)] == [
            ("run:a", 1, 1, "1"),
            ("run:b", 1, 2, "2"),
            ("run:a", 2, 3, "3"),
            ("run:b", 2, 4, "4"),
        ]
        assert await table(journal, "SELECT value FROM meta WHERE key = 'k'") == [("v",)]
        assert await table(journal, "SELECT last_pos, events FROM journal") == [(4, 4)]
        assert [(e.pos, e.data, e.time_us) for e in await stored(journal)] == [
            (e.pos, e.data, e.time_us) for e in (*first, *second)
        ]
    assert len(events_in_file(tmp_path / "j.db")) == 4


async def test_what_is_queued_keeps_its_order_and_streams_have_no_gap(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "j.db") as journal:
        tickets = [journal.append_nowait(note(f"run:{n % 7}", n)) for n in range(500)]
        await journal.append(note("run:0", "last"))
        assert await settled(*tickets) == [None] * 500
        events = await stored(journal)
    assert [text(e) for e in events] == [*range(500), "last"]
    assert [e.pos for e in events] == list(range(1, 502))
    assert assert_contiguous(events)["run:6"] == 71


async def test_many_appenders_leave_no_gap(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "j.db") as journal:

        async def append(who: int) -> None:
            for n in range(40):
                (event,) = await journal.append(note(f"run:{who % 3}", [who, n]))
                assert event.seq

        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                for who in range(8):
                    nursery.start_soon(append, who)
        events = await stored(journal)
    assert [e.pos for e in events] == list(range(1, 321))
    assert_contiguous(events)
    for who in range(8):
        assert [text(e)[1] for e in events if text(e)[0] == who] == list(range(40))


async def test_seq_and_pos_go_on_after_reopening(tmp_path: Path) -> None:
    for expected in (1, 2, 3):
        async with journal_at(tmp_path / "j.db") as journal:
            (event,) = await journal.append(note("run:a"))
            assert (event.seq, event.pos) == (expected, expected)
            assert journal.hub.pos == expected


async def test_counters_are_read_again_once_too_many_were_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("witsd.journal.journal._COUNTERS", 5)
    async with journal_at(tmp_path / "j.db") as journal:
        for _ in range(3):
            for n in range(20):
                await journal.append(note(f"run:{n}"))
        assert set(assert_contiguous(await stored(journal)).values()) == {3}


async def test_nobody_sees_an_event_before_it_is_committed(tmp_path: Path) -> None:
    """Whenever something is published, another connection can read it already."""
    async with journal_at(tmp_path / "j.db") as journal:
        looked = 0

        async def watch() -> None:
            nonlocal looked
            while journal.hub.pos < 300:
                await journal.hub.wait()
                pos = journal.hub.pos
                assert await table(journal, "SELECT 1 FROM events WHERE pos = ?", (pos,)) == [(1,)]
                looked += 1

        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch)
                for n in range(300):
                    await journal.append(note("run:a", n))
        assert looked > 1


async def test_published_is_what_was_appended_in_its_order(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "j.db") as journal:
        for n in range(50):
            journal.append_nowait(note("run:a", n))
        await journal.append(note("run:b"))
        journal.publish_nowait("session:s", "session.typing", b"{}")
        shown = list(journal.hub.slice(journal.hub.start, journal.hub.end))
        assert [e.pos for e in shown] == [*range(1, 52), 0]
        assert (shown[-1].stream, shown[-1].seq) == ("session:s", 0)
        assert len(await stored(journal)) == 51


async def test_write_returns_what_work_returns_with_its_events(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "j.db") as journal:

        def work(tx: Tx) -> list[tuple[object, ...]]:
            tx.emit(note("run:a", "first"))
            tx.execute(*put_meta("k", str(tx.now_us)))
            tx.emit(note("run:a", "second"))
            return tx.execute("SELECT key FROM meta")

        assert await journal.write(work) == [("k",)]
        assert [text(e) for e in await stored(journal)] == ["first", "second"]
        assert [e.pos for e in journal.hub.slice(0, journal.hub.end)] == [1, 2]


async def test_work_that_raises_is_undone_alone(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "j.db") as journal:

        def bad(tx: Tx) -> None:
            meta_work("bad")(tx)
            raise LookupError("changed its mind")

        before = journal.append_nowait(note("run:a", "before"), statements=[put_meta("before")])
        failed = journal._submit(Ticket((), (), bad, False))
        good = journal._submit(Ticket((), (), meta_work("good"), False))
        after = journal.append_nowait(note("run:a", "after"), statements=[put_meta("after")])
        outcomes = await settled(before, failed, good, after)
        assert [type(o) for o in outcomes] == [type(None), LookupError, type(None), type(None)]
        assert await metas(journal) == {"before", "good", "after"}
        assert [text(e) for e in await stored(journal)] == ["before", "good", "after"]
        assert_contiguous(await stored(journal))


async def test_a_statement_sees_what_the_tickets_before_it_did(tmp_path: Path) -> None:
    """Statements are gathered for ``executemany``; work in between still finds them done, in order."""
    async with journal_at(tmp_path / "j.db") as journal:
        journal.append_nowait(note("run:a"), statements=[put_meta("k", "1")])
        journal.append_nowait(note("run:a"), statements=[("UPDATE meta SET value = value || '2'", ())])
        journal.append_nowait(note("run:a"), statements=[put_meta("l", "x")])
        seen = await journal.write(lambda tx: tx.execute("SELECT key, value FROM meta ORDER BY key"))
        assert seen == [("k", "12"), ("l", "x")]


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(put_meta("taken"), id="constraint"),
        pytest.param(("NOT SQL", ()), id="syntax"),
        pytest.param(("INSERT INTO meta VALUES (?, ?)", ("one",)), id="too-few-values"),
        pytest.param(("INSERT INTO meta VALUES (?, ?)", ("k", object())), id="no-such-value"),
        pytest.param(("INSERT INTO meta VALUES (?, ?)", ("k", 1 << 70)), id="too-big-a-number"),
        pytest.param(("INSERT INTO meta VALUES (?, ?)", ("k", "\ud800")), id="half-a-character"),
    ],
)
async def test_a_bad_statement_takes_only_its_own_ticket_down(
    tmp_path: Path, bad: tuple[str, tuple[object, ...]]
) -> None:
    async with journal_at(tmp_path / "j.db") as journal:
        await journal.append(note("run:a", "0"), statements=[put_meta("taken")])
        tickets = [
            journal.append_nowait(note("run:a", "1"), statements=[put_meta("one")]),
            journal.append_nowait(note("run:a", "lost"), note("run:new", "lost"), statements=[put_meta("two"), bad]),
            journal._submit(Ticket((), (), meta_work("three"), False)),
            journal.append_nowait(note("run:a", "2"), statements=[put_meta("four")]),
        ]
        outcomes = await settled(*tickets)
        assert [o is None for o in outcomes] == [True, False, True, True]
        assert await metas(journal) == {"taken", "one", "three", "four"}
        assert [text(e) for e in await stored(journal)] == ["0", "1", "three", "2"]
        (event,) = await journal.append(note("run:new", "first of its stream"))
        assert event.seq == 1
        assert assert_contiguous(await stored(journal)) == {"run:a": 3, "work": 1, "run:new": 1}
        assert [e.pos for e in journal.hub.slice(0, journal.hub.end)] == [1, 2, 3, 4, 5]


async def test_closing_commits_everything_that_is_queued(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "j.db") as journal:
        for n in range(5000):
            journal.append_nowait(note("run:a", n))
    events = events_in_file(tmp_path / "j.db")
    assert [text(e) for e in events] == list(range(5000))
    assert_contiguous(events)


async def test_closing_by_cancellation_commits_too(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        async with journal_at(tmp_path / "j.db") as journal:
            for n in range(100):
                journal.append_nowait(note("run:a", n))
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert len(events_in_file(tmp_path / "j.db")) == 100


async def test_after_closing_nothing_more_is_taken(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "j.db") as journal:
        pass
    with pytest.raises(LimitExceeded) as refused:
        journal.append_nowait(note("run:a"))
    assert refused.value.data["limit"] == "shutdown"


async def test_a_cancelled_appender_leaves_the_journal_whole(tmp_path: Path) -> None:
    """Whoever gives up waiting gets no say in what is committed, and harms nobody."""
    async with journal_at(tmp_path / "j.db") as journal:
        with trio.CancelScope() as scope:
            scope.cancel()
            await journal.append(note("run:a", "given up"))
        await journal.append(note("run:a", "next"))
        assert [text(e) for e in await stored(journal)] == ["given up", "next"]


async def test_producers_are_asked_to_pause_and_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("witsd.journal.journal.HIGH_WATER", 100)
    monkeypatch.setattr("witsd.journal.journal.MAX_BATCH", 10)
    async with journal_at(tmp_path / "j.db") as journal:
        tickets = [journal.append_nowait(note("run:a", n)) for n in range(150)]
        assert journal.congested
        with trio.fail_after(PATIENCE_S):
            await journal.wait_room()
        assert not journal.congested
        assert tickets[40]._done.is_set()
        assert not tickets[-1]._done.is_set()


async def test_what_follows_a_write_happens_although_its_caller_has_gone(tmp_path: Path) -> None:
    followed: list[str] = []

    def refuse(tx: Tx) -> str:
        raise LimitExceeded("no", limit="x", value=0)

    async with journal_at(tmp_path / "j.db") as journal:
        with trio.CancelScope() as scope:
            scope.cancel()
            await journal.write(meta_work("k"), then=followed.append)
        with trio.CancelScope() as scope:
            scope.cancel()
            await journal.write(refuse, then=followed.append)
        assert followed == [], "nothing is committed yet"
        assert await journal.write(meta_work("l"), then=followed.append) == "l"
        assert followed == ["k", "l"]
