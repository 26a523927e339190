"""SIGKILL the daemon and start it again: N processes, never 2N, and no stranger is touched."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.integration.test_agents import DETACHES, define, python
from tests.support.daemon import Daemon
from tests.support.processes import no_zombies, of_daemon, wait_for, wait_gone
from tests.support.wire import wire
from witsd.supervise.identity import boot_id, start_time

MODULES = {"what there is": ("witsd.daemon", ()), "process group": ("tests.support.hurt_daemon", ("plain",))}
#: Where nothing but the pid that was recorded says whose it is: no death signal, no mark in the environment.
FORGETS = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 0)
os.execve("/bin/sleep", ["sleep", "1000"], {})
"""


@contextmanager
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is nobody's, leader of a group of its own."""
    process = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("how", MODULES)
def test_ten_processes_and_never_twenty(daemon: Daemon, how: str) -> None:
    module, arguments = MODULES[how]
    daemon.start(*arguments, module=module)
    with wire(daemon.socket) as c:
        for n in range(5):
            define(c, f"tree-{n}", python(DETACHES), kind="exec")
    before = wait_for(daemon.home, 10)
    assert before, "five agents, and what detached itself of each"
    for _ in range(3):
        daemon.kill()
        daemon.start(*arguments, module=module)
        assert all(wait_gone(pid) for pid in before)
        before = wait_for(daemon.home, 10)
        assert before, f"ten again, not {len(of_daemon(daemon.home))}"
    assert daemon.stop() == 0
    assert of_daemon(daemon.home) == []


@pytest.mark.parametrize("how", MODULES)
def test_what_hides_is_known_by_its_recorded_pid(daemon: Daemon, how: str) -> None:
    module, arguments = MODULES[how]
    daemon.start(*arguments, module=module)
    with wire(daemon.socket) as c:
        define(c, "hides", python(FORGETS), kind="exec")
        pid = c.call("agents/start", name="hides")["pid"]
    command = Path(f"/proc/{pid}/comm")
    while command.read_text() != "sleep\n":
        assert not wait_gone(pid, 0.01)
    daemon.kill()
    assert not wait_gone(pid, 0), "it took off its death signal"
    try:
        daemon.start(*arguments, module=module)
        assert wait_gone(pid), "one process of it, not two"
    finally:
        if not wait_gone(pid, 0):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("wrong", ["another start time", "another boot", "dead"])
def test_a_recorded_pid_that_means_a_stranger_by_now_is_not_signalled(daemon: Daemon, wrong: str) -> None:
    daemon.start()
    with wire(daemon.socket) as c:
        define(c, "a", ["sleep", "1000"], kind="exec")
        c.call("agents/start", name="a")
    daemon.kill()
    with stranger() as other:
        started = start_time(other.pid)
        assert started is not None
        row = {
            "another start time": (other.pid, started - 1, boot_id()),
            "another boot": (other.pid, started, "not this one"),
            "dead": (other.pid, 0, boot_id()),
        }[wrong]
        with closing(sqlite3.connect(daemon.home / "witsd.db")) as db, db:
            changed = db.execute("UPDATE agents SET pid = ?, start_time = ?, boot_id = ? WHERE name = 'a'", row)
            assert changed.rowcount == 1
        daemon.start()
        daemon.call("agents/stop", name="a")
        assert daemon.stop() == 0
        assert other.poll() is None, "a stranger was killed"


def test_what_was_forked_by_one_who_died_before_he_said_so_is_ended(daemon: Daemon) -> None:
    """Nobody knows its pid: it is the container that knows it."""
    holds = "exec 9>lock; flock -n 9 || { echo twice >>doubled; exit 1; }; echo begun >>begun; exec sleep 1000"
    daemon.start("forker", module="tests.support.hurt_daemon")
    with wire(daemon.socket) as c:
        restart = {"backoff_s": 0, "max_restarts": 1000}
        define(c, "a", ["sh", "-c", holds], kind="exec", cwd=str(daemon.home), restart=restart)
        for _ in range(10):
            assert c.call("agents/restart", name="a")["state"] == "active"
        restarts = [line["text"] for line in c.call("agents/logs", name="a")["lines"]]
        assert any("has ended unexpectedly" in text for text in restarts), "no forker has died: nothing was tried"
        assert not (daemon.home / "doubled").exists(), "one was started beside one that nobody knew"
        assert len(wait_for(daemon.home, 1)) == 1
    assert no_zombies(daemon.pid)
