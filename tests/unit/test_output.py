"""A process's output held to a rate: by letting it wait, never by dropping; on a clock that the test moves."""

from __future__ import annotations

import attrs
import pytest
import trio
import trio.testing

from witsd.supervise.output import Pace


@attrs.define
class TrioClock:
    """The time of the event loop, which jumps when everybody waits."""

    def wall_us(self) -> int:
        return int(trio.current_time() * 1e6)

    def monotonic(self) -> float:
        return trio.current_time()


async def taken(pace: Pace, total: int, chunk: int) -> float:
    """How long it takes to take so much."""
    start = trio.current_time()
    for _ in range(total // chunk):
        await pace.take(chunk, lambda: 500)
    return trio.current_time() - start


async def test_a_second_at_once_then_the_rate(autojump_clock: trio.testing.MockClock) -> None:
    slowed: list[float] = []
    pace = Pace(lambda: 1000, TrioClock(), slowed.append)
    assert await taken(pace, 1000, 100) == 0
    assert slowed == []
    assert await taken(pace, 10_000, 100) == pytest.approx(10)
    assert slowed[0] == pytest.approx(1600), "what it took and what waits, in the first second"
    await trio.sleep(5)
    assert await taken(pace, 1000, 100) == pytest.approx(0), "who was silent may write a second's worth again"
    assert await taken(pace, 1000, 100) == pytest.approx(1)


async def test_two_pipes_share_it_and_a_change_holds_at_once(autojump_clock: trio.testing.MockClock) -> None:
    rate = 1000.0
    pace = Pace(lambda: rate, TrioClock(), lambda figure: None)
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(taken, pace, 3000, 100)
        nursery.start_soon(taken, pace, 3000, 100)
    assert trio.current_time() - start == pytest.approx(5, abs=0.2)
    rate = 0
    assert await taken(pace, 100_000, 100) == 0


async def test_the_end_of_the_process_lifts_it(autojump_clock: trio.testing.MockClock) -> None:
    pace = Pace(lambda: 10, TrioClock(), lambda figure: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(taken, pace, 100_000, 1000)
        await trio.testing.wait_all_tasks_blocked()
        pace.lift()
    assert trio.current_time() < 1
    assert pace.chunk == 64 << 10


@pytest.mark.parametrize(("rate", "chunk"), [(0, 64 << 10), (100, 512), (8000, 2000), (10**9, 64 << 10)])
def test_at_a_low_rate_little_is_read_at_once(rate: int, chunk: int) -> None:
    assert Pace(lambda: rate, TrioClock(), lambda figure: None).chunk == chunk
