"""SIGKILL the daemon while a run streams, start it again, and look for anything missing, doubled or left over."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.support.daemon import PATIENCE_S, Daemon
from tests.support.processes import of_daemon, wait_gone
from tests.support.wire import Wire, wire
from witsd.supervise.identity import start_time, stat_fields

AGENT = str(Path(__file__).resolve().parents[1] / "agents/stream_agent.py")
ROUNDS = 50
#: A delta this fresh says that the run streams now: the daemon sends one every 20 ms.
FRESH_S = 0.5
OVER = ("run.completed", "run.failed", "run.cancelled", "run.interrupted")


def define(daemon: Daemon, *options: str, concurrency: int = 4) -> None:
    command = [sys.executable, AGENT, *options]
    spec = {"name": "stream", "kind": "native", "command": command, "limits": {"concurrency": concurrency}}
    daemon.call("agents/define", spec=spec)
    daemon.call("agents/start", name="stream", wait=True)


def alive(identity: tuple[int, int | None]) -> bool:
    """Whether that very process is there and no zombie."""
    pid, started = identity
    fields = stat_fields(pid)
    return fields is not None and fields[0] != "Z" and start_time(pid) == started


@attrs.define
class Follower:
    """What a client has applied: all it needs to come back, and the runs' text as it came."""

    epoch: str
    last: dict[str, int] = attrs.field(factory=dict)
    pos: int = 0
    text: dict[str, str] = attrs.field(factory=dict)
    types: dict[str, list[str]] = attrs.field(factory=dict)

    def take(self, event: dict[str, Any]) -> None:
        """Apply the next event: it must be the next one of its stream, and come after all others."""
        stream, seq = event["stream"], event["seq"]
        last = self.last.get(stream, 0)
        assert event.get("first_seq", seq) <= last + 1 <= seq, f"{stream}: {seq} after {last}"
        assert event["pos"] > self.pos, f"{stream}: position {event['pos']} after {self.pos}"
        self.last[stream], self.pos = seq, event["pos"]
        self.types.setdefault(stream, []).append(event["type"])
        if event["type"] == "item.delta":
            self.text[stream] = self.text.get(stream, "") + event["data"]["text"]

    def take_until(self, connection: Wire, stream: str, *types: str) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            event = connection.next_event()
            self.take(event)
            if event["stream"] == stream and event["type"] in types:
                return event
        raise TimeoutError(f"{stream}: none of {types} came")

    def take_rest(self, connection: Wire) -> None:
        """All that had been sent before the daemon died."""
        while True:
            try:
                event = connection.next_event()
            except (EOFError, ConnectionResetError):
                return
            self.take(event)


def kill_while_it_streams(
    daemon: Daemon, connection: Wire, follower: Follower, stream: str, *, deltas: int, pings: int = 0
) -> None:
    """Take in that many deltas of a run, then SIGKILL the daemon; the run was streaming at that moment.

    ``pings`` move that moment away from the one at which a delta is sent.
    """
    seen = 0.0
    while deltas > 0 or time.monotonic() - seen > FRESH_S:
        follower.take_until(connection, stream, "item.delta")
        seen = time.monotonic()
        deltas -= 1
        if deltas == 0:
            for _ in range(pings):
                connection.call("ping")
    assert daemon.process is not None
    assert daemon.process.poll() is None
    daemon.kill()
    follower.take_rest(connection)
    assert not {*follower.types[stream]} & {*OVER}, "the run was over before the kill: this round would prove nothing"


