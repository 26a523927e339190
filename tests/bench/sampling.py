"""What it costs to sample processes, beside psutil doing the same."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

from tests.bench.measure import Figure, Round, Run, Sample
from tests.support.trees import identity
from witsd.supervise.vitals import Sampler

#: Passes in a round, of which the quickest counts.
_PASSES = 20


class Sampling:
    name = "sampling"
    title = "one pass over sleeping processes, an agent each, descriptors counted"
    figures = (
        Figure(
            key="ours",
            what="processor time a process",
            unit="us",
            best="lowest",
            limit=12.0,
            floor="psutil",
            floor_is="psutil's oneshot with num_fds and io_counters",
        ),
    )

    @contextmanager
    def open(self, run: Run) -> Iterator[Round]:
        sleepers = [subprocess.Popen(["sleep", "1000"]) for _ in range(run.scaled(200))]
        sampler = Sampler(kept_fds=4 * len(sleepers) if not run.quick else None)
        try:
            for it in sleepers:
                sampler.add(f"agent-{it.pid}", identity(it.pid))
            others = [psutil.Process(it.pid) for it in sleepers]

            def once() -> Sample:
                return {
                    "ours": _quickest_us(sampler.sample_all, len(sleepers)),
                    "psutil": _quickest_us(lambda: _ask_psutil(others), len(sleepers)),
                }

            yield once
        finally:
            sampler.close()
            for it in sleepers:
                it.kill()
            for it in sleepers:
                it.wait()


def _quickest_us(one_pass: Callable[[], object], processes: int) -> float:
    """An average of five passes, since not every pass reads everything; the quickest of those."""
    took = []
    for _ in range(_PASSES // 5):
        begun = time.process_time()
        for _ in range(5):
            one_pass()
        took.append((time.process_time() - begun) / 5)
    return min(took) / processes * 1e6


def _ask_psutil(processes: list[psutil.Process]) -> None:
    for process in processes:
        with process.oneshot():
            process.cpu_times()
            process.memory_info()
            process.num_threads()
            process.num_fds()
            process.io_counters()
