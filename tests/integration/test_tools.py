"""Tools through the real daemon: listing, calling, what is refused and how, and tools that agents bring."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import pytest

from tests.support.daemon import PATIENCE_S, ROOT, Daemon


def refused(daemon: Daemon, method: str, /, **params: Any) -> dict[str, Any]:
    answer = daemon.ask({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
    assert "error" in answer, answer
    found: dict[str, Any] = answer["error"]
    return found


def text_of(answer: dict[str, Any]) -> str:
    return "\n".join(part["text"] for part in answer["content"])


def test_the_calculator_is_exact_and_refuses_as_an_answer(daemon: Daemon) -> None:
    answer = daemon.call("tools/call", name="calculator", arguments={"expression": "15 * 23 + 17"})
    assert (text_of(answer), answer["structured_content"]) == ("362", {"result": 362})
    answer = daemon.call("tools/call", name="calculator", arguments={"expression": "9**9**9"})
    assert answer["is_error"]
    assert "too large" in text_of(answer)


def test_arguments_that_do_not_fit_are_named(daemon: Daemon) -> None:
    for arguments, path, said in (
        ({"expresion": "1"}, "params.arguments.expresion", "it takes expression"),
        ({}, "params.arguments.expression", "missing required field"),
        ({"expression": 5}, "params.arguments.expression", "Expected `str`"),
        ({"expression": "1" * 600}, "params.arguments.expression", "length <= 500"),
    ):
        error = refused(daemon, "tools/call", name="calculator", arguments=arguments)
        assert (error["code"], error["data"]["path"]) == (-32602, path)
        assert said in error["message"]


def test_an_unknown_tool_names_the_one_that_was_meant(daemon: Daemon) -> None:
    error = refused(daemon, "tools/call", name="calculater", arguments={})
    assert (error["code"], error["data"]["near"]) == (-32002, ["calculator"])


def test_what_a_tool_is_told_of_itself_is_a_schema_in_one_piece(daemon: Daemon) -> None:
    tools = {tool["name"]: tool for tool in daemon.call("tools/list")["items"]}
    schema = tools["calculator"]["input_schema"]
    assert (schema["type"], schema["required"], schema["additionalProperties"]) == ("object", ["expression"], False)
    assert "as in" in schema["properties"]["expression"]["description"]
    assert "$ref" not in json.dumps([tool["input_schema"] for tool in tools.values()])


OFFERS = """
import os
from typing import Literal
from witsd_client import Agent

agent = Agent("offers")

@agent.tool(read_only=True)
def repeat(text: str, times: int = 2, case: Literal["as is", "upper"] = "as is") -> str:
    '''Repeat a text.

    times: how often
    '''
    return (text.upper() if case == "upper" else text) * times

@agent.tool
async def breaks(how: str) -> object:
    '''Does not work.'''
    if how == "raise":
        raise ValueError("no such city")
    if how == "exit":
        os._exit(3)
    return {"ok": [1, None]}

@agent.run
async def use(run):
    name, _, rest = run.text.partition(" ")
    return await run.tool(name, **eval(rest or "{}"))

