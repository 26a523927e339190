"""``requires`` and ``after``: who starts before whom, who waits for whom, and who goes down with whom."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.agents import define as define_native
from tests.support.daemon import Daemon
from tests.support.gate import gate
from tests.support.processes import of_daemon, wait_gone
from tests.support.wire import RpcError, Wire, wire

#: Writes down that it came and that it was asked to go.
SAYS = (
    "trap 'echo down $WITSD_AGENT >> {book}; exit 0' TERM; "
    "echo up $WITSD_AGENT >> {book}; echo go; sleep 1000 & wait"
)
GO = {"when": "log", "pattern": "go"}


def service(c: Wire, name: str, script: str = "exec sleep 1000", **more: Any) -> dict[str, Any]:
    """An exec agent that is a line of shell."""
    spec = {"name": name, "kind": "exec", "command": ["sh", "-c", script], **more}
    agent: dict[str, Any] = c.call("agents/define", spec=spec)
    return agent


def get(c: Wire, name: str) -> dict[str, Any]:
    agent: dict[str, Any] = c.call("agents/get", name=name)
    return agent


def until_state(c: Wire, name: str, state: str, reason: str = "") -> None:
    """Wait for that state of an agent whose stream is subscribed to."""
    c.until(
        "agent.state",
        where=lambda d: d["name"] == name and d["state"] == state and reason in d.get("reason", ""),
    )


def book(daemon: Daemon) -> Path:
    return daemon.home / "book"


def test_the_chain_starts_in_order_and_stops_in_reverse(daemon: Daemon) -> None:
    says = SAYS.format(book=book(daemon))
    with wire(daemon.socket) as c, gate(daemon.home) as open_gate:
        slow = f"head -c1 {open_gate.path} >/dev/null; {says}"
        service(c, "disk", slow, start="manual", ready=GO)
        service(c, "db", says, start="manual", ready=GO, requires=["disk"])
        service(c, "worker", says, start="manual", ready=GO, requires=["db"], after=["disk"])
        c.subscribe("agent:worker", "agent:db", "agent:disk")
        started = c.call("agents/start", name="worker", wait=False)
        assert started["state"] == "starting"
        until_state(c, "worker", "starting", "waits for db")
        assert get(c, "db")["reason"] == "waits for disk"
        assert "pid" not in get(c, "worker"), "one that waits has no process yet"
        open_gate.let()
        until_state(c, "worker", "active")
        assert [get(c, name)["state"] for name in ("disk", "db")] == ["active", "active"]
        assert "reason" not in get(c, "worker")

        c.call("agents/stop", name="disk")
        assert [get(c, name)["state"] for name in ("disk", "db", "worker")] == ["inactive"] * 3
        assert get(c, "worker")["reason"] == "was stopped with db, which it requires"
    lines = book(daemon).read_text().split("\n")[:-1]
    assert lines == ["up disk", "up db", "up worker", "down worker", "down db", "down disk"]


def test_at_boot_and_at_the_end_of_the_daemon(daemon: Daemon) -> None:
    says = SAYS.format(book=book(daemon))
    with wire(daemon.socket) as c:
        service(c, "c-first", says, ready=GO)
        service(c, "b-second", says, ready=GO, requires=["c-first"])
        service(c, "a-third", says, ready=GO, after=["b-second"])
        c.call("agents/start", name="a-third")
    book(daemon).write_text("")
    daemon.stop()
    assert book(daemon).read_text().split() == ["down", "a-third", "down", "b-second", "down", "c-first"]
    book(daemon).write_text("")
    daemon.start()
    with wire(daemon.socket) as c:
        c.call("agents/start", name="a-third")
    assert book(daemon).read_text().split() == ["up", "c-first", "up", "b-second", "up", "a-third"]


def test_one_that_will_not_stop_is_killed_and_then_what_it_requires_stops(daemon: Daemon) -> None:
    stubborn = "trap '' TERM; echo up; while :; do sleep 1000; done"
    with wire(daemon.socket) as c:
        service(c, "db")
        ready = {"when": "log", "pattern": "up"}
        service(c, "worker", stubborn, requires=["db"], stop={"grace_s": 0.5}, ready=ready)
        c.call("agents/start", name="worker")
        c.subscribe("agent:db", "agent:worker")
        c.call("agents/stop", name="db", wait=False)
        until_state(c, "db", "stopping", "waits for worker to stop")
        until_state(c, "worker", "inactive")
        until_state(c, "db", "inactive")
        assert "reason" not in get(c, "db")


def test_what_fails_for_good_is_named_by_whoever_requires_it(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        service(c, "db", "exit 3", restart={"policy": "never"}, ready={"after_s": 30}, start="manual")
        service(c, "worker", requires=["db"], start="manual")
        service(c, "web", requires=["worker"], start="manual")
        with pytest.raises(RpcError) as failed:
            c.call("agents/start", name="web")
        assert failed.value.code == -32007
        why = "requires db, which failed: exited with code 3"
        assert f"web did not come up: it requires worker, which failed: {why}" in str(failed.value)
        assert (get(c, "worker")["state"], get(c, "worker")["reason"]) == ("failed", why)
        service(c, "db", start="manual")  # mended
        assert c.call("agents/start", name="web")["state"] == "active", "by hand what failed is tried again"
        assert get(c, "db")["state"] == "active"


def test_a_crash_of_what_is_required_leaves_the_others_running_and_starts_wait_through_it(daemon: Daemon) -> None:
    with wire(daemon.socket) as c, gate(daemon.home) as open_gate:
        db = f"head -c1 {open_gate.path} >/dev/null; echo go; exec sleep 1000"
        open_gate.let()
        service(c, "db", db, ready=GO, restart={"policy": "always", "backoff_s": 0})
        service(c, "old", requires=["db"])
        pid = c.call("agents/start", name="old")["pid"]
        c.subscribe("agent:db", "agent:new")
        os.kill(c.call("agents/get", name="db")["pid"], signal.SIGKILL)
        until_state(c, "db", "starting")
        service(c, "new", requires=["db"])
        until_state(c, "new", "starting", "waits for db")
        open_gate.let()
        until_state(c, "new", "active")
        assert get(c, "old")["pid"] == pid, "who runs already goes on through a restart"
        assert get(c, "db")["restarts"] == 1


def test_stop_and_remove_are_honoured_while_it_waits(daemon: Daemon) -> None:
    never = {"when": "log", "pattern": "never said", "timeout_s": 3600}
    with wire(daemon.socket) as c:
        service(c, "db", ready=never)
        service(c, "worker", requires=["db"])
        c.subscribe("agent:worker", since={"agent:worker": 0})
        until_state(c, "worker", "starting", "waits for db")
        assert c.call("agents/stop", name="worker")["state"] == "inactive"
        c.call("agents/start", name="worker", wait=False)
        until_state(c, "worker", "starting", "waits for db")
        assert c.call("agents/restart", name="worker", wait=False)["state"] == "starting"
        c.call("agents/remove", name="worker")
        assert c.call("agents/stop", name="db")["state"] == "inactive"


def test_what_is_required_by_others_is_not_removed(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        service(c, "db")
        service(c, "worker", requires=["db"])
        service(c, "late", after=["db"])
        with pytest.raises(RpcError) as refused:
            c.call("agents/remove", name="db")
        assert refused.value.code == -32009
        assert refused.value.data["agents"] == ["late", "worker"]
        assert "named in `requires` or `after` of late, worker" in str(refused.value)
        assert get(c, "db")["state"] in ("starting", "active")
        for name in ("worker", "late", "db"):
            c.call("agents/remove", name=name)


@pytest.mark.parametrize(
    ("more", "path", "says"),
    [
        ({"requires": ["nobody"]}, "params.spec.requires[0]", "`requires` names 'nobody', and there is no such agent"),
        ({"after": ["one", "nobody"]}, "params.spec.after[1]", "`after` names 'nobody'"),
        ({"requires": ["me"]}, "params.spec.requires[0]", "goes round in a circle: me -> me"),
        ({"after": ["two"]}, "params.spec.after[0]", "circle"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(daemon: Daemon, more: dict[str, Any], path: str, says: str) -> None:
    with wire(daemon.socket) as c:
        service(c, "me", start="manual")
        service(c, "one", start="manual", requires=["me"])
        service(c, "two", start="manual", requires=["one"])
        with pytest.raises(RpcError) as refused:
            service(c, "me", start="manual", **more)
        assert refused.value.code == -32602
        assert refused.value.data["path"] == path
        assert says in str(refused.value)
        assert "requires" not in get(c, "me")["spec"], "what was refused changes nothing"


def test_a_circle_through_an_instance_is_refused_also_when_the_instance_is_there(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        service(c, "base")
        service(c, "user", requires=["base@one"])
        assert c.call("agents/start", name="user")["state"] == "active"
        with pytest.raises(RpcError, match=r"circle: .*base@one") as refused:
            service(c, "base", requires=["user"])
        assert refused.value.data["path"] == "params.spec.requires[0]"
        for name in ("user", "base"):
            c.call("agents/remove", name=name)
        assert "user" not in [a["name"] for a in c.call("agents/list")["items"]]


def test_circles_made_across_files_are_named_with_file_and_line(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        service(c, "one", start="manual")
        service(c, "two", start="manual", requires=["one"])
        folder = daemon.home / "agents"
        for name, other in (("one", "three"), ("three", "two"), ("four", "nobody")):
            text = f'name = "{name}"\nkind = "exec"\nstart = "manual"\ncommand = ["true"]\nrequires = ["{other}"]\n'
            (folder / f"{name}.toml").write_text(text)
        result = c.call("system/reload")
        assert result["changed"] == []
        found = {Path(e["file"]).name: (e["line"], e["message"]) for e in result["errors"]}
        assert set(found) == {"one.toml", "three.toml", "two.toml", "four.toml"}, "all in the circle are at fault"
        assert found["four.toml"] == (5, "`requires` names 'nobody', and there is no such agent")
        assert found["one.toml"][0] == 5
        assert "circle" in found["one.toml"][1]
        assert get(c, "one")["spec"]["command"] == ["sh", "-c", "exec sleep 1000"], "the last good one goes on"
        (folder / "three.toml").write_text('name = "three"\nkind = "exec"\nstart = "manual"\ncommand = ["true"]\n')
        (folder / "four.toml").unlink()
        result = c.call("system/reload")
        assert (result["changed"], result["errors"]) == (["one", "three"], [])


def test_on_demand_the_chain_is_there_as_long_as_somebody_needs_it(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        service(c, "db", start="on_demand", idle_stop_s=0.2)
        define_native(c, "worker", "script", start="on_demand", idle_stop_s=0.2, requires=["db"])
        c.subscribe("agent:db", "agent:worker")
        assert get(c, "db")["state"] == "inactive"
        run = c.call("runs/start", agent="worker", input={"text": "hello", "data": []})
        until_state(c, "db", "active")
        until_state(c, "worker", "active")
        # It is the worker that is idle first, and the database only once nobody needs it.
        c.until("agent.state", where=lambda d: d["state"] == "stopping" and d["name"] == "worker")
        c.until("agent.state", where=lambda d: d["state"] == "inactive" and d["name"] == "worker")
        until_state(c, "db", "inactive", "idle")
        assert c.call("runs/wait", run_id=run["run_id"], timeout_s=60)["status"] == "completed"
    assert of_daemon(daemon.home) == []


def test_after_is_order_and_nothing_else(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        service(c, "db", start="manual")
        service(c, "web", after=["db"])
        assert c.call("agents/start", name="web")["state"] == "active"
        assert get(c, "db")["state"] == "inactive", "what it comes after is not started for it"
        pid = c.call("agents/start", name="db")["pid"]
        c.call("agents/stop", name="db")
        assert wait_gone(pid)
        assert get(c, "web")["state"] == "active", "nor stopped with it"


def test_what_is_wished_for_while_the_daemon_stops_does_not_keep_it(daemon: Daemon) -> None:
    slow = "trap 'head -c1 {gate} >/dev/null; exit 0' TERM; echo go; sleep 1000 & wait"
    with wire(daemon.socket) as c, gate(daemon.home) as open_gate:
        service(c, "slow", slow.format(gate=open_gate.path), ready=GO, stop={"grace_s": 600})
        service(c, "other", start="manual")
        c.call("agents/start", name="slow")
        c.subscribe("agent:slow")
        os.kill(daemon.pid, signal.SIGTERM)
        until_state(c, "slow", "stopping", "the daemon is stopping")
        wishes: list[tuple[str, dict[str, Any]]] = [
            ("agents/start", {"name": "slow"}),
            ("agents/restart", {"name": "slow"}),
            ("agents/start", {"name": "other"}),
            ("agents/define", {"spec": {"name": "new", "kind": "exec", "command": ["sleep", "1000"]}}),
            ("system/reload", {}),
        ]
        for method, params in wishes:
            with pytest.raises(RpcError, match="the daemon is stopping: try again when it is back"):
                c.call(method, **params)
        open_gate.let()
        assert daemon.wait() == 0
        assert of_daemon(daemon.home) == []
