"""``kind = "external"``: processes that witsd did not start are watched, and never touched."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon
from tests.support.wire import RpcError, Wire, wire


@contextmanager
def foreign(**more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process of somebody's."""
    process = subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL, **more)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def watch(c: Wire, **spec: Any) -> dict[str, Any]:
    agent: dict[str, Any] = c.call("agents/define", spec={"name": "db", "kind": "external", **spec})
    return agent


def get(c: Wire, name: str = "db") -> dict[str, Any]:
    agent: dict[str, Any] = c.call("agents/get", name=name)
    return agent


def until(c: Wire, state: str, reason: str = "", **fields: Any) -> None:
    c.until(
        "agent.state",
        where=lambda d: d["state"] == state
        and reason in d.get("reason", "")
        and all(d.get(key) == value for key, value in fields.items()),
    )


def test_a_pid_is_watched_until_its_process_ends(daemon: Daemon) -> None:
    with wire(daemon.socket) as c, foreign() as process:
        c.subscribe("agent:db")
        watch(c, pid=process.pid, alerts={"memory_bytes": 1})
        until(c, "active", pid=process.pid)
        agent = get(c)
        assert (agent["pid"], agent["health"]) == (process.pid, "ok")
        assert "container" not in agent
        assert c.until("agent.alert")["data"]["alert"] == "memory_bytes", "its vitals are sampled"
        assert c.call("agents/metrics", name="db")["current"]["rss_bytes"] > 0
        process.send_signal(signal.SIGSTOP)
        c.until("agent.health", where=lambda d: d["health"] == "hung")
        process.send_signal(signal.SIGCONT)
        c.until("agent.health", where=lambda d: d["health"] == "ok")
        process.kill()
        until(c, "inactive", f"process {process.pid} has ended")
        assert "pid" not in get(c)


def test_it_is_never_touched(daemon: Daemon) -> None:
    with foreign() as process:
        with wire(daemon.socket) as c:
            c.subscribe("agent:db")
            watch(c, pid=process.pid)
            until(c, "active")
            for method in ("start", "stop", "restart"):
                with pytest.raises(RpcError, match="by witsd, which only watches it") as refused:
                    c.call(f"agents/{method}", name="db")
                assert refused.value.code == -32005
            for method in ("runs/start", "runs/start"):
                with pytest.raises(RpcError, match="takes no requests") as refused:
                    c.call(method, agent="db", input="hello")
                assert refused.value.code == -32005
        daemon.stop()
        daemon.start()
        with wire(daemon.socket) as c:
            c.subscribe("agent:db", since={"agent:db": 0})
            assert process.poll() is None, "a stop of the daemon is not its business"
            daemon.kill()
        daemon.start()
        with wire(daemon.socket) as c:
            c.call("agents/remove", name="db")
            assert process.poll() is None
            # What is ours under that name is another matter, both ways.
            spec = {"name": "db", "kind": "exec", "command": ["sleep", "1000"]}
            c.call("agents/define", spec=spec)
            own = c.call("agents/start", name="db")["pid"]
            c.subscribe("agent:db")
            watch(c, pid=process.pid)
            until(c, "active", pid=process.pid)
            assert not Path(f"/proc/{own}").exists()
            c.call("agents/define", spec=spec)
            assert c.call("agents/start", name="db")["pid"] not in (own, process.pid)
            assert process.poll() is None


def test_a_pid_file_is_followed(daemon: Daemon) -> None:
    file = daemon.home / "db.pid"
    with wire(daemon.socket) as c, foreign() as first, foreign() as second:
        c.subscribe("agent:db", "agent:web")
        watch(c, pid_file=str(file))
        until(c, "inactive", f"there is no pid file {file}")
        c.call("agents/define", spec={"name": "web", "kind": "exec", "command": ["sleep", "1000"], "requires": ["db"]})
        until(c, "starting", "waits for db", name="web")
        file.write_text(f"{first.pid}\n")
        until(c, "active", name="db", pid=first.pid)
        until(c, "active", name="web")
        file.write_text(f"{second.pid}\n")
        until(c, "active", name="db", pid=second.pid)
        assert get(c)["restarts"] == 1
        second.kill()
        second.wait()
        until(c, "inactive", "has ended", name="db")
        until(c, "inactive", f"process {second.pid}, which its pid file names, is not there", name="db")
        assert get(c, "web")["state"] == "active"
        for text in ("", "what?\n", "-1\n", "0\n", "99999999999\n"):
            file.write_text(text)
            until(c, "inactive", "holds no process id", name="db")
            file.write_text(f"{first.pid}\n")
            until(c, "active", name="db")
            file.unlink()
            first_pid = get(c)["pid"]
            assert first_pid == first.pid, "it lives, whatever becomes of its file"
            os.mkfifo(file)
            c.call("agents/define", spec={"name": "db", "kind": "external", "pid_file": str(file)})
            until(c, "inactive", "is no plain file", name="db")
            file.unlink()


def test_a_number_that_was_given_away_is_not_the_process(daemon: Daemon) -> None:
    with foreign() as process:
        with wire(daemon.socket) as c:
            c.subscribe("agent:db")
            watch(c, pid=process.pid)
            until(c, "active")
        daemon.kill()
        # As if the number had come round: what was recorded is of another time.
        subprocess.run(
            ["python3", "-c", "import sqlite3,sys; d=sqlite3.connect(sys.argv[1]);"
             "d.execute(\"UPDATE agents SET start_time = start_time - 1 WHERE name = 'db'\"); d.commit()",
             str(daemon.home / "witsd.db")],
            check=True, timeout=60,
        )  # fmt: skip
        daemon.start()
        with wire(daemon.socket) as c:
            c.subscribe("agent:db", since={"agent:db": 0})
            until(c, "inactive", "its number is another's now: define it again if that is meant")
            watch(c, pid=process.pid)
            until(c, "active")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
def test_a_process_of_another_user_is_watched_too(daemon: Daemon) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    with wire(daemon.socket) as c, foreign(user=nobody, cwd="/") as process:
        c.subscribe("agent:db")
        watch(c, pid=process.pid)
        until(c, "active", pid=process.pid)
        process.kill()
        until(c, "inactive", "has ended")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({}, "needs `pid` or `pid_file`"),
        ({"pid": 1, "pid_file": "x"}, "and not both"),
        ({"pid": 1, "command": ["x"]}, "`command` has no meaning"),
        ({"pid": 1, "limits": {"tasks": 3}}, "`limits` has no meaning"),
        ({"pid": 1, "requires": ["db"]}, "`requires` has no meaning"),
    ],
)
def test_what_makes_no_sense_is_refused(daemon: Daemon, spec: dict[str, Any], says: str) -> None:
    with wire(daemon.socket) as c, pytest.raises(RpcError, match=says) as refused:
        watch(c, **spec)
    assert refused.value.code == -32602