@pytest.mark.slow
def test_fifty_kills_each_in_the_middle_of_a_streaming_run(daemon: Daemon) -> None:
    daemon.start()
    define(daemon, "--detach")
    follower = Follower(daemon.call("system/status")["epoch"])
    run_id = ""
    killed: set[tuple[int, int | None]] = set()
    for number in range(ROUNDS + 1):
        with wire(daemon.socket) as c:
            stream = f"run:{run_id}"
            by_seq = number % 2 == 0
            if number:
                # ---- what the kill has left ----------------------------------------------------------------
                assert not {pid for pid, _ in killed} & {*of_daemon(daemon.home)}
                assert not [identity for identity in killed if alive(identity)]
                since = {stream: follower.last[stream]} if by_seq else {"pos": follower.pos}
                back = c.subscribe(stream if by_seq else "run:*", since=since, epoch=follower.epoch)
                assert (back["epoch"], back["resync"]) == (follower.epoch, False)
                follower.take_until(c, stream, "run.interrupted")
                assert follower.types[stream].count("run.interrupted") == 1
                assert follower.types[stream][-2:] == ["item.completed", "run.interrupted"]
                run = c.call("runs/get", run_id=run_id)
                assert (run["status"], run["reason"]) == ("interrupted", "the daemon ended while it ran")
                (item,) = run["items"]
                assert item["status"] == "cancelled"
                assert item["text"] == follower.text[stream], "every delta that was committed has come, and no other"
                words = item["text"].split()
                assert words == [str(n) for n in range(len(words))]
            if number == ROUNDS:
                break
            # ---- the next run, and the next kill -----------------------------------------------------------
            c.call("agents/start", name="stream", wait=True)
            run_id = c.call("runs/start", agent="stream", input="forever")["run_id"]
            stream = f"run:{run_id}"
            if by_seq:
                c.subscribe(stream, since={stream: 0}, epoch=follower.epoch)
            agent_pid = c.call("agents/get", name="stream")["pid"]
            killed = {(pid, start_time(pid)) for pid in of_daemon(daemon.home)}
            assert agent_pid in {pid for pid, _ in killed}
            assert len(killed) >= 2, "the agent, and the process that left its group"
            kill_while_it_streams(daemon, c, follower, stream, deltas=1 + number * 7 % 17, pings=number % 11)
            assert wait_gone(agent_pid), "the agent went with the daemon"
        daemon.start()
    assert len(follower.types) == ROUNDS
    assert daemon.stop() == 0
    assert of_daemon(daemon.home) == []


def test_queued_runs_survive_and_are_executed_in_their_order(daemon: Daemon) -> None:
    daemon.start()
    define(daemon, concurrency=1)
    follower = Follower(daemon.call("system/status")["epoch"])
    with wire(daemon.socket) as c:
        c.subscribe("run:*", since={"pos": 0})
        streaming = c.call("runs/start", agent="stream", input="forever")["run_id"]
        queued = [c.call("runs/start", agent="stream", input=str(n))["run_id"] for n in (3, 1, 2)]
        assert [c.call("runs/get", run_id=r)["status"] for r in queued] == ["queued"] * 3
        kill_while_it_streams(daemon, c, follower, f"run:{streaming}", deltas=3)
    daemon.start()
    with wire(daemon.socket) as c:
        assert not c.subscribe("run:*", since={"pos": follower.pos}, epoch=follower.epoch)["resync"]
        for run_id in queued:
            follower.take_until(c, f"run:{run_id}", "run.completed")
        runs = [c.call("runs/get", run_id=r) for r in (streaming, *queued)]
        assert [run["status"] for run in runs] == ["interrupted", *["completed"] * 3]
        assert [run["output"] for run in runs[1:]] == ["0 1 2 ", "0 ", "0 1 "]
        started = [run["started_at"] for run in runs[1:]]
        assert started == sorted(started)
        for run_id in queued:
            assert follower.types[f"run:{run_id}"].count("run.started") == 1, "executed once"


def test_a_conversation_goes_on(daemon: Daemon) -> None:
    daemon.start()
    define(daemon)
    follower = Follower(daemon.call("system/status")["epoch"])
    with wire(daemon.socket) as c:
        session_id = c.call("sessions/create", agent="stream")["session_id"]
        c.subscribe("run:*", since={"pos": 0})
        first = c.call("sessions/prompt", session_id=session_id, text="one")["run_id"]
        assert c.call("runs/wait", run_id=first, timeout_s=PATIENCE_S)["output"] == "one"
        second = c.call("sessions/prompt", session_id=session_id, text="forever")["run_id"]
        waiting = c.call("sessions/prompt", session_id=session_id, text="three")["run_id"]
        kill_while_it_streams(daemon, c, follower, f"run:{second}", deltas=3)
    daemon.start()
    with wire(daemon.socket) as c:
        c.subscribe("run:*", since={"pos": follower.pos}, epoch=follower.epoch)
        follower.take_until(c, f"run:{second}", "run.interrupted")
        third = c.call("runs/wait", run_id=waiting, timeout_s=PATIENCE_S)
        assert (third["status"], third["output"]) == ("completed", "one|forever|three")
        fourth = c.call("sessions/prompt", session_id=session_id, text="four")["run_id"]
        assert c.call("runs/wait", run_id=fourth, timeout_s=PATIENCE_S)["output"] == "one|forever|three|four"
        messages = c.call("sessions/messages", session_id=session_id)["items"]
        by_run = {(m["run_id"], m["role"]): m for m in messages}
        assert [m["text"] for m in messages if m["role"] == "user"] == ["one", "forever", "three", "four"]
        assert by_run[second, "assistant"]["text"] == follower.text[f"run:{second}"], "what it had said is kept"
        assert [m["n"] for m in messages] == list(range(1, len(messages) + 1))
        assert c.call("sessions/get", session_id=session_id)["status"] == "idle"
