"""``witsd up --replace``: one daemon after the other, and nobody who connects notices more than a wait."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.agents import begin, define
from tests.support.daemon import PATIENCE_S, Daemon
from tests.support.gate import gate
from tests.support.wire import wire
from witsd.door import handover


class Up:
    """``witsd up --json`` in a terminal of its own: no service manager."""

    def __init__(self, home: Daemon, *args: str, env: dict[str, str] | None = None) -> None:
        self.errors = home.home / f"up-{time.monotonic_ns()}.err"
        with self.errors.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "witsd.cli.main", "up", "--json", *args],
                env={**home.env, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
            )

    def ready(self) -> dict[str, Any]:
        """What it says once it is."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"it ended: {self.said()}"
        found: dict[str, Any] = json.loads(line)
        return found

    def said(self) -> str:
        return self.errors.read_text()

    def told(self, text: str) -> None:
        """Wait until it has written ``text`` for people."""
        give_up = time.monotonic() + PATIENCE_S
        while text not in self.said():
            assert time.monotonic() < give_up, self.said()
            time.sleep(0.01)

    def wait(self) -> int:
        return self.process.wait(PATIENCE_S)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=PATIENCE_S)


@contextmanager
def up(home: Daemon, *args: str, env: dict[str, str] | None = None) -> Iterator[Up]:
    it = Up(home, *args, env=env)
    try:
        yield it
    finally:
        it.end()


class Caller(threading.Thread):
    """Connects, asks one thing, closes, again and again; ``served`` are the answers and ``failed`` what went wrong."""

    def __init__(self, home: Daemon, address: str | tuple[str, int]) -> None:
        super().__init__(daemon=True)
        self.home = home
        self.address = address
        self.stopped = threading.Event()
        self.served = 0
        self.failed: list[str] = []
        self.start()

    def run(self) -> None:
        while not self.stopped.is_set():
            try:
                self.once()
                self.served += 1
            except (OSError, ValueError) as error:
                self.failed.append(repr(error))

    def once(self) -> None:
        kind = socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET
        with socket.socket(kind, socket.SOCK_STREAM) as stream:
            stream.settimeout(PATIENCE_S)
            stream.connect(self.address)
            if isinstance(self.address, str):
                stream.sendall(b'{"jsonrpc": "2.0", "id": 1, "method": "ping"}\n')
                with stream.makefile("rb") as lines:
                    answer = lines.readline()
                if json.loads(answer) != {"jsonrpc": "2.0", "id": 1, "result": {}}:
                    raise ValueError(answer)
            else:
                host = "{}:{}".format(*self.address)
                stream.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                head = stream.recv(4096)
                if not head.startswith(b"HTTP/1.1 200"):
                    raise ValueError(head)

    def served_more(self) -> None:
        """Wait until it has been answered again."""
        before, give_up = self.served, time.monotonic() + PATIENCE_S
        while self.served < before + 2:
            assert time.monotonic() < give_up, self.failed
            time.sleep(0.005)

    def end(self) -> None:
        self.stopped.set()
        self.join(PATIENCE_S)


def test_nobody_is_refused_through_replacements_and_history_goes_on(stopped_daemon: Daemon) -> None:
    home = stopped_daemon
    with ExitStack() as stack:
        daemon = stack.enter_context(up(home))
        listening = daemon.ready()["listening"]
        host, _, port = listening["http"].rpartition(":")
        with wire(home.socket) as c:
            epoch = c.call("initialize", protocol_version="1")["epoch"]
        inode = home.socket.stat().st_ino
        callers = [Caller(home, str(home.socket)), Caller(home, (host, int(port)))]
        for caller in callers:
            stack.callback(caller.end)
        for _ in range(3):
            for caller in callers:
                caller.served_more()
            successor = stack.enter_context(up(home, "--replace"))
            told = successor.ready()
            assert told["pid"] == successor.process.pid
            assert told["listening"] == listening, "the port is the same, although the settings leave it open"
            assert daemon.wait() == 0, daemon.said()
            assert f"taking over from pid {daemon.process.pid} " in successor.said()
            daemon = successor
        for caller in callers:
            caller.served_more()
            caller.end()
            assert caller.failed == []
        assert home.socket.stat().st_ino == inode, "the socket was never away"
        with wire(home.socket) as c:
            assert c.call("initialize", protocol_version="1")["epoch"] == epoch
            events = c.call("events/read", stream="system", limit=100)["events"]
        assert [event["type"] for event in events] == ["system.started", "system.stopped"] * 3 + ["system.started"]
        assert [event["seq"] for event in events] == list(range(1, 8))
        daemon.process.terminate()
        assert daemon.wait() == 0
        assert not home.socket.exists()
        assert not Path(f"{home.socket}.next").exists()


