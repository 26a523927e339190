"""``witsd doctor`` with a daemon, without one, and with one that does not answer."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from typing import Any

import pytest

from tests.support.daemon import Daemon

#: What is looked at of a running daemon.
PARTS = {
    "environment", "linger", "sandbox", "setpriv", "containment", "folders", "socket", "port", "database", "disk",
    "clock", "open files", "definitions", "agents", "limits",
    "settings",
}


def report(daemon: Daemon, *args: str, status: int = 0, **env: str) -> Any:
    done = daemon.cli("doctor", "--json", *args, env=env)
    assert done.returncode == status, done.stdout + done.stderr
    return json.loads(done.stdout)


def of(report: Any, name: str) -> list[Any]:
    return [item for item in report["items"] if item["name"] == name]


def problems(report: Any) -> list[str]:
    return [f"{item['name']}: {item['message']}" for item in report["items"] if item["status"] == "problem"]


def test_a_daemon_that_is_well(daemon: Daemon) -> None:
    found = report(daemon)
    assert found["daemon"] == "running"
    assert {item["name"] for item in found["items"]} == PARTS
    assert problems(found) == []
    assert of(found, "port")[0]["message"] == daemon.http
    assert found == {"daemon": "running", **daemon.call("system/doctor")} | {"items": found["items"]}


def test_a_person_sees_a_line_each_and_what_to_do(daemon: Daemon) -> None:
    done = daemon.cli("doctor", env={"PATH": "/nowhere"})
    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert all(line.split()[0] in ("ok", "warning", "->") for line in lines)
    assert any(line.startswith("ok       socket") and str(daemon.socket) in line for line in lines)


def test_faults_of_agents_and_definitions_are_problems(daemon: Daemon) -> None:
    agents = daemon.home / "agents"
    (agents / "bad.toml").write_text('name = "bad"\nkind = "exec"\ncommand = ["true"]\ncolour = "red"\n')
    failing = {"name": "failing", "kind": "exec", "command": ["/does/not/exist"], "restart": {"policy": "never"}}
    daemon.call("agents/define", spec={**failing, "start": "manual"})
    daemon.call("system/reload")
    daemon.ask({"jsonrpc": "2.0", "id": 1, "method": "agents/start", "params": {"name": "failing", "wait": True}})
    found = report(daemon, status=1)
    assert f"{agents}/bad.toml:4" in of(found, "definitions")[0]["message"]
    assert "witsd reload" in of(found, "definitions")[0]["hint"]
    assert "failing has failed" in of(found, "agents")[0]["message"]
    assert "witsd agent start failing" in of(found, "agents")[0]["hint"]


def test_what_a_restart_would_find_in_the_settings_is_said_before_it(daemon: Daemon) -> None:
    file = daemon.home / "witsd.toml"
    assert of(report(daemon), "settings")[0]["status"] == "ok"
    before = file.read_text() if file.exists() else ""
    file.write_text(before + '\n[logs]\ncolour = "red"\n')
    (item,) = of(report(daemon, status=1), "settings")
    assert item["status"] == "problem"
    assert str(file) in item["message"]
    assert "colour" in item["message"]
    file.write_text(before + "\n[logs]\nmax_bytes = 12345678\n")
    (item,) = of(report(daemon), "settings")
    assert item["status"] == "warning"
    assert "logs.max_bytes" in item["message"]
    assert "witsd up --replace" in item["hint"]


def test_who_may_only_read_may_not_have_the_database_read_through(daemon: Daemon) -> None:
    token = daemon.call("tokens/create", name="reader", scopes=["read"])["token"]
    greeting = {"protocol_version": "1", "token": token}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream, stream.makefile("rwb") as lines:
        stream.settimeout(60)
        stream.connect(str(daemon.socket))
        for number, (method, params) in enumerate([("initialize", greeting), ("system/doctor", {})]):
            request = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
            lines.write(json.dumps(request).encode() + b"\n")
        lines.flush()
        answers = [json.loads(lines.readline()) for _ in range(2)]
    assert {answer["id"]: answer.get("error", {}).get("code") for answer in answers} == {0: None, 1: -32003}


def test_no_daemon_in_an_empty_home(stopped_daemon: Daemon) -> None:
    before = sorted(stopped_daemon.home.rglob("*"))
    found = report(stopped_daemon)
    assert found["daemon"] == "down"
    assert problems(found) == []
    assert of(found, "daemon")[0]["status"] == "warning"
    assert "witsd up" in of(found, "daemon")[0]["hint"]
    assert "not there yet" in of(found, "database")[0]["message"]
    assert sorted(stopped_daemon.home.rglob("*")) == before, "it has changed what it looked at"


def test_after_a_kill_the_socket_is_stale_and_the_database_readable(daemon: Daemon) -> None:
    daemon.kill()
    found = report(daemon)
    assert "was killed" in of(found, "socket")[0]["message"]
    assert "without fault" in of(found, "database")[0]["message"]
    assert problems(found) == []
    daemon.start()  # and the next daemon is not disturbed by the look
    assert problems(report(daemon)) == []


def test_a_daemon_that_does_not_answer_is_named(daemon: Daemon) -> None:
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        found = report(daemon, "--timeout", "0.5", status=1)
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    assert found["daemon"] == "down"
    assert f"pid {daemon.pid} holds {daemon.socket}" in of(found, "daemon")[0]["message"]
    assert of(found, "port") == []  # it is the daemon itself that has it


def test_what_is_wrong_before_the_first_start(stopped_daemon: Daemon) -> None:
    home = stopped_daemon.home
    (home / "witsd.toml").write_text("[listen]\ncolour = 1\n")
    (home / "agents").mkdir(mode=0o700)
    (home / "agents/bad.toml").write_text("name = \n")
    (home / "witsd.db").write_bytes(b"no database" * 500)
    stopped_daemon.socket.touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = report(stopped_daemon, status=1, WITSD_LISTEN_HTTP=f"127.0.0.1:{port}")
        assert sorted(line.partition(":")[0] for line in problems(found)) == [
            "database", "definitions", "settings", "socket",
        ]
        assert f"{home}/witsd.toml:2" in of(found, "settings")[0]["message"]
        # With settings that can be read, it is their port that is tried.
        (home / "witsd.toml").unlink()
        found = report(stopped_daemon, status=1, WITSD_LISTEN_HTTP=f"127.0.0.1:{port}")
    assert "something else listens there" in of(found, "port")[0]["message"]
    assert "WITSD_LISTEN_HTTP" in of(found, "port")[0]["hint"]


def test_a_socket_somebody_else_listens_on(stopped_daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(stopped_daemon.socket))
        other.listen()
        # It never answers, so that the daemon's own report cannot be had either.
        found = report(stopped_daemon, "--timeout", "0.5", status=1)
    assert "no witsd" in of(found, "socket")[0]["message"]


def test_as_another_user_it_says_whose_things_these_are(daemon: Daemon) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: somebody else has to look")
    daemon.home.chmod(0o755)
    # A copy of what it imports is not needed: only the effective user changes, in a process that has it all loaded.
    program = (
        "import os, sys; import witsd.doctor, witsd.services.doctor\n"
        "from witsd.values.clock import SystemClock\n"
        "os.seteuid(54321)\n"
        "for i in witsd.doctor.examine(dict(os.environ), now_us=SystemClock().wall_us()).items:\n"
        "    print(i.status, i.name, i.message)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=daemon.env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "problem database" in done.stdout
    assert "belongs to root" in done.stdout
