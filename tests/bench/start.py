"""How soon the daemon is ready, and how much memory it has when it has nothing to do."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.measure import Figure, Round, Run, Sample, clean_environment, daemon

_IMPORTS = "import trio, apsw, msgspec, trio_websocket, jsonrpcserver"
#: The same, still there to be looked at.
_AND_STAY = f"{_IMPORTS}; print('ready', flush=True); input()"


class Start:
    name = "start"
    title = "from the start of the process to READY=1"
    figures = (
        Figure(
            key="again",
            what="ready, on a home that exists",
            unit="ms",
            best="lowest",
            limit=2.0,
            as_ratio=True,
            floor="imports",
            floor_is=f'python -c "{_IMPORTS}"',
        ),
        Figure(
            key="first",
            what="ready, on an empty home",
            unit="ms",
            best="lowest",
            limit=2.0,
            as_ratio=True,
            floor="imports",
            floor_is="the same",
        ),
    )

    @contextmanager
    def open(self, run: Run) -> Iterator[Round]:
        env = clean_environment()
        times = run.scaled(4)

        def imports_ms() -> float:
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-c", _IMPORTS], env=env, check=True)
            return (time.perf_counter() - begun) * 1000

        def once() -> Sample:
            imports, first, again = [], [], []
            for _ in range(times):
                with daemon(started=False) as witsd:
                    imports.append(imports_ms())
                    begun = time.perf_counter()
                    witsd.start()
                    first.append((time.perf_counter() - begun) * 1000)
                    witsd.stop()
                    imports.append(imports_ms())
                    begun = time.perf_counter()
                    witsd.start()
                    again.append((time.perf_counter() - begun) * 1000)
            return {"imports": min(imports), "first": min(first), "again": min(again)}

        imports_ms()  # everybody's code is compiled by now
        with daemon():
            pass
        yield once


class Idle:
    name = "idle"
    title = "memory of the daemon once it is ready and has answered"
    figures = (
        Figure(
            key="rss",
            what="resident set",
            unit="kB",
            best="lowest",
            limit=48_000,
            floor="imports",
            floor_is="the imports alone",
        ),
    )

    @contextmanager
    def open(self, run: Run) -> Iterator[Round]:
        env = clean_environment()

        def once() -> Sample:
            with daemon() as witsd:
                witsd.call("agents/list")
                witsd.call("system/status")
                ours = rss_bytes(witsd.pid) / 1000
            with subprocess.Popen(
                [sys.executable, "-c", _AND_STAY], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            ) as floor:
                assert floor.stdout is not None
                floor.stdout.readline()
                imports = rss_bytes(floor.pid) / 1000
                floor.communicate(b"\n")
            return {"rss": ours, "imports": imports}

        yield once


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
