"""The real daemon under a service manager: what it says on its notify socket, and the sockets it is given."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.agents import begin, define
from tests.support.daemon import PATIENCE_S, Daemon
from tests.support.gate import gate
from tests.support.wire import wire

WATCHDOG_S = 0.2


class Heard:
    """What the daemon has told its manager: fields of all datagrams in order."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.fields: list[str] = []

    def until(self, enough: Callable[[list[str]], bool]) -> list[str]:
        """Listen until what was heard is ``enough``; returns it and begins anew."""
        give_up = time.monotonic() + PATIENCE_S
        while not enough(self.fields):
            self.socket.settimeout(max(give_up - time.monotonic(), 0.001))
            self.fields += self.socket.recv(4096).decode().split("\n")
        found, self.fields = self.fields, []
        return found

    def rest(self) -> list[str]:
        """What had come by the end."""
        self.socket.setblocking(False)
        try:
            while True:
                self.fields += self.socket.recv(4096).decode().split("\n")
        except BlockingIOError:
            return self.fields


@contextmanager
def managed(home: Daemon, **env: str) -> Iterator[tuple[subprocess.Popen[bytes], Heard]]:
    """The daemon with a manager that listens to it."""
    heard = Heard(home.home / "notify")
    with home.log_path.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "witsd.cli.main", "up"],
            env={**home.env, "NOTIFY_SOCKET": str(home.home / "notify"), **env},
            stdin=subprocess.DEVNULL, stdout=out, stderr=out,
        )
    try:
        yield process, heard
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(PATIENCE_S)
        heard.socket.close()


def test_ready_beats_reload_and_end(stopped_daemon: Daemon) -> None:
    with managed(stopped_daemon, WATCHDOG_USEC=str(int(WATCHDOG_S * 1e6))) as (process, heard):
        heard.until(lambda fields: "READY=1" in fields)
        began = time.monotonic()
        heard.until(lambda fields: fields.count("WATCHDOG=1") >= 5)
        assert time.monotonic() - began > 3 * WATCHDOG_S / 2, "they came faster than they are due"
        asked_us = time.monotonic_ns() // 1000
        process.send_signal(signal.SIGHUP)
        reload = heard.until(lambda fields: "READY=1" in fields)
        told = next(field for field in reload if field.startswith("MONOTONIC_USEC="))
        assert reload.index("RELOADING=1") < reload.index("READY=1")
        assert asked_us <= int(told.partition("=")[2]) <= time.monotonic_ns() // 1000
        process.terminate()
        heard.until(lambda fields: "STOPPING=1" in fields)
        assert process.wait(PATIENCE_S) == 0


def test_more_time_is_asked_for_while_it_starts_and_stops(stopped_daemon: Daemon) -> None:
    with managed(stopped_daemon) as (process, heard), gate(stopped_daemon.home) as closed:
        start = heard.until(lambda fields: "READY=1" in fields)
        assert any(field.startswith("EXTEND_TIMEOUT_USEC=") for field in start)
        with wire(stopped_daemon.socket) as c:
            define(c, "script", "script")
            begin(c, "script", ["say", "hello"], ["gate", closed.path])
            process.terminate()
            stop = heard.until(lambda fields: any(field.startswith("EXTEND_TIMEOUT_USEC=") for field in fields))
            assert "STOPPING=1" in stop
            closed.let()
        assert process.wait(PATIENCE_S) == 0


def test_a_watchdog_that_is_not_ours_is_not_fed(stopped_daemon: Daemon) -> None:
    with managed(stopped_daemon, WATCHDOG_USEC="1000", WATCHDOG_PID="1") as (process, heard):
        before = heard.until(lambda fields: "READY=1" in fields)
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
        assert "WATCHDOG=1" not in [*before, *heard.rest()]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


class Activated:
    """``systemd-socket-activate``, which becomes the daemon at the first connection."""

    def __init__(self, home: Daemon, *listen: str) -> None:
        options = [f"--listen={address}" for address in listen]
        options += [f"--setenv={name}={value}" for name, value in home.env.items()]
        self.process = subprocess.Popen(
            ["systemd-socket-activate", *options, sys.executable, "-m", "witsd.cli.main", "up"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        assert self.process.stderr is not None
        self.said = [self.process.stderr.readline() for _ in listen]

    def end(self) -> int:
        self.process.terminate()
        self.said.append(self.process.communicate(timeout=PATIENCE_S)[1])
        return self.process.returncode


needs_activate = pytest.mark.skipif(
    shutil.which("systemd-socket-activate") is None, reason="systemd-socket-activate is not installed"
)


@contextmanager
def activated(home: Daemon, *listen: str) -> Iterator[Activated]:
    it = Activated(home, *listen)
    try:
        yield it
    finally:
        if it.process.poll() is None:
            it.process.kill()
            it.process.communicate(timeout=PATIENCE_S)


def ask(stream: socket.socket, method: str, **params: Any) -> Any:
    stream.sendall(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode() + b"\n")
    with stream.makefile("rb") as lines:
        return json.loads(lines.readline())["result"]


@needs_activate
def test_the_first_connection_starts_it_and_is_answered(stopped_daemon: Daemon) -> None:
    port = free_port()
    # Not where the settings would have it: what was passed counts, and agents are told that place.
    path = stopped_daemon.home / "given.sock"
    with activated(stopped_daemon, str(path), f"127.0.0.1:{port}") as it:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
            stream.settimeout(PATIENCE_S)
            stream.connect(str(path))
            status = ask(stream, "system/status")
            assert status["pid"] == it.process.pid
            assert status["listening"] == {"unix": str(path), "http": f"127.0.0.1:{port}"}
            doctor = {item["name"]: item["status"] for item in ask(stream, "system/doctor")["items"]}
            assert doctor["socket"] == doctor["port"] == "ok"
        with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as http:
            http.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
            assert http.recv(4096).startswith(b"HTTP/1.1 200")
        assert it.end() == 0, it.said
    # The manager's own, who goes on listening there: not the daemon's to remove.
    assert path.exists()
    assert not stopped_daemon.socket.exists()


@needs_activate
def test_a_unix_socket_alone_leaves_the_port_to_the_settings(stopped_daemon: Daemon) -> None:
    path = stopped_daemon.socket
    with activated(stopped_daemon, str(path)) as it:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
            stream.settimeout(PATIENCE_S)
            stream.connect(str(path))
            assert ask(stream, "system/status")["listening"]["http"].startswith("127.0.0.1:")
        assert it.end() == 0, it.said


@needs_activate
def test_what_cannot_be_served_is_said_and_ends_it(stopped_daemon: Daemon) -> None:
    one, two = stopped_daemon.home / "one", stopped_daemon.home / "two"
    with activated(stopped_daemon, str(one), str(two)) as it:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
            stream.connect(str(one))
            said = it.process.communicate(timeout=PATIENCE_S)[1]
        assert it.process.returncode == 1
        assert "witsd: " in said
        assert "second Unix socket" in said
