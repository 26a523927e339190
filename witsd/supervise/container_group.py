"""A container that is a control group: joined before exec, killed as a whole, limited by the kernel."""

from __future__ import annotations

import errno
import math
import os
import select
import signal
from collections.abc import Mapping
from pathlib import Path

import attrs
import msgspec
import trio

from witsd.supervise import cgroups
from witsd.supervise.cgroups import Host
from witsd.supervise.container import Ceiling, Ceilings, Container, Usage
from witsd.supervise.identity import Identity
from witsd.supervise.threads import in_thread

_CPU_PERIOD_US = 100_000


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where one limit's groups are made: below ``home``, beside or in the container's own hierarchy."""

    home: Path
    v2: bool


@attrs.define(eq=False, kw_only=True)
class GroupContainer(Container):
    """A control group, with one more in each v1 hierarchy that enforces a limit which is set."""

    unit: str
    group: Path
    places: Mapping[Ceiling, Place]
    host: Host
    env: Mapping[str, str]
    join: tuple[str, ...] = attrs.field(init=False)
    #: The group that has the controller, and the limits that are set there.
    _limiting: dict[Ceiling, Path] = attrs.field(factory=dict, init=False)
    _limited: frozenset[Ceiling] = frozenset()

    def __attrs_post_init__(self) -> None:
        self.join = (str(self.group),)
        self._limiting = {name: self.group for name, place in self.places.items() if place.home == self.group.parent}

    @property
    def enforced(self) -> frozenset[Ceiling]:
        return frozenset(self.places)

    def started(self, leader: Identity) -> None:
        pass

    def kill(self) -> int:
        return cgroups.kill(self.group)

    def signal(self, number: int) -> int:
        if number == signal.SIGKILL:
            return self.kill()
        return cgroups.send(self.pids(), number, self.pids)

    def pids(self) -> set[int]:
        return cgroups.members(self.group)

    def populated(self) -> bool:
        return cgroups.populated(self.group)

    async def wait_empty(self) -> None:
        try:
            events = os.open(self.group / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            events = -1  # v1, or the group has vanished
        except OSError as error:
            if error.errno not in cgroups.SCARCE:
                raise
            events = -1
        if events < 0:
            await self._poll_empty()
            return
        try:
            # The file is always readable; what says that it has changed is EPOLLPRI, which trio does not ask
            # for. An epoll that asks for that alone is itself readable when it happens.
            with select.epoll(1) as changes:
                changes.register(events, select.EPOLLPRI)
                # The kernel tells of changes to one file no oftener than every 10 ms, so at first we look ourselves.
                pause = 0.0005
                while b"populated 1" in os.pread(events, 4096, 0):
                    with trio.move_on_after(pause if pause < 0.02 else math.inf):
                        await trio.lowlevel.wait_readable(changes.fileno())
                    pause *= 2
        except OSError as error:
            if error.errno == errno.ENODEV:
                return  # removed under us: nobody was in it
            if error.errno not in cgroups.SCARCE:
                raise
            await self._poll_empty()
        finally:
            os.close(events)

    async def _poll_empty(self) -> None:
        pause = 0.001
        while await in_thread(self._may_be_populated):
            await trio.sleep(pause)
            pause = min(pause * 2, 0.05)

    def _may_be_populated(self) -> bool:
        try:
            return self.populated()
        except OSError as error:
            if error.errno not in cgroups.SCARCE:
                raise
            return True  # asked again when there are handles

    def set_ceilings(self, ceilings: Ceilings) -> frozenset[Ceiling]:
        wanted: dict[Ceiling, float] = {
            "memory": ceilings.memory_bytes,
            "cpu": ceilings.cpu_percent,
            "tasks": ceilings.tasks,
        }
        for name, value in wanted.items():
            place = self.places.get(name)
            if place is None or (not value and name not in self._limited):
                continue
            group = self._limiting.get(name) or self._join_also(name, place)
            _WRITE[name, place.v2](self.host, group, value)
            self._limited = self._limited | {name} if value else self._limited - {name}
        return self._limited

    def _join_also(self, name: Ceiling, place: Place) -> Path:
        group = place.home / self.group.name
        try:
            self.host.mkdir(group)
        except FileExistsError:
            pass  # pids and freezer may be one hierarchy; and one that was kept is as good
        self._limiting[name] = group
        if str(group) not in self.join:
            self.join = (*self.join, str(group))
        for _ in range(100):  # what was forked while we moved its parent is moved in the next round
            outside = self.pids() - cgroups.members(group)
            if not outside:
                break
            for pid in outside:
                try:
                    self.host.write(group / "cgroup.procs", pid)
                except ProcessLookupError:
                    continue
        return group

    def oom_kills(self) -> int:
        group = self._limiting.get("memory")
        if group is None:
            return 0
        events = cgroups.number(group / "memory.events", "oom_kill")
        return events or cgroups.number(group / "memory.oom_control", "oom_kill") or 0

    def tasks_refused(self) -> int:
        group = self._limiting.get("tasks")
        return cgroups.number(group / "pids.events", "max") or 0 if group else 0

    def throttled(self) -> int:
        group = self._limiting.get("cpu")
        return cgroups.number(group / "cpu.stat", "nr_throttled") or 0 if group else 0

    def usage(self) -> Usage:
        memory, tasks = self._limiting.get("memory"), self._limiting.get("tasks")
        nanoseconds = cgroups.number(self.group / "cpuacct.usage")
        return Usage(
            memory_bytes=_first(memory, "memory.current", "memory.usage_in_bytes"),
            memory_peak_bytes=_first(memory, "memory.peak", "memory.max_usage_in_bytes"),
            # v2 counts time in every group, controller or not.
            cpu_us=nanoseconds // 1000 if nanoseconds else cgroups.number(self.group / "cpu.stat", "usage_usec"),
            tasks=_first(tasks, "pids.current"),
        )

    def remove_at_once(self) -> bool:
        # The kernel refuses for a group that anybody is in or below: one call of 20 us, where a thread takes 200.
        if len(self.join) > 1:
            return False
        try:
            self.host.rmdir(self.group)
        except OSError:
            return False
        return True

    def remove(self) -> bool:
        groups = {Path(path) for path in self.join}
        left = [group for group in groups if not cgroups.remove(group, self.host)]
        return not left


def _first(group: Path | None, *files: str) -> int | None:
    figures = (cgroups.number(group / file) for file in files) if group else ()
    return next((figure for figure in figures if figure is not None), None)


def _memory_v2(host: Host, group: Path, value: float) -> None:
    host.write(group / "memory.max", int(value) or "max")
    for file, other in (("memory.swap.max", 0 if value else "max"), ("memory.oom.group", 1 if value else 0)):
        if (group / file).exists():  # not where swap is not accounted for
            host.write(group / file, other)


def _memory_v1(host: Host, group: Path, value: float) -> None:
    # Memory and swap together may never be less than memory alone, neither on the way up nor down.
    both = group / "memory.memsw.limit_in_bytes"
    if both.exists():
        host.write(both, -1)
    host.write(group / "memory.limit_in_bytes", int(value) or -1)
    if both.exists() and value:
        host.write(both, int(value))


def _cpu_v2(host: Host, group: Path, value: float) -> None:
    host.write(group / "cpu.max", f"{_quota(value) or 'max'} {_CPU_PERIOD_US}")


def _cpu_v1(host: Host, group: Path, value: float) -> None:
    host.write(group / "cpu.cfs_period_us", _CPU_PERIOD_US)
    host.write(group / "cpu.cfs_quota_us", _quota(value) or -1)


def _quota(percent: float) -> int:
    """Microseconds in each period; the kernel takes no less than 1,000."""
    return max(1000, round(percent / 100 * _CPU_PERIOD_US)) if percent else 0


def _tasks(host: Host, group: Path, value: float) -> None:
    host.write(group / "pids.max", int(value) or "max")


_WRITE = {
    ("memory", True): _memory_v2,
    ("memory", False): _memory_v1,
    ("cpu", True): _cpu_v2,
    ("cpu", False): _cpu_v1,
    ("tasks", True): _tasks,
    ("tasks", False): _tasks,
}
