"""The places where a subscriber could be cheated of an event, one by one: replay, ring, folding, trimming."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from tests.support.journal import PATIENCE_S, journal_at, note
from tests.support.subscribers import Reader, events_of
from witsd.journal.event import Event
from witsd.journal.hub import Hub
from witsd.journal.journal import Journal
from witsd.journal.upkeep import compact_due, trim_due
from witsd.services.events import Events
from witsd.values.errors import LimitExceeded, ResyncRequired

RUN = "run:a"
RING = 8


@pytest.fixture(autouse=True)
def _small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("witsd.services.events.PAGE", 3)


@attrs.define(eq=False)
class House:
    journal: Journal
    events: Events

    def reader(self, *streams: str, by: str) -> Reader:
        return Reader(self.events, streams, by)

    async def deltas(self, count: int, stream: str = RUN) -> None:
        for _ in range(count):
            await self.journal.append(note(stream, kind="item.delta"))

    async def finish(self, stream: str = RUN) -> None:
        await self.journal.append(note(stream), note(stream, kind="run.completed", seals=True))

    async def fold(self) -> None:
        await self.journal.write(lambda tx: compact_due(tx, 1 << 60))

    async def trim(self) -> None:
        """Everything but the newest event and unfinished runs."""
        await self.journal.write(lambda tx: trim_due(tx, 1 << 60, 0))

    async def caught_up(self, reader: Reader) -> None:
        with trio.fail_after(PATIENCE_S):
            await reader.until(lambda: reader.got != [] and reader.got[-1]["pos"] == self.journal.hub.pos)
        assert reader.lagged is None

    async def blocked(self, reader: Reader) -> None:
        """Wait until the subscription has something that its reader does not take."""
        with trio.fail_after(PATIENCE_S):
            while reader.line is None or not reader.line.waiting:
                await self.journal.store.read(lambda db: None)

    async def lagged(self, reader: Reader) -> None:
        with trio.fail_after(PATIENCE_S):
            await reader.until(lambda: False)

    def let(self, reader: Reader) -> None:
        assert reader.line is not None
        reader.line.set_shut(False)


@asynccontextmanager
async def house(path: Path, hub: Hub | None = None) -> AsyncIterator[House]:
    ring = hub or Hub(0, max_events=RING)
    async with journal_at(path / "j.db", hub=ring) as journal, events_of(journal) as events:
        yield House(journal, events)


BOTH = pytest.mark.parametrize(
    ("by", "streams"), [("seq", (RUN,)), ("pos", (RUN,)), ("pos", ("run:*",))], ids=["seq", "pos-named", "pos-pattern"]
)


@BOTH
async def test_backlog_then_tail(tmp_path: Path, by: str, streams: tuple[str, ...]) -> None:
    async with house(tmp_path) as h:
        await h.deltas(30)
        reader = h.reader(*streams, by=by)
        result = await reader.subscribe()
        assert (result.pos, result.resync, result.epoch) == (30, False, "e")
        await h.caught_up(reader)
        await h.deltas(1)
        await h.caught_up(reader)
        assert [e["seq"] for e in reader.got] == list(range(1, 32))


@BOTH
async def test_a_reader_the_ring_overtakes_is_told_and_comes_back(
    tmp_path: Path, by: str, streams: tuple[str, ...]
) -> None:
    async with house(tmp_path) as h:
        reader = h.reader(*streams, by=by)
        await reader.subscribe(shut=True)
        await h.deltas(1)
        await h.blocked(reader)
        await h.deltas(3 * RING)
        h.let(reader)
        await h.lagged(reader)
        assert reader.lagged is not None
        assert (reader.lagged["stream"], reader.lagged["seq"], reader.lagged["pos"]) == (RUN, 1, 1)
        await reader.subscribe()
        await h.caught_up(reader)
        assert [e["seq"] for e in reader.got] == list(range(1, 3 * RING + 2))


async def test_one_slow_reader_slows_nobody(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        slow, quick = h.reader(RUN, by="seq"), h.reader(RUN, by="seq")
        await slow.subscribe(shut=True)
        await quick.subscribe()
        for _ in range(10 * RING):
            await h.deltas(1)
            await h.caught_up(quick)
        assert slow.got == []
        assert slow.line is not None
        assert slow.line.waiting == 1, "one batch is held for it and no more"


@BOTH
async def test_a_replay_longer_than_the_ring_is_deep_goes_on_from_the_database(
    tmp_path: Path, by: str, streams: tuple[str, ...]
) -> None:
    async with house(tmp_path) as h:
        await h.deltas(10)
        reader = h.reader(*streams, by=by)
        await reader.subscribe(shut=True)
        await h.blocked(reader)
        await h.deltas(5 * RING)
        h.let(reader)
        await h.caught_up(reader)
        assert [e["seq"] for e in reader.got] == list(range(1, 5 * RING + 11))


async def test_folded_during_a_replay_by_seq(tmp_path: Path) -> None:
    """The run ends and is folded while a replay of it is half way: its deltas are gone from the database, the event
    that covers them lies beyond the replay's end, and the ring has only the later half of them."""
    async with house(tmp_path) as h:
        await h.deltas(12)
        reader = h.reader(RUN, by="seq")
        await reader.subscribe(shut=True)
        await h.blocked(reader)  # with the first page, 1 to 3
        await h.deltas(2)
        await h.finish()
        await h.fold()
        h.let(reader)
        await h.lagged(reader)
        assert reader.lagged is not None
        assert (reader.lagged["seq"], reader.lagged["pos"]) == (3, 3)
        await reader.subscribe()
        await h.caught_up(reader)
        assert [(e.get("first_seq", e["seq"]), e["seq"]) for e in reader.got[3:]] == [(1, 15), (16, 16)]


