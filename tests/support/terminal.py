"""A program at a terminal of its own: what it shows can be waited for, and keys can be pressed."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

#: Far more than anything takes on a slow, busy machine.
PATIENCE_S = 30.0
CTRL_C = "\x03"
CTRL_D = "\x04"
#: Whole escape sequences, and one at the end of which the rest has not come yet.
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]|\x1b(?:\[[0-9;?]*)?\Z")


class Terminal:
    """``argv`` under a pseudo-terminal, which is its controlling one, so that Ctrl-C is a signal."""

    def __init__(self, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path | None = None) -> None:
        self._leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self._process = subprocess.Popen(
            list(argv),
            stdin=follower,
            stdout=follower,
            stderr=follower,
            env={**env, "TERM": "xterm"},
            cwd=cwd,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(follower)
        self._raw = ""
        self._seen = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(PATIENCE_S)
        os.close(self._leader)
        if error is not None:
            print(self.raw)

    @property
    def raw(self) -> str:
        """Everything shown so far, escape sequences included."""
        return self._raw

    @property
    def shown(self) -> str:
        """Everything shown so far, as a person reads it."""
        return _ESCAPES.sub("", self._raw).replace("\r\n", "\n")

    def resize(self, columns: int, rows: int) -> None:
        """Give the window another size; the program is told by SIGWINCH."""
        fcntl.ioctl(self._leader, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def modes(self) -> list[Any]:
        """How the terminal treats its input now: what a program that reads single keys must put back."""
        return termios.tcgetattr(self._leader)

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def cpu_s(self) -> float:
        """Processor time it has used so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stopped(self) -> bool:
        """Whether it is suspended, as by Ctrl-Z."""
        return Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def press(self, keys: str) -> None:
        os.write(self._leader, keys.encode())

    def line(self, text: str) -> None:
        self.press(text + "\n")

    def until(self, text: str) -> str:
        """Wait for ``text`` after what was last waited for; returns what came before it."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            shown = self.shown
            at = shown.find(text, self._seen)
            if at >= 0:
                before, self._seen = shown[self._seen : at], at + len(text)
                return before
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} was not shown; after {shown[self._seen :]!r}"
            assert self._read(left), f"the program has ended without showing {text!r}: {shown!r}"

    def end(self) -> int:
        """Wait until it has ended; its exit status."""
        deadline = time.monotonic() + PATIENCE_S
        while self._read(max(deadline - time.monotonic(), 0.001)):
            assert time.monotonic() < deadline, f"it goes on: {self.shown!r}"
        return self._process.wait(PATIENCE_S)

    def _read(self, timeout_s: float) -> bool:
        """Take in some output; False once there will be no more."""
        if not select.select([self._leader], [], [], timeout_s)[0]:
            return True
        try:
            data = os.read(self._leader, 65_536)
        except OSError:  # EIO: the last holder of the other side is gone
            return False
        self._raw += data.decode(errors="replace")
        return bool(data)
