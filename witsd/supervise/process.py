"""One child process: forked for a thread that never ends, watched through a pidfd, signalled as a group.

A death signal (``PR_SET_PDEATHSIG``) follows the *thread* whose child it is, so all children belong to one thread as
old as the daemon; see ``forking``.
"""

from __future__ import annotations

import ctypes
import logging
import os
import queue
import shutil
import signal
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import attrs
import msgspec
import trio

from witsd.supervise.container import Container
from witsd.supervise.forking import Forker, Start, failure
from witsd.supervise.identity import Identity, boot_id, start_time

log = logging.getLogger("witsd.supervise")
T = TypeVar("T")

_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_DUMPABLE = 4


class SpawnError(Exception):
    """The program cannot be run; the message says why."""


class Exit(msgspec.Struct, frozen=True):
    """How a process ended: an exit code, or the signal that killed it."""

    code: int | None
    signal: int | None

    @property
    def clean(self) -> bool:
        return self.code == 0

    def __str__(self) -> str:
        if self.signal is not None:
            return f"was killed by {_signal_name(self.signal)}"
        return f"exited with code {self.code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name
        return f"signal {number}"


class Spawner:
    """The thread that forks. Made by ``open_spawner``."""

    def __init__(self, patience_s: float = 30) -> None:
        self.patience_s = patience_s
        #: For jobs on the thread alone.
        self.forker = Forker()
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="witsd-spawner", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (job := self._work.get()) is not None:
            job()
        self.forker.close()

    async def run(self, fn: Callable[[], T], *, undo: Callable[[T], None]) -> T:
        """Run ``fn`` on the spawner thread. Not cancellable: a fork is either done or not.

        Raises ``TimeoutError`` after ``patience_s``; should it be done all the same later, ``undo`` has what it made.
        """
        done, settled = trio.Event(), threading.Lock()
        outcome: list[T] = []
        failed: list[Exception] = []
        given_up = False
        token = trio.lowlevel.current_trio_token()

        def job() -> None:
            if given_up:
                return
            try:
                made = fn()
                with settled:
                    if not given_up:
                        outcome.append(made)
                if not outcome:
                    log.warning("supervise.forked_too_late")
                    undo(made)
            except Exception as error:  # noqa: BLE001 - the caller's own, handed back to the caller
                failed.append(error)
            token.run_sync_soon(done.set)

        self._work.put(job)
        # A fork takes milliseconds; the deadline only keeps a broken machine from hanging us for ever.
        with trio.CancelScope(shield=True, deadline=trio.current_time() + self.patience_s):
            await done.wait()
        with settled:
            given_up = not outcome and not failed
        if given_up:
            raise TimeoutError(
                f"no process was made within {self.patience_s:g} s: a disk does not answer, memory is short, or the "
                "process that forks is stopped"
            )
        if failed:
            raise failed[0]
        return outcome[0]

    def close(self) -> None:
        self._work.put(None)


@asynccontextmanager
async def open_spawner() -> AsyncIterator[Spawner]:
    spawner = Spawner()
    try:
        yield spawner
    finally:
        spawner.close()


