"""Agents and definitions that are wrong in ways the SDK would not let them be: the daemon says so and goes on."""

from __future__ import annotations

import shutil
import sys
from typing import Any

import pytest

from tests.support.daemon import Daemon
from tests.support.processes import of_daemon, wait_gone
from tests.support.wire import RpcError, Wire, wire

#: Answers as ``ODD`` says, ``{method: answer}``, and otherwise as it should.
RAW = """
import json, os, sys
odd = json.loads(os.environ.get("ODD", "{}"))
for line in sys.stdin:
    asked = json.loads(line)
    if "id" not in asked:
        continue
    method, params = asked["method"], asked["params"]
    answers = {
        "initialize": {"result": {"protocol_version": "1"}},
        "runs/execute": {"result": {"output": [turn["text"] for turn in params.get("history", [])]}},
        "ping": {"result": params},
        "shutdown": {"result": {}},
    }
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], **odd.get(method, answers[method])}), flush=True)
"""
ODD_ERROR = '{"error": {"code": 7, "message": "not today"}}'
NO_ANSWER = '{"result": [1, 2]}'


def define(connection: Wire, name: str, odd: str = "{}", **more: Any) -> None:
    spec = {
        "name": name,
        "kind": "native",
        "command": [sys.executable, "-c", RAW],
        "env": {"ODD": odd},
        "restart": {"policy": "never"},
        "start": "manual",
        **more,
    }
    connection.call("agents/define", spec=spec)


def ask(connection: Wire, agent: str, **more: Any) -> dict[str, Any]:
    run_id = connection.call("runs/start", agent=agent, input="x", **more)["run_id"]
    run: dict[str, Any] = connection.call("runs/wait", run_id=run_id, timeout_s=60)
    return run


@pytest.mark.parametrize("answer", [ODD_ERROR, NO_ANSWER])
def test_odd_answer_to_initialize(daemon: Daemon, answer: str) -> None:
    with wire(daemon.socket) as c:
        define(c, "odd", f'{{"initialize": {answer}}}')
        with pytest.raises(RpcError, match=r"not today|does not fit"):
            c.call("agents/start", name="odd")
        assert c.call("agents/get", name="odd")["state"] == "failed"


@pytest.mark.parametrize("answer", [ODD_ERROR, NO_ANSWER])
def test_odd_answer_to_a_run_fails_that_run(daemon: Daemon, answer: str) -> None:
    with wire(daemon.socket) as c:
        define(c, "odd", f'{{"runs/execute": {answer}}}')
        c.call("agents/start", name="odd")
        run = ask(c, "odd")
        assert run["status"] == "failed"
        assert run["error"]["code"] == -32007
        if answer == ODD_ERROR:
            assert run["error"]["data"]["agent_error"] == {"code": 7, "message": "not today", "data": None}
        assert c.call("agents/get", name="odd")["state"] == "active"


@pytest.mark.parametrize("answer", [ODD_ERROR, NO_ANSWER])
def test_odd_answers_to_ping_and_shutdown(daemon: Daemon, answer: str) -> None:
    with wire(daemon.socket) as c:
        c.subscribe("agent:odd")
        odd = f'{{"ping": {answer}, "shutdown": {answer}}}'
        define(c, "odd", odd, health={"interval_s": 0.05, "action": "report"})
        c.call("agents/start", name="odd")
        c.until("agent.health", where=lambda d: d["health"] == "hung")
        assert c.call("agents/stop", name="odd")["state"] == "inactive"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"cwd": "~no-such-user/x"}, "working folder"),
        ({"command": ["~no-such-user/x"]}, "does not exist"),
    ],
)
def test_definitions_that_no_process_can_be_made_of(daemon: Daemon, wrong: dict[str, Any], says: str) -> None:
    with wire(daemon.socket) as c:
        define(c, "odd", **wrong)
        with pytest.raises(RpcError, match=says):
            c.call("agents/start", name="odd")
        assert c.call("agents/get", name="odd")["state"] == "failed"
        run_per_request = {"name": "each", "kind": "exec", "run_per_request": True, "command": ["cat"], **wrong}
        c.call("agents/define", spec=run_per_request)
        c.call("agents/start", name="each")
        run = ask(c, "each")
        assert run["status"] == "failed"
        assert says in run["error"]["message"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"command": ["true", "a\0b"]}, "cannot hold a NUL"),
        ({"cwd": "a\0b"}, "cannot hold a NUL"),
        ({"env": {"A=B": "x"}}, "cannot be the name of a variable"),
        ({"env": {"A": "x\0"}}, "holds a NUL"),
    ],
)
def test_definitions_that_are_refused_at_once(daemon: Daemon, wrong: dict[str, Any], says: str) -> None:
    with wire(daemon.socket) as c:
        with pytest.raises(RpcError, match=says) as refused:
            define(c, "odd", **wrong)
        assert refused.value.code == -32602
        assert not (daemon.home / "agents/odd.toml").exists()


