"""The cursor under every history: whatever is lost, repeated or compacted, each event counts once."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from witsd_client.cursor import Cursor, Verdict
from witsd_client.generated import Event, EventsSubscribeResult


def seq_of(event: Event) -> int:
    assert isinstance(event.seq, int)
    return event.seq


def pos_of(event: Event) -> int:
    assert isinstance(event.pos, int)
    return event.pos


class Journal:
    """As the daemon keeps it: streams by name are replayed one after the other, patterns by position."""

    def __init__(self, streams: list[str]) -> None:
        self.events: list[Event] = []
        seqs: dict[str, int] = {}
        for pos, stream in enumerate(streams, 1):
            seqs[stream] = seqs.get(stream, 0) + 1
            self.events.append(
                Event(stream=stream, time="", type="x", data=None, seq=seqs[stream], pos=pos)
            )

    def subscribe(
        self, patterns: list[str], since: dict[str, int] | None, end: int
    ) -> tuple[EventsSubscribeResult, list[Event]]:
        """Subscribe when the journal had ``end`` events; what follows is the replay and the rest live."""
        past, live = self.events[:end], self.events[end:]
        exact = "*" not in patterns
        last = {name: max([seq_of(e) for e in past if e.stream == name], default=0) for name in patterns}
        if since is None:
            replay = []
        elif "pos" in since:
            replay = [e for e in past if pos_of(e) > since["pos"]]
            if exact:
                replay = [e for name in patterns for e in replay if e.stream == name]
        else:
            replay = [e for name in since for e in past if e.stream == name and seq_of(e) > since[name]]
        result = EventsSubscribeResult(
            subscription_id="s",
            cursors=last if exact else {name: q for name, q in (since or {}).items() if name != "pos"},
            pos=end,
            resync=False,
            epoch="e",
        )
        return result, replay + [e for e in live if not exact or e.stream in patterns]


@given(
    streams=st.lists(st.sampled_from(["a", "b", "c"]), max_size=40),
    patterns=st.sampled_from([["*"], ["a"], ["a", "b"], ["a", "b", "c"]]),
    by=st.sampled_from(["pos", "seq"]),
    seed=st.integers(0, 2**32),
)
def test_any_drops_give_each_event_once_and_in_order(
    streams: list[str], patterns: list[str], by: str, seed: int
) -> None:
    journal = Journal(streams)
    chance = random.Random(seed)
    names = ["a", "b", "c"] if patterns == ["*"] else patterns
    since = {"pos": 0} if by == "pos" else dict.fromkeys(names, 0)
    cursor = Cursor(patterns, since)
    wanted = [e for e in journal.events if e.stream in names]
    got: list[Event] = []
    end = 0
    for _ in range(200):
        end = chance.randint(end, len(journal.events))
        given_since = cursor.since()
        result, coming = journal.subscribe(patterns, given_since, end)
        cursor.begin(result, given_since)
        cut = chance.randint(0, len(coming)) if chance.random() < 0.8 else len(coming)
        for event in coming[:cut]:
            verdict = cursor.judge(event)
            assert verdict is not Verdict.GAP
            if verdict is Verdict.NEXT:
                got.append(event)
                end = max(end, pos_of(event))
        if cut == len(coming):
            break
    else:
        pytest.fail("it never came through")
    for name in names:
        assert [e.seq for e in got if e.stream == name] == [e.seq for e in wanted if e.stream == name]


@given(
    last=st.integers(0, 20), first=st.integers(1, 20), length=st.integers(0, 5)
)
def test_a_range_goes_on_exactly_when_it_meets_the_cursor(last: int, first: int, length: int) -> None:
    cursor = Cursor(["a"], {"a": last})
    cursor.begin(
        EventsSubscribeResult(subscription_id="s", cursors={"a": 40}, pos=100, resync=False, epoch="e"),
        {"a": last},
    )
    seq = first + length
    verdict = cursor.judge(
        Event(stream="a", time="", type="x", data=None, seq=seq, pos=50, first_seq=first)
    )
    if seq <= last:
        assert verdict is Verdict.DUPLICATE
    elif first <= last + 1 <= seq:
        assert (verdict, cursor.last["a"]) == (Verdict.NEXT, seq)
    else:
        assert verdict is Verdict.GAP


def test_memory_of_streams_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("witsd_client.cursor.MAX_STREAMS", 10)
    cursor = Cursor(["*"], None)
    cursor.begin(EventsSubscribeResult(subscription_id="s", cursors={}, pos=0, resync=False, epoch="e"), None)
    for n in range(1, 101):
        event = Event(stream=f"run:{n}", time="", type="x", data=None, seq=1, pos=n)
        assert cursor.judge(event) is Verdict.NEXT
        assert cursor.judge(event) is Verdict.DUPLICATE
    assert len(cursor.last) == 10
    forgotten = Event(stream="run:1", time="", type="x", data=None, seq=1, pos=1)
    assert cursor.judge(forgotten) is Verdict.DUPLICATE