def test_who_connects_while_nobody_accepts_waits_and_is_served(stopped_daemon: Daemon) -> None:
    home = stopped_daemon
    home.env["WITSD_DAEMON_GRACE_S"] = "600"
    with up(home) as old, gate(home.home) as closed:
        host, _, port = old.ready()["listening"]["http"].rpartition(":")
        with wire(home.socket) as c:
            define(c, "script", "script")
            run_id = begin(c, "script", ["say", "hello"], ["gate", closed.path], ["say", "bye"])
            c.call("system/status")
            with up(home, "--replace", env={"WITSD_LISTEN_HTTP": f"{host}:{port}"}) as new, ExitStack() as waiting:
                old.told("daemon.stopping ")  # logged once it accepts nobody any more
                streams = []
                for address in (str(home.socket), (host, int(port))):
                    stream = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
                    waiting.enter_context(stream).settimeout(PATIENCE_S)
                    stream.connect(address)
                    streams.append(stream)
                streams[0].sendall(b'{"jsonrpc": "2.0", "id": 1, "method": "system/status"}\n')
                streams[1].sendall(f"GET / HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
                # A third one is told who is before it, while the run keeps the old daemon.
                with up(home, "--replace") as third:
                    assert third.wait() == 1
                    assert f"another daemon (pid {new.process.pid}) is taking over" in third.said()
                closed.let()
                with streams[0].makefile("rb") as lines:
                    assert json.loads(lines.readline())["result"]["pid"] == new.process.pid
                assert streams[1].recv(4096).startswith(b"HTTP/1.1 200")
                assert old.wait() == 0
                assert home.call("runs/get", run_id=run_id)["status"] == "completed", "it had its grace"


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"WITSD_LIMITS_DEPTH": "none"}, "WITSD_LIMITS_DEPTH"),
        ({"WITSD_LISTEN_HTTP": "TAKEN"}, "something else listens there"),
        ({"WITSD_LISTEN_HTTP": "0.0.0.0:0"}, "is not a loopback address"),
    ],
)
def test_what_can_be_known_beforehand_keeps_the_old_one_serving(
    stopped_daemon: Daemon, env: dict[str, str], says: str
) -> None:
    home = stopped_daemon
    with up(home) as old, socket.create_server(("127.0.0.1", 0)) as taken:
        old.ready()
        if env.get("WITSD_LISTEN_HTTP") == "TAKEN":
            env = {"WITSD_LISTEN_HTTP": f"127.0.0.1:{taken.getsockname()[1]}"}
        with up(home, "--replace", env=env) as new:
            assert new.wait() in (1, 2)
            assert says in new.said()
            assert "none runs now" not in new.said()
        assert home.call("system/status")["pid"] == old.process.pid
        with up(home, "--replace") as second:  # and it can be replaced still
            second.ready()
            assert old.wait() == 0