def become_supervisor() -> None:
    """Adopt orphaned descendants, and let nobody but root look into our memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def resolve(command: Sequence[str], cwd: Path, path: str) -> list[str]:
    """The command with its program as an absolute path. Raises ``SpawnError`` for what cannot be run."""
    if not cwd.is_dir():
        raise SpawnError(f"its working folder {cwd} does not exist")
    program = command[0]
    if "/" in program:
        full = cwd / os.path.expanduser(program)  # unlike Path's, it never raises
        if not full.exists():
            raise SpawnError(f"the program {full} does not exist")
        if not full.is_file() or not os.access(full, os.X_OK):
            raise SpawnError(f"the program {full} is not executable")
        return [str(full), *command[1:]]
    found = shutil.which(program, path=path)
    if found is None:
        raise SpawnError(f"there is no program {program!r} in its PATH ({path})")
    return [found, *command[1:]]


@attrs.define(eq=False)
class Pipe:
    """Our end of one: a mere number until somebody reads or writes."""

    fd: int
    _stream: trio.lowlevel.FdStream | None = None

    @property
    def stream(self) -> trio.lowlevel.FdStream:
        if self._stream is None:
            self._stream = trio.lowlevel.FdStream(self.fd)
        return self._stream

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        elif self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


@attrs.define(eq=False)
class Process:
    """A running child: leader of its own session and process group."""

    identity: Identity
    #: Its standard input, output and error.
    pipes: tuple[Pipe, Pipe, Pipe]
    _pidfd: int
    #: Set, with ``exit``, once the leader is gone.
    exited: trio.Event = attrs.field(factory=trio.Event)
    exit: Exit | None = None
    _reaped: bool = False

    @property
    def pid(self) -> int:
        return self.identity.pid

    @property
    def stdin(self) -> trio.lowlevel.FdStream:
        return self.pipes[0].stream

    @property
    def stdout(self) -> trio.lowlevel.FdStream:
        return self.pipes[1].stream

    @property
    def stderr(self) -> trio.lowlevel.FdStream:
        return self.pipes[2].stream

    async def watch(self) -> Exit:
        """Return when the leader has exited. It stays a zombie, and its pid ours, until ``reap``.

        For the one task that owns the process; everybody else waits for ``exited``.
        """
        while self.exit is None:
            await trio.lowlevel.wait_readable(self._pidfd)
            info = os.waitid(  # noqa: ASYNC222 - WNOHANG
                os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOWAIT | os.WNOHANG
            )
            if info is not None:
                plain = info.si_code == os.CLD_EXITED
                self.exit = Exit(info.si_status, None) if plain else Exit(None, info.si_status)
                self.exited.set()
        return self.exit

    def signal_group(self, number: int) -> bool:
        """Signal the leader's whole group. Safe while the leader is not reaped: its pid cannot be reused.

        False where nobody in it may be signalled: a program that became another user (sudo) is not ours to signal.
        """
        if self._reaped:
            return True
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            pass  # everyone in it is gone already
        except PermissionError:
            return False
        return True

    def reap(self) -> None:
        """Collect the exit status; from here on the pid may belong to somebody else."""
        if self._reaped:
            return
        self._reaped = True
        # One that not even SIGKILL could end by now hangs in the kernel: it is left, and the loop is not held up.
        os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        os.close(self._pidfd)

    def close_pipes(self) -> None:
        for pipe in self.pipes:
            pipe.close()


class Forked(msgspec.Struct, frozen=True, kw_only=True):
    """A child that is on its way to its program, and our handles; ``become`` has them closed or used."""

    pid: int
    start_time: int
    pidfd: int
    report: int
    pipes: tuple[int, int, int]

    def undo(self) -> None:
        """End it and close its handles: nobody waits for it any more. Blocks."""
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        for handle in (self.pidfd, self.report, *self.pipes):
            os.close(handle)


def fork(
    forker: Forker,
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    container: Container,
    open_files: int = 0,
) -> Forked:
    """Start ``command`` in its own session and in ``container``, with three pipes. Blocks: for the spawner's thread.

    ``open_files`` bounds its descriptors (0: as ours). Raises ``SpawnError`` with a reason for a person. The death
    signal kills it if the daemon dies.
    """
    start = Start(
        argv=resolve(command, cwd, env.get("PATH", os.defpath)),
        env={**env, **container.env},
        cwd=cwd,
        join=container.join,
        open_files=open_files,
    )
    try:
        return _fork(forker, start)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        # ValueError: a zero byte in an argument, an "=" in a variable's name
        raise SpawnError(error.strerror or str(error) if isinstance(error, OSError) else str(error)) from error


async def become(child: Forked, container: Container) -> Process:
    """The process, once it runs its program. Raises ``SpawnError`` where it cannot; then it is gone."""
    failed = await _failure(child.report)
    if failed:
        for handle in child.pipes:
            os.close(handle)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 30):
            await trio.lowlevel.wait_readable(child.pidfd)
        os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOHANG)  # noqa: ASYNC222 - WNOHANG
        os.close(child.pidfd)
        raise SpawnError(failed)
    stdin, stdout, stderr = map(Pipe, child.pipes)
    identity = Identity(child.pid, child.start_time, boot_id())
    container.started(identity)
    return Process(identity, (stdin, stdout, stderr), child.pidfd)


async def _failure(report: int) -> str:
    """Why it has not become its program; empty once it has. Not cancellable: it is about to be one or the other."""
    try:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 30):
            await trio.lowlevel.wait_readable(report)
            told = os.read(report, 64)
            return failure(told) if told else ""
        return ""  # it hangs on its way to it, on a folder that does not answer: it can be stopped like any other
    finally:
        os.close(report)


def _fork(forker: Forker, start: Start) -> Forked:
    ours: list[int] = []
    theirs: list[int] = []
    try:
        for ends in ((theirs, ours), (ours, theirs), (ours, theirs)):
            for end, handle in zip(ends, os.pipe2(os.O_CLOEXEC), strict=True):
                end.append(handle)
        pid, report = forker.fork(start, theirs)
        stdin, stdout, stderr = ours
        ours.append(report)
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:  # out of descriptors: what nobody can talk to must not go on running
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
    except BaseException:
        for handle in ours:
            os.close(handle)
        raise
    finally:
        for handle in theirs:
            os.close(handle)
    return Forked(pid=pid, start_time=start_time(pid) or 0, pidfd=pidfd, report=report, pipes=(stdin, stdout, stderr))


def adopted() -> list[int]:
    """Orphans that became our children: all of the main thread's, since we fork from another one."""
    try:
        text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    except OSError:
        return []
    return [int(pid) for pid in text.split()]


async def reap_adopted() -> None:
    """Collect the exit status of orphans for ever, and of nobody else's children."""
    token, due = trio.lowlevel.current_trio_token(), trio.Event()
    told = False

    def tell(number: int, frame: object) -> None:
        # Once for all that end in a moment: trio's own receiver wakes the loop for each, also for those of others.
        nonlocal told
        if not told:
            told = True
            token.run_sync_soon(due.set)

    before = signal.signal(signal.SIGCHLD, tell)
    try:
        while True:
            await due.wait()
            due, told = trio.Event(), False
            for pid in adopted():
                try:
                    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)  # noqa: ASYNC222 - WNOHANG
                except ChildProcessError:
                    pass  # reaped between listing and asking
    finally:
        signal.signal(signal.SIGCHLD, before)
