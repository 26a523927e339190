"""Approvals: who is asked, what an answer is bound to, and what is left of it after a crash."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon
from tests.support.terminal import Terminal
from tests.support.tools import begin, called, define_caller, outcome, pending, until


@pytest.fixture
def work(daemon: Daemon) -> Path:
    """A folder that the agent may write to, if a person lets it."""
    folder = daemon.home / "work"
    folder.mkdir()
    define_caller(daemon, grants={"tools": ["file_*"], "files_write": [str(folder)]})
    return folder


def write(path: Path, text: str = "hello", **more: Any) -> dict[str, Any]:
    return {"name": "file_write", "arguments": {"path": str(path), "text": text}, **more}


def test_a_tool_that_acts_waits_for_a_person_and_is_called_once(daemon: Daemon, work: Path) -> None:
    run_id = begin(daemon, write(work / "a.txt"))
    (asked,) = until(lambda: pending(daemon))
    assert (asked["tool"], asked["actor"], asked["run_id"]) == ("file_write", "agent:caller", run_id)
    assert asked["arguments"] == {"path": str(work / "a.txt"), "text": "hello"}
    assert until(lambda: daemon.call("runs/get", run_id=run_id)["status"] == "waiting")
    assert not (work / "a.txt").exists()
    assert daemon.cli("approval", "allow", asked["approval_id"]).returncode == 0
    assert outcome(daemon, run_id)["status"] == "completed"
    assert (work / "a.txt").read_text() == "hello"
    again = daemon.ask(
        {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "approvals/resolve",
            "params": {"approval_id": asked["approval_id"], "decision": "deny"},
        }
    )
    assert again["error"]["code"] == -32009
    (known,) = daemon.call("approvals/list")["items"]
    assert (known["status"], known["resolved_by"]) == ("allowed", "owner")
    assert until(lambda: daemon.call("approvals/list")["items"][0]["executed"] == "done")
    types = [event["type"] for event in daemon.call("events/read", stream=f"run:{run_id}")["events"]]
    assert types.index("approval.requested") < types.index("approval.resolved") < types.index("run.completed")


def test_a_no_is_told_to_the_agent_and_nothing_is_done(daemon: Daemon, work: Path) -> None:
    run_id = begin(daemon, write(work / "a.txt"))
    (asked,) = until(lambda: pending(daemon))
    daemon.call("approvals/resolve", approval_id=asked["approval_id"], decision="deny")
    run = outcome(daemon, run_id)
    assert (run["error"]["code"], "refused" in run["error"]["message"]) == (-32003, True)
    assert not (work / "a.txt").exists()


def test_without_an_answer_it_times_out_and_the_key_executes_once_after_one(daemon: Daemon, work: Path) -> None:
    keyed = write(work / "a.txt", timeout_s=0.2, idempotency_key="k1")
    late = outcome(daemon, begin(daemon, keyed))
    assert late["error"]["code"] == -32006
    approval_id = late["error"]["data"]["approval_id"]
    # It outlives the daemon, for the caller can come back with its key.
    daemon.restart()
    assert [one["approval_id"] for one in pending(daemon)] == [approval_id]
    daemon.call("approvals/resolve", approval_id=approval_id, decision="allow")
    keyed["timeout_s"] = 30
    first, second = (outcome(daemon, begin(daemon, keyed)) for _ in range(2))
    # `create` fails where the file is there already: the second answer is the first one's.
    assert first["output"] == second["output"]
    assert not first["output"].get("is_error")
    other = outcome(daemon, begin(daemon, write(work / "b.txt", idempotency_key="k1")))
    assert other["error"]["code"] == -32009


def test_nobody_is_asked_for_a_call_that_is_given_up(daemon: Daemon, work: Path) -> None:
    run_id = begin(daemon, write(work / "a.txt"))
    (asked,) = until(lambda: pending(daemon))
    daemon.call("runs/cancel", run_id=run_id)
    assert until(lambda: not pending(daemon))
    answer = daemon.ask(
        {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "approvals/resolve",
            "params": {"approval_id": asked["approval_id"], "decision": "allow"},
        }
    )
    assert answer["error"]["code"] == -32009
    assert not (work / "a.txt").exists()


def test_a_remembered_answer_is_a_rule_that_can_be_read_and_revoked(daemon: Daemon, work: Path) -> None:
    run_id = begin(daemon, write(work / "a.txt"))
    (asked,) = until(lambda: pending(daemon))
    done = daemon.cli("approval", "allow", asked["approval_id"], "--pattern", f"path={work}/*.txt")
    assert done.returncode == 0, done.stderr
    assert outcome(daemon, run_id)["status"] == "completed"
    daemon.restart()
    assert called(daemon, "file_write", {"path": str(work / "b.txt"), "text": "b"})["status"] == "completed"
    (rule,) = daemon.call("approvals/rules")["items"]
    assert (rule["agent"], rule["tool"], rule["policy"]) == ("caller", "file_write", "allow")
    assert "caller" in daemon.cli("approval", "rules").stdout
    other = begin(daemon, write(work / "c.md"))
    assert until(lambda: pending(daemon))
    daemon.call("runs/cancel", run_id=other)
    daemon.call("approvals/revoke", rule_id=rule["rule_id"])
    other = begin(daemon, write(work / "d.txt"))
    assert until(lambda: pending(daemon))
    daemon.call("runs/cancel", run_id=other)


def test_policies_of_the_definition_allow_and_deny(daemon: Daemon, work: Path) -> None:
    grants = {"tools": ["file_*"], "files_write": [str(work)]}
    policy = {"file_write": {"policy": "allow", "patterns": [f"path={work}/free*"]}, "file_read": {"policy": "deny"}}
    define_caller(daemon, grants=grants, tools=policy)
    run = called(daemon, "file_write", {"path": str(work / "free.txt"), "text": "x"})
    assert run["status"] == "completed", run
    run = called(daemon, "file_read", {"path": str(work / "free.txt")})
    assert (run["error"]["code"], run["error"]["data"]["needs"]) == (-32003, "tools.file_read.policy")
    run = called(daemon, "file_write", {"path": str(work / "kept.txt"), "text": "x"}, timeout_s=0.2)
    assert run["error"]["code"] == -32006


SLOW = """
import sys, time
from pathlib import Path
from witsd_client import Agent

