"""When somebody should know, and when a limit is passed: pure functions of figures.

An alert does not flap: it is raised when its figure reaches the threshold (cpu: for five seconds) and cleared when
it has been a tenth below it for a while. It is raised once and cleared once, in turns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, get_args

import msgspec

from witsd.supervise.sample import Sample
from witsd.values.spec import Alerts
from witsd.values.wire.metrics import AlertName

NAMES: tuple[AlertName, ...] = get_args(AlertName)
#: Below this share of its threshold a figure speaks for clearing.
_CLEAR_SHARE = 0.9
#: How many seconds a figure must speak for it without a break. A burst of work is no alarm; the others are
#: sums, windows or durations already.
_RAISE_AFTER_S: Mapping[AlertName, float] = {"cpu_percent": 5.0}
_CLEAR_AFTER_S: Mapping[AlertName, float] = {"cpu_percent": 5.0, "memory_bytes": 5.0, "error_rate": 5.0}
#: One failure in fewer requests than this says nothing of a rate.
_FEWEST_REQUESTS = 5


class Readings(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one agent now. None: there is none, as for the cpu of an agent without a process."""

    cpu_percent: float | None = None
    memory_bytes: int | None = None
    error_rate: float | None = None
    #: How many requests ``error_rate`` is of.
    requests: int = 0
    restarts: int | None = None
    silence_s: float | None = None


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """One alert: the figure it was raised with and when, and since when figures have spoken for a change."""

    threshold: float
    raised_at: float | None = None
    value: float = 0.0
    turning_since: float | None = None


class Transition(msgspec.Struct, frozen=True, kw_only=True):
    """An alert that goes up or down. ``value`` is None where there is nothing to read any more."""

    alert: AlertName
    state: Literal["raised", "cleared"]
    threshold: float
    value: float | None


State = Mapping[AlertName, Standing]


def raised(state: State) -> dict[AlertName, Standing]:
    """Those that are up."""
    return {name: standing for name, standing in state.items() if standing.raised_at is not None}


def step(state: State, readings: Readings, thresholds: Alerts, now: float) -> tuple[State, tuple[Transition, ...]]:
    """The state after these readings and what has changed. ``now``: seconds that only grow.

    An alert that is up is cleared at once when its threshold is taken away or there is nothing to read.
    """
    after: dict[AlertName, Standing] = {}
    transitions = []
    for name in NAMES:
        threshold: float = getattr(thresholds, name)  # 0 is none
        value: float | None = getattr(readings, name)
        before = state.get(name)
        if not threshold or value is None:
            if before is not None and before.raised_at is not None:
                transitions.append(Transition(alert=name, state="cleared", threshold=before.threshold, value=value))
            continue
        standing = msgspec.structs.replace(before, threshold=threshold) if before else Standing(threshold=threshold)
        up = standing.raised_at is not None
        if not _speaks_for_change(name, up, value, threshold, readings.requests):
            after[name] = msgspec.structs.replace(standing, turning_since=None)
            continue
        since = now if standing.turning_since is None else standing.turning_since
        if now - since < (_CLEAR_AFTER_S if up else _RAISE_AFTER_S).get(name, 0.0):
            after[name] = msgspec.structs.replace(standing, turning_since=since)
            continue
        after[name] = Standing(threshold=threshold, raised_at=None if up else now, value=value)
        transitions.append(
            Transition(alert=name, state="cleared" if up else "raised", threshold=threshold, value=value)
        )
    return after, tuple(transitions)


def _speaks_for_change(name: AlertName, up: bool, value: float, threshold: float, requests: int) -> bool:
    if up:
        return value < threshold * _CLEAR_SHARE
    return value >= threshold and (name != "error_rate" or requests >= _FEWEST_REQUESTS)


class Ceilings(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of the whole tree that the kernel does not enforce for this agent; 0 where it does or there is none."""

    memory_bytes: int = 0
    cpu_percent: float = 0
    tasks: int = 0


class Breach(msgspec.Struct, frozen=True, kw_only=True):
    """A limit, what it is, and the figure that passed it."""

    limit: Literal["memory_bytes", "cpu_percent", "tasks"]
    value: float
    figure: float

    def __str__(self) -> str:
        return f"{self.limit} = {self.value:g} passed: {self.figure:g}"


def breaches(sample: Sample, limits: Ceilings) -> tuple[Breach, ...]:
    """The limits that this sample passes. ``tasks`` counts threads, as the kernel's own controller does."""
    return tuple(_breaches(sample, limits))


def _breaches(sample: Sample, limits: Ceilings) -> Iterator[Breach]:
    if 0 < limits.memory_bytes < sample.rss_bytes:
        yield Breach(limit="memory_bytes", value=limits.memory_bytes, figure=sample.rss_bytes)
    if 0 < limits.cpu_percent < sample.cpu_percent:
        yield Breach(limit="cpu_percent", value=limits.cpu_percent, figure=sample.cpu_percent)
    if 0 < limits.tasks < sample.threads:
        yield Breach(limit="tasks", value=limits.tasks, figure=sample.threads)
