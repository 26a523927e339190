"""A container where no control group may be made: whoever can be recognised as the leader's.

By session, process group, parents, or a mark in the environment that descendants inherit. A process that
has left the session, lost its parent and cleared its environment is not found: ``doctor`` says so.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Mapping
from functools import partial

import attrs
import trio

from witsd.supervise import cgroups
from witsd.supervise.container import CONTAINER_MARK, Container, Usage
from witsd.supervise.identity import Identity, is_same, start_time, stat_fields
from witsd.supervise.threads import in_thread

_KILL_S = 5.0
#: Who forks faster than it is stopped is killed as it is found.
_STOP_ROUNDS = 5


@attrs.define(eq=False, kw_only=True)
class PlainContainer(Container):
    unit: str
    env: Mapping[str, str]
    join: tuple[str, ...] = ()
    _leader: Identity | None = None

    def started(self, leader: Identity) -> None:
        self._leader = leader

    def kill(self) -> int:
        """Kills again and again, up to five seconds, whoever is found. Blocks: about 40 us a process of the machine."""
        give_up, killed, pause = time.monotonic() + _KILL_S, set[int](), 0.001
        # Stopped before any is killed: some are known by nothing but a parent that is still there.
        found = self._found()
        for _ in range(_STOP_ROUNDS):
            cgroups.send(found, signal.SIGSTOP, partial(_same, found))
            more = self._found()
            if more.keys() <= found.keys():
                break
            found |= more
        self._signal_group(signal.SIGKILL)
        while found := {pid: found[pid] for pid in _same(found)} | self._found():
            killed |= found.keys()
            cgroups.send(found, signal.SIGKILL, partial(_same, found))
            if time.monotonic() > give_up:
                break
            time.sleep(pause)
            pause = min(pause * 2, 0.02)
        return len(killed)

    def signal(self, number: int) -> int:
        if number == signal.SIGKILL:
            return self.kill()
        found = self._found()
        return cgroups.send(found, number, partial(_same, found))

    def _signal_group(self, number: int) -> None:
        """Catches at once what was forked since anybody looked; only while the leader, or its zombie, holds the pid."""
        if self._leader is not None and is_same(self._leader):
            try:
                os.killpg(self._leader.pid, number)
            except (ProcessLookupError, PermissionError):
                pass  # not yet, or no longer, a group; what is alive is found one by one

    def pids(self) -> set[int]:
        return set(self._found())

    def populated(self) -> bool:
        return bool(self._found())

    async def wait_empty(self) -> None:
        pause = 0.005
        while await in_thread(self.populated):
            await trio.sleep(pause)
            pause = min(pause * 2, 0.25)

    def usage(self) -> Usage:
        """How many there are; the rest is left to whoever samples /proc. Blocks."""
        return Usage(tasks=len(self._found()))

    def _found(self) -> dict[int, int]:
        """The members now and when each started, zombies excepted. Blocks."""
        wanted = f"{CONTAINER_MARK}={self.env[CONTAINER_MARK]}".encode()
        leader, found = self._leader, dict[int, int]()
        parents: dict[int, tuple[int, int]] = {}
        # While anybody is in the leader's session or group its number is given to no stranger.
        ours = leader.pid if leader and start_time(leader.pid) in (None, leader.start_time) else 0
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit():
                continue
            pid = int(entry.name)
            fields = stat_fields(pid)
            if fields is None or fields[0] in "ZX" or pid == os.getpid():
                continue
            parent, group, session, started = int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19])
            parents[pid] = parent, started
            if (ours and ours in (pid, group, session)) or _carries(pid, wanted):
                found[pid] = started
        more = True
        while more:
            more = False
            for pid, (parent, started) in parents.items():
                if parent in found and pid not in found:
                    found[pid] = started
                    more = True
        return found


def _carries(pid: int, wanted: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return wanted in file.read(1 << 20).split(b"\0")
    except OSError:
        return False


def _same(found: Mapping[int, int]) -> set[int]:
    """Those whose number still means the process that was found, and which are no zombies."""
    now = {pid: stat_fields(pid) for pid in found}
    return {pid for pid, fields in now.items() if fields and fields[0] not in "ZX" and int(fields[19]) == found[pid]}


@attrs.define(eq=False)
class Marks:
    """Tells one container of a unit from the next."""

    _numbers: itertools.count[int] = attrs.field(factory=itertools.count)

    def container(self, daemon: str, unit: str) -> PlainContainer:
        return PlainContainer(unit=unit, env={CONTAINER_MARK: f"{daemon}/{unit}.{next(self._numbers)}"})
