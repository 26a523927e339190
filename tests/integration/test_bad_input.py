"""What must not end the daemon, cost it memory, or leave a person guessing: one clear error each.

Agents that misbehave are in test_agents.py, definitions in test_reload.py, settings in test_config.py.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.agents import begin, define, events_of, play, wait
from tests.support.daemon import Daemon
from tests.support.gate import gate
from tests.support.small_disk import fill, small_disk
from tests.support.wire import PATIENCE_S, RpcError, Wire, wire

MB = 1 << 20


# ---- what keeps it from starting ------------------------------------------------------------------------


def refused(daemon: Daemon, status: int = 1) -> str:
    """Start it where it cannot; what it says: one line, what to do indented below it, no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "witsd.daemon"],
        env=daemon.env,
        cwd=daemon.user_home if daemon.user_home.is_dir() else "/",
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    line, *below = done.stderr.splitlines()
    assert line.startswith("witsd: ")
    assert len(below) <= 1
    assert all(each.startswith("       ") for each in below)
    return line


def test_a_socket_path_that_is_too_long(stopped_daemon: Daemon) -> None:
    stopped_daemon.env["WITSD_LISTEN_UNIX"] = str(stopped_daemon.home / ("x" * 120))
    says = refused(stopped_daemon)
    assert "bytes long and may have 107" in says
    assert "WITSD_LISTEN_UNIX" in says