def test_a_database_of_a_newer_version_is_seen_before_anything_stops(stopped_daemon: Daemon) -> None:
    home = stopped_daemon
    with up(home) as old:
        old.ready()
        code = (
            "import sys; from witsd.journal import migrations; migrations.check_ours.__defaults__ = ((),); "
            "from witsd.daemon import main; sys.exit(main(['--replace']))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], env=home.env, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        assert done.returncode == 1
        assert "was written by a newer witsd" in done.stderr
        assert home.call("system/status")["pid"] == old.process.pid


def test_with_no_daemon_it_just_starts(stopped_daemon: Daemon) -> None:
    with up(stopped_daemon, "--replace") as it:
        assert it.ready()["pid"] == it.process.pid
        assert "nothing to replace" in it.said()


def test_a_killed_daemon_leaves_nothing_in_the_way(stopped_daemon: Daemon) -> None:
    with up(stopped_daemon) as first:
        first.ready()
        first.process.kill()
        first.wait()
        with up(stopped_daemon, "--replace") as it:
            it.ready()
            assert "nothing to replace" in it.said()
            with up(stopped_daemon, "--replace") as next_one:
                next_one.ready()
                assert it.wait() == 0


def test_two_at_once_one_wins(stopped_daemon: Daemon) -> None:
    home = stopped_daemon
    with up(home) as old:
        old.ready()
        with up(home, "--replace") as one, up(home, "--replace") as two:
            assert old.wait() == 0
            deadline = time.monotonic() + PATIENCE_S
            while all(each.process.poll() is None for each in (one, two)):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            lost, won = (one, two) if one.process.poll() is not None else (two, one)
            won.ready()
            if lost.wait() == 0:  # it was ready, and was replaced in its turn, before the other one came
                assert f"taking over from pid {lost.process.pid} " in won.said()
            else:
                assert "witsd: " in lost.said()
                assert "Traceback" not in lost.said()
            assert home.call("system/status")["pid"] == won.process.pid


def test_a_successor_that_dies_while_waiting_leaves_an_ordinary_stop(stopped_daemon: Daemon) -> None:
    home = stopped_daemon
    with up(home) as old, gate(home.home) as closed:
        old.ready()
        with wire(home.socket) as c:
            define(c, "script", "script")
            begin(c, "script", ["say", "hello"], ["gate", closed.path])
            with up(home, "--replace") as new:
                new.told("Connections wait")
                old.told("daemon.stopping ")
                new.process.send_signal(signal.SIGINT)
                new.wait()
            closed.let()
        assert old.wait() == 0
        assert not home.socket.exists(), "nobody listens on it any more"


def test_one_that_a_service_manager_started_says_what_to_use_instead(stopped_daemon: Daemon) -> None:
    home = stopped_daemon
    with up(home, env={"INVOCATION_ID": "x", "NOTIFY_SOCKET": str(home.home / "nobody")}) as old:
        old.ready()
        with up(home, "--replace") as new:
            assert new.wait() == 1
            assert "systemctl --user restart witsd" in new.said()
        assert home.call("system/status")["pid"] == old.process.pid


def test_an_agent_cannot_have_the_sockets(stopped_daemon: Daemon) -> None:
    """It runs as the same user, and may connect; what it is then told is no."""
    home = stopped_daemon
    told = home.home / "told"
    code = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        "s.sendall(b'{\"version\": \"1\", \"pid\": 1, \"database\": \"x\"}\\n')\n"
        "line, fds, _, _ = socket.recv_fds(s, 65536, 4)\n"
        "open(sys.argv[2] + '.new', 'w').write(f'{len(fds)} {line.decode()}')\n"
        "import os, time; os.rename(sys.argv[2] + '.new', sys.argv[2]); time.sleep(1000)\n"
    )
    with up(home) as daemon:
        daemon.ready()
        spec = {
            "name": "thief", "kind": "exec", "start": "boot",
            "command": [sys.executable, "-c", code, f"{home.socket}.next", str(told)],
        }
        home.call("agents/define", spec=spec)
        deadline = time.monotonic() + PATIENCE_S
        while not told.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        count, _, line = told.read_text().partition(" ")
        assert count == "0"
        assert "agent:thief" in json.loads(line)["error"]


def test_one_who_says_nothing_keeps_nobody_out(stopped_daemon: Daemon) -> None:
    home = stopped_daemon
    with up(home) as old, socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX) as rude:
        old.ready()
        for stream in (silent, rude):
            stream.connect(f"{home.socket}.next")
        rude.sendall(b"\xff\n")
        rude.settimeout(PATIENCE_S)
        assert rude.recv(1) == b""
        with up(home, "--replace") as new:
            assert new.ready()["pid"] == new.process.pid
            assert old.wait() == 0
            assert os.stat(f"{home.socket}.next").st_mode & 0o777 == 0o600


def test_one_that_is_stopped_is_named_with_what_to_do(
    stopped_daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = stopped_daemon
    monkeypatch.setattr(handover, "_TALK_S", 0.5)
    with up(home) as old:
        pid = old.ready()["pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(handover.HandoverError, match=rf"pid {pid}\) has not answered .* kill -9 {pid}, then"):
                handover.meet(home.socket, home.home / "witsd.db", "0")
        finally:
            os.kill(pid, signal.SIGCONT)
        assert home.call("system/status")["pid"] == pid


def test_a_socket_with_the_longest_path_there_can_be(stopped_daemon: Daemon) -> None:
    home = stopped_daemon
    deep = home.home / ("d" * (107 - len(str(home.home)) - len("//w.sock")))
    deep.mkdir(mode=0o700)
    home.socket = deep / "w.sock"
    assert len(str(home.socket)) == 107, "and beside it there is a longer one"
    home.env["WITSD_LISTEN_UNIX"] = str(home.socket)
    with up(home) as old:
        old.ready()
        with up(home, "--replace") as new:
            new.ready()
            assert old.wait() == 0
            assert home.call("system/status")["pid"] == new.process.pid


def test_what_fails_after_the_point_of_no_return_is_told_as_it_is(stopped_daemon: Daemon) -> None:
    home = stopped_daemon
    with up(home) as old, gate(home.home) as closed:
        old.ready()
        with wire(home.socket) as c:
            define(c, "script", "script")
            begin(c, "script", ["say", "hello"], ["gate", closed.path])
            with up(home, "--replace") as new:
                new.told("Connections wait")
                agents = home.home / "agents"
                agents.rename(home.home / "away")
                agents.write_text("")
                closed.let()
                assert old.wait() == 0
                assert new.wait() == 1
                assert "none runs now" in new.said()
                assert "Traceback" not in new.said()
        assert not home.socket.exists()
