"""Whatever is appended, folded and trimmed while subscribers come, go, stall and come back: each of them gets every
event of its streams once and in order, or is told in so many words that it does not."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.doubles.clock import FakeClock
from tests.support.journal import PATIENCE_S, note, text
from tests.support.subscribers import Reader, events_of
from witsd.journal.event import Event
from witsd.journal.hub import Hub
from witsd.journal.journal import Journal, Ticket, open_journal
from witsd.journal.store import open_store
from witsd.journal.upkeep import compact_due, trim_due

#: So small that a handful of events overtakes a reader, and a replay takes several pages.
PAGE, RING, BATCH = 3, 8, 5
SLOTS = 3
#: (streams, how it comes back): by name and seq, one stream by position, all by position.
READERS = (
    (("run:0", "run:1", "session:s"), "seq"),
    (("run:0",), "pos"),
    (("run:*", "session:*"), "pos"),
    (("*",), "pos"),
)

slots = st.integers(0, SLOTS - 1)
readers = st.integers(0, len(READERS) - 1)
steps = st.one_of(
    st.tuples(st.just("stream"), slots, st.integers(1, 12)),
    st.tuples(st.just("item"), slots),
    st.tuples(st.just("finish"), slots),
    st.tuples(st.just("say"), st.integers(1, 4)),
    st.tuples(st.just("moment")),
    st.tuples(st.just("settle")),
    st.tuples(st.just("breathe")),
    st.tuples(st.just("subscribe"), readers),
    st.tuples(st.just("subscribe_stalled"), readers),
    st.tuples(st.just("drop"), readers),
    st.tuples(st.just("stall"), readers),
    st.tuples(st.just("let"), readers),
    # What makes trouble is the order of these, so they come together as often as alone.
    st.tuples(st.just("half_way"), slots, readers),
    st.tuples(st.just("over"), slots),
    st.tuples(st.just("fold")),
    st.tuples(st.just("trim"), st.integers(1, 400)),
)


@attrs.define(eq=False)
class World:
    """The journal, what was asked of it, and those who read it."""

    journal: Journal
    readers: list[Reader]
    tickets: list[Ticket[None]] = attrs.field(factory=list)
    #: The run that each slot streams at present.
    runs: list[int] = attrs.field(factory=lambda: list(range(SLOTS)))
    made: int = SLOTS
    trimmed: int = 0
    seen: Counter[str] = attrs.field(factory=Counter)

    def append(self, stream: str, kind: str, *, seals: bool = False) -> None:
        self.tickets.append(self.journal.append_nowait(note(stream, len(self.tickets), kind=kind, seals=seals)))

    async def step(self, action: str, *args: int) -> None:
        match action:
            case "stream":
                for _ in range(args[1]):
                    self.append(f"run:{self.runs[args[0]]}", "item.delta")
            case "item":
                self.append(f"run:{self.runs[args[0]]}", "item.completed")
            case "finish":
                self.append(f"run:{self.runs[args[0]]}", "run.completed", seals=True)
                self.runs[args[0]], self.made = self.made, self.made + 1
            case "say":
                for _ in range(args[0]):
                    self.append("session:s", "session.message")
            case "moment":
                self.journal.publish_nowait("session:s", "session.typing", b"{}")
            case "settle":
                await self.committed()
            case "breathe":
                await self.journal.store.read(lambda db: None)
            case "subscribe":
                await self.subscribe(self.readers[args[0]])
            case "subscribe_stalled":
                await self.subscribe(self.readers[args[0]], shut=True)
            case "half_way":
                await self.step("stream", args[0], 12)
                await self.committed()
                await self.step("drop", args[1])
                await self.subscribe(self.readers[args[1]], shut=True)
            case "over":
                await self.step("stream", args[0], 2)
                await self.step("item", args[0])
                await self.step("finish", args[0])
                await self.step("fold")
            case "drop":
                self.readers[args[0]].drop()
            case "stall" | "let":
                line = self.readers[args[0]].line
                if line is not None:
                    line.set_shut(action == "stall")
            case "fold":
                _, folded = await self.journal.write(lambda tx: compact_due(tx, 1 << 60))
                self.seen["folded"] += folded
            case "trim":
                self.trimmed += await self.journal.write(
                    lambda tx: trim_due(tx, 0, tx.execute("SELECT bytes FROM journal")[0][0] - args[0])
                )

    async def committed(self) -> list[Event]:
        """All that was appended, in order, once it is committed."""
        return [event for ticket in self.tickets for event in await _events(ticket)]

    async def subscribe(self, reader: Reader, *, shut: bool = False) -> None:
        if reader.live:
            return
        if reader.lagged is not None:
            self.seen["lagged"] += 1
            reader.drop()
        answered = trio.Event()
        result = await reader.subscribe(shut=shut, answered=answered)
        self.seen["subscribed"] += 1
        if result.resync:
            # A snapshot is of one moment: from here on this is where the reader stands.
            assert self.trimmed, "nothing is gone, so everybody can go on"
            self.seen["resync"] += 1
            last = {e.stream: e.seq for e in await self.committed() if e.pos <= result.pos}
            reader.start_at(last, result.pos)
        answered.set()

    async def end(self) -> None:
        """Let everybody catch up, and look at what they got."""
        appended = await self.committed()
        by_place = {(e.stream, e.seq): e for e in appended}
        assert [e.pos for e in appended] == list(range(1, len(appended) + 1))
        for reader in self.readers:
            last = {e.stream: e.seq for e in appended if _wants(reader, e.stream)}
            while not (reader.live and last.items() <= reader.last.items()):
                await self.subscribe(reader)
                assert reader.line is not None
                reader.line.set_shut(False)
                await reader.until(lambda r=reader, want=last: want.items() <= r.last.items())  # type: ignore[misc]
            assert {s: n for s, n in reader.last.items() if n and _wants(reader, s)} == last
            for got in reader.got:
                event = by_place[got["stream"], got["seq"]]
                assert _wants(reader, event.stream)
                assert (got["type"], got["pos"], got["data"]["text"]) == (event.type, event.pos, text(event))
            assert len({(e["stream"], e["seq"]) for e in reader.got}) == len(reader.got)


async def _events(ticket: Ticket[None]) -> tuple[Event, ...]:
    await ticket.wait()
    return ticket.events


def _wants(reader: Reader, stream: str) -> bool:
    return "*" in reader.streams or stream in reader.streams or f"{stream.partition(':')[0]}:*" in reader.streams


async def play(path: Path, script: list[tuple[Any, ...]]) -> Counter[str]:
    with trio.fail_after(PATIENCE_S):
        async with (
            open_store(path, synchronous="OFF") as store,
            open_journal(store, FakeClock(), epoch="e", hub=Hub(0, max_events=RING)) as journal,
            events_of(journal) as events,
        ):
            world = World(journal, [Reader(events, streams, by) for streams, by in READERS])
            for action, *args in script:
                await world.step(action, *args)
            await world.end()
            return world.seen


@pytest.fixture(autouse=True, scope="module")
def _small() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("witsd.services.events.PAGE", PAGE)
        patch.setattr("witsd.journal.journal.MAX_BATCH", BATCH)
        yield


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(script=st.lists(steps, min_size=15, max_size=60))
def test_every_reader_gets_everything_once_or_is_told(script: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trio.run(play, Path(folder) / "j.db", script)


def test_the_property_meets_what_it_is_about(tmp_path: Path) -> None:
    """A script in which readers do lag, resync and meet folded ranges: the machinery above sees them."""
    script: list[tuple[Any, ...]] = []
    for n in range(6):
        script += [("subscribe", r) for r in range(len(READERS))] + [("stall", r) for r in range(len(READERS))]
        script += [("stream", 0, 12), ("settle",), ("finish", 0), ("stream", 1, 12), ("say", 4), ("settle",), ("fold",)]
        script += [("let", r) for r in range(len(READERS))] + [("breathe",)] * 5
        script += [("trim", 200)] if n % 2 else [("drop", n % 4), ("moment",)]
    seen = trio.run(play, tmp_path / "j.db", script)
    assert seen["lagged"] >= 3
    assert seen["resync"] >= 2
    assert seen["folded"] >= 50
