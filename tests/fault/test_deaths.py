"""Processes that end, or do not, in awkward ways: each exit is told once, of the right agent, and nothing stays."""

from __future__ import annotations

import os
import resource
import signal
import socket
from contextlib import closing
from typing import Any

import pytest

from tests.integration.test_agents import ECHO, ask, define, python
from tests.support.daemon import PATIENCE_S, Daemon
from tests.support.processes import cpu_s, no_zombies, of_daemon, wait_for, wait_gone
from tests.support.wire import Wire, wire

NEVER: dict[str, Any] = {"restart": {"policy": "never"}}
#: With four orphans that become the daemon's own children, waits until the gate has no writer, and all end at once.
TOGETHER = """
exec 3<gate
for n in 1 2 3 4; do (setsid sh -c 'read x <&3' &); done
echo up
read x <&3
exit $0
"""
#: Four orphans, which end as they like, and an end of its own.
STORM = "for n in 1 2 3 4; do (true &); done; exit 1"


@pytest.fixture
def running(daemon: Daemon) -> Daemon:
    daemon.start()
    return daemon


def ended(connection: Wire, name: str) -> str:
    """Wait until it has failed; why."""
    state = connection.until("agent.state", where=lambda d: d["name"] == name and d["state"] == "failed")
    reason: str = state["data"]["reason"]
    return reason


