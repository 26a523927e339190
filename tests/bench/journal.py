"""Awaited appends to the real journal, each an event with its state row, beside one ``executemany``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.bench.measure import Figure, Round, Run, Sample, program


class JournalAppends:
    name = "journal"
    title = "journal, synchronous=FULL, 16 appenders that wait for each append, an event and a state row each"
    figures = (
        Figure(
            key="per_s",
            what="events",
            unit="/s",
            best="highest",
            limit=15_000,
            floor="floor_per_s",
            floor_is="the same rows in one executemany for each table",
        ),
        Figure(key="p99", what="p99 of one append", unit="ms", best="lowest", limit=10),
    )

    @contextmanager
    def open(self, run: Run) -> Iterator[Round]:
        with program("append", str(run.folder), str(run.scaled(4))) as child:

            def once() -> Sample:
                child.tell("go")
                floor, per_s, p99 = child.expect("measured").split()
                return {"floor_per_s": float(floor), "per_s": float(per_s), "p99": float(p99)}

            yield once
