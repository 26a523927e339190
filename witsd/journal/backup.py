"""A copy of one moment of the database, by SQLite's backup API, while others read and write it.

The source is read over a connection of its own that holds one read transaction, so the copy is of one moment and is
never begun anew because somebody wrote. What that costs: the write-ahead log grows until the copy is done.
Every method blocks; call them in a thread, one after the other.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import apsw

from witsd.journal.cipher import Cipher, unlocked
from witsd.journal.migrations import SchemaError, check_ours
from witsd.journal.store import load_vectors

#: Pages copied in one step: 4 MiB, some milliseconds.
_STEP_PAGES = 1024


class Copying:
    """One copy being made at ``target``, an empty file of ours. ``close`` ends it, finished or not."""

    def __init__(self, source: Path, target: Path, cipher: Cipher | None) -> None:
        self._target = target
        self._cipher = cipher
        self._from = apsw.Connection(str(source), flags=apsw.SQLITE_OPEN_READWRITE)
        self._to: apsw.Connection | None = None
        self._backup: Any = None
        try:
            unlocked(self._from, str(source), cipher)
            self._from.set_busy_timeout(5000)
            self._page = int(self._from.pragma("page_size"))
            self._from.execute("BEGIN; SELECT count(*) FROM sqlite_schema").fetchall()
            self._to = apsw.Connection(str(target))
            if cipher is not None:
                cipher.unlock(self._to)
            # Should it fail on the way the file goes; it is synced when it is whole.
            self._to.execute("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF").fetchall()
            self._backup = self._to.backup("main", self._from, "main")
        except BaseException:
            self.close()
            raise

    def step(self) -> tuple[int, int, bool]:
        """Copy some more; ``(bytes done, bytes in all, whether that was all)``."""
        self._backup.step(_STEP_PAGES)
        assert self._to is not None
        size = self._page
        total = self._backup.page_count * size
        return total - self._backup.remaining * size, total, bool(self._backup.done)

    def finish(self) -> int:
        """Make one file of it, have SQLite look through it, and bring it to the disk; returns its size in bytes.

        Raises ``SchemaError`` where the copy is not sound, which means that the database is not.
        """
        self.close()
        settled(self._target, self._cipher)
        return self._target.stat().st_size

    def close(self) -> None:
        """Let go of both files. Doing so again is fine."""
        if self._backup is not None:
            self._backup.close(True)
            self._backup = None
        for db in (self._to, self._from):
            if db is not None:
                db.close(True)


def settled(path: Path, cipher: Cipher | None) -> None:
    """Make a database at rest one file, without a log beside it, look through it and sync it.

    Raises ``SchemaError`` where it is no sound database of ours.
    """
    db = apsw.Connection(str(path))
    try:
        unlocked(db, str(path), cipher)
        if check_ours(db, str(path)) == 0:
            raise SchemaError(f"{path} is empty")
        load_vectors(db)
        db.execute("PRAGMA journal_mode = DELETE").fetchall()
        said = [str(line) for (line,) in db.execute("PRAGMA integrity_check(5)")]
    except apsw.CorruptError as error:
        raise SchemaError(f"{path} is damaged: {error}") from error
    finally:
        db.close(True)
    if said != ["ok"]:
        raise SchemaError(f"{path} is damaged: {'; '.join(said)[:300]}")
    sync(path)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove(path: Path) -> None:
    """Delete a database that was given up, with what SQLite puts beside it."""
    for end in ("", "-journal", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            os.unlink(f"{path}{end}")
