"""Limits of real agents: each breach is told with limit, figure and what was done, whoever keeps the limit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from tests.integration.test_agents import ECHO, define, python
from tests.integration.test_watch import get
from tests.support.daemon import Daemon
from tests.support.journal import journal_at
from tests.support.wire import Wire, wire
from witsd.supervise.container import Container
from witsd.supervise.container_plain import Marks
from witsd.supervise.identity import Identity, boot_id, start_time
from witsd.supervise.watch import Watch
from witsd.values.clock import SystemClock
from witsd.values.spec import AgentSpec, Limits

PATIENCE_S = 60


def breach(connection: Wire, limit: str) -> dict[str, Any]:
    found: dict[str, Any] = connection.until("agent.alert", where=lambda d: d["alert"] == limit)["data"]
    assert found["state"] == "breached"
    return found


def said(connection: Wire) -> str:
    text: str = connection.until("agent.log")["data"]["text"]
    return text


def test_output_is_slowed_and_nothing_of_it_dropped(daemon: Daemon) -> None:
    lines = 3000
    code = f"for n in range({lines}): print('x' * 99)\n"
    with wire(daemon.socket) as c:
        c.subscribe("agent:loud")
        limits = {"output_bytes_per_s": 100_000}
        define(c, "loud", python(code), kind="exec", limits=limits, restart={"policy": "never"})
        told = breach(c, "output_bytes_per_s")
        assert (told["threshold"], told["action"], told["enforced_by"]) == (100_000, "slowed", "daemon")
        assert told["value"] > 100_000
        assert "nothing is dropped" in said(c)
        c.until("agent.state", where=lambda d: d["state"] == "inactive")
        assert c.call("agents/logs", name="loud", tail=1)["lines"][0]["seq"] == lines


def test_more_tasks_are_refused_or_the_agent_ends(daemon: Daemon) -> None:
    code = (
        "import threading, time\nheld = []\n"
        "for _ in range(40):\n"
        "    try: t = threading.Thread(target=time.sleep, args=(1000,), daemon=True); t.start(); held.append(t)\n"
        "    except RuntimeError: break\n"
        "time.sleep(1000)\n"
    )
    with wire(daemon.socket) as c:
        c.subscribe("agent:threads")
        define(c, "threads", python(code), kind="exec", limits={"tasks": 20}, restart={"policy": "never"})
        told = breach(c, "tasks")
        assert (told["action"], told["enforced_by"]) in (("refused", "kernel"), ("killed", "samples"))
        assert told["count"] >= 1
        assert "tasks is 20" in said(c)


def test_a_busy_agent_is_held_back_or_reported(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        c.subscribe("agent:busy")
        define(c, "busy", python("while True: pass"), kind="exec", limits={"cpu_percent": 10})
        told = breach(c, "cpu_percent")
        assert (told["action"], told["enforced_by"]) in (("throttled", "kernel"), ("reported", "samples"))
        assert told["value"] >= told["threshold"] == 10
        pid = c.call("agents/get", name="busy")["pid"]
        # A new limit holds for the process that runs.
        define(c, "busy", python("while True: pass"), kind="exec", limits={"cpu_percent": 5, "open_files": 20})
        assert c.call("agents/get", name="busy")["pid"] == pid
        assert c.call("agents/get", name="busy")["state"] == "active"


def test_open_files_and_the_time_of_a_run(daemon: Daemon) -> None:
    code = "import os, time\ntry:\n    while True: os.dup(0)\nexcept OSError: time.sleep(1000)\n"
    with wire(daemon.socket) as c:
        c.subscribe("agent:files", "agent:slow")
        define(c, "files", python(code), kind="exec", limits={"open_files": 40})
        told = breach(c, "open_files")
        assert (told["threshold"], told["value"], told["action"]) == (40, 40, "refused")
        slow = ECHO.replace("echo", "slow").replace("await run.say(run.text)", "import trio; await trio.sleep(1000)")
        define(c, "slow", python(slow), limits={"run_timeout_s": 0.2})
        c.call("runs/start", agent="slow", input="x")
        told = breach(c, "run_timeout_s")
        assert (told["threshold"], told["action"], told["enforced_by"]) == (0.2, "failed", "daemon")
        token = c.call("tokens/create", name="prometheus", scopes=["read"])["token"]
    text = get(daemon.http, "/metrics", token)[1]
    assert 'witsd_agent_limit_breaches_total{agent="slow",limit="run_timeout_s"} 1' in text


def test_a_process_for_one_run_has_limits_too(daemon: Daemon) -> None:
    eats = "import time\neaten = b'x' * (300 << 20)\ntime.sleep(1000)"
    with wire(daemon.socket) as c:
        c.subscribe("agent:once")
        define(c, "once", python(eats), kind="exec", run_per_request=True, limits={"memory_bytes": 100 << 20})
        run = c.call("runs/start", agent="once", input="x")
        assert breach(c, "memory_bytes")["action"] == "killed"
        ended = c.call("runs/wait", run_id=run["run_id"], timeout_s=60)
        assert ended["status"] == "failed"
        assert "memory (oom)" in ended["error"]["message"]


# ---- where no control group can be had ----------------------------------------------------------------


@attrs.frozen(kw_only=True)
class _Watched:
    spec: AgentSpec
    restarts: int = 0
    silence_s: float | None = None


@contextmanager
def process(code: str) -> Iterator[tuple[subprocess.Popen[bytes], Identity, Container]]:
    marks = Marks().container("daemon", "agent")
    it = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        identity = Identity(it.pid, start_time(it.pid) or 0, boot_id())
        marks.started(identity)
        yield it, identity, marks
    finally:
        it.kill()
        it.wait()


@pytest.mark.parametrize("interval_s", [0.0, 1.0, 3600.0], ids=["no sampling", "usual", "seldom"])
async def test_samples_end_who_passes_a_limit_also_where_sampling_is_off(tmp_path: Path, interval_s: float) -> None:
    eats = "import time\neaten = b'x' * (200 << 20)\ntime.sleep(1000)"
    greedy = AgentSpec(name="greedy", kind="exec", command=("x",), limits=Limits(memory_bytes=100 << 20))
    modest = AgentSpec(name="modest", kind="exec", command=("x",), limits=Limits(memory_bytes=100 << 20))
    async with journal_at(tmp_path / "db", clock=SystemClock()) as journal:
        watch = Watch(journal, SystemClock(), interval_s)
        killed = trio.Event()
        with process(eats) as (one, first, ours), process("import time; time.sleep(1000)") as (other, second, theirs):

            def kill() -> None:
                one.kill()
                killed.set()

            held = watch.began(greedy, first, ours, kill)
            watch.began(modest, second, theirs, other.kill)
            with trio.fail_after(PATIENCE_S):
                async with trio.open_nursery() as nursery:
                    agents = [_Watched(spec=spec) for spec in (greedy, modest)]
                    nursery.start_soon(watch.run, lambda: agents)
                    await killed.wait()
                    nursery.cancel_scope.cancel()
            assert other.poll() is None, "its sibling is unharmed"
            reason = watch.why(held, greedy.limits, "was killed by SIGKILL", clean=False)
            assert "memory (oom)" in reason
            watch.ended(held)
        assert watch.breaches.totals["greedy"] == {"memory_bytes": 1}
