"""Tools made at run time: by the owner at once, by an agent after an approval; their code is walled in."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from tests.support.daemon import PATIENCE_S, Daemon
from tests.support.tools import pending, until

WORDS = {"type": "array", "items": {"type": "string"}}
SCHEMA = {"type": "object", "properties": {"words": WORDS}, "required": ["words"]}
CODE = "joined = '-'.join(arguments['words'])\nprint(len(joined))\njoined.upper()"
AGENT = """
import json
from witsd_client import Agent

agent = Agent("maker")

@agent.run
async def make(run):
    method, params = json.loads(run.text)
    return await run.client.call(method, params)

agent.serve()
"""


@pytest.fixture
def daemon_with_walls(daemon: Daemon) -> Daemon:
    tried = daemon.call("tools/call", name="python", arguments={"code": "1"})
    if tried.get("is_error"):
        pytest.skip(f"no code can be walled in here: {tried['content']}")
    return daemon


def refused(daemon: Daemon, method: str, **params: Any) -> dict[str, Any]:
    answer = daemon.ask({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
    found: dict[str, Any] = answer["error"]
    return found


def test_a_defined_tool_is_checked_called_kept_and_removed(daemon_with_walls: Daemon) -> None:
    daemon = daemon_with_walls
    made = {"name": "shout", "description": "Joins words.", "input_schema": SCHEMA, "code": CODE}
    assert daemon.call("tools/define", **made) == {"name": "shout"}
    daemon.restart()
    answer = daemon.call("tools/call", name="shout", arguments={"words": ["a", "b"]})
    assert "A-B" in answer["content"][0]["text"]
    assert answer["structured_content"]["stdout"] == "3\n"
    assert refused(daemon, "tools/call", name="shout", arguments={"words": "a"})["data"]["path"].endswith("words")
    assert refused(daemon, "tools/define", **{**made, "code": "def ("})["code"] == -32602
    assert refused(daemon, "tools/define", **{**made, "name": "calculator"})["code"] == -32009
    daemon.call("tools/remove", name="shout")
    assert refused(daemon, "tools/call", name="shout", arguments={})["code"] == -32002


def test_an_agents_waits_for_a_person_who_sees_the_code(daemon_with_walls: Daemon) -> None:
    daemon = daemon_with_walls
    program = daemon.home / "maker.py"
    program.write_text(AGENT)
    spec = {"name": "maker", "kind": "native", "command": [sys.executable, str(program)], "start": "on_demand"}
    daemon.call("agents/define", spec={**spec, "grants": {"tools": ["maker__*"]}})

    def begin(method: str, **params: Any) -> str:
        return str(daemon.call("runs/start", agent="maker", input=json.dumps([method, params]))["run_id"])

    run_id = begin("tools/define", name="shout", description="x", code="arguments['n'] * 2")
    (asked,) = until(lambda: pending(daemon))
    assert (asked["tool"], asked["arguments"]["code"]) == ("tools/define", "arguments['n'] * 2")
    assert "maker__shout" not in [tool["name"] for tool in daemon.call("tools/list")["items"]]
    daemon.call("approvals/resolve", approval_id=asked["approval_id"], decision="allow")
    assert daemon.call("runs/wait", run_id=run_id, timeout_s=PATIENCE_S)["output"] == {"name": "maker__shout"}
    run_id = begin("tools/call", name="maker__shout", arguments={"n": 21})
    run = daemon.call("runs/wait", run_id=run_id, timeout_s=PATIENCE_S)
    assert "42" in run["output"]["content"][0]["text"], run
