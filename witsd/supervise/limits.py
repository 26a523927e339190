"""Limits of agents: kept by the kernel where it can, otherwise by what samples show; each breach is told.

What is done about a breach:

    memory_bytes        killed       by the kernel, or within a second by samples
    tasks               refused      by the kernel; killed by samples, which cannot refuse
    cpu_percent         throttled    by the kernel; reported by samples: being busy is no reason to be ended
    open_files          refused      by the kernel, to each process; seen in samples
    output_bytes_per_s  slowed       by the daemon, which reads its pipes no faster
    run_timeout_s       failed       by the daemon: the run is
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable

import attrs
import msgspec

from witsd.journal.event import entry
from witsd.journal.journal import Journal
from witsd.supervise import alerts
from witsd.supervise.container import UNLIMITED, Ceiling, Ceilings, Container, ceilings
from witsd.supervise.sample import Sample
from witsd.values.clock import Clock
from witsd.values.spec import Limits
from witsd.values.wire.event_types import AgentLogData
from witsd.values.wire.metrics import AgentAlertData, Enforcer, LimitAction, LimitName

log = logging.getLogger("witsd.limits")

#: What goes on is told at most so often; an end always.
_TELL_EVERY_S = 60.0


class Breach(msgspec.Struct, frozen=True, kw_only=True):
    """A limit that was passed ``count`` times. ``text`` completes "the agent ..." for a person."""

    limit: LimitName
    threshold: float
    value: float
    action: LimitAction
    enforced_by: Enforcer
    text: str
    count: int = 1


@attrs.define(eq=False)
class Breaches:
    """Tells of breaches in the agent's stream, and counts them."""

    _journal: Journal
    _clock: Clock
    #: By agent: how often each limit was passed since the daemon started.
    totals: dict[str, Counter[str]] = attrs.field(factory=dict)
    #: When it was told last, and how many have come since.
    _told: dict[tuple[str, LimitName], tuple[float, int]] = attrs.field(factory=dict)

    def tell(self, name: str, breach: Breach) -> None:
        """``agent.alert`` for programs and ``agent.log`` for people."""
        self.totals.setdefault(name, Counter())[breach.limit] += breach.count
        key, now = (name, breach.limit), self._clock.monotonic()
        at, more = self._told.get(key, (-math.inf, 0))
        count = breach.count + more
        if breach.action != "killed" and now - at < _TELL_EVERY_S:
            self._told[key] = (at, count)
            return
        self._told[key] = (now, 0)
        log.warning("agent.limit agent=%s limit=%s action=%s count=%d", name, breach.limit, breach.action, count)
        alert = AgentAlertData(
            name=name,
            alert=breach.limit,
            state="breached",
            threshold=breach.threshold,
            value=breach.value,
            action=breach.action,
            enforced_by=breach.enforced_by,
            count=count,
        )
        level = "error" if breach.action == "killed" else "warning"
        said = AgentLogData(name=name, level=level, text=breach.text, count=count)
        stream = f"agent:{name}"
        self._journal.append_nowait(entry(stream, "agent.alert", alert), entry(stream, "agent.log", said))

    def forget(self, name: str) -> None:
        self.totals.pop(name, None)
        for key in [key for key in self._told if key[0] == name]:
            del self._told[key]


