"""The daemon as a process: one for a database, signals while it starts, works and stops."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.agents import begin, define
from tests.support.daemon import PATIENCE_S, Daemon
from tests.support.gate import gate
from tests.support.wire import RpcError, wire


def test_a_second_daemon_on_another_socket_does_not_get_the_database(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        pid = define(c, "script", "script")["pid"]
        second = subprocess.run(
            [sys.executable, "-m", "witsd.daemon"],
            env={**daemon.env, "WITSD_LISTEN_UNIX": str(daemon.home / "other.sock")},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert second.returncode == 1
        assert second.stderr.splitlines() == [
            f"witsd: witsd is already running: pid {daemon.pid} holds {daemon.home / 'witsd.db'}",
            "       to take over from it: witsd up --replace; to stop it: witsd down",
        ]
        assert c.call("agents/get", name="script")["pid"] == pid, "its agents are left alone"


def test_asked_twice_it_does_not_wait_for_runs(stopped_daemon: Daemon) -> None:
    daemon = stopped_daemon
    daemon.start()
    assert daemon.process is not None
    with wire(daemon.socket) as c, gate(daemon.home) as closed:
        define(c, "script", "script")
        c.subscribe("run:*")
        run_id = begin(c, "script", ["say", "hello"], ["gate", closed.path])
        c.until("item.delta")
        c.call("system/shutdown", grace_s=3000)
        daemon.process.send_signal(signal.SIGINT)
        assert c.until("run.interrupted")["data"]["run_id"] == run_id
    assert daemon.wait() == 0


def test_ready_means_that_a_reload_is_heard(stopped_daemon: Daemon) -> None:
    daemon = stopped_daemon
    daemon.start()
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    assert daemon.call("ping") == {}
    assert daemon.stop() == 0


def test_what_it_prints_works_as_printed_in_any_folder(stopped_daemon: Daemon) -> None:
    daemon = stopped_daemon
    odd = Path(daemon.user_home, "my $HOME")
    odd.mkdir()
    daemon.env["WITSD_HOME"] = "./my $HOME"
    daemon.start()
    printed = next(line.strip() for line in daemon.log().splitlines() if line.endswith(" status"))
    assert shlex.split(printed)[0] == f"WITSD_HOME={odd}"
    assert daemon.stop() == 0


def test_the_audit_does_not_grow_by_what_callers_make_up(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        with pytest.raises(RpcError):
            c.call("runs/start", agent="z" * 100_000, input="x")
        (told,) = c.call("events/read", stream="audit")["events"]
        assert told["data"]["method"] == "runs/start"
        assert told["data"]["target"] == "z" * 200