def test_five_hundred_children_exit_together(running: Daemon) -> None:
    # Each agent takes four descriptors or five of the daemon's.
    count = min(100, (resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 200) // 6)
    gate = running.user_home / "gate"
    os.mkfifo(gate)
    writer = os.open(gate, os.O_RDWR)
    try:
        with wire(running.socket) as c:
            c.subscribe("agent:*")
            for n in range(1, count + 1):
                command = ["sh", "-c", TOGETHER, str(n)]
                define(
                    c, f"a{n}", command, kind="exec", ready={"when": "log", "pattern": "up", "timeout_s": 60}, **NEVER
                )
            up: set[str] = set()
            while len(up) < count:
                up.add(c.until("agent.state", where=lambda d: d["state"] == "active")["data"]["name"])
            assert wait_for(running.home, 5 * count)
            os.close(writer)
            writer = -1
            reasons: dict[str, list[str]] = {}
            while len(reasons) < count:
                data = c.until("agent.state", where=lambda d: d["state"] not in ("starting", "active"))["data"]
                reasons.setdefault(data["name"], []).append(data["reason"])
            assert reasons == {f"a{n}": [f"exited with code {n}"] for n in range(1, count + 1)}
        assert of_daemon(running.home) == []
        assert no_zombies(running.pid)
    finally:
        if writer >= 0:
            os.close(writer)


def test_a_storm_of_a_thousand_deaths_leaves_no_zombie(running: Daemon) -> None:
    agents, deaths = 10, 20
    with wire(running.socket) as c:
        c.subscribe("agent:*")
        for n in range(agents):
            restart = {"backoff_s": 0, "max_restarts": deaths - 1, "window_s": 1000}
            define(c, f"a{n}", ["sh", "-c", STORM], kind="exec", restart=restart)
        failed: dict[str, str] = {}
        while len(failed) < agents:
            data = c.until("agent.state", where=lambda d: d["state"] == "failed")["data"]
            failed[data["name"]] = data["reason"]
        assert all(f"{deaths} exits within" in reason for reason in failed.values()), failed
        assert {c.call("agents/get", name=name)["restarts"] for name in failed} == {deaths - 1}
    assert no_zombies(running.pid)
    assert of_daemon(running.home) == []


def test_an_exit_is_told_while_somebody_else_holds_its_stdout(running: Daemon) -> None:
    path = running.home / "take"
    gives = (
        "import os, socket, sys\ns = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        "socket.send_fds(s, [b'x'], [1, 2]); os._exit(3)"
    )
    with socket.socket(socket.AF_UNIX) as taker, wire(running.socket) as c:
        taker.bind(str(path))
        taker.listen()
        taker.settimeout(PATIENCE_S)
        c.subscribe("agent:gives")
        define(c, "gives", [*python(gives), str(path)], kind="exec", **NEVER)
        with closing(taker.accept()[0]) as connection:
            _, held, _, _ = socket.recv_fds(connection, 1, 2)
        try:
            assert len(held) == 2
            assert ended(c, "gives") == "exited with code 3"
            assert c.call("agents/start", name="gives", wait=False)["state"] in ("starting", "active")
        finally:
            for fd in held:
                os.close(fd)


def test_a_child_that_closes_its_stdout_costs_nothing(running: Daemon) -> None:
    with wire(running.socket) as c:
        for n in range(3):
            define(c, f"quiet{n}", ["sh", "-c", "exec <&- >&- 2>&-; exec sleep 1000"], kind="exec")
            c.call("agents/start", name=f"quiet{n}")
        before = cpu_s(running.pid)
        assert not wait_gone(running.pid, 2)
        assert cpu_s(running.pid) - before < 1, "a loop that is busy takes all of a core"
        assert [c.call("agents/get", name=f"quiet{n}")["state"] for n in range(3)] == ["active"] * 3


@pytest.mark.parametrize("then", ["agents/stop", "agents/remove"])
def test_stop_is_honoured_at_once_in_every_state(running: Daemon, then: str) -> None:
    ready = {"timeout_s": 1000}
    unready: dict[str, dict[str, Any]] = {
        "starting": {"command": ["sleep", "1000"], "ready": {"when": "log", "pattern": "never", **ready}},
        "probing": {"command": ["sleep", "1000"], "ready": {"when": "tcp", "address": "127.0.0.1:1", **ready}},
        "backoff": {"command": ["false"], "restart": {"backoff_s": 1000, "backoff_max_s": 1000, "max_restarts": 9}},
    }
    with wire(running.socket) as c:
        c.subscribe("agent:*")
        for name, more in unready.items():
            define(c, name, kind="exec", **more)
            wanted = "backoff" if name == "backoff" else "starting"
            c.until("agent.state", where=lambda d, n=name, w=wanted: d["name"] == n and d["state"] == w)  # type: ignore[misc]
        # A native agent in the middle of its greeting.
        define(c, "greeting", ["sleep", "1000"], ready=ready, stop={"grace_s": 60})
        c.until("agent.state", where=lambda d: d["name"] == "greeting" and d["state"] == "starting")
        for name in (*unready, "greeting"):
            c.call(then, name=name)
        left = {agent["name"]: agent["state"] for agent in c.call("agents/list")["items"]}
        del left["assistant"]
        assert set(left.values()) <= {"inactive"}
        assert bool(left) == (then == "agents/stop")
    assert of_daemon(running.home) == []


@pytest.mark.parametrize("kind", ["native", "exec"])
def test_a_stopped_agent_can_be_stopped(running: Daemon, kind: str) -> None:
    with wire(running.socket) as c:
        command = python(ECHO) if kind == "native" else ["sleep", "1000"]
        define(c, "frozen", command, kind=kind, stop={"grace_s": 0.5}, health={"interval_s": 0})
        pid = c.call("agents/start", name="frozen")["pid"]
        os.kill(pid, signal.SIGSTOP)
        assert c.call("agents/stop", name="frozen")["state"] == "inactive"
        assert wait_gone(pid)
        assert c.call("agents/start", name="frozen")["state"] == "active"


READY_TWICE = """
import os, socket, sys, time
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.connect(os.environ["NOTIFY_SOCKET"])
for n in range(2): s.send(b"READY=1"); print("ready", flush=True)
print("twice", flush=True)
time.sleep(1000)
"""
#: Answers everything twice.
ANSWERS_TWICE = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    result = {"protocol_version": "1", "output": "done", **asked.get("params", {})}
    for n in range(2): print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
"""


def test_who_is_ready_twice_is_ready_once(running: Daemon) -> None:
    with wire(running.socket) as c:
        c.subscribe("log:told", "log:logged", "agent:told", "agent:logged", "agent:native")
        define(c, "told", python(READY_TWICE), kind="exec", ready={"when": "notify"})
        log = "echo ready; echo ready; echo twice; exec sleep 1000"
        define(c, "logged", ["sh", "-c", log], kind="exec", ready={"when": "log", "pattern": "ready"})
        define(c, "native", python(ANSWERS_TWICE))
        pids = {name: c.call("agents/start", name=name)["pid"] for name in ("told", "logged", "native")}
        for name in ("told", "logged"):
            while "twice" not in [line["text"] for line in c.call("agents/logs", name=name)["lines"]]:
                c.until("log.line")
        assert [ask(c, "native", "x")["status"] for _ in range(3)] == ["completed"] * 3
        for name, pid in pids.items():
            agent = c.call("agents/get", name=name)
            assert (agent["state"], agent["pid"], agent["restarts"]) == ("active", pid, 0)
        while c.events:
            event = c.next_event()
            assert event["data"].get("state") != "stopping"
