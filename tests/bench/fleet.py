"""Many agents up and down, and one replaced, beside ``subprocess.Popen`` from one thread in a loop."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

from tests.bench.agents import asking, define, running, sleep_command, wait_run
from tests.bench.measure import Figure, Round, Run, Sample, daemon

_PROGRAM = "sleep"
#: Each look at hundreds costs some tenths of a millisecond, which the daemon is not to wait for.
_LOOK_EVERY_S = 0.005
_AT_ONCE = 'restart = { policy = "always", backoff_s = 0, max_restarts = 1000000 }'
_BARE = "Popen in a loop, three pipes and a session each"


class Fleet:
    name = "fleet"
    title = "agents up, from asking until all have exec'ed, and down, until all are gone"
    figures = (
        Figure(
            key="up_100", what="100 up", unit="ms", best="lowest", limit=4, as_ratio=True,
            floor="bare_up_100", floor_is=_BARE,
        ),
        Figure(
            key="down_100", what="100 stopped", unit="ms", best="lowest", limit=3, as_ratio=True,
            floor="bare_down_100", floor_is="killpg and wait of those, pipes closed",
        ),
        Figure(
            key="up_500", what="500 up", unit="ms", best="lowest", limit=4, as_ratio=True,
            floor="bare_up_500", floor_is=_BARE,
        ),
        Figure(
            key="down_500", what="500 stopped", unit="ms", best="lowest", limit=3, as_ratio=True,
            floor="bare_down_500", floor_is="killpg and wait of those, pipes closed",
        ),
    )  # fmt: skip

    @contextmanager
    def open(self, run: Run) -> Iterator[Round]:
        with daemon(started=False) as witsd:
            names = [f"sleep{number}" for number in range(run.scaled(500))]
            define(witsd, names, sleep_command())
            witsd.start()

            def once() -> Sample:
                sample: dict[str, float] = {}
                for count in (100, 500):
                    sample[f"bare_up_{count}"], sample[f"bare_down_{count}"] = _bare(run.scaled(count))
                    some = names[: run.scaled(count)]
                    begun = time.perf_counter()
                    with asking(witsd, "agents/start", some, wait=False):
                        wait_run(witsd.pid, _PROGRAM, len(some), look_every_s=_LOOK_EVERY_S)
                        sample[f"up_{count}"] = _ms_since(begun)
                    begun = time.perf_counter()
                    with asking(witsd, "agents/stop", some, wait=True):
                        pass
                    sample[f"down_{count}"] = _ms_since(begun)
                    assert not running(witsd.pid, _PROGRAM), "stopped agents have left processes"
                return sample

            yield once


def _bare(count: int) -> tuple[float, float]:
    begun = time.perf_counter()
    started = [_start() for _ in range(count)]
    up = _ms_since(begun)  # Popen returns once the program has been exec'ed
    begun = time.perf_counter()
    for process in started:
        os.killpg(process.pid, signal.SIGTERM)
    for process in started:
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()
    down = _ms_since(begun)
    return up, down


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        sleep_command(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


class Replacement:
    name = "replacement"
    title = "from kill -9 of an agent to its replacement's exec, backoff_s = 0"
    figures = (
        Figure(
            key="median",
            what="median of 20",
            unit="ms",
            best="lowest",
            limit=6,
            floor="bare",
            floor_is="a loop that waits and starts the next with Popen",
        ),
    )

    @contextmanager
    def open(self, run: Run) -> Iterator[Round]:
        with daemon(started=False) as witsd:
            define(witsd, ["phoenix"], sleep_command(), _AT_ONCE)
            witsd.start()
            witsd.call("agents/start", name="phoenix")

            def once() -> Sample:
                times = run.scaled(20)
                ours = median(_replaced_ms(witsd.pid) for _ in range(times))
                return {"median": ours, "bare": _bare_replaced_ms(times)}

            yield once


def _replaced_ms(daemon_pid: int) -> float:
    wait_run(daemon_pid, _PROGRAM, 1)
    time.sleep(0.02)  # what follows a start is over: its row is written
    (agent,) = before = running(daemon_pid, _PROGRAM)
    begun = time.perf_counter()
    os.kill(agent, signal.SIGKILL)
    wait_run(daemon_pid, _PROGRAM, 1, besides=before)
    return _ms_since(begun)


def _bare_replaced_ms(times: int) -> float:
    took = []
    process = _start()
    for _ in range(times):
        begun = time.perf_counter()
        process.kill()
        process.wait()
        replacement = _start()
        took.append(_ms_since(begun))
        process.communicate()
        process = replacement
    process.kill()
    process.communicate()
    return median(took)


def _ms_since(begun: float) -> float:
    return (time.perf_counter() - begun) * 1000
