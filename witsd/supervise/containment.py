"""Which way of holding process trees this machine allows, decided once at start; and the sweep of what was left.

The first that works of: ``cgroup v2`` (one write kills all), ``cgroup v1`` (freeze, kill, thaw) and ``process
group`` (session, group, parents and a mark in the environment).

Groups are made below the daemon's own and nowhere else, so that nothing an agent does escapes what the daemon
itself is held to. A v1 controller is left alone where something other than the service manager has put the
daemon into a group: that something counts on nothing being below it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from witsd.supervise import cgroups
from witsd.supervise.cgroups import Hierarchy, Host
from witsd.supervise.container import CONTAINER_MARK, UNLIMITED, Ceiling, Ceilings, Container, ContainerError
from witsd.supervise.container_group import GroupContainer, Place
from witsd.supervise.container_plain import Marks
from witsd.supervise.identity import kill_marked

Mechanism = Literal["cgroup v2", "cgroup v1", "process group"]
#: The v1 hierarchies that hold a tree, the best first: a frozen tree cannot fork away from being killed.
_V1 = ("freezer", "pids", "name=systemd")
_CONTROLLERS: dict[Ceiling, str] = {"memory": "memory", "cpu": "cpu", "tasks": "pids"}
#: Where the daemon itself goes, so that its group may hand controllers on to others (systemd's ``DelegateSubgroup=``).
_DAEMON = "daemon"
_UNIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}")
#: No file of the kernel's ends like this, so no agent's name can collide with one.
_SUFFIX = ".agent"
#: A process that the kernel cannot end (it waits for a device) does not keep the agent's next start from a group.
_SAME_NAME = 100
_SWEEP_S = 10.0
KERNEL = Host()


class Containment(msgspec.Struct, frozen=True, kw_only=True):
    """Which way is in use, why, and what it can enforce. Made by ``find``."""

    name: Mechanism
    #: For a person: where it is, or why nothing better could be had, and what to do.
    reason: str
    mark: str
    #: None for process groups.
    home: Path | None = None
    places: Mapping[Ceiling, Place] = msgspec.field(default_factory=dict)
    #: Why a limit is not enforced by the kernel, by limit.
    missing: Mapping[Ceiling, str] = msgspec.field(default_factory=dict)
    host: Host = KERNEL
    marks: Marks = msgspec.field(default_factory=Marks)

    @property
    def controllers(self) -> frozenset[Ceiling]:
        """The limits the kernel enforces; the others are left to be sampled."""
        return frozenset(self.places)

    def create(self, unit: str, ceilings: Ceilings = UNLIMITED) -> Container:
        """An empty container. ``unit`` may be an agent's or a run's name. Blocks.

        Raises ``ContainerError``; nothing is left behind then.
        """
        if not _UNIT.fullmatch(unit):
            raise ContainerError(f"{unit!r} cannot be the name of a container")
        if self.home is None:
            return self.marks.container(name_of(self.mark), unit)
        try:
            _ensure_home(self.home, self.host, frozenset(p.home for p in self.places.values()) | {self.home})
            group = self._vacant(self.home, unit)
        except OSError as error:
            raise ContainerError(f"its control group could not be made: {error}") from error
        env = {CONTAINER_MARK: f"{name_of(self.mark)}/{group.name}"}
        container = GroupContainer(unit=unit, group=group, places=self.places, host=self.host, env=env)
        try:
            container.set_ceilings(ceilings)
        except OSError as error:
            container.remove()
            raise ContainerError(f"its limits could not be set: {error}") from error
        return container

    def _vacant(self, home: Path, unit: str) -> Path:
        for again in range(_SAME_NAME):
            group = home / f"{unit}{f'~{again}' if again else ''}{_SUFFIX}"
            try:
                self.host.mkdir(group)
                return group
            except FileExistsError:
                # Of an earlier process of this agent: an empty one is made anew, for its counters.
                if not cgroups.populated(group) and cgroups.remove(group, self.host, 0.1):
                    self.host.mkdir(group)
                    return group
        raise OSError(errno.EBUSY, "earlier ones do not go away", str(home))

    def close(self) -> None:
        """Remove what ``find`` has made, as far as it is empty. Blocks."""
        for home in {place.home for place in self.places.values()} | ({self.home} if self.home else set()):
            cgroups.remove(home, self.host, 1.0)


def name_of(mark: str) -> str:
    """The directory of all containers of one daemon."""
    return f"witsd-{hashlib.sha256(mark.encode()).hexdigest()[:16]}"


def _ensure_home(home: Path, host: Host, homes: frozenset[Path]) -> None:
    for each in homes:
        if not each.is_dir():  # somebody has tidied up
            host.mkdir(each)
            if each == home:
                enable(each, host)


def enable(group: Path, host: Host) -> frozenset[str]:
    """Hand v2 controllers on to the groups below; returns those that are. Each for itself: one refused is one less."""
    for controller in ("memory", "cpu", "pids"):
        if controller in cgroups.words(group / "cgroup.subtree_control"):
            continue
        try:
            host.write(group / "cgroup.subtree_control", f"+{controller}")
        except OSError:
            continue
    return cgroups.words(group / "cgroup.subtree_control")


def find(mark: str, *, allowed: Collection[Mechanism] = ("cgroup v2", "cgroup v1"), host: Host = KERNEL) -> Containment:
    """Decide how the trees of this daemon's agents are held. Blocks: makes groups, starts a shell to try one.

    Call it once, before other tasks run: it may move the daemon into a group ``daemon`` below its own. Never
    fails: where no group can be made it says why.
    """
    found = cgroups.hierarchies(host.proc)
    name, why = name_of(mark), []
    unified = next((hierarchy for hierarchy in found if hierarchy.v2), None)
    if "cgroup v2" in allowed:
        if unified is None:
            why.append("no cgroup v2 is mounted")
        else:
            base = _base(unified)
            problem = _try(base / name, host, "cgroup.kill")
            if not problem:
                places = _hand_on(base, base / name, host)
                more, missing = _v1_places(found, name, places, host)
                reason = f"{base / name}, ended with cgroup.kill"
                return Containment(
                    name="cgroup v2",
                    reason=reason,
                    mark=mark,
                    home=base / name,
                    places={**more, **places},
                    missing=missing,
                    host=host,
                )
            why.append(problem)
    if "cgroup v1" in allowed:
        for controller in _V1:
            hierarchy = next((h for h in found if controller in h.controllers), None)
            if hierarchy is None:
                continue
            home = hierarchy.own / name
            problem = _not_ours(hierarchy, found) or _try(home, host, "cgroup.procs")
            if not problem:
                places, missing = _v1_places(found, name, {}, host)
                return Containment(
                    name="cgroup v1",
                    reason=f"{home}, {'frozen and killed' if controller == 'freezer' else 'killed one by one'}"
                    + (f"; not cgroup v2: {'; '.join(why)}" if why else ""),
                    mark=mark,
                    home=home,
                    places=places,
                    missing=missing,
                    host=host,
                )
            why.append(problem)
    return Containment(
        name="process group",
        reason=(f"{'; '.join(why)}. " if why else "")
        + "A process that leaves its session and clears its environment can outlive its agent. "
        "Run witsd as a service with Delegate=yes: witsd service install",
        mark=mark,
        missing=dict.fromkeys(_CONTROLLERS, "there is no control group"),
        host=host,
    )


def _base(unified: Hierarchy) -> Path:
    """Our own group; its parent, if it is the place that an earlier start or systemd has put us into."""
    own = unified.own
    if own.name == _DAEMON and own.parent.is_relative_to(unified.mount) and os.access(own.parent, os.W_OK):
        return own.parent
    return own


def _try(home: Path, host: Host, needed: str) -> str:
    """Make ``home`` and put a process into a group below it: empty, or why that cannot be done."""
    probe = home / "probe"  # without the suffix: no agent is called so
    try:
        for group in (home, probe):
            try:
                host.mkdir(group)
            except FileExistsError:
                pass  # of an earlier daemon: swept later
        if not os.access(probe / needed, os.W_OK):
            problem = f"{probe / needed} is not there or not writable"
        else:
            problem = cgroups.try_joining(probe)
    except OSError as error:
        problem = f"{error.filename or home}: {error.strerror}"
    except subprocess.TimeoutExpired:
        problem = f"{home}: joining it took too long"
    cgroups.remove(probe, host)
    if problem and home.is_dir() and not any(entry.is_dir() for entry in os.scandir(home)):
        cgroups.remove(home, host)
    return problem


def _hand_on(base: Path, home: Path, host: Host) -> dict[Ceiling, Place]:
    """The limits that v2 enforces below ``home``, once everything that can be handed on is."""
    wanted = cgroups.words(base / "cgroup.controllers") & frozenset(_CONTROLLERS.values())
    # Only the very top of v2 has no such file, and only there may a group have processes and hand controllers on.
    if wanted - cgroups.words(base / "cgroup.subtree_control") and (base / "cgroup.events").exists():
        _step_down(base, host)
    enable(base, host)
    handed = enable(home, host)
    return {name: Place(home=home, v2=True) for name, controller in _CONTROLLERS.items() if controller in handed}


def _step_down(base: Path, host: Host) -> None:
    """Move the daemon into ``daemon``, if the group is ours alone. Where it cannot be done limits are sampled."""
    try:
        inside = _procs(base)
        if os.getpid() not in inside or not (inside == {os.getpid()} or cgroups.is_delegated(base)):
            return
        if not (base / _DAEMON).is_dir():
            host.mkdir(base / _DAEMON)
        host.write(base / _DAEMON / "cgroup.procs", os.getpid())
    except OSError:
        return


def _procs(group: Path) -> set[int]:
    return {int(pid) for pid in cgroups.words(group / "cgroup.procs")}


def _not_ours(hierarchy: Hierarchy, found: Collection[Hierarchy]) -> str:
    """Why no group may be made in a v1 hierarchy, or empty."""
    if hierarchy.at_top:
        return ""
    managed = [other.path for other in found if other.v2 or "name=systemd" in other.controllers]
    if hierarchy.path in managed or cgroups.is_delegated(hierarchy.own):
        return ""
    return f"{hierarchy.own} belongs to whoever has put the daemon there"


def _v1_places(
    found: Collection[Hierarchy], name: str, have: Mapping[Ceiling, Place], host: Host
) -> tuple[dict[Ceiling, Place], dict[Ceiling, str]]:
    """Where v1 enforces the limits that v2 does not, and why the rest is not enforced."""
    places: dict[Ceiling, Place] = {}
    missing: dict[Ceiling, str] = {}
    for limit, controller in _CONTROLLERS.items():
        if limit in have:
            continue
        hierarchy = next((h for h in found if controller in h.controllers), None)
        if hierarchy is None:
            missing[limit] = f"no controller {controller!r} has been handed to the daemon"
            continue
        problem = _not_ours(hierarchy, found) or _try(hierarchy.own / name, host, "cgroup.procs")
        if problem:
            missing[limit] = problem
        else:
            places[limit] = Place(home=hierarchy.own / name, v2=False)
    return places, missing


class Swept(msgspec.Struct, frozen=True):
    """What an earlier daemon had left. ``remaining``: groups that the kernel has not let go."""

    processes: int
    groups: int
    remaining: tuple[str, ...] = ()


def sweep(containment: Containment) -> Swept:
    """End everything in containers with this mark, wherever in the hierarchies that daemon ran, and remove them.

    Blocks. Call it before anything is started. What is in no group is found by its mark in the environment.
    """
    name = name_of(containment.mark)
    current = {place.home for place in containment.places.values()} | {containment.home}
    processes, count, remaining = 0, 0, []
    found = sorted(cgroups.hierarchies(containment.host.proc), key=lambda hierarchy: not hierarchy.v2)
    for home in [home for hierarchy in found for home in cgroups.search(hierarchy.mount, name)]:
        count += sum(1 for _ in cgroups.groups(home)) - 1
        processes += cgroups.kill(home)
        inside = os.getpid() in cgroups.members(home)  # started by an agent of the daemon before it
        if not inside:
            cgroups.wait_empty(home, _SWEEP_S)
        if not cgroups.remove(home, containment.host, 0 if inside else 2, below_only=home in current):
            remaining.append(str(home))
    processes += kill_marked(containment.mark)
    return Swept(processes, count, tuple(remaining))
