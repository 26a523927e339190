"""Watching: every agent's figures each second, alerts when they pass a threshold, and limits the kernel does not keep.

One task samples all agents in one pass, in slices between which the loop serves others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Protocol

import attrs
import msgspec
import trio

from witsd.journal.event import entry
from witsd.journal.journal import Journal
from witsd.supervise import alerts
from witsd.supervise.container import Container, ceilings
from witsd.supervise.identity import Identity
from witsd.supervise.limits import Breaches, Held, open_files
from witsd.supervise.requests import RequestFigures, Requests
from witsd.supervise.rings import Rings
from witsd.supervise.sample import Sample, together
from witsd.supervise.threads import in_thread
from witsd.supervise.vitals import Sampler, boottime
from witsd.values.clock import Clock, rfc3339
from witsd.values.spec import AgentSpec, Alerts, Limits
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


#: How often those are sampled whose memory only samples bound: killed within a second of the breach.
_MEMORY_EVERY_S = 0.5
_NO_ALERTS = Alerts()


@attrs.define(eq=False)
class Vitals:
    """What is known of one agent, across its processes."""

    rings: Rings = attrs.field(factory=Rings)
    requests: Requests = attrs.field(factory=Requests)
    alerts: alerts.State = attrs.field(factory=dict)
    #: How many process trees it has.
    trees: int = 0


class Watched(Protocol):
    """What the watch has to know of an agent at each pass: its unit, as it is then."""

    @property
    def spec(self) -> AgentSpec: ...

    @property
    def restarts(self) -> int: ...

    @property
    def silence_s(self) -> float | None:
        """Seconds since it last wrote anything; None while it has no process."""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """An agent at a glance: its last sample while it has a process, its requests of five minutes, what alarms."""

    vitals: VitalsSample | UnsetType = UNSET
    requests: RequestStats | UnsetType = UNSET
    alerts: tuple[RaisedAlert, ...] | UnsetType = UNSET


@attrs.define(eq=False)
class Watch:
    """All agents' vitals. ``run`` is its task."""

    _journal: Journal
    _clock: Clock
    #: Seconds between two samples of all agents. 0: none are taken but of those that have a limit which only samples
    #: keep, and so it is between two that are far apart.
    interval_s: float
    breaches: Breaches = attrs.field(init=False)
    _sampler: Sampler = attrs.field(factory=Sampler)
    _known: dict[str, Vitals] = attrs.field(factory=dict)
    _held: dict[str, Held] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self.breaches = Breaches(self._journal, self._clock)

    def of(self, name: str) -> Vitals:
        vitals = self._known.get(name)
        if vitals is None:
            vitals = self._known[name] = Vitals()
        return vitals

    def began(self, spec: AgentSpec, root: Identity, container: Container, kill: Callable[[], object]) -> Held:
        """A process of this agent is there: count it and what descends from it. ``kill`` ends it for a limit."""
        held = Held(f"{spec.name}/{root.pid}", spec.name, container, kill, ceilings(spec.limits))
        self._held[held.key] = held
        self.of(spec.name).trees += 1
        self._sampler.add(held.key, root, f"{container.join[0]}/cgroup.procs" if container.join else None)
        return held

    def why(self, held: Held, limits: Limits, otherwise: str, *, clean: bool) -> str:
        """How its leader came to end; asked before its container is gone."""
        for breach in held.kernel(limits, None):
            self.breaches.tell(held.name, breach)
        return otherwise if clean else held.reason or otherwise

    def ended(self, held: Held) -> None:
        """The process is gone; what it used stays known."""
        del self._held[held.key]
        if (vitals := self._known.get(held.name)) is not None:  # not removed meanwhile
            vitals.trees -= 1
        self._sampler.remove(held.key)

    def forget(self, name: str) -> None:
        """The agent is removed."""
        self._known.pop(name, None)
        self.breaches.forget(name)

    def record(self, name: str, duration_ms: float, *, error: bool) -> None:
        """A request of this agent is over."""
        self.of(name).requests.record(duration_ms, error, self._clock.monotonic())

    async def run(self, watched: Callable[[], Iterable[Watched]]) -> None:
        """Sample, alert and enforce for ever. What nobody has asked for costs nothing: one agent is one of many."""
        sampled_at = self._clock.monotonic()
        pause = 1.0
        try:
            while True:
                await trio.sleep(min(pause, self.interval_s or 1.0))
                self._sampler.let_go()
                about = {agent.spec.name: agent for agent in watched()}
                for held in self._held.values():
                    if (agent := about.get(held.name)) is not None:
                        held.follow(agent.spec.limits)
                bounded = {held.key for held in self._held.values() if held.needs_samples and held.name in about}
                pause = _MEMORY_EVERY_S if bounded else 1.0
                now = self._clock.monotonic()
                # A moment early is on time: the sleep before was counted from another moment.
                full = self.interval_s > 0 and now - sampled_at >= self.interval_s - _MEMORY_EVERY_S / 2
                samples: dict[str, Sample] = {}
                for done in self._sampler.sweep(None if full else bounded) if full or bounded else ():
                    if done is None:
                        await trio.lowlevel.checkpoint()
                    else:
                        samples[done[0]] = done[1]
                for held in tuple(self._held.values()):
                    if held.limited and (agent := about.get(held.name)) is not None:
                        await self._hold(held, agent.spec.limits, samples.get(held.key))
                if full:
                    sampled_at = now
                    by_name: dict[str, list[Sample]] = {}
                    for held in self._held.values():
                        if held.key in samples:
                            by_name.setdefault(held.name, []).append(samples[held.key])
                    for name in about.keys() & {agent.spec.name for agent in watched()}:  # some may be removed by now
                        agent = about[name]
                        self._look(name, agent, together(by_name.get(name, ())))
        finally:
            self._sampler.close()

    async def _hold(self, held: Held, limits: Limits, sample: Sample | None) -> None:
        """See to it that the limits hold, and tell what passed one."""
        if (wanted := ceilings(limits)) != held.ceilings:
            held.ceilings = wanted
            if held.container.enforced:
                try:
                    await in_thread(held.container.set_ceilings, wanted)
                except OSError as error:
                    text = f"cannot be held to its new limits as it is ({error.strerror}): restart it"
                    data = AgentLogData(name=held.name, level="warning", text=text)
                    self._journal.append_nowait(entry(f"agent:{held.name}", "agent.log", data))
        found = held.kernel(limits, sample)
        if sample is not None:
            found += held.sampled(limits, sample)
            if limits.open_files and (most := self._sampler.most_fds(held.key)) >= limits.open_files:
                found.append(open_files(limits, most))
        for breach in found:
            self.breaches.tell(held.name, breach)

    def _look(self, name: str, agent: Watched, sample: Sample | None) -> None:
        vitals = self.of(name)
        if sample is not None:
            vitals.rings.add(sample)
        thresholds = agent.spec.alerts
        if thresholds == _NO_ALERTS and not vitals.alerts:
            return
        now = self._clock.monotonic()
        figures = vitals.requests.figures(now)
        readings = alerts.Readings(
            cpu_percent=None if sample is None else sample.cpu_percent,
            memory_bytes=None if sample is None else sample.rss_bytes,
            error_rate=figures.error_rate if figures.count else None,
            requests=figures.count,
            restarts=agent.restarts,
            silence_s=agent.silence_s,
        )
        vitals.alerts, changes = alerts.step(vitals.alerts, readings, thresholds, now)
        for change in changes:
            data = AgentAlertData(
                name=name,
                alert=change.alert,
                state=change.state,
                threshold=change.threshold,
                value=UNSET if change.value is None else change.value,
            )
            self._journal.append_nowait(entry(f"agent:{name}", "agent.alert", data))

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
        sample = vitals.rings.current if vitals.trees else None
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
