"""The journal: one writer task that commits batches of events with the state they change, then publishes.

What is promised: an event is seen by nobody before it is committed; ``seq`` has no gap within its
stream and ``pos`` grows over all of them; what stands in one ``append`` or ``write`` is committed whole
or not at all. While the disk fails, requests are refused at once and facts (``keep``) wait.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

import apsw
import attrs
import trio

from witsd.journal.event import Entry, Event
from witsd.journal.hub import Hub
from witsd.journal.store import MEDIUM_ERRORS, STATEMENT_ERRORS, Store
from witsd.values.clock import Clock
from witsd.values.errors import LimitExceeded

log = logging.getLogger("witsd.journal")
T = TypeVar("T")
Statement = tuple[str, Sequence[Any]]
Later = dict[Callable[["Tx", Sequence[Any]], None], dict[Hashable, None]]

#: Events in one transaction: enough to pay for the fsync, few enough to keep latency at milliseconds.
MAX_BATCH = 2000
#: Tickets waiting for the writer above which producers of facts are asked to pause (``wait_room``).
HIGH_WATER = 20_000
#: How long until a failing disk is tried again, in seconds.
RETRY_S = 1.0
_CLOSE_S = 30.0
#: Streams whose counters are kept in memory; the table holds them all.
_COUNTERS = 20_000

_INSERT = "INSERT INTO events(pos, stream_id, seq, time_us, type, data) VALUES (?,?,?,?,?,?)"
_COUNT = "UPDATE streams SET last_seq = ? WHERE stream_id = ?"
_TOTAL = "UPDATE journal SET last_pos = ?, events = events + ?, bytes = bytes + ?"


class Tx:
    """A write transaction in progress, for ``Journal.write``; lives on the writer's thread."""

    __slots__ = ("_db", "_later", "entries", "now_us")

    def __init__(self, db: apsw.Connection, now_us: int, later: Later | None = None) -> None:
        self._db = db
        self._later: Later = {} if later is None else later
        self.now_us = now_us
        self.entries: list[Entry] = []

    def execute(self, sql: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement and return all its rows."""
        return self._db.execute(sql, params).fetchall()

    def insert(self, sql: str, params: Sequence[Any] = ()) -> int:
        """Insert one row and return its rowid. ``RETURNING`` would make FTS5 write out what it has gathered."""
        self._db.execute(sql, params)
        return self._db.last_insert_rowid()

    def later(self, work: Callable[[Tx, Sequence[Any]], None], key: Hashable) -> None:
        """Have ``work`` run once, with all such keys of the batch, before that is committed.

        For what costs less done for many tickets together. A key may be of a ticket that was undone: ``work`` looks.
        """
        self._later.setdefault(work, {})[key] = None

    def catch_up(self) -> None:
        """Run now what was to run later, because what follows reads what that writes."""
        while self._later:
            work, keys = self._later.popitem()
            work(self, list(keys))

    def emit(self, *entries: Entry) -> None:
        """Append these events in the same transaction, after what was appended before."""
        self.entries.extend(entries)


@attrs.define(eq=False)
class Ticket(Generic[T]):
    """An append on its way: ``wait`` returns once it is committed and published."""

    entries: Sequence[Entry]
    statements: Sequence[Statement]
    work: Callable[[Tx], T] | None
    keep: bool
    then: Callable[[T], None] | None = None
    _done: trio.Event = attrs.field(factory=trio.Event)
    events: tuple[Event, ...] = ()
    _value: Any = None
    _error: BaseException | None = None

    def settle(self) -> None:
        """It is committed, or refused for good: say so."""
        if self.then is not None and self._error is None:
            try:
                self.then(self._value)
            except Exception:  # a caller's mistake, which must not end the writer for everybody
                log.exception("journal.then_failed")
        self._done.set()

    async def wait(self) -> T:
        """The result of ``work``, or None. Raises what the transaction raised."""
        await self._done.wait()
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[no-any-return]


@attrs.define(eq=False)
class Journal:
    """Append and publish. Made by ``open_journal``."""

    store: Store
    hub: Hub
    epoch: str
    _clock: Clock
    _queue: deque[Ticket[Any]] = attrs.field(factory=deque)
    _wake: trio.Event = attrs.field(factory=trio.Event)
    _room: trio.Event = attrs.field(factory=trio.Event)
    _closing: bool = False
    #: name -> [stream_id, last_seq], used on the writer's thread alone.
    _streams: dict[str, list[int]] = attrs.field(factory=dict)
    _last_pos: int = 0
    #: Who waits for the write-ahead log to be emptied.
    _emptying: list[trio.Event] = attrs.field(factory=list)
    #: Whether it was, the last time.
    _log_is_empty: bool = False
    #: Since when the disk has been failing, monotonic seconds; None while all is well.
    failing_since: float | None = None

    @property
    def congested(self) -> bool:
        """True while producers that can pause should (``wait_room``)."""
        return len(self._queue) > HIGH_WATER

    async def wait_room(self) -> None:
        """Return once the queue has drained below the high-water mark."""
        while self.congested:
            await self._room.wait()

    def append_nowait(self, *entries: Entry, statements: Sequence[Statement] = (), keep: bool = True) -> Ticket[None]:
        """Queue events and the statements that derive state from them, as one transaction.

        ``keep`` (the default here) is for facts: should the disk fail they stay queued until it works.
        """
        return self._submit(Ticket(entries, statements, None, keep))

    async def append(
        self, *entries: Entry, statements: Sequence[Statement] = (), keep: bool = False
    ) -> tuple[Event, ...]:
        """Commit and publish, then return the events with their ``seq`` and ``pos``.

        Raises ``LimitExceeded`` (limit ``disk``) when the disk is full or failing; nothing was kept then.
        """
        ticket: Ticket[None] = self._submit(Ticket(entries, statements, None, keep))
        await ticket.wait()
        return ticket.events

    async def write(self, work: Callable[[Tx], T], *, keep: bool = False, then: Callable[[T], None] | None = None) -> T:
        """Run ``work`` on the writer inside a transaction of its own within the batch.

        What it raises undoes it alone and is raised here. ``work`` must not touch anything of the event loop.
        ``then(result)`` is called in the loop once it is committed, also where the caller was cancelled
        while it waited: what memory holds must follow the database all the same.
        """
        return await self._submit(Ticket((), (), work, keep, then)).wait()

    def write_nowait(self, work: Callable[[Tx], T]) -> Ticket[T]:
        """Queue a ``write`` of a fact: should the disk fail it stays queued until it works."""
        return self._submit(Ticket((), (), work, True))

    async def empty_log(self) -> bool:
        """Move all that is committed into the database file and empty the write-ahead log; whether that was done.

        After something was deleted that must not be found on the disk. Not while a reader holds on to an old moment
        for longer than a second, nor where the disk fails.
        """
        done = trio.Event()
        self._emptying.append(done)
        self._wake.set()
        await done.wait()
        return self._log_is_empty

    def publish_nowait(self, stream: str, type: str, data: bytes) -> None:  # noqa: A002
        """Show subscribers something of the moment: no ``seq``, not stored."""
        self.hub.publish([Event(stream, type, data, self._clock.wall_us())])

    def _submit(self, ticket: Ticket[T]) -> Ticket[T]:
        if self._closing:
            raise LimitExceeded("the daemon is stopping: nothing more is written", limit="shutdown", value=0)
        self._queue.append(ticket)
        self._wake.set()
        return ticket

    async def run(self) -> None:
        """The writer task: ends when the journal closes and everything queued is committed."""
        while True:
            if self._emptying:
                emptying, self._emptying = self._emptying, []
                self._log_is_empty = await self.store.write(_empty_log)
                for done in emptying:
                    done.set()
            if not self._queue:
                if self._closing:
                    return
                self._wake = trio.Event()
                await self._wake.wait()
                continue
            batch = self._take()
            events, left, error = await self.store.write(self._commit, batch)
            self.hub.publish(events)
            for ticket in batch[: len(batch) - len(left)]:
                ticket.settle()
            if error is not None:
                await self._disk_failed(left, error)
                continue
            if self.failing_since is not None:
                self.failing_since = None
                log.warning("journal.recovered")
            if self._room.statistics().tasks_waiting and not self.congested:
                self._room.set()
                self._room = trio.Event()

    def _take(self) -> list[Ticket[Any]]:
        queue = self._queue
        batch = []
        size = 0
        while queue and size < MAX_BATCH:
            ticket = queue.popleft()
            size += max(1, len(ticket.entries))
            batch.append(ticket)
        return batch

    async def _disk_failed(self, batch: list[Ticket[Any]], error: Exception) -> None:
        """Refuse what was only asked for, put facts back in order, and pause before the next try."""
        if self.failing_since is None:
            self.failing_since = self._clock.monotonic()
            log.error("journal.disk_failed error=%s", error)
        refused = LimitExceeded(
            f"the database cannot be written ({error}): free some space and try again; nothing was changed",
            limit="disk",
            value=0,
        )
        kept = []
        for ticket in [*batch, *self._queue]:
            if ticket.keep and not self._closing:
                kept.append(ticket)
            else:
                ticket._error = refused
                ticket._done.set()
        self._queue.clear()
        self._queue.extend(kept)
        if kept:
            with trio.move_on_after(RETRY_S):
                await self._until_closing()

    async def _until_closing(self) -> None:
        while not self._closing:
            self._wake = trio.Event()
            await self._wake.wait()

    # ---- on the writer's thread -------------------------------------------------------------------

    def _commit(
        self, db: apsw.Connection, batch: list[Ticket[Any]]
    ) -> tuple[list[Event], list[Ticket[Any]], Exception | None]:
        """Returns what has been committed, and where the disk failed the tickets that were not, and why."""
        try:
            try:
                return self._commit_batch(db, batch), [], None
            except _HalfDoneError:
                return self._commit_batch(db, batch, savepoints=True), [], None
        except MEDIUM_ERRORS as error:
            return [], batch, error
        except STATEMENT_ERRORS:
            pass
        # One bad statement must not take its neighbours down: each ticket alone, the bad one is told.
        events: list[Event] = []
        for place, ticket in enumerate(batch):
            try:
                events += self._commit_batch(db, [ticket], savepoints=True)
            except MEDIUM_ERRORS as error:
                return events, batch[place:], error
            except STATEMENT_ERRORS as error:
                log.error("journal.statement_failed error=%s", error)
                ticket._error = error
        return events, [], None

    def _commit_batch(
        self, db: apsw.Connection, batch: list[Ticket[Any]], *, savepoints: bool = False
    ) -> list[Event]:
        """Raises ``_HalfDoneError`` where only ``savepoints`` can undo the work of one ticket alone."""
        pending = _Pending(db, self._streams, self._last_pos, self._clock.wall_us(), savepoints)
        db.execute("BEGIN IMMEDIATE")
        try:
            for ticket in batch:
                if ticket.work is None:
                    ticket.events = pending.add(ticket.entries)
                    pending.statements += ticket.statements
                else:
                    pending.run(ticket)
            pending.finish()
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            self._streams.clear()  # counters may be ahead of the table: read them again
            raise
        self._last_pos = pending.pos
        if len(self._streams) > _COUNTERS:
            self._streams.clear()
        return pending.events


def _empty_log(db: apsw.Connection) -> bool:
    """``PRAGMA wal_checkpoint(TRUNCATE)``, tried for a second: readers are done in milliseconds."""
    db.set_busy_timeout(1000)
    try:
        ((busy, _, _),) = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return not busy
    except (*MEDIUM_ERRORS, *STATEMENT_ERRORS) as error:
        log.warning("journal.log_not_emptied error=%s", error)
        return False
    finally:
        db.set_busy_timeout(5000)


class _HalfDoneError(Exception):
    """A ticket has failed after it had written something."""


class _Pending:
    """A batch being turned into rows: inserts are gathered so that SQLite runs one ``executemany`` each."""

    def __init__(
        self, db: apsw.Connection, streams: dict[str, list[int]], pos: int, now_us: int, savepoints: bool
    ) -> None:
        self._db = db
        self._savepoints = savepoints
        self._streams = streams
        self.pos = pos
        self._now_us = now_us
        self.events: list[Event] = []
        self.statements: list[Statement] = []
        self._rows: list[tuple[Any, ...]] = []
        self._later: Later = {}
        self._touched: dict[str, list[int]] = {}
        self._sealed: list[str] = []
        self._count = 0
        self._bytes = 0

    def add(self, entries: Sequence[Entry]) -> tuple[Event, ...]:
        added = []
        now = self._now_us
        for item in entries:
            name = item.stream
            counter = self._streams.get(name) or self._counter(name)
            counter[1] += 1
            self.pos += 1
            self._touched[name] = counter
            self._rows.append((self.pos, counter[0], counter[1], now, item.type, item.data))
            self._bytes += len(item.data)
            if item.seals:
                self._sealed.append(name)
            added.append(Event(name, item.type, item.data, now, counter[1], self.pos))
        self._count += len(added)
        self.events += added
        return tuple(added)

    def _counter(self, name: str) -> list[int]:
        row = self._db.execute(
            "INSERT INTO streams(name, last_seq) VALUES (?, 0) "
            "ON CONFLICT(name) DO UPDATE SET name = name RETURNING stream_id, last_seq",
            (name,),
        ).fetchone()
        assert row is not None
        self._streams[name] = counter = [row[0], row[1]]
        return counter

    def run(self, ticket: Ticket[Any]) -> None:
        """Run a ticket's own work. What it raises undoes it alone, where it has written anything by then.

        A savepoint for each ticket would do, but at each of them FTS5 writes out what it has gathered, which makes
        small writes half as slow again; so there are savepoints only where the batch is tried again for want of them.
        """
        self.flush()
        assert ticket.work is not None
        ticket._error = None  # of an earlier try, in a batch that was rolled back
        tx = Tx(self._db, self._now_us, self._later)
        before = self._db.total_changes()
        if self._savepoints:
            self._db.execute("SAVEPOINT ticket")
        try:
            ticket._value = ticket.work(tx)
        except MEDIUM_ERRORS:
            raise
        except Exception as error:  # the caller's own, handed back to the caller
            if self._savepoints:
                self._db.execute("ROLLBACK TO ticket")
                self._db.execute("RELEASE ticket")
            elif self._db.total_changes() != before:
                raise _HalfDoneError from error
            ticket._error = error
            return
        if self._savepoints:
            self._db.execute("RELEASE ticket")
        ticket.events = self.add(tx.entries)

    def _catch_up(self) -> None:
        try:
            Tx(self._db, self._now_us, self._later).catch_up()
        except MEDIUM_ERRORS:
            raise
        except Exception as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error  # one of STATEMENT_ERRORS

    def flush(self) -> None:
        if self._rows:
            self._db.executemany(_INSERT, self._rows)
            self._rows = []
        # Neighbours with the same text go together; order between different texts is kept.
        start = 0
        statements = self.statements
        while start < len(statements):
            sql = statements[start][0]
            end = start + 1
            while end < len(statements) and statements[end][0] is sql:
                end += 1
            self._db.executemany(sql, [params for _, params in statements[start:end]])
            start = end
        self.statements = []

    def finish(self) -> None:
        self.flush()
        self._catch_up()
        self._db.executemany(_COUNT, [(c[1], c[0]) for c in self._touched.values()])
        if self._sealed:
            self._db.executemany(
                "UPDATE streams SET sealed_us = ? WHERE name = ?",
                [(self._now_us, name) for name in self._sealed],
            )
        self._db.execute(_TOTAL, (self.pos, self._count, self._bytes))


@asynccontextmanager
async def open_journal(store: Store, clock: Clock, *, epoch: str, hub: Hub | None = None) -> AsyncIterator[Journal]:
    """Run the writer for as long as the block lasts; at the end everything queued is committed first."""
    last_pos = await store.read(lambda db: int(db.execute("SELECT last_pos FROM journal").get))
    journal = Journal(store, hub or Hub(last_pos), epoch, clock)
    journal._last_pos = last_pos
    stopped = trio.Event()

    async def writer() -> None:
        # A cancellation would travel into SQLite: the writer ends by being told, never by being cancelled.
        with trio.CancelScope(shield=True):
            try:
                await journal.run()
            finally:
                stopped.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer)
        try:
            yield journal
        finally:
            journal._closing = True
            journal._wake.set()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_S):
                await stopped.wait()
