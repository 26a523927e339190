"""Definitions read again: what changed restarts, what did not is not touched, what is wrong changes nothing."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.agents import begin, define, play, wait
from tests.support.daemon import PATIENCE_S, Daemon
from tests.support.gate import gate
from tests.support.processes import of_daemon, wait_gone
from tests.support.wire import RpcError, Wire, wire


def file_of(daemon: Daemon, name: str) -> Path:
    return daemon.home / "agents" / f"{name}.toml"


def add(daemon: Daemon, name: str, text: str) -> None:
    """Put something before the first table of a definition, and where it begins with ``[`` at the end."""
    file = file_of(daemon, name)
    old = file.read_text()
    file.write_text(old + "\n" + text if text.startswith("[") else text + old)


def get(connection: Wire, name: str) -> dict[str, Any]:
    agent: dict[str, Any] = connection.call("agents/get", name=name)
    return agent


def reload(connection: Wire) -> tuple[list[str], list[dict[str, Any]]]:
    result = connection.call("system/reload")
    return result["changed"], result["errors"]


def test_what_changed_restarts_and_what_did_not_keeps_its_process(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        for name in ("changed", "policy", "same"):
            define(c, name, "script")
        before = {name: get(c, name)["pid"] for name in ("changed", "policy", "same")}
        assert reload(c) == ([], [])

        c.subscribe("agent:changed")
        add(daemon, "changed", "[options]\nanswer = 42\n")
        add(daemon, "policy", 'description = "new"\nidle_stop_s = 5\n')
        add(daemon, "policy", "[limits]\nconcurrency = 1\n[restart]\nbackoff_s = 7\n")
        new = file_of(daemon, "new")
        new.write_text(file_of(daemon, "same").read_text().replace('"same"', '"new"'))
        assert reload(c) == (["changed", "new", "policy"], [])
        c.until("agent.state", where=lambda d: d["state"] == "active" and d["pid"] != before["changed"])
        assert wait_gone(before["changed"])
        assert get(c, "changed")["spec"]["options"] == {"answer": 42}
        assert get(c, "changed")["pid"] != before["changed"]
        assert get(c, "same")["pid"] == before["same"]
        policy = get(c, "policy")
        assert policy["pid"] == before["policy"], "a change of policy needs no new process"
        assert (policy["spec"]["description"], policy["spec"]["limits"]["concurrency"]) == ("new", 1)
        c.call("agents/start", name="new")
        assert play(c, "new", ["say", "hello"])["output"] == "hello"
        assert play(c, "policy", ["say", "still here"])["output"] == "still here"


def test_a_new_limit_counts_at_once(daemon: Daemon) -> None:
    with wire(daemon.socket) as c, gate(daemon.home) as door:
        define(c, "script", "script", limits={"concurrency": 1})
        first = begin(c, "script", ["gate", door.path])
        second = begin(c, "script", ["say", "second"])
        file = file_of(daemon, "script")
        file.write_text(file.read_text().replace("concurrency = 1", "concurrency = 2"))
        assert reload(c) == (["script"], [])
        assert wait(c, second)["output"] == "second", "it need not wait for the first any more"
        door.let()
        assert wait(c, first)["status"] == "completed"


def test_a_broken_file_is_named_and_the_last_good_definition_goes_on(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        define(c, "script", "script", description="good")
        pid = get(c, "script")["pid"]
        file = file_of(daemon, "script")
        good = file.read_text()
        file.write_text(good + "\n[restart]\nbackof_s = 1\n")
        changed, errors = reload(c)
        assert changed == []
        (error,) = errors
        assert (error["file"], error["line"]) == (str(file), len(good.splitlines()) + 3)
        assert "unknown key `restart.backof_s`" in error["message"]
        assert get(c, "script")["pid"] == pid
        file_of(daemon, "stranger").write_text("name = \n")
        assert [e["line"] for e in reload(c)[1]] == [len(good.splitlines()) + 3, 1]
        with pytest.raises(RpcError) as unknown:
            get(c, "stranger")
        assert unknown.value.code == -32002
    daemon.restart()
    assert f"file={file} line={len(good.splitlines()) + 3}" in daemon.log()
    with wire(daemon.socket) as c:
        c.call("agents/start", name="script")
        assert get(c, "script")["spec"]["description"] == "good"
        assert play(c, "script", ["say", "as before"])["output"] == "as before"
        assert "backof_s" in file.read_text(), "nobody has overwritten what is being worked on"
        pid = get(c, "script")["pid"]
        file.write_text(good)
        assert [e["file"] for e in reload(c)[1]] == [str(file_of(daemon, "stranger"))]
        assert get(c, "script")["pid"] == pid, "mended to what was running all the time"


def test_a_deleted_file_retires_its_agent_and_its_past_stays(daemon: Daemon) -> None:
    with wire(daemon.socket) as c, gate(daemon.home) as door:
        define(c, "script", "script")
        define(c, "other", "script")
        done = play(c, "script", ["log", "a line"], ["say", "done"])
        c.subscribe("run:*", "agent:script")
        doing = begin(c, "script", ["say", "doing"], ["gate", door.path])
        c.until("item.delta")
        pid = get(c, "script")["pid"]
        text = file_of(daemon, "script").read_text()
        file_of(daemon, "script").unlink()
        assert reload(c) == (["script"], [])
        assert wait_gone(pid)
        with pytest.raises(RpcError) as gone:
            get(c, "script")
        assert gone.value.code == -32002
        assert wait(c, doing)["status"] in ("failed", "cancelled")
        assert c.call("runs/get", run_id=done["run_id"]) == done
        assert "a line" in [line["text"] for line in c.call("agents/logs", name="script")["lines"]]
        assert of_daemon(daemon.home) == [get(c, "other")["pid"]]
        file_of(daemon, "script").write_text(text)
        assert reload(c) == (["script"], [])
        assert "requests" not in get(c, "script"), "another agent of that name begins from nothing"
        c.call("agents/remove", name="script")
    daemon.restart()
    with wire(daemon.socket) as c:
        assert "script" not in [agent["name"] for agent in c.call("agents/list")["items"]]


def test_hangup_reloads(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        define(c, "script", "script")
        pid = get(c, "script")["pid"]
        c.subscribe("agent:script")
        add(daemon, "script", "[options]\nanswer = 42\n")
        file_of(daemon, "broken").write_text("x = \n")
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        c.until("agent.state", where=lambda d: d["state"] == "active" and d["pid"] != pid)
        assert get(c, "script")["spec"]["options"] == {"answer": 42}
    assert f"definition.bad file={file_of(daemon, 'broken')} line=1" in wait_for_log(daemon, "definition.bad")


def wait_for_log(daemon: Daemon, text: str) -> str:
    """The daemon's log once it holds ``text``; looked at again whenever the daemon has answered."""
    give_up = time.monotonic() + 60
    while text not in daemon.log() and time.monotonic() < give_up:
        daemon.call("ping")
    return daemon.log()


def test_define_takes_effect_as_an_edited_file_does(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        define(c, "script", "script")
        pid = get(c, "script")["pid"]
        assert define(c, "script", "script", description="only words")["pid"] == pid
        c.subscribe("agent:script")
        define(c, "script", "script", env={"PYTHONPATH": daemon.env["PYTHONPATH"], "NEW": "1"})
        c.until("agent.state", where=lambda d: d["state"] == "active" and d["pid"] != pid)
        assert reload(c) == ([], []), "what was defined is what the file says"
        for spec, path in (
            ({"name": "x", "kind": "native"}, "params.spec"),
            ({"name": "x", "kind": "native", "command": ["x"], "comand": 1}, "params.spec.comand"),
            ({"name": "../x", "kind": "exec", "command": ["x"]}, "params.spec.name"),
            ({"name": "x", "kind": "exec", "command": ["x"], "options": {"a": [None]}}, "params.spec.options.a[0]"),
        ):
            with pytest.raises(RpcError) as wrong:
                c.call("agents/define", spec=spec)
            assert wrong.value.code == -32602, (spec, wrong.value)
            assert wrong.value.data["path"] == path
        assert not file_of(daemon, "x").exists()


def test_a_change_of_settings_is_said_to_wait_for_a_restart(stopped_daemon: Daemon) -> None:
    daemon = stopped_daemon
    daemon.start("--set", "limits.batch=7")
    settings = daemon.home / "witsd.toml"
    assert daemon.call("system/reload") == {"changed": [], "errors": [], "restart_for": []}
    # What a flag or the environment says anew at each start is not in the file's hand.
    settings.write_text('[limits]\nbatch = 8\ndepth = 77\n[providers.mine]\nkind = "offline"\n')
    assert daemon.call("system/reload")["restart_for"] == ["limits.depth", "providers.mine"]
    said = daemon.cli("reload")
    assert said.returncode == 0
    assert "(limits.depth, providers.mine): that takes effect with a restart: `witsd up --replace`" in said.stderr
    os.kill(daemon.pid, signal.SIGHUP)
    deadline = time.monotonic() + PATIENCE_S
    while "daemon.restart_needed settings=limits.depth,providers.mine" not in daemon.log():
        assert time.monotonic() < deadline, daemon.log()
        time.sleep(0.01)
    settings.write_text("[limits]\ndepth = 0\n")
    result = daemon.call("system/reload")
    assert result["restart_for"] == []
    assert f"{settings}:2" in result["settings_error"]
    assert "a restart would fail" in daemon.cli("reload").stderr
    daemon.stop()


def test_one_that_will_not_stop_delays_nobody_else(daemon: Daemon) -> None:
    ignores = "trap '' TERM; echo up; while :; do sleep 1; done"
    spec = {
        "kind": "exec",
        "command": ["sh", "-c", ignores],
        "ready": {"when": "log", "pattern": "up"},
        "stop": {"grace_s": 3600},
    }
    with wire(daemon.socket) as c, wire(daemon.socket) as removing, wire(daemon.socket) as defining:
        pids = []
        for name in ("removed", "deleted", "stopped"):
            c.call("agents/define", spec={"name": name, **spec})
            pids.append(c.call("agents/start", name=name)["pid"])
        removing.send({"jsonrpc": "2.0", "id": "rm", "method": "agents/remove", "params": {"name": "removed"}})
        c.call("agents/stop", name="stopped", wait=False)
        while "removed" in [agent["name"] for agent in c.call("agents/list")["items"]]:
            pass  # each look is a request of its own, which is answered
        # The same name is free when its process is gone, and not before.
        again = {"name": "removed", "kind": "exec", "command": ["sleep", "1000"]}
        defining.send({"jsonrpc": "2.0", "id": "again", "method": "agents/define", "params": {"spec": again}})
        file_of(daemon, "deleted").unlink()
        reloading = {"jsonrpc": "2.0", "id": "reload", "method": "system/reload", "params": {}}
        removing.send(reloading)
        define(c, "other", "script")
        c.call("agents/define", spec={"name": "removed-too", "kind": "exec", "command": ["sleep", "1000"]})
        c.call("agents/remove", name="removed-too")
        assert play(c, "other", text="hello")["status"] == "completed"
        with pytest.raises(RpcError, match="there is no agent 'removed'"):
            get(c, "removed")
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        answers = {message["id"]: message for message in (removing.receive(), removing.receive(), defining.receive())}
        assert all("result" in message for message in answers.values()), answers
        assert answers["reload"]["result"]["changed"] == ["deleted"]
        assert c.call("agents/start", name="removed")["pid"] not in pids
        assert len(of_daemon(daemon.home)) == 2, "`other` and the new `removed`"