def test_a_port_that_is_taken(stopped_daemon: Daemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        stopped_daemon.env["WITSD_LISTEN_HTTP"] = address
        says = refused(stopped_daemon)
    assert f"cannot listen on {address}: something else listens there" in says
    assert "WITSD_LISTEN_HTTP" in says
    stopped_daemon.start()  # the port is free now, and nothing was left behind
    assert stopped_daemon.http == address


def newer(path: Path) -> str:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE future(x)")
        db.execute(f"PRAGMA application_id = {0x57495453}")
        db.execute("PRAGMA user_version = 999")
    return "was written by a newer witsd (schema 999"


def foreign(path: Path) -> str:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE bookmarks(x)")
    return "is a database of another program"


def no_database(path: Path) -> str:
    path.write_text("Dear diary,\n" * 1000)
    return "is not a database"


@pytest.mark.parametrize("make", [newer, foreign, no_database])
def test_a_database_that_is_not_ours_to_use_is_left_as_it_is(stopped_daemon: Daemon, make: Any) -> None:
    path = stopped_daemon.home / "witsd.db"
    expected = make(path)
    before = path.read_bytes()
    says = refused(stopped_daemon)
    assert expected in says
    assert str(path) in says
    assert path.read_bytes() == before
    assert not path.with_name("witsd.db-wal").exists()


def test_a_database_that_cannot_be_opened(stopped_daemon: Daemon) -> None:
    (stopped_daemon.home / "witsd.db").mkdir()
    says = refused(stopped_daemon)
    assert "cannot open the database" in says


def test_a_home_that_is_a_file(stopped_daemon: Daemon) -> None:
    file = stopped_daemon.home / "file"
    file.write_text("")
    stopped_daemon.env["WITSD_HOME"] = str(file)
    assert str(file) in refused(stopped_daemon, status=2)  # the settings are read first


def test_a_home_that_cannot_be_written(stopped_daemon: Daemon) -> None:
    home = stopped_daemon.home / "fixed"
    home.mkdir()
    stopped_daemon.env["WITSD_HOME"] = str(home)
    stopped_daemon.env["WITSD_LISTEN_UNIX"] = str(stopped_daemon.home / "witsd.sock")
    if os.geteuid() != 0:
        home.chmod(0o500)
        assert str(home) in refused(stopped_daemon)
        return
    with small_disk(home, 1):  # root may write anywhere but here
        subprocess.run(["mount", "-o", "remount,ro", str(home)], check=True, timeout=60)
        says = refused(stopped_daemon)
    assert str(home) in says
    assert "Read-only file system" in says or "cannot open the database" in says


def test_the_second_daemon_on_one_home_says_who_has_it(daemon: Daemon) -> None:
    daemon.env["WITSD_LISTEN_HTTP"] = daemon.http  # taken too, but that is not the news
    assert f"witsd is already running: pid {daemon.pid} holds {daemon.socket}" in refused(daemon)
    assert daemon.call("system/status")["pid"] == daemon.pid


# ---- what comes over the wire ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared() -> Iterator[Daemon]:
    """One daemon for all that follows: what one test sends must not harm the next."""
    it = Daemon()
    try:
        it.start()
        yield it
        assert it.stop() == 0
        assert "Traceback" not in it.log()
        assert "internal_error" not in it.log()
    finally:
        it.remove_after_showing()


def anonymous(daemon: Daemon) -> int:
    """What its memory holds now in bytes, without the pages of the database that it has mapped."""
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:"))


def peak(daemon: Daemon) -> int:
    """The most memory it has ever had resident, in bytes."""
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def raw(daemon: Daemon) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(PATIENCE_S)
    connection.connect(str(daemon.socket))
    return connection


def exchange(connection: socket.socket, sent: bytes, answers: int = 1) -> list[Any]:
    connection.sendall(sent)
    with connection.makefile("rb") as lines:
        return [json.loads(lines.readline()) for _ in range(answers)]


PING = b'{"jsonrpc":"2.0","id":"ping","method":"ping"}\n'


@pytest.mark.parametrize(
    ("sent", "code", "data"),
    [
        (b"hello", -32700, {}),
        (b'{"jsonrpc":"2.0","id":1,', -32700, {}),
        (b"\xff\xfe\x00", -32700, {}),
        (b"[" * 10_000 + b"]" * 10_000, -32008, {"limit": "depth", "value": 128}),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":' + b'{"a":' * 10_000 + b"1" + b"}" * 10_001, -32008, {}),
        (b'"' + b"[" * 10_000 + b'"', -32600, {}),
        (b"5", -32600, {}),
        (b"[]", -32600, {}),
        (b'{"jsonrpc":"2.0","id":{},"method":"ping"}', -32600, {}),
        (b'{"jsonrpc":"2.0","id":[1],"method":"ping"}', -32600, {}),
        (b'{"jsonrpc":"2.0","id":true,"method":"ping"}', -32600, {}),
        (b'{"jsonrpc":"2.0","id":1,"method":5}', -32600, {}),
        (b'{"jsonrpc":"2.0","id":1,"method":"no/such"}', -32601, {}),
        (b'{"jsonrpc":"2.0","id":1,"method":"runs/get","params":{}}', -32602, {"path": "params.run_id"}),
        (b'{"jsonrpc":"2.0","id":1,"method":"runs/get","params":{"run_id":5}}', -32602, {"path": "params.run_id"}),
        (b'{"jsonrpc":"2.0","id":1,"method":"runs/list","params":{"limit":0}}', -32602, {"path": "params.limit"}),
        (
            b'{"jsonrpc":"2.0","id":1,"method":"runs/start","params":{"agent":"a","input":{"files":["x",5]}}}',
            -32602,
            {"path": "params.input.files[1]"},
        ),
        (
            b'{"jsonrpc":"2.0","id":1,"method":"events/subscribe","params":{"streams":[1]}}',
            -32602,
            {"path": "params.streams[0]"},
        ),
        (b'{"jsonrpc":"2.0","id":1,"method":"runs/get","params":{"run_id":"\\u0000"}}', -32002, {"id": "\0"}),
    ],
)
def test_a_bad_message_gets_its_error_and_the_connection_goes_on(
    shared: Daemon, sent: bytes, code: int, data: dict[str, Any]
) -> None:
    with raw(shared) as connection:
        answers = exchange(connection, sent + b"\n" + PING, 2)
    # In any order: what has to be looked up takes longer.
    wrong, pong = sorted(answers, key=lambda answer: "result" in answer)
    assert wrong["error"]["code"] == code, wrong
    assert data.items() <= wrong["error"]["data"].items()
    assert wrong["error"]["data"]["name"]
    assert pong == {"jsonrpc": "2.0", "id": "ping", "result": {}}


