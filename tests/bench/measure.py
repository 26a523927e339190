"""What a row is, how its rounds become figures, and which processes and cores it uses."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Literal, Protocol

import attrs

from tests.support.daemon import Daemon

ROOT = Path(__file__).resolve().parents[2]
#: Far more than anything here takes on a slow, busy machine.
PATIENCE_S = 120.0

#: One round: what was measured, by key.
Sample = Mapping[str, float]


@attrs.frozen(kw_only=True)
class Figure:
    """One promised figure. The best of the rounds counts, for itself and for its floor.

    ``limit`` is for the figure as it is or, where ``as_ratio``, for figure / floor.
    """

    key: str
    what: str
    unit: str
    best: Literal["lowest", "highest"]
    limit: float
    as_ratio: bool = False
    floor: str | None = None
    floor_is: str = ""


@attrs.frozen(kw_only=True)
class Outcome:
    """A figure once it has been measured."""

    figure: Figure
    value: float
    floor: float | None

    @property
    def ratio(self) -> float | None:
        return self.value / self.floor if self.floor else None

    @property
    def held(self) -> bool:
        measured = self.ratio if self.figure.as_ratio else self.value
        assert measured is not None, "a limit on a ratio needs a floor"
        return measured <= self.figure.limit if self.figure.best == "lowest" else measured >= self.figure.limit


@attrs.frozen(kw_only=True)
class Run:
    """How thoroughly to measure, and where: ``folder`` is on the disk that is measured."""

    quick: bool
    folder: Path

    def scaled(self, full: int) -> int:
        """So many repetitions, or a quarter of them."""
        return max(1, full // 4) if self.quick else full


class Row(Protocol):
    """A part of the bench. ``open`` sets it up; each call of what it yields measures floor and ours once."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def figures(self) -> Sequence[Figure]: ...
    def open(self, run: Run) -> AbstractContextManager[Round]: ...


class Round(Protocol):
    def __call__(self) -> Sample: ...


def measure(row: Row, run: Run, rounds: int) -> list[Outcome]:
    """Interleaved rounds, and the best of each figure."""
    with row.open(run) as measure_once:
        samples = [measure_once() for _ in range(rounds)]
    return [
        Outcome(
            figure=figure,
            value=_best(figure, samples, figure.key),
            floor=_best(figure, samples, figure.floor) if figure.floor else None,
        )
        for figure in row.figures
    ]


def _best(figure: Figure, samples: Sequence[Sample], key: str) -> float:
    values = [sample[key] for sample in samples]
    return min(values) if figure.best == "lowest" else max(values)


def quantile(values: Sequence[float], share: float) -> float:
    """Of sorted values, the one that ``share`` of them do not exceed."""
    return values[min(len(values) - 1, int(len(values) * share))]


# ---- cores ----------------------------------------------------------------------------------------------


def cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def pin(pid: int, core: int) -> None:
    """Keep every thread of a process on one core. With a single core there is nothing to choose."""
    for task in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(task), {core})


@contextmanager
def pinned_here(core: int) -> Iterator[None]:
    """Keep this process, and what it starts meanwhile, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_s(pid: int) -> float:
    """Processor time of a process so far, to the nanosecond, all its threads together, without its children."""
    return time.clock_gettime(~pid << 3 | 2)  # clock_getcpuclockid(3), which Python has for threads only


# ---- processes ------------------------------------------------------------------------------------------


def clean_environment() -> dict[str, str]:
    """Ours without what would make Python compile sources anew each time it starts."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONDONTWRITEBYTECODE", "PYTHONPROFILEIMPORTTIME")}
    kept["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(ROOT), str(ROOT / "clients/python"), kept.get("PYTHONPATH", "")))
    )
    return kept


class Program(subprocess.Popen[bytes]):
    """A running program of ours; ``said`` is what it printed after ``ready``."""

    said: str = ""

    def expect(self, word: str, patience_s: float = PATIENCE_S) -> str:
        """The rest of the next line that it prints, which begins with ``word``."""
        assert self.stdout is not None
        if not select.select([self.stdout], [], [], patience_s)[0]:
            raise TimeoutError(f"no {word!r} within {patience_s:g} s")
        line = self.stdout.readline().decode()
        if not line.startswith(word):
            raise RuntimeError(f"expected {word!r}, got {line!r} (exit status {self.poll()})")
        return line.removeprefix(word).strip()

    def tell(self, line: str) -> None:
        """Give it one line."""
        assert self.stdin is not None
        self.stdin.write(line.encode() + b"\n")
        self.stdin.flush()


@contextmanager
def program(name: str, *args: str, core: int | None = None) -> Iterator[Program]:
    """Run ``tests.bench.programs.NAME`` until the end of the block; it has said ``ready`` when that begins."""
    child = Program(
        [sys.executable, "-m", f"tests.bench.programs.{name}", *args],
        env=clean_environment(),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        if core is not None:
            os.sched_setaffinity(child.pid, {core})
        child.said = child.expect("ready")
        yield child
    finally:
        child.kill()
        child.communicate()


@contextmanager
def daemon(settings: Mapping[str, str] | None = None, *, started: bool = True) -> Iterator[Daemon]:
    """A real daemon with a home of its own, quiet in its log."""
    it = Daemon({"WITSD_DAEMON_LOG_LEVEL": "warning", **(settings or {})})
    it.env.pop("PYTHONDONTWRITEBYTECODE", None)
    try:
        if started:
            it.start()
        yield it
    finally:
        it.remove()


def wait_until(true: Callable[[], bool], what: str) -> None:
    """Ask ``true()`` until it is; for what has no event that could be waited for."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.02)
