"""Real processes that do what they are told, line by line, and their children."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from types import TracebackType
from typing import Self

from witsd.supervise.identity import Identity, boot_id, start_time

PATIENCE_S = 60.0

_OBEDIENT = """
import os, sys, subprocess, threading, time
children = {}
def say(x): print(x, flush=True)
def burn(s):
    end = time.process_time() + s
    while time.process_time() < end: pass
say('ready')
for line in sys.stdin:
    exec(line)
    say('done')
"""


def identity(pid: int) -> Identity:
    found = start_time(pid)
    assert found is not None, f"no process {pid}"
    return Identity(pid, found, boot_id())


class Obedient:
    """A Python process, leader of a session of its own, that executes a statement for each line it is told.

    It has ``say``, ``burn(cpu_seconds)``, ``os``, ``subprocess``, ``threading`` and ``time``. At the end everything in
    its session is killed.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _OBEDIENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )
        self._rest = b""
        assert self._line() == "ready"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def identity(self) -> Identity:
        return identity(self.pid)

    def do(self, statement: str) -> list[str]:
        """Execute it there; returns once it is done, with what it has said."""
        assert self._process.stdin is not None
        self._process.stdin.write(statement.encode() + b"\n")
        said = []
        while (line := self._line()) != "done":
            said.append(line)
        return said

    def start_sleeper(self, name: str = "sleeper") -> int:
        """A child that sleeps; its pid."""
        pid = self.do(f"children[{name!r}] = subprocess.Popen(['sleep', '1000']); say(children[{name!r}].pid)")
        return int(pid[0])

    def end(self) -> None:
        """Kill it alone, and reap it."""
        self._process.kill()
        self._process.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        while b"\n" not in self._rest:
            assert select.select([self._process.stdout], [], [], PATIENCE_S)[0], "it says nothing"
            chunk = os.read(self._process.stdout.fileno(), 65536)
            assert chunk, "it has ended"
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            os.killpg(self.pid, 9)
        except ProcessLookupError:
            pass  # all of it has ended
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
