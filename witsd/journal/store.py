"""The one SQLite file: a writer connection and a few readers, each on a thread of its own.

Only the journal's writer task uses the writer; everybody reads through ``Store.read``. APSW runs a
connection in a worker thread and resumes the awaiting trio task, so the event loop never blocks.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar

import apsw
import apsw.aio
import attrs
import trio

from witsd.journal.cipher import Cipher, unlocked
from witsd.journal.migrations import SchemaError, check_ours, migrate

T = TypeVar("T")
log = logging.getLogger("witsd.journal")
Synchronous = Literal["OFF", "NORMAL", "FULL", "EXTRA"]

#: Also bounds the WAL: 4,000 pages of 4 KiB, then a checkpoint.
_CHECKPOINT_PAGES = 4000
_CLOSE_S = 10
#: Of the file, what readers have mapped, in bytes.
_MAPPED = 256 << 20


class StorageError(Exception):
    """The disk or the file failed (full, read-only, I/O error). Nothing of the transaction was kept."""


#: What SQLite reports when the medium is at fault and not the statement.
MEDIUM_ERRORS = (
    apsw.FullError,
    apsw.IOError,
    apsw.ReadOnlyError,
    apsw.CantOpenError,
    apsw.BusyError,
    apsw.LockedError,
    apsw.NoMemError,
)

#: What a statement or its values bring about, the last three where SQLite has no such value.
STATEMENT_ERRORS = (apsw.Error, TypeError, ValueError, OverflowError)


@attrs.define(eq=False)
class Store:
    """An open database. Made by ``open_store``."""

    path: Path
    _writer: Any
    _readers: list[Any]
    _idle: trio.MemorySendChannel[Any]
    _take: trio.MemoryReceiveChannel[Any]

    async def read(self, fn: Callable[[apsw.Connection], T]) -> T:
        """Run ``fn`` on a reader inside one read transaction: all it sees is of one moment.

        A cancelled caller interrupts the query; the connection is given back clean.
        """
        db = await self._take.receive()
        try:
            return await db.async_run(_in_read_transaction, db, fn)  # type: ignore[no-any-return]
        except apsw.InterruptError:
            await trio.lowlevel.checkpoint_if_cancelled()
            raise
        finally:
            self._idle.send_nowait(db)

    async def write(self, fn: Callable[..., T], *args: Any) -> T:
        """Run ``fn(connection, *args)`` on the writer. For the journal's writer task alone."""
        return await self._writer.async_run(fn, self._writer, *args)  # type: ignore[no-any-return]


def _in_read_transaction(db: apsw.Connection, fn: Callable[[apsw.Connection], T]) -> T:
    if db.in_transaction:  # an interrupted predecessor
        db.execute("ROLLBACK")
    db.execute("BEGIN")
    try:
        return fn(db)
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


@asynccontextmanager
async def open_store(
    path: Path, *, synchronous: Synchronous = "FULL", readers: int = 2, cipher: Cipher | None = None
) -> AsyncIterator[Store]:
    """Open or create the database, migrate it, and close every connection at the end.

    Raises ``SchemaError`` for a file that cannot be used, ``StorageError`` for one that cannot be opened.
    """
    opened: list[Any] = []
    # Said outright: to find out, APSW reads trio's package metadata, for which Python loads its email and zip modules.
    apsw.async_controller.set(apsw.aio.Trio)  # type: ignore[arg-type]  # its stub says otherwise
    try:
        try:
            writer = await apsw.Connection.as_async(str(path))
            opened.append(writer)
            await writer.async_run(_set_up_writer, writer, str(path), synchronous, cipher)
            for _ in range(readers):
                reader = await apsw.Connection.as_async(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
                opened.append(reader)
                await reader.async_run(_set_up_reader, reader, str(path), cipher)
        except (*MEDIUM_ERRORS, apsw.CorruptError, apsw.PermissionsError) as error:
            raise StorageError(f"cannot open the database {path}: {error}") from error
        idle, take = trio.open_memory_channel[Any](readers)
        for reader in opened[1:]:
            idle.send_nowait(reader)
        yield Store(path, writer, opened[1:], idle, take)
    finally:
        # A connection that is not closed keeps its thread, and the process, alive.
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_S):
            for connection in reversed(opened):
                try:
                    await connection.aclose()
                except MEDIUM_ERRORS as error:
                    # Closed it is; what was not moved from the log into the file is moved at the next start.
                    log.warning("store.closed_without_checkpoint error=%s", error)


def load_vectors(db: apsw.Connection) -> None:
    """Load sqlite-vec into this connection. Raises ``StorageError`` where it is not installed.

    By its file: importing the package would import numpy where that is installed (13 MB).
    """
    spec = find_spec("sqlite_vec")
    if spec is None or spec.origin is None:
        raise StorageError("sqlite-vec is not installed: install witsd again with all that it depends on")
    db.enable_load_extension(True)
    try:
        db.load_extension(str(Path(spec.origin).with_name("vec0")), "sqlite3_vec_init")
    except apsw.ExtensionLoadingError as error:
        raise StorageError(f"sqlite-vec cannot be loaded ({error}): is it built for this machine?") from error
    finally:
        db.enable_load_extension(False)


def check_file(path: Path, cipher: Cipher | None = None) -> None:
    """Whether ``open_store`` could use the file, as far as reading it tells; a file that is not there can be made.

    Raises as ``open_store``. Blocks, briefly; another process may have the database open.
    """
    if not path.exists():
        return
    try:
        db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            unlocked(db, str(path), cipher)
            db.set_busy_timeout(5000)
            check_ours(db, str(path))
        finally:
            db.close()
    except (*MEDIUM_ERRORS, apsw.CorruptError, apsw.PermissionsError) as error:
        raise StorageError(f"cannot open the database {path}: {error}") from error


def _set_up_writer(db: apsw.Connection, path: str, synchronous: str, cipher: Cipher | None) -> None:
    unlocked(db, path, cipher)
    db.set_busy_timeout(5000)
    check_ours(db, path)  # before the first statement that writes
    load_vectors(db)
    # What is deleted is overwritten: a memory that was taken back must not be found in the file.
    db.execute("PRAGMA secure_delete = ON")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute(f"PRAGMA synchronous = {synchronous}")
    db.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
    db.execute("PRAGMA journal_size_limit = 67108864")
    migrate(db, path)


def _set_up_reader(db: apsw.Connection, path: str, cipher: Cipher | None) -> None:
    unlocked(db, path, cipher)
    db.set_busy_timeout(5000)
    load_vectors(db)
    db.execute("PRAGMA query_only = 1")
    # Another connection's commit empties a reader's cache, and without a mapping each search reads its pages anew: of
    # 100,000 memories it takes twice as long. Mapped pages count as the daemon's memory, but are the system's to take.
    db.execute(f"PRAGMA mmap_size = {_MAPPED}")


__all__ = [
    "MEDIUM_ERRORS",
    "STATEMENT_ERRORS",
    "SchemaError",
    "StorageError",
    "Store",
    "Synchronous",
    "check_file",
    "open_store",
]