def test_no_folder_for_a_run(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        c.call("agents/define", spec={"name": "each", "kind": "exec", "run_per_request": True, "command": ["cat"]})
        c.call("agents/start", name="each")
        folder = daemon.home / "agents-run"
        shutil.rmtree(folder, ignore_errors=True)
        folder.write_text("in the way")
        run = ask(c, "each")
        assert run["status"] == "failed"
        assert "cannot be made" in run["error"]["message"]
        assert of_daemon(daemon.home) == []


ASKER = """
import json, sys
for line in sys.stdin:
    told = json.loads(line)
    if "method" not in told:
        print("answered", told["error"]["code"], file=sys.stderr, flush=True)
    elif told["method"] == "runs/execute":
        question = {"run_id": told["params"]["run_id"], "message": "really?"}
        asked = {"jsonrpc": "2.0", "id": 1, "method": "inputs/request", "params": question}
        print(json.dumps(asked), flush=True)
    elif "id" in told:
        result = {"protocol_version": "1"} if told["method"] == "initialize" else told["params"]
        print(json.dumps({"jsonrpc": "2.0", "id": told["id"], "result": result}), flush=True)
"""


def test_a_question_is_answered_at_the_latest_when_its_run_is_over(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        define(c, "asker", command=[sys.executable, "-c", ASKER])
        c.call("agents/start", name="asker")
        c.subscribe("run:*", "log:asker")
        run_id = c.call("runs/start", agent="asker", input="x")["run_id"]
        c.until("input.requested")
        assert c.call("runs/cancel", run_id=run_id)["status"] == "cancelled"
        assert c.until("log.line")["data"]["text"] == "answered -32005"


def test_a_log_that_somebody_edited_is_still_followed(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        c.call("agents/define", spec={"name": "odd", "kind": "exec", "command": ["true"], "start": "manual"})
        lines = "1 garbage stderr hello\n2 2026-02-31T00:00:00.000000Z stderr no such day\n\xff\nnot one of ours\n"
        (daemon.home / "logs" / "odd.log").write_bytes(lines.encode("latin-1"))
        c.subscribe("log:odd", since={"log:odd": 0})
        assert c.until("log.line")["data"]["text"] == "no such day"
        assert c.call("agents/logs", name="odd", after_seq=0)["lines"][-1]["text"] == "no such day"


def test_a_log_that_cannot_be_read_ends_its_followers_and_nothing_else(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        c.call("agents/define", spec={"name": "odd", "kind": "exec", "command": ["true"], "start": "manual"})
        (daemon.home / "logs" / "odd.log").mkdir()
        followed = c.subscribe("log:odd", since={"log:odd": 0})["subscription_id"]
        told = c.receive()
        assert (told["method"], told["params"]["subscription_id"]) == ("notifications/lagged", followed)
        assert c.call("ping") == {}


def test_a_new_agent_of_an_old_name_is_told_of_the_conversation(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        define(c, "a")
        c.call("agents/start", name="a")
        session_id = c.call("sessions/create", agent="a")["session_id"]

        def say(text: str) -> Any:
            run_id = c.call("sessions/prompt", session_id=session_id, text=text)["run_id"]
            return c.call("runs/wait", run_id=run_id, timeout_s=60)["output"]

        assert say("one") == []
        assert say("two") == [], "the process holds the conversation"
        c.call("agents/remove", name="a")
        define(c, "a")
        c.call("agents/start", name="a")
        assert say("three") == ["one", "two"]


def test_a_death_by_a_signal_without_a_name(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        define(c, "odd", command=[sys.executable, "-c", "import os; os.kill(os.getpid(), 40)"])
        with pytest.raises(RpcError, match="was killed by signal 40"):
            c.call("agents/start", name="odd")


#: Leaves a process behind that is in nobody's session, and says its pid.
DETACHES = """
import os, sys, time
told, tell = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        os.close(1)
        os.write(tell, b"x")
        time.sleep(600)
    os._exit(0)
os.wait()
os.read(told, 1)
"""


def test_what_detached_itself_ends_with_its_run(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        spec = {"name": "leaves", "kind": "exec", "run_per_request": True, "command": [sys.executable, "-c", DETACHES]}
        c.call("agents/define", spec=spec)
        pid = int(ask(c, "leaves")["output"])
        assert wait_gone(pid)
        assert of_daemon(daemon.home) == []


#: Says that it has used more than there are numbers for.
SPENDS = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    if asked.get("method") == "runs/execute":
        for n in "ab":
            item = {"item_id": n, "type": "usage", "status": "completed", "cost_usd": 1.7e308, "input_tokens": 2**70}
            params = {"run_id": asked["params"]["run_id"], "item": item}
            print(json.dumps({"jsonrpc": "2.0", "method": "notifications/item", "params": params}))
    if "id" in asked:
        result = {"protocol_version": "1", "output": "done"}
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
"""


def test_a_run_that_cost_more_than_a_number_can_be_read(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        define(c, "spends", command=[sys.executable, "-c", SPENDS])
        c.call("agents/start", name="spends")
        run = ask(c, "spends")
        assert run["usage"]["cost_usd"] == sys.float_info.max
        assert c.call("runs/get", run_id=run["run_id"])["usage"] == run["usage"]
        assert c.call("runs/list")["items"][0]["usage"] == run["usage"]
