"""The floor of adds: ``bulk_add FILE``; for each line on stdin it adds thousands of turns in one transaction.

Prints turns a second.
"""

from __future__ import annotations

import sys
import time
from itertools import islice
from pathlib import Path

import trio

from tests.bench.memory_data import DIMENSIONS, Invention
from tests.bench.memory_loaded import new
from witsd.journal.journal import Tx, open_journal
from witsd.journal.store import open_store
from witsd.services.memory import hashing, store, vectors
from witsd.values.clock import SystemClock

_TURNS = 2000


async def main() -> None:
    coming = enumerate(Invention(100, 1000, 14).memories())
    async with (
        open_store(Path(sys.argv[1]), synchronous="FULL") as opened,
        open_journal(opened, SystemClock(), epoch="bench") as journal,
    ):
        await journal.write(lambda tx: vectors.begin(tx, "hash", "hash", hashing.VERSION, DIMENSIONS))
        print("ready", flush=True)
        while await trio.to_thread.run_sync(sys.stdin.readline):
            turns = [new(number, memory) for number, memory in islice(coming, _TURNS)]

            def work(tx: Tx, turns: list[store.New] = turns) -> None:
                for turn in turns:
                    store.add(tx, turn)

            begun = time.perf_counter()
            await journal.write(work)
            print("measured", len(turns) / (time.perf_counter() - begun), flush=True)


trio.run(main)
