"""A database full of invented memories: ``load_memory FILE NAMESPACES EACH``.

Written by what ``memory/add`` writes with, thousands in one transaction and without waiting for the disk.
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import trio

from tests.bench.memory_data import DIMENSIONS, Invention, Memory
from tests.bench.memory_loaded import new
from witsd.journal.journal import Tx, open_journal
from witsd.journal.store import open_store
from witsd.services.memory import hashing, store, vectors
from witsd.values.clock import SystemClock

_AT_ONCE = 5000


async def load(path: Path, namespaces: int, each: int) -> None:
    invention = Invention(namespaces, each)
    coming = enumerate(invention.memories())
    async with (
        open_store(path, synchronous="OFF") as opened,
        open_journal(opened, SystemClock(), epoch="bench") as journal,
    ):
        await journal.write(lambda tx: vectors.begin(tx, "hash", "hash", hashing.VERSION, DIMENSIONS))
        while batch := list(islice(coming, _AT_ONCE)):

            def work(tx: Tx, batch: list[tuple[int, Memory]] = batch) -> None:
                for number, memory in batch:
                    store.add(tx, new(number, memory))

            await journal.write(work)
            print(batch[-1][0] + 1, flush=True)


def main() -> None:
    trio.run(load, Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))


main()