async def test_folded_where_the_ring_begins(tmp_path: Path) -> None:
    """Replaying by position, a run that was folded reaches across the end of a page and the beginning of the ring: the
    ring must not take over before the event that covers the deltas has come from the database."""
    async with house(tmp_path) as h:
        for n in range(20):
            await h.deltas(1)
            if n % 3 == 0:
                await h.journal.append(note("session:s", n))
        await h.finish()
        await h.fold()
        reader = h.reader("*", by="pos")
        await reader.subscribe()
        await h.caught_up(reader)
        assert reader.last[RUN] == 22


@BOTH
async def test_folded_between_two_pages(tmp_path: Path, by: str, streams: tuple[str, ...]) -> None:
    async with house(tmp_path) as h:
        await h.deltas(20)
        await h.finish()
        reader = h.reader(*streams, by=by)
        await reader.subscribe(shut=True)
        await h.blocked(reader)
        await h.fold()
        h.let(reader)
        await h.caught_up(reader)
        assert [(e.get("first_seq", e["seq"]), e["seq"]) for e in reader.got[-2:]] == [(1, 21), (22, 22)]


@BOTH
async def test_trimmed_during_a_replay(tmp_path: Path, by: str, streams: tuple[str, ...]) -> None:
    async with house(tmp_path) as h:
        await h.deltas(20)
        await h.finish()
        await h.deltas(2 * RING, "run:b")
        reader = h.reader(*streams, by=by)
        await reader.subscribe(shut=True)
        await h.blocked(reader)
        await h.trim()
        h.let(reader)
        await h.lagged(reader)
        assert [e["seq"] for e in reader.got] == [1, 2, 3]
        assert (await reader.subscribe()).resync, "and coming back it learns that there is no going on"


@BOTH
async def test_trimmed_before_the_first_page(tmp_path: Path, by: str, streams: tuple[str, ...]) -> None:
    """Nothing has come yet, so the position to come back with is the one it came with."""
    async with house(tmp_path) as h:
        await h.deltas(2 * RING)
        await h.finish()
        await h.deltas(2 * RING, "run:b")
        reader = h.reader(*streams, by=by)
        answered = trio.Event()
        assert not (await reader.subscribe(answered=answered)).resync
        await h.trim()
        answered.set()
        await h.lagged(reader)
        assert reader.lagged is not None
        assert reader.lagged["pos"] == 0
        assert reader.got == []


class HeldHub(Hub):
    """Publishes when it is told: stretches the moment between a commit and its publication."""

    held: tuple[Event, ...] | None = None

    def __init__(self, pos: int, max_events: int) -> None:
        super().__init__(pos, max_events)
        #: A subscription has done with the database and waits for the ring.
        self.waited_for = trio.Event()

    async def wait(self) -> None:
        self.waited_for.set()
        await super().wait()

    def publish(self, events: Sequence[Event]) -> None:
        if self.held is None:
            super().publish(events)
        else:
            self.held += tuple(events)

    def let(self) -> None:
        assert self.held
        events, self.held = self.held, None
        super().publish(events)


