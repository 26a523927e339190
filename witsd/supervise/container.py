"""What holds an agent's whole process tree, so that a stop can end all of it. Made by ``containment.find``.

    containment = find(mark)                     once, at start (a thread)
    sweep(containment)                           before anything is started (a thread)
    container = containment.create(unit, ceilings)
    launch(daemon_pid, container.join, argv)     the child puts itself in before it becomes the agent
    container.started(identity)
    container.kill(); await container.wait_empty(); container.remove()

Methods that block say so: they are for threads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
import trio

from witsd.supervise.cgroups import SCARCE
from witsd.supervise.identity import Identity
from witsd.supervise.threads import in_thread
from witsd.values.spec import Limits

#: $0 is the daemon's pid, then the groups to join, ``--``, the program. If the parent is no longer the daemon,
#: it died before the death signal was set: 125. A group that cannot be joined: 126, and the shell's word on stderr.
LAUNCH = (
    '[ "$PPID" = "$0" ] || exit 125; '
    'while [ "$1" != -- ]; do echo 0 >"$1/cgroup.procs" || exit 126; shift; done; shift; exec "$@"'
)
#: The same for a machine without setpriv; it sets the death signal itself.
LAUNCH_PYTHON = (
    "import ctypes,os,sys;ctypes.CDLL(None).prctl(1,9);a=sys.argv\n"
    "if os.getppid()!=int(a[1]): os._exit(125)\n"
    "n=a.index('--')\n"
    "try:\n"
    "  for d in a[2:n]: os.write(os.open(d+'/cgroup.procs',os.O_WRONLY|os.O_CLOEXEC),b'0')\n"
    "except OSError as e: os.write(2,f'{e}\\n'.encode());os._exit(126)\n"
    "os.execv(a[n+1],a[n+1:])"
)
#: Set in a contained process's environment: which container it was started in.
CONTAINER_MARK = "WITSD_CONTAINER"

Ceiling = Literal["memory", "cpu", "tasks"]


class ContainerError(Exception):
    """A container cannot be made; the message says why, for a person."""


class Ceilings(msgspec.Struct, frozen=True, kw_only=True):
    """What the kernel is to enforce on the tree as a whole. 0: no limit. ``cpu_percent`` 100 is one core."""

    memory_bytes: int = 0
    cpu_percent: float = 0
    tasks: int = 0


UNLIMITED = Ceilings()


def ceilings(limits: Limits) -> Ceilings:
    """What the kernel is to hold an agent's tree to."""
    return Ceilings(memory_bytes=limits.memory_bytes, cpu_percent=limits.cpu_percent, tasks=limits.tasks)


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """The whole tree's; None for what this mechanism does not count."""

    memory_bytes: int | None = None
    memory_peak_bytes: int | None = None
    cpu_us: int | None = None
    tasks: int | None = None


class Container(ABC):
    """One run of one agent, from before its start until its last process has gone."""

    unit: str
    #: Directories whose ``cgroup.procs`` the launcher writes before exec.
    join: tuple[str, ...] = ()
    #: Variables for the agent's environment.
    env: Mapping[str, str]

    @property
    def enforced(self) -> frozenset[Ceiling]:
        """The limits that the kernel enforces here where they are set; the others are left to be sampled."""
        return frozenset()

    @abstractmethod
    def started(self, leader: Identity) -> None:
        """Tell it the leader that was just forked. Without it a process group knows nobody."""

    @abstractmethod
    def kill(self) -> int:
        """SIGKILL all members, whatever state they are in; returns how many there were. Blocks.

        Raises ``OSError`` while the daemon has no handle to spare.
        A leader that has only just been forked may not have joined yet: signal its group as well.
        """

    @abstractmethod
    def signal(self, number: int) -> int:
        """Signal every member; returns how many. Blocks. The same holds for a leader that has not joined yet."""

    @abstractmethod
    def pids(self) -> set[int]:
        """The members now, zombies excepted. Blocks."""

    @abstractmethod
    def populated(self) -> bool:
        """Whether any member is alive. One read of a kernel file on v2; elsewhere blocks."""

    @abstractmethod
    async def wait_empty(self) -> None:
        """Return once no member is alive. Told by the kernel on v2, asked for again and again elsewhere."""

    def set_ceilings(self, ceilings: Ceilings) -> frozenset[Ceiling]:
        """Put other limits into effect, on running members too; returns those that the kernel enforces now. Blocks."""
        return frozenset()

    def oom_kills(self) -> int:
        """How many members the kernel has killed for want of memory under its limit."""
        return 0

    def tasks_refused(self) -> int:
        """How many forks the limit of tasks has refused."""
        return 0

    def throttled(self) -> int:
        """In how many periods the limit of cpu has held it back."""
        return 0

    def usage(self) -> Usage:
        """What the tree uses. Some reads of kernel files; blocks for a process group."""
        return Usage()

    def remove(self) -> bool:
        """Forget it, once it is empty. False when the kernel kept it: the next sweep tries again. Blocks."""
        return True

    def remove_at_once(self) -> bool:
        """Remove it if that can be done without waiting and nobody is in it. For the event loop."""
        return False

    def _remove_if_empty(self) -> bool:
        return not self.populated() and self.remove()

    async def end(self, timeout_s: float) -> bool:
        """Kill until nobody is left, then remove; False when that was not to be had within ``timeout_s``."""
        if self.remove_at_once():  # the usual end: the leader was alone
            return True
        with trio.move_on_after(timeout_s):
            while True:
                try:
                    if await in_thread(self._remove_if_empty):
                        return True
                    await in_thread(self.kill)
                except OSError as error:
                    if error.errno not in SCARCE:
                        raise
                    await trio.sleep(0.05)
                    continue
                with trio.move_on_after(1) as again:  # one that was only just forked joins after the kill
                    await self.wait_empty()
                if not again.cancelled_caught:
                    return await in_thread(self.remove)
        return False


def launch(daemon_pid: int, join: Sequence[str], argv: Sequence[str], *, setpriv: str | None, python: str) -> list[str]:
    """The command that sets the death signal, joins the groups and becomes ``argv`` (its program resolved)."""
    rest = [str(daemon_pid), *join, "--", *argv]
    if setpriv:
        return [setpriv, "--pdeathsig", "KILL", "--", "/bin/sh", "-c", LAUNCH, *rest]
    return [python, "-I", "-S", "-c", LAUNCH_PYTHON, *rest]
