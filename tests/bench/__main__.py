"""``python -m tests.bench [--only ROW] [--quick] [--json] [--rounds N] [--folder DIR]``.

Prints the machine, the settings, and for each figure its floor from the same run and the best of the
rounds. Exit status 0 when every figure holds, 1 when one is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import apsw

from tests.bench.deltas import Deltas
from tests.bench.fleet import Fleet, Replacement
from tests.bench.footprint import IdleAgents, Memory
from tests.bench.gateway import Gateway
from tests.bench.journal import JournalAppends
from tests.bench.logs import Logs
from tests.bench.measure import Outcome, Row, Run, measure
from tests.bench.memory import MemoryAdds, MemoryDisk, MemoryEverywhere, MemoryFirst, MemoryLarge, MemorySearch
from tests.bench.ping import ToolCall, UnixPing, WebSocketPing
from tests.bench.sampling import Sampling
from tests.bench.sandbox import SandboxStart
from tests.bench.start import Idle, Start

ROWS: tuple[Row, ...] = (
    UnixPing(),
    ToolCall(),
    WebSocketPing(),
    Deltas(),
    JournalAppends(),
    Start(),
    Idle(),
    Fleet(),
    Replacement(),
    Memory(),
    IdleAgents(),
    Sampling(),
    Logs(),
    Gateway(),
    MemorySearch(),
    MemoryEverywhere(),
    MemoryFirst(),
    MemoryAdds(),
    MemoryDisk(),
    SandboxStart(),
)
#: Only where they are asked for.
LARGE: tuple[Row, ...] = (MemoryLarge(),)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=(__doc__ or "").partition("\n\n")[2])
    names = [row.name for row in (*ROWS, *LARGE)]
    parser.add_argument("--only", action="append", choices=names, help="this row; may be repeated")
    parser.add_argument("--quick", action="store_true", help="a quarter of the load: for a look, not for a verdict")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds, the best counts (default 3)")
    parser.add_argument("--folder", type=Path, help="on the disk to measure (default: the temporary folder)")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="witsd-bench-", dir=options.folder) as folder:
        run = Run(quick=options.quick, folder=Path(folder))
        about = machine(run, options.rounds)
        if not options.json:
            print("\n".join(f"{name:<9} {value}" for name, value in about.items()), flush=True)
        done: dict[str, list[Outcome]] = {}
        for row in (*ROWS, *LARGE):
            if row.name not in options.only if options.only else row in LARGE:
                continue
            done[row.name] = measure(row, run, options.rounds)
            if not options.json:
                print("\n".join(("", f"{row.title}  [{row.name}]", *map(_line, done[row.name]))), flush=True)
    missed = [outcome for outcomes in done.values() for outcome in outcomes if not outcome.held]
    if options.json:
        rows = {name: [_as_dict(outcome) for outcome in outcomes] for name, outcomes in done.items()}
        print(json.dumps({"machine": about, "rows": rows}, indent=2))
    else:
        print(f"\n{len(missed)} missed" if missed else "\nall figures hold", f"(load average now {_load()})")
    return 1 if missed else 0


def machine(run: Run, rounds: int) -> dict[str, str]:
    """What the figures depend on."""
    packages = ("trio", "trio-websocket", "msgspec", "jsonrpcserver", "attrs")
    return {
        "machine": f"{_cpu()}, {len(os.sched_getaffinity(0))} cores, Linux {platform.release()}",
        "python": f"{platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in packages),
        "sqlite": f"{apsw.sqlite_lib_version()} (apsw {apsw.apsw_version()}), synchronous=FULL",
        "disk": f"{run.folder} on {_file_system(run.folder)}",
        "load": _load(),
        "rounds": f"best of {rounds}, interleaved" + (", quick" if run.quick else ""),
    }


def _load() -> str:
    return " ".join(f"{load:.2f}" for load in os.getloadavg())


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _file_system(folder: Path) -> str:
    """The type of the file system, by the longest mount point that ``folder`` is under."""
    kinds = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        kinds[where] = kind
    for parent in (folder, *folder.parents):
        if str(parent) in kinds:
            return kinds[str(parent)]
    return "?"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _line(outcome: Outcome) -> str:
    figure = outcome.figure
    sign = "<=" if figure.best == "lowest" else ">="
    unit = "x the floor" if figure.as_ratio else figure.unit
    text = (
        f"  {'ok    ' if outcome.held else 'MISSED'} {figure.what:<34} {_number(outcome.value):>8} {figure.unit:<9}"
        f" wanted {sign} {_number(figure.limit)} {unit}"
    )
    if outcome.ratio is not None:
        assert outcome.floor is not None
        floor = f"{_number(outcome.floor):>8} {figure.unit:<9}"
        text += f"\n{'':>43} {floor} floor: {figure.floor_is}; x{outcome.ratio:.2f}"
    return text


def _as_dict(outcome: Outcome) -> dict[str, Any]:
    figure = outcome.figure
    return {
        "key": figure.key,
        "what": figure.what,
        "unit": figure.unit,
        "value": outcome.value,
        "floor": outcome.floor,
        "floor_is": figure.floor_is,
        "ratio": outcome.ratio,
        "limit": figure.limit,
        "limit_is_for": "ratio" if figure.as_ratio else "value",
        "held": outcome.held,
    }


if __name__ == "__main__":
    sys.exit(main())
