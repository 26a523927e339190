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
        Figure(
            key="p99",
            what="p99 of one append",
            unit="ms",
            best="lowest",
            limit=10,
            floor="sync_p99",
            floor_is="p99 of fdatasync after two pages",
        ),
    )

    @contextmanager
    def open(self, run: Run) -> Iterator[Round]:
        with program("append", str(run.folder), str(run.scaled(4))) as child:

            def once() -> Sample:
                child.tell("go")
                names = ("floor_per_s", "per_s", "sync_p99", "p99")
                return dict(zip(names, map(float, child.expect("measured").split()), strict=True))

            yield once