agent = Agent("slow")

@agent.tool
async def act(file: str) -> str:
    '''Acts, and never comes to its end.'''
    import anyio
    with Path(file).open("a") as out:
        out.write("acted\\n")
    await anyio.sleep_forever()

agent.serve()
"""


def test_a_crash_in_the_middle_is_told_and_nothing_is_rerun(daemon: Daemon) -> None:
    program, done = daemon.home / "slow.py", daemon.home / "done.txt"
    program.write_text(SLOW)
    command = [sys.executable, str(program)]
    daemon.call("agents/define", spec={"name": "slow", "kind": "native", "command": command})
    daemon.call("agents/start", name="slow", wait=True)
    define_caller(daemon, grants={"tools": ["*"]}, tools={"slow__*": {"policy": "allow"}})
    params = {"name": "slow__act", "arguments": {"file": str(done)}, "idempotency_key": "once"}
    run_id = begin(daemon, params)
    until(lambda: done.exists() and done.read_text())
    daemon.kill()
    daemon.start()
    assert outcome(daemon, run_id)["status"] == "interrupted"
    events = daemon.call("events/read", stream=f"run:{run_id}")["events"]
    (told,) = [event["data"] for event in events if event["type"] == "tool.interrupted"]
    assert (told["tool"], told["may_have_executed"]) == ("slow__act", True)
    again = outcome(daemon, begin(daemon, params))
    assert again["error"]["data"]["may_have_executed"] is True
    assert done.read_text() == "acted\n"


def test_a_person_at_the_terminal_answers_in_place(daemon: Daemon, work: Path) -> None:

    command = [sys.executable, "-m", "witsd.cli.main", "ask", "caller", json.dumps(write(work / "a.txt"))]
    with Terminal(command, env=daemon.env, cwd=daemon.user_home) as ask:
        ask.until("caller wants to use file_write")
        ask.until("allow it?")
        ask.line("what?")
        ask.until("allow it?")
        ask.line("y")
        ask.until("file_write(")
        assert ask.end() == 0
    assert (work / "a.txt").read_text() == "hello"


def test_in_a_chat_the_next_line_is_the_answer(daemon: Daemon, work: Path) -> None:
    command = [sys.executable, "-m", "witsd.cli.main", "chat", "caller", "--new"]
    with Terminal(command, env=daemon.env, cwd=daemon.user_home) as chat:
        chat.until("> ")
        chat.line(json.dumps(write(work / "a.txt")))
        chat.until("allow it?")
        chat.line("never")
        chat.until("denied by owner")
        chat.until("> ")
        chat.line("/quit")
        chat.end()
    assert not (work / "a.txt").exists()
    (rule,) = daemon.call("approvals/rules")["items"]
    assert (rule["tool"], rule["policy"]) == ("file_write", "deny")


STUBBORN = """
import asyncio
import contextvars
from pathlib import Path
from witsd_client import Agent

agent = Agent("stubborn")
calls = []

@agent.run
async def leave(run):
    async def act():
        try:
            await agent.client.call("tools/call", {"run_id": run.run_id, **run.data})
        except Exception as error:
            Path(agent.run_dir, "told").write_text(str(error))
    calls.append(asyncio.create_task(act(), context=contextvars.Context()))
    while not calls[0].done() and (await run.client.call("runs/get", {"run_id": run.run_id}))["status"] != "waiting":
        await asyncio.sleep(0.02)
    return "done"

agent.serve(backend="asyncio")
"""


def test_a_run_that_ends_takes_its_calls_of_tools_along(daemon: Daemon, work: Path) -> None:
    program = daemon.home / "stubborn.py"
    program.write_text(STUBBORN)
    spec = {"name": "stubborn", "kind": "native", "start": "on_demand", "command": [sys.executable, str(program)]}
    grants = {"tools": ["file_*"], "files_write": [str(work)]}
    daemon.call("agents/define", spec={**spec, "grants": grants})
    given = {"text": "go", "data": write(work / "late.txt")}
    run_id = daemon.call("runs/start", agent="stubborn", input=given)["run_id"]
    run = outcome(daemon, run_id)
    assert run["status"] == "completed", run.get("error")
    # Nobody can allow any more what the run wanted to do.
    assert until(lambda: [one["status"] for one in daemon.call("approvals/list")["items"]] == ["cancelled"])
    told = until(lambda: list(daemon.home.rglob("told")))
    assert "is over" in told[0].read_text()
    assert not (work / "late.txt").exists()
