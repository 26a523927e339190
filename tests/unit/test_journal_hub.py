"""The ring: what it holds, what it drops, and where a reader goes on."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from witsd.journal.event import Event
from witsd.journal.hub import Hub


def event(pos: int, size: int = 2, stream: str = "run:a") -> Event:
    return Event(stream, "item.delta", b"x" * size, 0, seq=pos, pos=pos)


def moment() -> Event:
    return Event("session:s", "session.typing", b"{}", 0)


def held(hub: Hub) -> list[int]:
    return [e.pos for e in hub.slice(hub.start, hub.end)]


def after(hub: Hub, pos: int) -> list[int] | None:
    """What a reader that stands at ``pos`` gets from the ring."""
    index = hub.index_after(pos)
    return None if index is None else [e.pos for e in hub.slice(index, hub.end)]


def test_a_ring_holds_the_newest_and_numbers_slots_for_ever() -> None:
    hub = Hub(0, max_events=4)
    for pos in range(1, 11):
        hub.publish([event(pos)])
    assert held(hub) == [7, 8, 9, 10]
    assert (hub.start, hub.end, hub.pos) == (6, 10, 10)


def test_a_reader_that_was_overtaken_sees_it_in_start() -> None:
    hub = Hub(0, max_events=4)
    hub.publish([event(1), event(2)])
    index = hub.end
    hub.publish([event(pos) for pos in range(3, 7)])
    assert hub.start <= index, "still held: 3 to 6"
    hub.publish([event(7)])
    assert index < hub.start


def test_more_than_the_ring_takes_in_one_go() -> None:
    hub = Hub(0, max_events=4)
    hub.publish([event(pos) for pos in range(1, 101)])
    assert held(hub) == [97, 98, 99, 100]


def test_bytes_are_bounded_and_counted_back_when_dropped() -> None:
    hub = Hub(0, max_events=1000, max_bytes=100)
    for pos in range(1, 500):
        hub.publish([event(pos, size=30)])
        assert sum(len(e.data) for e in hub.slice(hub.start, hub.end)) <= 100
    assert held(hub) == [497, 498, 499]


def test_one_event_over_the_bound_is_shown_all_the_same() -> None:
    hub = Hub(0, max_events=1000, max_bytes=100)
    hub.publish([event(1), event(2), event(3, size=5000)])
    assert held(hub) == [3]
    hub.publish([event(4)])
    assert held(hub) == [4]


def test_where_a_reader_goes_on() -> None:
    hub = Hub(10, max_events=4)
    assert after(hub, 10) == []
    assert after(hub, 9) is None, "before the daemon was started: only the database has it"
    for pos in range(11, 17):
        hub.publish([event(pos)])
    assert after(hub, 16) == []
    assert after(hub, 15) == [16]
    assert after(hub, 12) == [13, 14, 15, 16]
    assert after(hub, 11) is None
    assert after(hub, 99) == [], "committed and not published yet"


def test_positions_may_be_missing() -> None:
    """What a batch that failed had taken is given again, so none are; but a reader must not depend on it."""
    hub = Hub(0, max_events=4)
    hub.publish([event(2), event(5)])
    assert after(hub, 3) == [5]
    assert after(hub, 1) == [2, 5]


def test_events_of_the_moment_have_no_position_and_move_nobody() -> None:
    hub = Hub(0, max_events=5)
    hub.publish([event(1), moment(), event(2), moment(), moment()])
    assert hub.pos == 2
    assert after(hub, 0) == [1, 0, 2, 0, 0]
    assert after(hub, 1) == [0, 2, 0, 0]
    assert after(hub, 2) == [0, 0]
    hub.publish([event(3), moment()])
    assert held(hub) == [2, 0, 0, 3, 0]
    assert after(hub, 1) == [2, 0, 0, 3, 0], "only something of the moment is gone after 1"
    assert after(hub, 0) is None
    hub.publish([moment() for _ in range(5)])
    assert after(hub, 3) == [0] * 5
    assert after(hub, 2) is None


def test_nothing_published_wakes_nobody() -> None:
    hub = Hub(0)
    waited = hub._published
    hub.publish([])
    assert not waited.is_set()


async def test_everybody_who_waits_is_woken_at_once(autojump_clock: trio.testing.MockClock) -> None:
    hub = Hub(0)
    woken: list[int] = []

    async def read(number: int) -> None:
        await hub.wait()
        woken.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(read, number)
        await trio.testing.wait_all_tasks_blocked()
        hub.publish([event(1)])
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(woken) == [0, 1, 2]
        with pytest.raises(trio.TooSlowError), trio.fail_after(1):
            await hub.wait()  # what came before the call is not waited for
