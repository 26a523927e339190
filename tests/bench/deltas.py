"""A hundred agents, each a process with one run that streams, to one WebSocket and ten Unix sockets."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.measure import Figure, Round, Run, Sample, cpu_s, daemon, program, wait_until
from tests.bench.programs import __file__ as _programs

AGENTS = 100
HZ = 50
UNIX = 10
#: Before the processor time is taken: until all stream evenly.
_SETTLE_S = 2.0
#: Between the end of what is measured and the end of the first run.
_MARGIN_S = 1.0

_EMIT = str(Path(_programs).with_name("emit.py"))
_DEFINITION = """\
name = "{name}"
kind = "native"
command = {command}
start = "boot"
"""


class Deltas:
    name = "deltas"
    title = (
        f"agent delta to subscriber: {AGENTS} agents with a run each, {HZ} deltas a second from each,\n"
        f"one WebSocket and {UNIX} Unix sockets subscribed to all"
    )
    figures = (
        Figure(key="lost", what="deltas lost", unit="", best="lowest", limit=0),
        Figure(
            key="p99",
            what="p99 from agent to subscriber",
            unit="ms",
            best="lowest",
            limit=60,
            floor="floor_p99",
            floor_is="a relay that parses each line and writes every 20 ms, without a journal",
        ),
        Figure(
            key="cores",
            what="processor time of the daemon",
            unit="cores",
            best="lowest",
            limit=0.5,
            floor="floor_cores",
            floor_is="the same relay",
        ),
    )

    @contextmanager
    def open(self, run: Run) -> Iterator[Round]:
        seconds = 8 if run.quick else 15
        rounds = 0

        def once() -> Sample:
            nonlocal rounds
            rounds += 1
            path = str(run.folder / f"relay-{rounds}.sock")
            args = (path, str(AGENTS), str(HZ), str(seconds), str(UNIX + 1))
            with program("relay", *args) as relay:
                listen = _listen(seconds, path, f"127.0.0.1:{relay.said}", "-")
                floor = _measure(relay.pid, listen, seconds, lambda: None)
            ours = _daemon(seconds)
            return {"floor_p99": floor["p99"], "floor_cores": floor["cores"], **ours}

        yield once


def _daemon(seconds: int) -> Sample:
    with daemon(started=False) as witsd:
        names = [f"emit{number}" for number in range(AGENTS)]
        command = json.dumps([sys.executable, "-I", "-S", _EMIT, str(HZ), str(seconds)])
        agents = witsd.home / "agents"
        agents.mkdir()
        for name in names:
            (agents / f"{name}.toml").write_text(_DEFINITION.format(name=name, command=command))
        witsd.start()
        wait_until(
            lambda: witsd.call("system/status")["agents"].get("active", 0) == AGENTS, "the agents are not active"
        )
        token = witsd.call("tokens/create", name="bench", scopes=["read"])["token"]

        def begin() -> None:
            for name in names:
                witsd.call("runs/start", agent=name, input="go")

        return _measure(witsd.pid, _listen(seconds, str(witsd.socket), witsd.http, token), seconds, begin)


def _listen(seconds: int, *args: str) -> tuple[str, ...]:
    return (*args, str(UNIX), str(AGENTS), str(HZ), str(seconds))


def _measure(pid: int, listen: tuple[str, ...], seconds: int, begin: Callable[[], None]) -> Sample:
    with program("listen", *listen) as listener:
        listener.expect("listening")
        begin()
        listener.expect("streaming")
        time.sleep(_SETTLE_S)
        used, begun = cpu_s(pid), time.monotonic()
        time.sleep(seconds - _SETTLE_S - 2 * _MARGIN_S)
        cores = (cpu_s(pid) - used) / (time.monotonic() - begun)
        heard = json.loads(listener.expect("heard"))
    wanted = AGENTS * HZ * seconds
    lost = sum(abs(wanted - got) for got in heard["deltas"]) + heard["gaps"] + heard["lagged"]
    return {"lost": lost, "p99": heard["p99_ms"], "cores": cores}
