"""A disk that fails when it is told: SQLite's own file layer with a counter in front of it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import apsw

_names = itertools.count(1)


class FaultyVfs(apsw.VFS):
    """Counts ``open``, ``write`` (truncating included) and ``sync``, and fails those that are due."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.failures = 0
        self._kind = ""
        self._due = range(0)
        self._error: type[apsw.Error] = apsw.IOError
        self.name = f"faulty{next(_names)}"
        super().__init__(self.name, "unix", makedefault=True)

    def fail(self, kind: str, nth: int = 1, *, lasting: bool = True, error: type[apsw.Error] = apsw.IOError) -> None:
        """The ``nth`` operation of this kind from now on fails, and where ``lasting`` all after it."""
        self.counts.clear()
        self.failures = 0
        self._kind, self._error = kind, error
        self._due = range(nth, 1 << 60) if lasting else range(nth, nth + 1)

    def mend(self) -> None:
        """Work again."""
        self._due = range(0)

    def hit(self, kind: str) -> None:
        self.counts[kind] += 1
        if kind == self._kind and self.counts[kind] in self._due:
            self.failures += 1
            raise self._error(f"{kind} {self.counts[kind]} fails as told")

    def xOpen(self, name: Any, flags: list[int]) -> _FaultyFile:  # noqa: N802 - SQLite's name
        self.hit("open")
        return _FaultyFile(name, flags, self)


class _FaultyFile(apsw.VFSFile):
    def __init__(self, name: Any, flags: list[int], vfs: FaultyVfs) -> None:
        self._vfs = vfs
        super().__init__("unix", name, flags)

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802
        self._vfs.hit("write")
        super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        self._vfs.hit("write")
        super().xTruncate(newsize)

    def xSync(self, flags: int) -> None:  # noqa: N802
        self._vfs.hit("sync")
        super().xSync(flags)


@contextmanager
def faulty_disk() -> Iterator[FaultyVfs]:
    """Every database opened in this block is on the faulty disk."""
    vfs = FaultyVfs()
    try:
        yield vfs
    finally:
        vfs.mend()
        vfs.unregister()