@attrs.define(eq=False)
class Held:
    """One process tree, what holds it, and how to end it."""

    key: str
    name: str
    container: Container
    kill: Callable[[], object]
    #: In effect in the kernel.
    ceilings: Ceilings = UNLIMITED
    #: Why it was ended, once it was for a limit; or why it will be found to have ended.
    reason: str = ""
    #: It has a limit, or had one, so each pass has to look.
    limited: bool = False
    #: Only samples keep a limit of its that ends it.
    needs_samples: bool = False
    _limits: Limits | None = None
    _unkept: alerts.Ceilings = alerts.Ceilings()
    _oom: int = 0
    _refused: int = 0
    _throttled: int = 0

    def follow(self, limits: Limits) -> None:
        """These are its limits from here on; cheap where they are the same as before."""
        if limits is self._limits:
            return
        self._limits = limits
        left = self._unkept = unkept(limits, self.container.enforced)
        self.needs_samples = bool(left.memory_bytes or left.tasks)
        wanted = ceilings(limits)
        self.limited = bool(limits.open_files) or wanted != UNLIMITED or self.ceilings != UNLIMITED

    def kernel(self, limits: Limits, sample: Sample | None) -> list[Breach]:
        """What the kernel has done since the last look. Reads a small file for each limit that is set."""
        found = []
        if "memory" in self.container.enforced:
            oom, self._oom = self._oom, self.container.oom_kills()
            if self._oom > oom:
                why = f"its limit memory_bytes is {limits.memory_bytes}" if limits.memory_bytes else _NO_LIMIT
                self.reason = f"was killed for want of memory (oom): {why}"
                text = f"was killed by the kernel for want of memory, or a process of its was (oom): {why}"
                used = self.container.usage().memory_peak_bytes or limits.memory_bytes
                found.append(_breach("memory_bytes", limits, used, "killed", "kernel", text, self._oom - oom))
        if limits.tasks and "tasks" in self.container.enforced:
            refused, self._refused = self._refused, self.container.tasks_refused()
            if self._refused > refused:
                text = f"was refused new processes or threads: its limit tasks is {limits.tasks}"
                found.append(
                    _breach("tasks", limits, limits.tasks, "refused", "kernel", text, self._refused - refused)
                )
        if limits.cpu_percent and "cpu" in self.container.enforced:
            throttled, self._throttled = self._throttled, self.container.throttled()
            if self._throttled > throttled:
                text = f"is held to its limit cpu_percent = {limits.cpu_percent:g}, and would use more"
                busy = max(limits.cpu_percent, sample.cpu_percent if sample else 0)
                found.append(
                    _breach("cpu_percent", limits, busy, "throttled", "kernel", text, self._throttled - throttled)
                )
        return found

    def sampled(self, limits: Limits, sample: Sample) -> list[Breach]:
        """The limits that the kernel does not keep and this sample passes. One ends the tree: it is killed here."""
        found = []
        self.follow(limits)
        for passed in alerts.breaches(sample, self._unkept):
            value = passed.figure
            if passed.limit == "cpu_percent":
                text = f"uses {value:.0f} % of a core; no control group holds it to its limit cpu_percent = "
                text += f"{passed.value:g} here (see: witsd doctor)"
                found.append(_breach("cpu_percent", limits, value, "reported", "samples", text))
                continue
            if passed.limit == "memory_bytes":
                text = f"was killed for want of memory (oom): it used {value:.0f} bytes, its limit memory_bytes is "
                text += f"{limits.memory_bytes}"
            else:
                text = f"was killed: it had {value:.0f} processes and threads, its limit tasks is {limits.tasks}"
            if not self.reason:
                self.reason = text
                found.append(_breach(passed.limit, limits, value, "killed", "samples", text))
                self.kill()
        return found


_NO_LIMIT = "it has no limit of its own; the machine, or a group around it, has no more"


def open_files(limits: Limits, most: int) -> Breach:
    """A process of the agent's has as many files open as it may."""
    text = f"has {most} files open in one process, all that its limit open_files allows: opening more fails"
    return _breach("open_files", limits, most, "refused", "kernel", text)


def output(limits: Limits, rate: float) -> Breach:
    """The agent writes faster than it may."""
    text = f"writes {rate:.0f} bytes a second: it is slowed by its pipe to its limit output_bytes_per_s = "
    text += f"{limits.output_bytes_per_s}; nothing is dropped"
    return _breach("output_bytes_per_s", limits, rate, "slowed", "daemon", text)


def run_timeout(limits: Limits, run_id: str, lasted_s: float) -> Breach:
    """A run took longer than it may."""
    text = f"did not end the run {run_id} within its limit run_timeout_s = {limits.run_timeout_s:g}: the run failed"
    return _breach("run_timeout_s", limits, lasted_s, "failed", "daemon", text)


def _breach(
    limit: LimitName, limits: Limits, value: float, action: LimitAction, by: Enforcer, text: str, count: int = 1
) -> Breach:
    return Breach(
        limit=limit,
        threshold=getattr(limits, limit),
        value=value,
        action=action,
        enforced_by=by,
        text=text,
        count=count,
    )


def unkept(limits: Limits, kept: frozenset[Ceiling]) -> alerts.Ceilings:
    """The limits that are ours to keep: those the kernel does not."""
    return alerts.Ceilings(
        memory_bytes=0 if "memory" in kept else limits.memory_bytes,
        cpu_percent=0 if "cpu" in kept else limits.cpu_percent,
        tasks=0 if "tasks" in kept else limits.tasks,
    )
