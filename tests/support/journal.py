"""A journal on a database of its own, and what tests ask of one."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import apsw

from tests.doubles.clock import FakeClock
from witsd.journal.event import Entry, Event, entry
from witsd.journal.hub import Hub
from witsd.journal.journal import Journal, Tx, open_journal
from witsd.journal.reading import read_all
from witsd.journal.store import open_store
from witsd.values.clock import Clock

#: Far more than anything here takes on a slow, busy machine.
PATIENCE_S = 60.0


@asynccontextmanager
async def journal_at(path: Path, *, clock: Clock | None = None, hub: Hub | None = None) -> AsyncIterator[Journal]:
    """Open store and journal; everything queued is committed on the way out."""
    async with open_store(path) as store, open_journal(store, clock or FakeClock(), epoch="e", hub=hub) as journal:
        yield journal


def note(stream: str, text: object = "", *, kind: str = "item.completed", seals: bool = False) -> Entry:
    return entry(stream, kind, {"text": text}, seals=seals)


def text(event: Event) -> Any:
    return json.loads(event.data)["text"]


async def stored(journal: Journal) -> list[Event]:
    """Every event in the database, by position."""
    return await journal.store.read(lambda db: read_all(db, 0, 1_000_000))


async def table(journal: Journal, sql: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    return await journal.store.read(lambda db: db.execute(sql, params).fetchall())


def put_meta(key: str, value: str = "1") -> tuple[str, tuple[str, str]]:
    """A statement that leaves a trace, and fails where the key is taken."""
    return "INSERT INTO meta(key, value) VALUES (?, ?)", (key, value)


def meta_work(key: str) -> Any:
    def work(tx: Tx) -> str:
        tx.execute(*put_meta(key))
        tx.emit(note("work", key))
        return key

    return work


def assert_contiguous(events: Iterable[Event], *, from_seq: dict[str, int] | None = None) -> dict[str, int]:
    """Each event goes on where its stream stood: ``first_seq <= last + 1 <= seq``. Returns where they end."""
    last: dict[str, int] = defaultdict(int, from_seq or {})
    for event in events:
        first = event.seq if event.first_seq is None else event.first_seq
        assert first <= last[event.stream] + 1 <= event.seq, f"{event} after {last[event.stream]}"
        last[event.stream] = event.seq
    return dict(last)


def events_in_file(path: Path) -> list[Event]:
    """What a database that nobody has open holds, after SQLite has checked it."""
    db = apsw.Connection(str(path), vfs="unix")
    try:
        assert db.pragma("integrity_check") == "ok"
        return read_all(db, 0, 1_000_000)
    finally:
        db.close()
