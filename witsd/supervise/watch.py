"""Watching: every agent's figures each second, alerts when they pass a threshold, and limits the kernel does not keep.

One task samples all agents in one pass, in slices between which the loop serves others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import attrs
import trio

from witsd.journal.event import entry
from witsd.journal.journal import Journal
from witsd.supervise import alerts
from witsd.supervise.identity import Identity
from witsd.supervise.requests import RequestFigures, Requests
from witsd.supervise.rings import Rings
from witsd.supervise.sample import Sample
from witsd.supervise.vitals import Sampler, boottime
from witsd.values.clock import Clock, rfc3339
from witsd.values.spec import AgentSpec
from witsd.values.wire.common import UNSET, UnsetType
from witsd.values.wire.event_types import AgentLogData
from witsd.values.wire.metrics import (
    AgentAlertData,
    AgentsMetricsResult,
    RaisedAlert,
    RequestStats,
    VitalsSample,
)

log = logging.getLogger("witsd.watch")


@attrs.define(eq=False)
class Vitals:
    """What is known of one agent, across its processes."""

    rings: Rings = attrs.field(factory=Rings)
    requests: Requests = attrs.field(factory=Requests)
    alerts: alerts.State = attrs.field(factory=dict)
    alive: bool = False


@attrs.frozen(kw_only=True)
class Facts:
    """What the watch has to be told of an agent at each pass; its unit knows it."""

    spec: AgentSpec
    restarts: int
    #: Seconds since it last wrote anything; None while it has no process.
    silence_s: float | None
    #: Limits of its that the kernel keeps.
    kept: frozenset[str]
    #: Ends its whole tree for that reason.
    end: Callable[[str], None]


@attrs.frozen(kw_only=True)
class Figures:
    """An agent at a glance: its last sample while it has a process, its requests of five minutes, what alarms."""

    vitals: VitalsSample | UnsetType = UNSET
    requests: RequestStats | UnsetType = UNSET
    alerts: tuple[RaisedAlert, ...] | UnsetType = UNSET


@attrs.define(eq=False)
class Watch:
    """All agents' vitals. ``run`` is its task."""

    _journal: Journal
    _clock: Clock
    #: Seconds between two samples; 0: none are taken.
    interval_s: float
    _sampler: Sampler = attrs.field(factory=Sampler)
    _known: dict[str, Vitals] = attrs.field(factory=dict)

    def of(self, name: str) -> Vitals:
        return self._known.setdefault(name, Vitals())

    def began(self, name: str, root: Identity, procs_file: str | None) -> None:
        """A process of this agent is there: count it and what descends from it."""
        self.of(name).alive = True
        self._sampler.add(name, root, procs_file)

    def ended(self, name: str) -> None:
        """Its process is gone; what it used stays known."""
        self.of(name).alive = False
        self._sampler.remove(name)

    def forget(self, name: str) -> None:
        """The agent is removed."""
        self._sampler.remove(name)
        self._known.pop(name, None)

    def record(self, name: str, duration_ms: float, *, error: bool) -> None:
        """A request of this agent is over."""
        self.of(name).requests.record(duration_ms, error, self._clock.monotonic())

    async def run(self, facts: Callable[[], Iterable[Facts]]) -> None:
        """Sample, alert and enforce for ever."""
        try:
            while self.interval_s:
                await trio.sleep(self.interval_s)
                samples: dict[str, Sample] = {}
                for done in self._sampler.sweep():
                    if done is None:
                        await trio.lowlevel.checkpoint()
                    else:
                        samples[done[0]] = done[1]
                for fact in facts():
                    self._look(fact, samples.get(fact.spec.name))
        finally:
            self._sampler.close()

    def _look(self, fact: Facts, sample: Sample | None) -> None:
        name = fact.spec.name
        vitals = self.of(name)
        if not vitals.alive:
            sample = None
        if sample is not None:
            vitals.rings.add(sample)
            for breach in alerts.breaches(sample, _not_kept(fact)):
                self._enforce(fact, breach)
        now = self._clock.monotonic()
        figures = vitals.requests.figures(now)
        readings = alerts.Readings(
            cpu_percent=None if sample is None else sample.cpu_percent,
            memory_bytes=None if sample is None else sample.rss_bytes,
            error_rate=figures.error_rate if figures.count else None,
            requests=figures.count,
            restarts=fact.restarts,
            silence_s=fact.silence_s,
        )
        vitals.alerts, changes = alerts.step(vitals.alerts, readings, fact.spec.alerts, now)
        for change in changes:
            data = AgentAlertData(
                name=name,
                alert=change.alert,
                state=change.state,
                threshold=change.threshold,
                value=UNSET if change.value is None else change.value,
            )
            self._journal.append_nowait(entry(f"agent:{name}", "agent.alert", data))

    def _enforce(self, fact: Facts, breach: alerts.Breach) -> None:
        """Over a limit that the kernel does not keep here: its tree is ended, and its stream says why."""
        if breach.limit == "cpu_percent":
            return  # being busy is no reason to be ended; the threshold of the same name alerts
        what = f"was ended for its limit: {breach}"
        log.warning("agent.limit agent=%s limit=%s", fact.spec.name, breach)
        data = AgentLogData(name=fact.spec.name, level="error", text=what)
        self._journal.append_nowait(entry(f"agent:{fact.spec.name}", "agent.log", data))
        fact.end(what)

    def metrics(self, name: str, window_s: float) -> AgentsMetricsResult:
        """``agents/metrics``."""
        vitals = self.of(name)
        now, mono = boottime(), self._clock.monotonic()
        found = vitals.requests.figures(mono, min(window_s, 300))
        summary = vitals.rings.summary(window_s, now)
        return AgentsMetricsResult(
            samples=tuple(self._shown(sample, now) for sample in vitals.rings.samples(window_s, now)),
            requests=_stats(found),
            alerts=self._raised(vitals, mono),
            current=UNSET if summary is None else self._shown(summary.current, now),
            average=UNSET if summary is None else self._shown(summary.average, now),
            peak=UNSET if summary is None else self._shown(summary.peak, now),
        )

    def now(self, name: str) -> Figures:
        """What ``agents/list`` tells of each agent: cheap, for it is asked of all of them every second."""
        vitals = self._known.get(name)
        if vitals is None:
            return Figures()
        mono = self._clock.monotonic()
        sample = vitals.rings.current if vitals.alive else None
        return Figures(
            vitals=UNSET if sample is None else self._shown(sample, boottime()),
            requests=_stats(vitals.requests.figures(mono)) if vitals.requests.total_count else UNSET,
            alerts=self._raised(vitals, mono) or UNSET,
        )

    def _raised(self, vitals: Vitals, mono: float) -> tuple[RaisedAlert, ...]:
        return tuple(
            RaisedAlert(
                alert=alert,
                threshold=standing.threshold,
                value=standing.value,
                since=rfc3339(self._clock.wall_us() - int((mono - (standing.raised_at or mono)) * 1e6)),
            )
            for alert, standing in alerts.raised(vitals.alerts).items()
        )

    def _shown(self, sample: Sample, now: float) -> VitalsSample:
        return VitalsSample(
            time=rfc3339(self._clock.wall_us() - int((now - sample.at) * 1e6)),
            cpu_percent=round(sample.cpu_percent, 2),
            rss_bytes=sample.rss_bytes,
            fds=sample.fds,
            threads=sample.threads,
            processes=sample.processes,
            read_bytes=sample.read_bytes,
            write_bytes=sample.write_bytes,
        )


def _stats(found: RequestFigures) -> RequestStats:
    return RequestStats(
        count=found.count,
        errors=found.errors,
        error_rate=found.error_rate,
        mean_ms=found.mean_ms,
        p95_ms=found.p95_ms,
        window_s=found.window_s,
    )


def _not_kept(fact: Facts) -> alerts.Ceilings:
    """The limits that are ours to keep: those the kernel does not."""
    limits = fact.spec.limits
    return alerts.Ceilings(
        memory_bytes=0 if "memory" in fact.kept else limits.memory_bytes,
        cpu_percent=0 if "cpu" in fact.kept else limits.cpu_percent,
        tasks=0 if "tasks" in fact.kept else limits.tasks,
    )
