"""A gate that an agent waits at until the test lets it through: a FIFO, one byte for each that may pass."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Gate:
    """``path`` is what ``tests/agents`` take; held open at both ends, so that nobody blocks in ``open``."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        os.mkfifo(path)
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def let(self, count: int = 1) -> None:
        """Let so many through, now or when they come."""
        os.write(self._fd, b"." * count)

    def close(self) -> None:
        os.close(self._fd)


@contextmanager
def gate(folder: Path, name: str = "gate") -> Iterator[Gate]:
    it = Gate(folder / name)
    try:
        yield it
    finally:
        it.close()
