"""The daemon's side of ``forker``: starts it, asks it, and does without where it cannot be had. For one thread.

That thread is the parent of all agents and as old as the daemon, since a death signal follows the thread that forked.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from witsd.supervise import forker
from witsd.supervise.container import launch

log = logging.getLogger("witsd.supervise")

_PROGRAM = str(Path(forker.__file__))
#: To the forker itself, where it may not make siblings.
_REFUSED = (errno.ENOSYS, errno.EPERM, errno.EINVAL)
#: What a person is told of a step that failed, with what the kernel said.
_STEPS = {
    "fork": "no process could be made",
    "join": "its control group could not be joined",
    "open_files": "its limit `open_files` could not be set",
    "cwd": "its working folder cannot be entered",
    "exec": "its program cannot be run",
}


#: It answers within milliseconds. One that does not, as somebody has stopped it, is replaced after so many seconds.
_ANSWER_S = 10.0
#: Numbers remembered until those whose process has ended are forgotten.
_TOLD = 4096


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """A process to be: ``argv`` with its program resolved, ``join`` as ``Container.join`` has it."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    join: Sequence[str] = ()
    #: Bounds its descriptors; 0: as ours.
    open_files: int = 0


class Forker:
    """Not for several threads."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None
        self._cannot = ""
        #: Whom it has told us of; some have ended since.
        self._told: set[int] = set()

    def fork(self, start: Start, pipes: Sequence[int]) -> tuple[int, int]:
        """Its pid, with these three as standard input, output and error, and where it reports. Blocks, briefly.

        The report, read to its end, is empty once it runs its program; else ``failure`` says what it means.
        Raises ``OSError`` when there is no process.
        """
        if self._cannot:
            return self._by_launcher(start, pipes)
        v2: list[str] = []
        v1: list[str] = []
        for group in start.join:
            (v1 if v2 or not os.path.exists(f"{group}/cgroup.events") else v2).append(group)
        request = (
            [os.fsencode(word) for word in start.argv],
            {os.fsencode(name): os.fsencode(value) for name, value in start.env.items()},
            os.fsencode(start.cwd),
            [os.fsencode(group) for group in v1],
            start.open_files,
        )
        report, told = os.pipe2(os.O_CLOEXEC)
        handles = [told]
        try:
            handles += [os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for group in v2]
            pid, number = self._ask(request, (*pipes, *handles))
            if number in _REFUSED:
                self._cannot = os.strerror(number)
                log.warning("supervise.no_forker reason=%s", self._cannot)
                pid = _by_launcher(start, pipes)
            elif number:
                raise OSError(number, failure(b"%d fork" % number))
        except BaseException:
            os.close(report)
            raise
        finally:
            for handle in handles:
                os.close(handle)
        self._told.add(pid)
        if len(self._told) > _TOLD:
            self._told &= _children()
        return pid, report

    def _by_launcher(self, start: Start, pipes: Sequence[int]) -> tuple[int, int]:
        report, told = os.pipe2(os.O_CLOEXEC)
        os.close(told)  # it reports nothing: a shell says by its exit status what went wrong
        return _by_launcher(start, pipes), report

    def _ask(self, request: object, fds: tuple[int, ...]) -> tuple[int, int]:
        answer, how = None, "has ended unexpectedly"
        try:
            sock = self._sock or self._begin()
            try:
                forker.send(sock, request, fds)
            except (BrokenPipeError, ConnectionResetError):  # killed by somebody: what it has not read is not done
                self.close()
                sock = self._begin()
                forker.send(sock, request, fds)
            answer = forker.receive(sock)
        except (BrokenPipeError, ConnectionResetError):
            pass
        except TimeoutError:
            how = f"has not answered within {_ANSWER_S:g} s and was ended"
        if answer is None:
            self.close()
            self._end_untold()
            raise OSError(f"the process that forks {how}; another is started at the next try")
        (pid, number), _ = answer
        return pid, number

    def _begin(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.settimeout(_ANSWER_S)
        with theirs:
            try:
                self._child = subprocess.Popen(
                    [sys.executable, "-I", "-S", _PROGRAM, str(theirs.fileno()), str(os.getpid())],
                    env={},
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        self._sock = ours
        return ours

    def _end_untold(self) -> None:
        """End and reap what it forked and had no time to tell us of: ours by birth, and known to nobody."""
        for pid in _children() - self._told:
            os.kill(pid, signal.SIGKILL)  # a child that is not waited for keeps its number
            os.waitid(os.P_PID, pid, os.WEXITED)

    def close(self) -> None:
        """End it; agents go on."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None


def _children() -> set[int]:
    """Those of this thread, zombies included."""
    try:
        text = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text()
    except OSError:  # a kernel without the list: there is nobody we could know of
        return set()
    return {int(pid) for pid in text.split()}


def failure(report: bytes) -> str:
    """What a report that is not empty says, for a person."""
    number, _, step = report.decode().partition(" ")
    return f"{_STEPS.get(step, step)}: {os.strerror(int(number))}"


def _by_launcher(start: Start, pipes: Sequence[int]) -> int:
    """Where the kernel or a filter refuses the forker: a line of shell does the same, some milliseconds later."""
    argv = list(start.argv)
    if start.open_files:
        argv = ["prlimit", f"--nofile={start.open_files}:{start.open_files}", "--", *argv]
    child = subprocess.Popen(
        launch(os.getpid(), start.join, argv, setpriv=shutil.which("setpriv"), python=sys.executable),
        cwd=start.cwd,
        env=dict(start.env),
        stdin=pipes[0],
        stdout=pipes[1],
        stderr=pipes[2],
        start_new_session=True,
    )
    child.returncode = 0  # it is waited for by its pidfd, and never by Popen
    return child.pid
