"""Alerts go up and down in turns and do not flap; limits are passed or not."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from witsd.supervise.alerts import NAMES, Breach, Ceilings, Readings, State, Transition, breaches, raised, step
from witsd.supervise.sample import Sample
from witsd.values.spec import Alerts

MEMORY = Alerts(memory_bytes=1000)


def play(thresholds: Alerts, *readings: Readings, every_s: float = 1.0) -> tuple[State, list[tuple[float, Transition]]]:
    """What happens when these come one after the other; with each transition the time it came at."""
    state: State = {}
    happened = []
    for number, reading in enumerate(readings):
        state, transitions = step(state, reading, thresholds, number * every_s)
        happened += [(number * every_s, it) for it in transitions]
    return state, happened


def said(happened: list[tuple[float, Transition]]) -> list[tuple[float, str, str]]:
    return [(at, it.alert, it.state) for at, it in happened]


def memory(*values: int) -> list[Readings]:
    return [Readings(memory_bytes=value) for value in values]


def cpu(*values: float) -> list[Readings]:
    return [Readings(cpu_percent=value) for value in values]


def test_reaching_the_threshold_raises_once() -> None:
    state, happened = play(MEMORY, *memory(999, 1000, 1001, 2000))
    assert happened == [(1.0, Transition(alert="memory_bytes", state="raised", threshold=1000, value=1000))]
    assert raised(state)["memory_bytes"].raised_at == 1.0
    assert raised(state)["memory_bytes"].value == 1000


def test_it_clears_only_a_tenth_below_and_after_a_while() -> None:
    _, happened = play(MEMORY, *memory(1000, 950, 899, 950, 899, 899, 899, 899, 899, 899, 899))
    assert said(happened) == [(0.0, "memory_bytes", "raised"), (9.0, "memory_bytes", "cleared")]


def test_a_burst_of_work_is_no_alarm() -> None:
    thresholds = Alerts(cpu_percent=80)
    assert said(play(thresholds, *cpu(0, 100, 100, 100, 100, 0, 100, 100, 100, 0))[1]) == []
    assert said(play(thresholds, *cpu(0, *[100] * 6))[1]) == [(6.0, "cpu_percent", "raised")]


def test_an_error_rate_of_few_requests_says_nothing() -> None:
    thresholds = Alerts(error_rate=0.5)
    few, enough = Readings(error_rate=1.0, requests=4), Readings(error_rate=1.0, requests=5)
    assert said(play(thresholds, few, few)[1]) == []
    assert said(play(thresholds, few, enough)[1]) == [(1.0, "error_rate", "raised")]


def test_silence_ends_with_the_first_word() -> None:
    readings = [Readings(silence_s=s) for s in (0.0, 29.0, 30.0, 31.0, 0.5)]
    assert said(play(Alerts(silence_s=30), *readings)[1]) == [
        (2.0, "silence_s", "raised"),
        (4.0, "silence_s", "cleared"),
    ]


def test_restarts_clear_when_it_is_started_anew() -> None:
    readings = [Readings(restarts=n) for n in (2, 3, 3, 0)]
    assert said(play(Alerts(restarts=3), *readings)[1]) == [(1.0, "restarts", "raised"), (3.0, "restarts", "cleared")]


@pytest.mark.parametrize(
    "after", [(Readings(), MEMORY), (Readings(memory_bytes=5000), Alerts())], ids=["no figure", "no threshold"]
)
def test_without_figure_or_threshold_it_clears_at_once(after: tuple[Readings, Alerts]) -> None:
    state, _ = play(MEMORY, *memory(1000))
    state, transitions = step(state, *after, 1.0)
    assert [(it.alert, it.state) for it in transitions] == [("memory_bytes", "cleared")]
    assert raised(state) == {}
    assert step(state, *after, 2.0)[1] == ()


def test_a_threshold_that_is_raised_above_the_figure_clears() -> None:
    state, _ = play(MEMORY, *memory(1000))
    happened = []
    for second in range(1, 8):
        state, transitions = step(state, Readings(memory_bytes=1000), Alerts(memory_bytes=2000), float(second))
        happened += [(second, it.state, it.threshold) for it in transitions]
    assert happened == [(6, "cleared", 2000)]


readings = st.builds(
    Readings,
    cpu_percent=st.none() | st.floats(0, 200),
    memory_bytes=st.none() | st.integers(0, 2000),
    error_rate=st.none() | st.floats(0, 1),
    requests=st.integers(0, 20),
    restarts=st.none() | st.integers(0, 6),
    silence_s=st.none() | st.floats(0, 60),
)
thresholds = st.builds(
    Alerts,
    cpu_percent=st.just(0) | st.just(100.0),
    memory_bytes=st.just(0) | st.just(1000),
    error_rate=st.just(0) | st.just(0.5),
    restarts=st.just(0) | st.just(3),
    silence_s=st.just(0) | st.just(30.0),
)


@given(steps=st.lists(st.tuples(readings, thresholds, st.floats(0, 10)), max_size=60))
def test_raised_and_cleared_take_turns_whatever_comes(steps: list[tuple[Readings, Alerts, float]]) -> None:
    state: State = {}
    up: set[str] = set()
    now = 0.0
    for reading, limits, gap in steps:
        now += gap
        state, transitions = step(state, reading, limits, now)
        for it in transitions:
            assert (it.alert in up) is (it.state == "cleared")
            up ^= {it.alert}
            if it.state == "raised":
                assert it.value is not None
                assert it.value >= it.threshold
        assert set(raised(state)) == up


@given(values=st.lists(st.integers(900, 999), max_size=40), first=st.sampled_from([0, 1000]))
def test_between_the_two_levels_nothing_changes(values: list[int], first: int) -> None:
    state, happened = play(MEMORY, *memory(first, *values))
    assert len(happened) == (first == 1000)
    assert bool(raised(state)) is (first == 1000)


def test_every_alert_has_a_threshold_and_a_reading() -> None:
    assert set(NAMES) == set(Alerts.__struct_fields__)
    assert set(NAMES) <= {field.name for field in msgspec.structs.fields(Readings)}


@pytest.mark.parametrize("wrong", [{"cpu_percent": -1}, {"error_rate": 1.5}, {"restart": 3}, {"memory_bytes": "1G"}])
def test_a_threshold_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, Alerts)


SAMPLE = Sample(1.0, 150.0, 1000, 20, 8, 3, 0, 0)


@pytest.mark.parametrize(
    ("limits", "passed"),
    [
        (Ceilings(), ()),
        (Ceilings(memory_bytes=1000, cpu_percent=150, tasks=8), ()),
        (Ceilings(memory_bytes=999), (Breach(limit="memory_bytes", value=999, figure=1000),)),
        (Ceilings(cpu_percent=149), (Breach(limit="cpu_percent", value=149, figure=150.0),)),
        (Ceilings(tasks=7), (Breach(limit="tasks", value=7, figure=8),)),
    ],
)
def test_a_limit_is_passed_when_the_figure_is_above_it(limits: Ceilings, passed: tuple[Breach, ...]) -> None:
    assert breaches(SAMPLE, limits) == passed


def test_several_limits_are_passed_at_once() -> None:
    assert [it.limit for it in breaches(SAMPLE, Ceilings(memory_bytes=1, tasks=1))] == ["memory_bytes", "tasks"]
    assert str(breaches(SAMPLE, Ceilings(tasks=1))[0]) == "tasks = 1 passed: 8"
