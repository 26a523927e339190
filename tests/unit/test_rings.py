"""Samples of half a day in a fixed number of bytes, beside a plain list of all of them."""

from __future__ import annotations

import gc
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from witsd.supervise.requests import SLOT_S, Requests
from witsd.supervise.rings import Rings
from witsd.supervise.sample import Sample


def sample(at: float, cpu: float = 0.0, rss: int = 0, fds: int = 0, processes: int = 1, written: int = 0) -> Sample:
    return Sample(at, cpu, rss, fds, 2 * processes, processes, 0, written)


def filled(seconds: int, start: float = 1000.0) -> tuple[Rings, float]:
    rings = Rings()
    for second in range(seconds):
        rings.add(sample(start + second, cpu=second % 7, rss=second * 4096, written=second))
    return rings, start + seconds - 1


def test_the_last_minutes_are_there_second_by_second() -> None:
    rings, now = filled(1000)
    kept = rings.samples(60, now)
    assert [it.at for it in kept] == [now - 59 + n for n in range(60)]
    assert kept[-1] == rings.current
    assert kept[0].rss_bytes == 940 * 4096


def test_a_longer_window_comes_in_coarser_samples_up_to_now() -> None:
    rings, now = filled(1005)
    kept = rings.samples(600, now)
    assert len(kept) == pytest.approx(61, abs=1)
    assert kept[-1].at == now
    assert [after.at - before.at for before, after in pairwise(kept[:-1])] == [10.0] * (len(kept) - 2)


def test_half_a_day_is_kept_and_no_more() -> None:
    rings, now = filled(14 * 3600)
    kept = rings.samples(100_000, now)
    assert 143 <= len(kept) <= 146
    assert kept[0].at == pytest.approx(now - 12 * 3600, abs=600)


def test_a_peak_of_one_second_is_not_averaged_away() -> None:
    rings, _ = filled(0)
    for second in range(4 * 3600):
        rings.add(sample(float(second), cpu=100.0 if second == 7200 else 1.0))
    summary = rings.summary(3 * 3600, 4 * 3600 - 1)
    assert summary is not None
    assert summary.peak.cpu_percent == 100.0
    assert summary.average.cpu_percent == pytest.approx(1.0, abs=0.02)
    later = rings.summary(3600, 4 * 3600 - 1)
    assert later is not None
    assert later.peak.cpu_percent == 1.0


def test_a_window_without_samples_has_no_figures() -> None:
    rings, now = filled(10)
    assert rings.samples(60, now + 1000) == []
    assert rings.summary(60, now + 1000) is None
    assert Rings().summary(60, 0.0) is None


def test_figures_beyond_what_a_row_holds_stay_the_greatest_it_holds() -> None:
    rings = Rings()
    rings.add(Sample(1.0, 1e300, 1 << 80, 1 << 40, 1 << 40, 1 << 40, 1 << 80, 1 << 80))
    kept = rings.samples(10, 2.0)[0]
    assert (kept.fds, kept.write_bytes) == ((1 << 32) - 1, (1 << 64) - 1)


@settings(deadline=None, max_examples=100)  # the machine may be busy
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from([0.3, 1.0, 1.1, 4.0, 30.0, 400.0, 5000.0]),
            st.floats(0, 800, width=32),
            st.integers(0, 1 << 40),
            st.integers(0, 5000),
        ),
        min_size=1,
        max_size=150,
    ),
    window_s=st.sampled_from([1.0, 20.0, 120.0, 600.0, 1800.0, 7200.0, 43_200.0]),
)
def test_whatever_the_gaps_a_window_shows_what_a_plain_list_would(
    steps: list[tuple[float, float, int, int]], window_s: float
) -> None:
    """Coarse rows may begin up to their length earlier than asked; nothing else is too many or missing."""
    rings, plain, now = Rings(), [], 5000.0
    for gap, cpu, rss, fds in steps:
        now += gap
        plain.append(sample(now, cpu, rss, fds))
        rings.add(plain[-1])
    kept = rings.samples(window_s, now)
    assert [it.at for it in kept] == sorted(it.at for it in kept)
    assert all(now - window_s - 0.11 <= it.at <= now + 1e-6 for it in kept)
    assert kept[-1].at == pytest.approx(now, abs=0.11)
    summary = rings.summary(window_s, now)
    assert summary is not None
    assert summary.current == plain[-1]
    inside = [it for it in plain if it.at > now - window_s + 0.1]
    around = [it for it in plain if it.at > now - window_s - 300.1]
    for figure in ("cpu_percent", "rss_bytes", "fds", "threads", "processes"):
        peak = getattr(summary.peak, figure)
        slack = 1024 if figure == "rss_bytes" else 0.001
        assert max(getattr(it, figure) for it in inside) - slack <= peak
        assert peak <= max(getattr(it, figure) for it in around) + slack


@settings(deadline=None, max_examples=100)  # the machine may be busy
@given(cpu=st.lists(st.floats(0, 800, width=32), min_size=1, max_size=400))
def test_an_average_gives_each_sample_the_same_weight(cpu: list[float]) -> None:
    rings = Rings()
    for second, value in enumerate(cpu):
        rings.add(sample(float(second), cpu=value))
    summary = rings.summary(40_000, len(cpu))
    assert summary is not None
    assert summary.average.cpu_percent == pytest.approx(sum(cpu) / len(cpu), rel=1e-3, abs=1e-3)


def test_an_agent_costs_less_than_forty_kilobytes_for_ever() -> None:
    """Rings and requests together, once everything in them has been used."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        agents = [(Rings(), Requests()) for _ in range(3)]
        for rings, requests in agents:
            for second in range(0, 14 * 3600, 20):
                rings.add(sample(float(second), cpu=second / 7, rss=second * 4096))
                requests.record(second % 5000 + 0.5, False, float(second))
            for slot in range(100):
                requests.record(10.0 * slot, True, slot * float(SLOT_S))
        each = (tracemalloc.get_traced_memory()[0] - before) / 3
    finally:
        tracemalloc.stop()
    print(f"rings and requests: {each / 1024:.1f} KiB an agent")
    assert each < 40 * 1024
