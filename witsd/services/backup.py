"""``system/backup``: a copy of the database while it is in use, in its place only once it is whole and checked."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Protocol

import apsw
import attrs
import trio

from witsd.journal.backup import Copying, remove, sync
from witsd.journal.cipher import Cipher
from witsd.journal.journal import Journal, Tx
from witsd.journal.migrations import SchemaError
from witsd.journal.store import MEDIUM_ERRORS
from witsd.values.actor import Actor
from witsd.values.clock import Clock, rfc3339
from witsd.values.errors import Conflict, InvalidParams, InvalidState, LimitExceeded
from witsd.values.wire import system as wire


class Progress(Protocol):
    """How far it is, for a caller that wants to know."""

    @property
    def wanted(self) -> bool: ...

    async def __call__(self, *, progress: float | None = None, total: float | None = None) -> None: ...


@attrs.define(eq=False)
class Backups:
    """The service. One backup at a time: each holds the write-ahead log open."""

    _journal: Journal
    _clock: Clock
    _cipher: Cipher | None = None
    _one: trio.Lock = attrs.field(factory=trio.Lock)

    async def make(self, actor: Actor, params: wire.BackupParams, progress: Progress) -> wire.Backup:
        """Copy the database to ``path``. Writers go on meanwhile; the copy is of the moment it began.

        Raises ``InvalidParams`` for a path that cannot be used, ``Conflict`` where something is there already,
        ``LimitExceeded`` (limit ``disk``) where there is no room for it, ``InvalidState`` for a damaged database.
        """
        path = Path(params.path)
        await trio.to_thread.run_sync(self._check, path, params.force)
        part = path.with_name(f".{path.name}.part")
        async with self._one:
            try:
                size = await self._copy(part, progress)
                await trio.to_thread.run_sync(self._check, path, params.force)
                await trio.to_thread.run_sync(_into_place, part, path)
            except MEDIUM_ERRORS as error:
                raise LimitExceeded(
                    f"the backup cannot be written ({error}): is there room for it? There is none now", limit="disk",
                    value=0,
                ) from None  # fmt: skip
            except SchemaError as error:
                raise InvalidState(f"no backup was made: {error}", state="damaged") from None
            except OSError as error:
                raise _unusable(path, error.strerror or str(error)) from None
            finally:
                remove(part)
        row = (str(path), size, self._clock.wall_us())

        def work(tx: Tx) -> None:
            tx.execute("INSERT OR REPLACE INTO backups VALUES (?,?,?)", row)

        await self._journal.write(work)
        return _view(row)

    async def _copy(self, part: Path, progress: Progress) -> int:
        source = self._journal.store.path

        def begin() -> Copying:
            remove(part)
            # Before SQLite opens it, so that at no time others may read it.
            os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            return Copying(source, part, self._cipher)

        copying = await trio.to_thread.run_sync(begin)
        try:
            done = False
            while not done:
                copied, total, done = await trio.to_thread.run_sync(copying.step)
                if progress.wanted:
                    await progress(progress=copied, total=total)
            return await trio.to_thread.run_sync(copying.finish)
        finally:
            copying.close()

    def _check(self, path: Path, force: bool) -> None:
        if not path.is_absolute():
            raise _unusable(path, "give the whole path, beginning with /")
        try:
            folder = path.parent.stat()
        except OSError as error:
            raise _unusable(path, f"its folder: {error.strerror}") from None
        if not stat.S_ISDIR(folder.st_mode):
            raise _unusable(path, "what stands before its name is no folder")
        try:
            there = path.lstat()
        except FileNotFoundError:
            return
        except OSError as error:
            raise _unusable(path, error.strerror or str(error)) from None
        own = self._journal.store.path
        for end in ("", "-wal", "-shm", ".lock"):
            if os.path.exists(f"{own}{end}") and os.path.samefile(path, f"{own}{end}"):
                raise _unusable(path, "this is the database itself")
        if not stat.S_ISREG(there.st_mode):
            raise _unusable(path, "there is something there that is no file")
        if not force:
            raise Conflict(f"{path} is there already: take another name, or --force to replace it", path=str(path))


def known(db: apsw.Connection) -> tuple[wire.Backup, ...]:
    """The backups that were made and are where they were put, latest first. Reads the names on the disk."""
    rows = db.execute("SELECT path, bytes, made_us FROM backups ORDER BY made_us DESC LIMIT 100")
    return tuple(_view(row) for row in rows if os.path.exists(row[0]))


def _view(row: tuple[str, int, int]) -> wire.Backup:
    path, size, made_us = row
    return wire.Backup(path=path, bytes=size, time=rfc3339(made_us))


def _into_place(part: Path, path: Path) -> None:
    part.rename(path)
    sync(path.parent)


def _unusable(path: Path, why: str) -> InvalidParams:
    return InvalidParams(f"no backup can be put at {path}: {why}", path="params.path")