async def test_several_streams_overtaken_right_after_the_replay(tmp_path: Path) -> None:
    """They are replayed one after the other: where the last one ends is not where all of them stand."""
    hub = HeldHub(0, max_events=RING)
    async with house(tmp_path, hub=hub) as h:
        await h.deltas(3, "run:b")
        await h.deltas(4, "run:a")
        reader = h.reader("run:a", "run:b", by="seq")
        await reader.subscribe()
        with trio.fail_after(PATIENCE_S):
            await reader.until(lambda: len(reader.got) == 7)
            await hub.waited_for.wait()
        await h.journal.append(*(note("run:b") for _ in range(2 * RING)))
        await h.lagged(reader)
        assert reader.lagged is not None
        assert reader.lagged["pos"] == 7


@BOTH
async def test_committed_and_not_yet_published(tmp_path: Path, by: str, streams: tuple[str, ...]) -> None:
    """Who subscribes in that moment has it from the database, and must not get it again from the ring."""
    hub = HeldHub(0, max_events=RING)
    async with house(tmp_path, hub) as h:
        await h.deltas(1)
        hub.held = ()
        await h.deltas(2)
        reader = h.reader(*streams, by=by)
        await reader.subscribe()
        with trio.fail_after(PATIENCE_S):
            await hub.waited_for.wait()
        hub.let()
        await h.deltas(1)
        await h.caught_up(reader)
        assert [e["seq"] for e in reader.got] == [1, 2, 3, 4]


async def test_overtaken_after_something_of_the_moment(tmp_path: Path) -> None:
    """It has no position, so it cannot be what a reader comes back with."""
    async with house(tmp_path) as h:
        reader = h.reader("*", by="pos")
        await reader.subscribe()
        await h.deltas(3)
        await h.caught_up(reader)
        h.journal.publish_nowait("session:s", "session.typing", b"{}")
        with trio.fail_after(PATIENCE_S):
            await reader.until(lambda: reader.moments == 1)
        await trio.testing.wait_all_tasks_blocked()
        await h.journal.append(*(note(RUN) for _ in range(2 * RING)))
        await h.lagged(reader)
        assert reader.lagged is not None
        assert (reader.lagged["stream"], reader.lagged["seq"], reader.lagged["pos"]) == (RUN, 3, 3)


async def test_of_the_moment_is_shown_live_and_never_replayed(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        reader = h.reader("session:s", by="seq")
        await reader.subscribe()
        h.journal.publish_nowait("session:s", "session.typing", b"{}")
        h.journal.publish_nowait("session:other", "session.typing", b"{}")
        await h.journal.append(note("session:s"))
        await h.caught_up(reader)
        assert reader.moments == 1
        late = h.reader("session:s", by="seq")
        await late.subscribe()
        await h.caught_up(late)
        assert late.moments == 0


async def test_a_type_filter_and_foreign_streams_stay_out(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.deltas(5, "run:other")
        reader = h.reader("run:a", by="seq")
        await reader.subscribe()
        await h.deltas(5, "run:other")
        await h.deltas(1)
        await h.caught_up(reader)
        assert [e["stream"] for e in reader.got] == [RUN]


async def test_a_dropped_connection_ends_its_subscriptions(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        reader = h.reader(RUN, by="seq")
        await reader.subscribe(shut=True)
        await h.deltas(1)
        await h.blocked(reader)
        line = reader.line
        assert line is not None
        reader.drop()
        with trio.fail_after(PATIENCE_S):
            while line.waiting:
                await h.journal.store.read(lambda db: None)
        assert h.events._held == {}
        await trio.testing.wait_all_tasks_blocked()
        assert h.events._nursery.child_tasks == set()


async def test_a_cursor_of_another_epoch_is_refused(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        h.journal.epoch = "another"
        with pytest.raises(ResyncRequired):
            await h.reader(RUN, by="seq").subscribe()


async def test_subscriptions_of_one_connection_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("witsd.services.events.MAX_SUBSCRIPTIONS", 0)
    async with house(tmp_path) as h:
        with pytest.raises(LimitExceeded):
            await h.reader(RUN, by="seq").subscribe()
