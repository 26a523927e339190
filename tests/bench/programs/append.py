"""The journal by itself: ``append FOLDER SECONDS``; for each line on stdin it measures once.

Prints events a second of the floor and of the journal, and in ms the p99 of a bare sync and of an append.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import apsw
import trio

from tests.bench.measure import quantile
from witsd.journal.event import entry
from witsd.journal.journal import open_journal
from witsd.journal.store import open_store
from witsd.services.run_rows import item_statement
from witsd.values.clock import SystemClock
from witsd.values.ids import ItemId
from witsd.values.items import MessageItem
from witsd.values.wire.event_types import ItemData

APPENDERS = 16
_FLOOR_ROWS = 60_000
_SYNCS = 500


def item(n: int) -> MessageItem:
    return MessageItem(item_id=ItemId(f"item-{n:010d}"), text="hello world, this is some text of an item")


def floor(path: Path) -> float:
    """The same rows into the same tables, prepared beforehand: one transaction, one statement for each table."""
    events, states = [], []
    for n in range(_FLOOR_ROWS):
        run = f"run-{n % APPENDERS:010d}"
        data = entry(f"run:{run}", "item.updated", ItemData(run_id=run, item=item(0))).data
        events.append((n + 1, n % APPENDERS + 1, n // APPENDERS + 1, 1_700_000_000_000_000, "item.updated", data))
        sql, row = item_statement(run, 1, item(0))
        states.append(row)
    db = apsw.Connection(str(path))
    for stream in range(APPENDERS):
        db.execute("INSERT INTO streams(name, last_seq) VALUES (?, 0)", (f"run:{stream}",))
    db.execute("PRAGMA synchronous = FULL")
    begun = time.perf_counter()
    db.execute("BEGIN IMMEDIATE")
    db.executemany("INSERT INTO events(pos, stream_id, seq, time_us, type, data) VALUES (?,?,?,?,?,?)", events)
    db.executemany(sql, states)
    db.execute("COMMIT")
    took = time.perf_counter() - begun
    db.close()
    return _FLOOR_ROWS / took


def sync_p99_ms(path: Path) -> float:
    """What the disk takes for the least that could be called durable: two pages and ``fdatasync``."""
    took = []
    with path.open("wb", buffering=0) as file:
        for _ in range(_SYNCS):
            file.write(b"\0" * 8192)
            begun = time.perf_counter()
            os.fdatasync(file.fileno())
            took.append((time.perf_counter() - begun) * 1000)
    return quantile(sorted(took), 0.99)


async def ours(path: Path, seconds: float) -> tuple[float, float]:
    took: list[float] = []
    async with (
        open_store(path, synchronous="FULL") as store,
        open_journal(store, SystemClock(), epoch="bench") as journal,
    ):
        begun = time.perf_counter()

        async def appender(number: int) -> None:
            run = f"run-{number:010d}"
            while time.perf_counter() < begun + seconds:
                asked = time.perf_counter()
                await journal.append(
                    entry(f"run:{run}", "item.updated", ItemData(run_id=run, item=item(0))),
                    statements=(item_statement(run, 1, item(0)),),
                )
                took.append(time.perf_counter() - asked)

        async with trio.open_nursery() as nursery:
            for number in range(APPENDERS):
                nursery.start_soon(appender, number)
        per_s = len(took) / (time.perf_counter() - begun)
        position, in_table = await store.read(
            lambda db: (db.execute("SELECT last_pos FROM journal").get, db.execute("SELECT count(*) FROM events").get)
        )
    assert position == in_table == len(took), f"{len(took)} appends, {in_table} events, position {position}"
    took.sort()
    return per_s, quantile(took, 0.99) * 1000


async def once(folder: Path, seconds: float, number: int) -> None:
    paths = [folder / f"{name}-{number}.db" for name in ("floor", "ours")]
    for path in paths:
        async with open_store(path):
            pass  # the schema
    bare = await trio.to_thread.run_sync(floor, paths[0])
    sync = await trio.to_thread.run_sync(sync_p99_ms, folder / "sync")
    per_s, p99 = await ours(paths[1], seconds)
    print("measured", bare, per_s, sync, p99, flush=True)


def main() -> None:
    folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
    print("ready", flush=True)
    for number, _ in enumerate(sys.stdin):
        trio.run(once, folder, seconds, number)


main()