@pytest.mark.parametrize(
    "sent",
    [b'{"jsonrpc":"2.0","id":1,"method":"pi', b'Content-Length: 100\r\n\r\n{"jsonrpc":', b"Content-Length: 10"],
)
def test_half_a_frame(shared: Daemon, sent: bytes) -> None:
    with raw(shared) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as answer:
            said = answer.read()
        assert b'"error"' in said
        assert b"-32700" in said or b"-32600" in said
    with raw(shared) as gone:
        gone.sendall(sent)
    assert shared.call("ping") == {}


@pytest.mark.parametrize("framing", ["lines", "headers"])
def test_a_hundred_megabytes_in_one_message_cost_no_memory(shared: Daemon, framing: str) -> None:
    before = peak(shared)
    with raw(shared) as connection:
        if framing == "headers":
            connection.sendall(b"Content-Length: %d\r\n\r\n" % (100 * MB))
        for _ in range(100):
            connection.sendall(b"x" * MB)
        if framing == "lines":
            too_big, pong = exchange(connection, b"\n" + PING, 2)
        else:
            connection.sendall(b"Content-Length: %d\r\n\r\n%b" % (len(PING), PING))
            with connection.makefile("rb") as stream:
                too_big, pong = (_framed(stream) for _ in range(2))
    assert (too_big["id"], too_big["error"]["code"]) == (None, -32008)
    assert {"limit": "message_bytes", "value": 4 * MB}.items() <= too_big["error"]["data"].items()
    assert pong["id"] == "ping"
    assert peak(shared) < before + 24 * MB


def _framed(stream: Any) -> Any:
    length = 0
    while (line := stream.readline().strip()) != b"":
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return json.loads(stream.read(length))


def test_a_client_that_never_reads_is_not_served_further(shared: Daemon) -> None:
    before = peak(shared)
    question = b'{"jsonrpc":"2.0","id":1,"method":"agents/list"}\n' * 1000
    sent = 0
    with raw(shared) as deaf:
        deaf.setblocking(False)
        # Until it takes no more: a moment of not being ready is how it says so.
        while sent < 256 * MB and select.select([], [deaf], [], 1.0)[1]:
            sent += deaf.send(question)
        assert sent < 256 * MB, "it goes on taking requests whose answers nobody reads"
        with wire(shared.socket) as other:
            assert other.call("ping") == {}
        assert peak(shared) < before + 32 * MB
    assert shared.call("ping") == {}


