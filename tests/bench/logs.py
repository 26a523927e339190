"""A hundred megabytes of log lines from one agent, each kept with its seq, beside a reader that keeps none."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.agents import define
from tests.bench.measure import Figure, Round, Run, Sample, daemon, program, wait_until
from tests.bench.programs import __file__ as _programs
from tests.bench.start import rss_bytes

LINE = 100
#: Lines in one write: of a program that logs line by line, and of one whose output is buffered.
_WAYS = {"line": 1, "block": 80}
_WRITER = str(Path(_programs).with_name("write_lines.py"))


class Logs:
    name = "logs"
    title = f"100 MB of lines of {LINE} bytes from one agent, each kept with its number, time and source"
    figures = (
        Figure(
            key="line", what="written line by line", unit="s", best="lowest", limit=1.5, as_ratio=True,
            floor="bare_line", floor_is="a bare trio reader that splits lines",
        ),
        Figure(
            key="block", what="written in blocks of 8 kB", unit="s", best="lowest", limit=1.5, as_ratio=True,
            floor="bare_block", floor_is="a bare trio reader that splits, numbers and writes lines",
        ),
        Figure(key="lost", what="lines lost", unit="", best="lowest", limit=0),
        Figure(key="torn", what="lines torn or out of order", unit="", best="lowest", limit=0),
        Figure(key="rss", what="growth of the resident set", unit="kB", best="lowest", limit=8_000),
    )  # fmt: skip

    @contextmanager
    def open(self, run: Run) -> Iterator[Round]:
        size = run.scaled(100_000_000)
        go = run.folder / "go"
        os.mkfifo(go)

        def once() -> Sample:
            sample: dict[str, float] = {"lost": 0, "torn": 0, "rss": 0}
            for way, at_a_time in _WAYS.items():
                command = [sys.executable, "-I", "-S", _WRITER, str(size), str(at_a_time), str(go)]
                # Who writes line by line is what a reader waits for; who does not, is waited for by the writing.
                kept = "-" if way == "line" else str(run.folder / "kept")
                sample[f"bare_{way}"] = _bare_s(kept, command, go, size)
                sample[way], lost, torn, rss = _kept(command, go, size)
                sample["lost"] += lost
                sample["torn"] += torn
                sample["rss"] = max(sample["rss"], rss)
            return sample

        yield once


def _bare_s(kept: str, command: list[str], go: Path, size: int) -> float:
    with program("read_lines", kept, *command) as reader:
        begun = _begin(go)
        count = int(reader.expect("read"))
        took = time.perf_counter() - begun
    assert count == size // LINE, count
    return took


def _kept(command: list[str], go: Path, size: int) -> tuple[float, int, int, float]:
    """Seconds, lines lost, lines torn, kB grown."""
    with daemon({"WITSD_LOGS_FILES": "1000"}, started=False) as witsd:
        define(witsd, ["talker"], command, 'restart = { policy = "never" }')
        witsd.start()
        witsd.call("agents/start", name="talker")
        before = most = rss_bytes(witsd.pid)

        def ended() -> bool:
            nonlocal most
            most = max(most, rss_bytes(witsd.pid))
            return bool(witsd.call("agents/get", name="talker")["state"] == "inactive")

        begun = _begin(go)
        wait_until(ended, "the agent does not end")
        took = time.perf_counter() - begun
        lost, torn = _read_back(witsd.home, size // LINE)
        return took, lost, torn, (most - before) / 1000


def _begin(go: Path) -> float:
    """Let the writer begin: opening waits until it has made its lines. The time."""
    with open(go, "wb"):
        return time.perf_counter()


def _read_back(home: Path, count: int) -> tuple[int, int]:
    """Of ``count`` lines, how many are not in the files, and how many are not as they should be."""
    files = sorted(home.rglob("talker.log*"), key=lambda file: -int("0" + file.name.partition(".log.")[2]))
    seen = torn = number = 0
    for file in files:
        with open(file, "rb") as lines:
            for line in lines:
                seq, _, source, text = line.split(b" ", 3)
                number = number + 1 if seq == b"+" else int(seq)
                whole = source == b"stdout" and len(text) == LINE and int(text[:9]) == number - 1 == seen
                torn += not whole
                seen += 1
    return count - seen, torn
