"""When an exec agent counts as ready, in each of the ways a definition can say it."""

from __future__ import annotations

import os
import signal
import socket
from typing import Any

import pytest

from tests.integration.test_agents import ECHO, define, python
from tests.support.daemon import Daemon
from tests.support.gate import gate
from tests.support.processes import wait_gone
from tests.support.wire import RpcError, wire
from witsd.supervise.readiness import LogPattern

SAYS_SO = """
import os, socket, sys, time
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.connect(os.environ["NOTIFY_SOCKET"])
print("waiting", flush=True)
open(sys.argv[1]).read()
s.send(b"STATUS=here we go\\nREADY=1")
time.sleep(1000)
"""
LISTENS = """
import http.server, sys
open(sys.argv[2]).read()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.mark.parametrize("when", ["notify", "log", "tcp", "http"])
def test_active_once_it_is_ready_and_not_before(daemon: Daemon, when: str) -> None:
    gate = daemon.home / "gate"
    os.mkfifo(gate)
    port = free_port()
    commands: dict[str, list[str]] = {
        "notify": [*python(SAYS_SO), str(gate)],
        "log": ["sh", "-c", f"echo starting; cat {gate}; echo 'now listening on 1'; sleep 1000"],
        "tcp": [*python(LISTENS), str(port), str(gate)],
        "http": [*python(LISTENS), str(port), str(gate)],
    }
    ready: dict[str, dict[str, Any]] = {
        "notify": {},
        "log": {"pattern": "listening on [0-9]+"},
        "tcp": {"address": f"127.0.0.1:{port}"},
        "http": {"url": f"http://127.0.0.1:{port}/"},
    }
    with wire(daemon.socket) as c:
        c.subscribe("agent:svc")
        define(c, "svc", commands[when], kind="exec", ready={"when": when, **ready[when]}, cwd=str(daemon.home))
        c.until("agent.state", where=lambda d: d["state"] == "starting")
        with open(gate, "w"):  # opens once the agent waits there, and lets it go on
            assert c.call("agents/get", name="svc")["state"] == "starting"
        c.until("agent.state", where=lambda d: d["state"] == "active")


def test_a_stranger_cannot_say_that_it_is_ready(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        c.subscribe("log:svc", "agent:svc", since={"log:svc": 0})
        mute = python("import os; print(os.environ['NOTIFY_SOCKET'], flush=True); import time; time.sleep(1000)")
        define(c, "svc", mute, kind="exec", ready={"when": "notify", "timeout_s": 5}, restart={"policy": "never"})
        where = c.until("log.line")["data"]["text"]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"READY=1", where)
        failed = c.until("agent.state", where=lambda d: d["state"] in ("active", "failed"))
        assert failed["data"]["state"] == "failed"
        assert "not ready within 5 s" in failed["data"]["reason"]


@pytest.mark.parametrize(
    ("ready", "says"),
    [({"when": "log"}, "`pattern` is required"), ({"when": "log", "pattern": "("}, "no regular expression")],
)
def test_a_readiness_that_cannot_be_is_refused(daemon: Daemon, ready: dict[str, str], says: str) -> None:
    with wire(daemon.socket) as c:
        with pytest.raises(RpcError, match=says) as refused:
            define(c, "svc", ["true"], kind="exec", ready=ready)
        assert refused.value.code == -32602


#: Ready, and alive as often as it was told to be; a byte in the gate and it is silent from then on.
FEEDS = """
import os, select, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.connect(os.environ["NOTIFY_SOCKET"])
s.send(b"READY=1")
gate = os.open(sys.argv[1], os.O_RDONLY | os.O_NONBLOCK)
while not select.select([gate], [], [], int(os.environ["WATCHDOG_USEC"]) / 4e6)[0]:
    s.send(b"WATCHDOG=1")
select.select([], [], [])
"""


def test_a_watchdog_that_is_not_fed_is_hung_and_replaced(daemon: Daemon) -> None:
    with wire(daemon.socket) as c, gate(daemon.home) as silence:
        c.subscribe("agent:svc")
        health = {"watchdog_s": 2}
        restart = {"backoff_s": 0}
        define(c, "svc", [*python(FEEDS), silence.path], kind="exec", health=health, restart=restart)
        c.until("agent.health", where=lambda d: d["health"] == "ok")
        first = c.call("agents/get", name="svc")["pid"]
        os.kill(first, signal.SIGSTOP)
        c.until("agent.health", where=lambda d: d["health"] == "hung")
        stopping = c.until("agent.state", where=lambda d: d["state"] == "stopping")["data"]
        assert stopping["reason"] == "sent no WATCHDOG=1 within 2 s"
        c.until("agent.state", where=lambda d: d["state"] == "active" and d["pid"] != first)
        assert c.call("agents/get", name="svc")["restarts"] == 1


def test_a_watchdog_that_only_reports(daemon: Daemon) -> None:
    with wire(daemon.socket) as c, gate(daemon.home) as silence:
        c.subscribe("agent:svc")
        define(
            c, "svc", [*python(FEEDS), silence.path], kind="exec", ready={"when": "notify"},
            health={"watchdog_s": 2, "action": "report"},
        )  # fmt: skip
        c.until("agent.health", where=lambda d: d["health"] == "ok")
        pid = c.call("agents/get", name="svc")["pid"]
        os.kill(pid, signal.SIGSTOP)
        c.until("agent.health", where=lambda d: d["health"] == "hung")
        os.kill(pid, signal.SIGCONT)
        c.until("agent.health", where=lambda d: d["health"] == "ok")
        silence.let()
        c.until("agent.health", where=lambda d: d["health"] == "hung")
        assert c.call("agents/get", name="svc")["pid"] == pid


@pytest.mark.parametrize("kind", ["exec", "native"])
def test_an_agent_that_was_stopped_still_stops(daemon: Daemon, kind: str) -> None:
    with wire(daemon.socket) as c:
        # One that does nothing about SIGTERM would die of it even while it is stopped.
        code = "import signal, sys; signal.signal(15, lambda *_: sys.exit()); print('up', flush=1); signal.pause()"
        more: dict[str, Any] = {"ready": {"when": "log", "pattern": "up"}} if kind == "exec" else {}
        code = ECHO if kind == "native" else code
        more |= {"stop": {"grace_s": 3600}, "health": {"interval_s": 0}, "start": "manual"}
        define(c, "svc", python(code), kind=kind, **more)
        pid = c.call("agents/start", name="svc")["pid"]
        os.kill(pid, signal.SIGSTOP)
        assert c.call("agents/stop", name="svc")["state"] == "inactive", "it is woken to hear of it"
        assert wait_gone(pid)


def test_a_pattern_that_would_search_for_ever_gives_up() -> None:
    """It is searched in the event loop, where everybody would wait for it."""
    pattern = LogPattern(r"^(a|a)*$")
    pattern.look([b"a" * 30 + b"!"])  # by `re` this takes minutes
    assert not pattern.seen.is_set()
    pattern.look([b"aa"])
    assert pattern.seen.is_set()