def test_a_subscriber_that_never_reads_holds_up_nobody(shared: Daemon) -> None:
    with wire(shared.socket) as c, wire(shared.socket) as deaf, wire(shared.socket) as reader:
        define(c, "script", "script")
        before = peak(shared)
        deaf.subscribe("*", since={"pos": 0})
        reader.subscribe("run:*", types=["item.delta"])
        # In deltas, in items and in outputs 96 MB: several times what the ring of the latest events holds.
        for _ in range(32):
            run = play(c, "script", ["bulk", "b", 8, MB // 8])
            seen = 0
            while seen < MB:
                event = reader.next_event()
                assert event["data"]["run_id"] == run["run_id"]
                seen += len(event["data"]["text"])
        assert peak(shared) < before + 64 * MB
        assert c.call("ping") == {}
        c.call("agents/remove", name="script")


def test_a_past_of_any_size_is_replayed_in_pieces(shared: Daemon) -> None:
    with wire(shared.socket) as c, wire(shared.socket) as late, wire(shared.socket) as deaf:
        define(c, "script", "script")
        for _ in range(32):
            run_id = play(c, "script", ["bulk", "b", 8, MB // 8])["run_id"]
        before = most = anonymous(shared)
        deaf.subscribe("*", since={"pos": 0})
        late.subscribe("*", since={"pos": 0})
        runs = 0
        while late.until("run.completed")["data"]["run_id"] != run_id:
            runs += 1
            most = max(most, anonymous(shared))
        assert runs >= 31
        kept, after = [], 0
        while page := c.call("events/read", stream=f"run:{run_id}", after_seq=after, limit=1000)["events"]:
            kept += [event["seq"] for event in page]
            after = kept[-1]
            most = max(most, anonymous(shared))
        assert kept == list(range(1, len(kept) + 1))
        assert most < before + 48 * MB
        c.call("agents/remove", name="script")


def test_a_client_that_vanishes_in_the_middle_of_a_request(shared: Daemon) -> None:
    with wire(shared.socket) as c, gate(shared.home) as door:
        define(c, "script", "script")
        run_id = begin(c, "script", ["gate", door.path], ["say", "done"])
        for _ in range(20):
            with raw(shared) as gone:
                wanted = {"jsonrpc": "2.0", "id": 1, "method": "runs/wait", "params": {"run_id": run_id}}
                gone.sendall(json.dumps(wanted).encode() + b"\n")
                gone.sendall(b'{"jsonrpc":"2.0","id":2,"method":"events/subscribe","params":{"streams":["*"]}}\n')
                gone.sendall(b'{"jsonrpc":"2.0","id":3,"meth')
        door.let()
        assert wait(c, run_id)["output"] == "done", "the run is nobody's who waits for it"
        c.call("agents/remove", name="script")


# ---- a disk without room --------------------------------------------------------------------------------


def until_refused(connection: Wire, method: str, **params: Any) -> RpcError:
    """Repeat a call until it is refused: what is left in files already made may still take some."""
    for _ in range(20_000):
        try:
            connection.call(method, **params)
        except RpcError as error:
            return error
    raise AssertionError(f"{method} is never refused")


def test_a_full_disk_refuses_what_is_asked_keeps_what_happened_and_recovers(stopped_daemon: Daemon) -> None:
    daemon = stopped_daemon
    with small_disk(daemon.home, 24):
        daemon.user_home.mkdir()
        daemon.start()
        ballast = daemon.home / "ballast"
        with wire(daemon.socket) as c, gate(daemon.home) as door:
            define(c, "script", "script")
            session = c.call("sessions/create", agent="script", title="before")["session_id"]
            before = play(c, "script", ["say", "before"])
            c.subscribe("run:*")
            caught = begin(c, "script", ["say", "half "], ["gate", door.path], ["say", "whole"])
            c.until("item.delta")

            fill(ballast)
            error = until_refused(c, "sessions/create", agent="script", title="x" * 200)
            assert (error.code, error.data["limit"]) == (-32008, "disk")
            assert "free some space" in str(error)
            fill(ballast)
            for method, params in (
                ("runs/start", {"agent": "script", "input": "x" * 10_000}),
                ("sessions/prompt", {"session_id": session, "text": "x" * 10_000}),
                ("agents/define", {"spec": {"name": "new", "kind": "exec", "command": ["x" * 10_000]}}),
            ):
                error = until_refused(c, method, **params) if method != "agents/define" else refusal(c, method, params)
                assert (error.code, error.data["limit"]) == (-32008, "disk"), method
            assert c.call("runs/get", run_id=before["run_id"]) == before, "what was written is read"
            assert c.call("ping") == {}

            door.let()  # the run ends while the disk is full: a fact, which waits for room
            in_memory = wait_for_output(c, caught)
            ballast.unlink()
            run = wait(c, caught)
            assert (run["status"], run["output"], in_memory) == ("completed", "half whole", "half whole")
            assert play(c, "script", ["say", "after"])["output"] == "after"
            kept = events_of(c, caught)
            assert [event["seq"] for event in kept] == list(range(1, len(kept) + 1))
            assert kept[-1]["type"] == "run.completed"
        assert "Traceback" not in daemon.log()
        daemon.restart()
        with wire(daemon.socket) as c:
            assert c.call("runs/get", run_id=caught)["output"] == "half whole"
            assert c.call("sessions/get", session_id=session)["title"] == "before"
        assert daemon.stop() == 0
        with sqlite3.connect(daemon.home / "witsd.db") as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def refusal(connection: Wire, method: str, params: dict[str, Any]) -> RpcError:
    with pytest.raises(RpcError) as error:
        connection.call(method, **params)
    return error.value


def wait_for_output(connection: Wire, run_id: str) -> str:
    """What the run has said, once it has said it all: from memory, for the disk takes nothing."""
    while True:
        run = connection.call("runs/get", run_id=run_id)
        said = "".join(item["text"] for item in run["items"] if item["type"] == "message")
        if said.endswith("whole"):
            return said
