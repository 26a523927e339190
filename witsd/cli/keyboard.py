"""Single keys from a terminal: what they are called, and the mode in which they arrive one by one."""

from __future__ import annotations

import codecs
import re
import termios
from collections.abc import Iterator
from contextlib import contextmanager

_SEQUENCE = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z~]|O[A-Za-z])")
#: The beginning of one of which the rest may still be on its way.
_BEGUN = re.compile(r"\x1b(?:\[[0-9;?]*|O)?\Z")
_NAMES = {
    "\x1b[A": "up", "\x1bOA": "up", "\x1b[B": "down", "\x1bOB": "down",
    "\x1b[C": "right", "\x1bOC": "right", "\x1b[D": "left", "\x1bOD": "left",
    "\x1b[H": "home", "\x1bOH": "home", "\x1b[1~": "home", "\x1b[7~": "home",
    "\x1b[F": "end", "\x1bOF": "end", "\x1b[4~": "end", "\x1b[8~": "end",
    "\x1b[5~": "pageup", "\x1b[6~": "pagedown", "\x1bOM": "enter",
    "\r": "enter", "\n": "enter", "\x7f": "backspace", "\x08": "backspace", "\x0c": "redraw",
}  # fmt: skip


class Decoder:
    """Bytes from a terminal in, names of keys out; a printable character is its own name."""

    def __init__(self) -> None:
        self._text = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    @property
    def pending(self) -> bool:
        """Whether the last byte may be the Escape key, or the beginning of another key."""
        return bool(self._rest)

    def feed(self, data: bytes) -> Iterator[str]:
        """The keys that are complete. What is unknown is left out."""
        text, self._rest = self._rest + self._text.decode(data), ""
        while text:
            if _BEGUN.match(text):
                self._rest = text
                return
            found = _SEQUENCE.match(text)
            size = found.end() if found else 1
            key, text = text[:size], text[size:]
            if key == "\x1b":
                yield "escape"
            elif key in _NAMES:
                yield _NAMES[key]
            elif key.isprintable():
                yield key

    def flush(self) -> Iterator[str]:
        """Nothing has followed: it was the Escape key."""
        if self._rest:
            self._rest = ""
            yield "escape"


@contextmanager
def single_keys(fd: int) -> Iterator[None]:
    """Keys come one by one and unseen; Ctrl-C and Ctrl-Z stay signals, Ctrl-S holds nothing up."""
    before = termios.tcgetattr(fd)
    mode = termios.tcgetattr(fd)
    mode[0] &= ~termios.IXON
    mode[3] &= ~(termios.ICANON | termios.ECHO)
    mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
    termios.tcsetattr(fd, termios.TCSADRAIN, mode)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSANOW, before)
