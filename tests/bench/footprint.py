"""What agents cost the daemon that do nothing: memory, and processor time with sampling and without."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.agents import asking, define, sleep_command
from tests.bench.measure import Figure, Round, Run, Sample, cpu_s, daemon, wait_until
from tests.support.daemon import Daemon

AGENTS = 100
#: After the agents have been started, until what follows from it is over: upkeep, the first samples.
_SETTLE_S = 3.0


class Memory:
    name = "memory"
    title = f"anonymous memory of the daemon with no agent, and with {AGENTS} that sleep, sampled each second"
    figures = (
        Figure(key="empty", what="no agent", unit="kB", best="lowest", limit=45_000),
        Figure(key="each", what="more for each agent", unit="kB", best="lowest", limit=40),
    )

    @contextmanager
    def open(self, run: Run) -> Iterator[Round]:
        def once() -> Sample:
            with daemon(started=False) as witsd:
                # The definitions are there and known; an agent is what has a process.
                names = _define(witsd)
                witsd.start()
                witsd.call("agents/list")
                witsd.call("system/status")
                empty = anonymous_kb(witsd.pid)
                _start(witsd, names)
                return {"empty": empty, "each": (anonymous_kb(witsd.pid) - empty) / AGENTS}

        yield once


class IdleAgents:
    name = "idle_agents"
    title = f"processor time of the daemon with {AGENTS} agents that sleep"
    figures = (
        Figure(key="unsampled", what="sampling off", unit="%", best="lowest", limit=0.05),
        Figure(key="sampled", what="sampled each second", unit="%", best="lowest", limit=0.3),
    )

    @contextmanager
    def open(self, run: Run) -> Iterator[Round]:
        seconds = 10 if run.quick else 30

        def once() -> Sample:
            return {name: _busy_percent(every_s, seconds) for name, every_s in (("unsampled", 0), ("sampled", 1))}

        yield once


def _busy_percent(sample_every_s: int, seconds: float) -> float:
    with daemon({"WITSD_DAEMON_SAMPLE_S": str(sample_every_s)}, started=False) as witsd:
        names = _define(witsd)
        witsd.start()
        _start(witsd, names)
        used, begun = cpu_s(witsd.pid), time.monotonic()
        time.sleep(seconds)
        return 100 * (cpu_s(witsd.pid) - used) / (time.monotonic() - begun)


def _define(witsd: Daemon) -> list[str]:
    names = [f"sleep{number}" for number in range(AGENTS)]
    define(witsd, names, sleep_command())
    return names


def _start(witsd: Daemon, names: list[str]) -> None:
    with asking(witsd, "agents/start", names, wait=True):
        pass
    wait_until(lambda: witsd.call("system/status")["agents"].get("active", 0) == AGENTS, "the agents are not active")
    time.sleep(_SETTLE_S)


def anonymous_kb(pid: int) -> float:
    """Private and written to. Where the exact count may not be read, the kernel's running one, a little behind."""
    try:
        text, name = Path(f"/proc/{pid}/smaps_rollup").read_text(), "Anonymous:"
    except PermissionError:
        text, name = Path(f"/proc/{pid}/status").read_text(), "RssAnon:"
    return next(int(line.split()[1]) * 1.024 for line in text.splitlines() if line.startswith(name))