agent.serve()
"""


@pytest.fixture
def offering(daemon: Daemon) -> Daemon:
    program = daemon.home / "offers.py"
    program.write_text(OFFERS)
    spec = {
        "name": "offers",
        "kind": "native",
        "command": [sys.executable, str(program)],
        "start": "on_demand",
        "grants": {"tools": ["calculator"]},
        "restart": {"backoff_s": 0},
    }
    daemon.call("agents/define", spec=spec)
    daemon.call("agents/start", name="offers", wait=True)
    return daemon


def test_an_agent_brings_tools_with_real_schemas(offering: Daemon) -> None:
    tools = {tool["name"]: tool for tool in offering.call("tools/list")["items"]}
    repeat = tools["offers__repeat"]
    assert (repeat["source"], repeat["annotations"]["read_only"]) == ("agent:offers", True)
    assert repeat["input_schema"]["properties"]["times"]["description"] == "how often"
    assert sorted(repeat["input_schema"]["properties"]["case"]["enum"]) == ["as is", "upper"]
    answer = offering.call("tools/call", name="offers__repeat", arguments={"text": "ab", "times": 3, "case": "upper"})
    assert text_of(answer) == "ABABAB"
    error = refused(offering, "tools/call", name="offers__repeat", arguments={"text": "ab", "times": "x"})
    assert (error["code"], error["data"]["path"]) == (-32602, "params.arguments.times")


def test_a_tool_that_raises_or_dies_is_an_answer(offering: Daemon) -> None:
    answer = offering.call("tools/call", name="offers__breaks", arguments={"how": "raise"})
    assert (answer["is_error"], text_of(answer)) == (True, "ValueError: no such city")
    answer = offering.call("tools/call", name="offers__breaks", arguments={"how": "exit"})
    assert answer["is_error"]
    assert "while its tool ran" in text_of(answer)
    # It is started again for the next call.
    answer = offering.call("tools/call", name="offers__breaks", arguments={"how": "json"})
    assert answer["structured_content"] == {"ok": [1, None]}


def test_what_an_agent_offers_outlives_the_daemon_and_starts_it(offering: Daemon) -> None:
    offering.restart()
    assert offering.call("agents/get", name="offers")["state"] == "inactive"
    assert "offers__repeat" in [tool["name"] for tool in offering.call("tools/list")["items"]]
    answer = offering.call("tools/call", name="offers__repeat", arguments={"text": "ab"})
    assert text_of(answer) == "abab"
    assert offering.call("agents/get", name="offers")["state"] == "active"


def test_an_agent_calls_what_it_is_granted_and_the_call_is_an_item_of_its_run(offering: Daemon) -> None:
    run = ran(offering, "calculator {'expression': '6*7'}")
    assert (run["status"], run["output"]) == ("completed", 42)
    (item,) = [item for item in run["items"] if item["type"] == "tool_call"]
    assert (item["tool"], item["arguments"], item["result"]) == ("calculator", {"expression": "6*7"}, {"result": 42})
    run = ran(offering, "time {}")
    assert (run["status"], run["error"]["code"]) == ("failed", -32003)
    assert run["error"]["data"]["needs"] == "grants.tools:time"


def ran(daemon: Daemon, text: str) -> dict[str, Any]:
    run_id = daemon.call("runs/start", agent="offers", input=text)["run_id"]
    found: dict[str, Any] = daemon.call("runs/wait", run_id=run_id, timeout_s=PATIENCE_S)
    return found


def test_the_command_line_lists_and_calls(daemon: Daemon) -> None:
    done = daemon.cli("tool", "call", "calculator", "expression=2**10")
    assert (done.returncode, done.stdout.strip()) == (0, "1024")
    done = daemon.cli("tool", "call", "calculator", '{"expression": "1/0"}')
    assert (done.returncode, "divided by zero" in done.stdout) == (1, True)
    functions = {one["function"]["name"]: one for one in json.loads(daemon.cli("tool", "list", "--openai").stdout)}
    assert functions["calculator"]["type"] == "function"
    assert "expression" in functions["calculator"]["function"]["parameters"]["properties"]


def test_the_example_is_a_tool_in_under_fifteen_lines(daemon: Daemon) -> None:
    program = ROOT / "examples/custom_tool.py"
    assert len(program.read_text().splitlines()) < 15
    assert daemon.cli("agent", "add", "words", "--", sys.executable, str(program)).returncode == 0
    deadline = time.monotonic() + PATIENCE_S
    while "words__count" not in daemon.cli("tool", "list").stdout:
        assert time.monotonic() < deadline
    assert daemon.cli("tool", "call", "words__count", "text=to be or not").stdout.strip() == "4"
