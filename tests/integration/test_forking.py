"""Agents where the kernel, or a filter in front of it, refuses ways of forking: another way, and all else as before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.test_agents import define
from tests.support.daemon import Daemon
from tests.support.processes import no_zombies, of_daemon, wait_gone
from tests.support.wire import wire

#: Tells what it was given, then stays. Written in shell, whose own limits it prints.
TELLS = ["sh", "-c", 'echo "$(pwd) $(ulimit -n) $WHAT"; exec sleep 1000']


@pytest.fixture(params=["clone3", "siblings"])
def refused(request: pytest.FixtureRequest) -> Iterator[tuple[Daemon, str]]:
    it = Daemon()
    try:
        it.start(request.param, module="tests.support.refusing_daemon")
        yield it, request.param
    finally:
        it.remove()


def test_agents_start_and_end_as_ever(refused: tuple[Daemon, str], tmp_path: Path) -> None:
    daemon, what = refused
    with wire(daemon.socket) as c:
        c.subscribe("log:tells", since={"log:tells": 0})
        more = {"cwd": str(tmp_path), "env": {"WHAT": "this"}, "limits": {"open_files": 99}}
        define(c, "tells", TELLS, kind="exec", start="manual", restart={"policy": "never"}, **more)
        agent = c.call("agents/start", name="tells")
        line = c.until("log.line")["data"]["text"]
        assert line == f"{tmp_path} 99 this"
        process = psutil.Process(agent["pid"])
        assert process.ppid() == daemon.pid
        assert os.getsid(agent["pid"]) == agent["pid"]
        if agent["container"] != "process-group":
            assert "/tells.agent\n" in Path(f"/proc/{agent['pid']}/cgroup").read_text()
        assert ("supervise.no_forker" in daemon.log()) == (what == "siblings")
        assert c.call("agents/stop", name="tells")["state"] == "inactive"
        assert wait_gone(agent["pid"])
        assert no_zombies(daemon.pid)
    assert of_daemon(daemon.home) == []


def test_agents_die_with_the_daemon(refused: tuple[Daemon, str]) -> None:
    daemon, _ = refused
    with wire(daemon.socket) as c:
        c.subscribe("log:stays", since={"log:stays": 0})
        define(c, "stays", TELLS, kind="exec", start="manual")
        pid = c.call("agents/start", name="stays")["pid"]
        c.until("log.line")  # it runs its program: before that it looks by itself whether the daemon is there
    daemon.kill()
    assert wait_gone(pid)


def test_a_program_that_cannot_be_run_is_told(refused: tuple[Daemon, str], tmp_path: Path) -> None:
    daemon, _ = refused
    broken = tmp_path / "broken"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    with wire(daemon.socket) as c:
        c.subscribe("agent:broken")
        define(c, "broken", [str(broken)], kind="exec", start="boot", restart={"policy": "never"})
        failed = c.until("agent.state", where=lambda d: d["state"] == "failed")
        assert failed["data"]["reason"]
        assert no_zombies(daemon.pid)
    assert of_daemon(daemon.home) == []
