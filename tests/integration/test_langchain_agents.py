"""Agents of kind langchain, hosted by the real adapter under the real daemon."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import ROOT, Daemon

PARTS = ROOT / "tests/agents/langchain_parts.py"
RULES = ROOT / "tests/frameworks/rules.toml"
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    it = Daemon()
    (it.home / "witsd.toml").write_text(
        f'[models]\ndefault = "demo"\n[providers.demo]\nkind = "scripted"\nscript = "{RULES}"\n'
        '[providers.mine]\nkind = "langchain"\nagent = "models"\n'
        '[providers.none]\nkind = "langchain"\nagent = "nobody"\n'
    )
    try:
        it.start()
        yield it
    finally:
        it.remove_after_showing()


def define(daemon: Daemon, name: str, grants: dict[str, Any] | None = None, **options: Any) -> str:
    granted = {"models": ["*"], "tools": ["*"], **(grants or {})}
    spec = {"name": name, "kind": "langchain", "start": "on_demand", "grants": granted, "options": options}
    daemon.call("agents/define", spec=spec)
    return name


def ask(daemon: Daemon, agent: str, text: str, status: str = "completed", **more: Any) -> dict[str, Any]:
    run_id = daemon.call("runs/start", agent=agent, input=text, **more)["run_id"]
    run: dict[str, Any] = daemon.call("runs/wait", run_id=run_id, timeout_s=PATIENCE_S)
    assert run["status"] == status, run.get("error") or run
    return run


def parts(run: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [item for item in run["items"] if item["type"] == kind]


def prompted(daemon: Daemon, session_id: str, text: str) -> dict[str, Any]:
    run_id = daemon.call("sessions/prompt", session_id=session_id, text=text)["run_id"]
    run: dict[str, Any] = daemon.call("runs/wait", run_id=run_id, timeout_s=PATIENCE_S)
    assert run["status"] == "completed", run
    return run


def test_a_chain_is_hosted_and_its_text_streams(daemon: Daemon) -> None:
    agent = define(daemon, "chain", runnable=f"{PARTS}:chain")
    run = ask(daemon, agent, "What are you?")
    assert run["output"].startswith("Hello, I play rules")
    (message,) = parts(run, "message")
    assert message["text"] == run["output"]
    events = daemon.call("events/read", stream=f"run:{run['run_id']}")["events"]
    assert [event for event in events if event["type"] == "item.delta"]


def test_what_a_chain_makes_of_its_models_text_is_the_answer(daemon: Daemon) -> None:
    run = ask(daemon, define(daemon, "shouting", runnable=f"{PARTS}:shouting"), "What are you?")
    assert "HELLO, I PLAY RULES" in run["output"]


def test_a_function_that_makes_one(daemon: Daemon) -> None:
    run = ask(daemon, define(daemon, "made", runnable=f"{PARTS}:make"), "you")
    assert run["output"] == "made for you"


def test_tools_and_what_it_tells_become_items_and_a_dict_is_the_output(daemon: Daemon) -> None:
    run = ask(daemon, define(daemon, "busy", runnable=f"{PARTS}:busy_chain"), "go")
    assert run["output"] == {"asked": "go", "product": 42}
    (call,) = parts(run, "tool_call")
    assert (call["tool"], call["arguments"], call["result"]) == ("multiply", {"a": 6, "b": 7}, 42)
    assert call["status"] == "completed"
    (told,) = parts(run, "custom")
    assert (told["name"], told["data"]) == ("half", {"at": 0.5})


def test_an_agent_without_code_calls_tools_of_the_daemon_and_of_python(daemon: Daemon) -> None:
    agent = define(daemon, "built", model="demo", system="You calculate.", tools=["calculator", f"{PARTS}:tools"])
    run = ask(daemon, agent, "What is 15 * 23?")
    assert run["output"] == "Let me calculate.\n\nThe tool says: 345"
    (call,) = parts(run, "tool_call")
    assert (call["tool"], call["result"]) == ("multiply", "345")
    run = ask(daemon, agent, "A malformed call, please")
    assert "could not be read" in run["output"]


def test_a_tool_that_is_not_there_is_said_to_the_model(daemon: Daemon) -> None:
    agent = define(daemon, "toolless", tools=[f"{PARTS}:greet"])
    run = ask(daemon, agent, "What is 15 * 23?")
    assert "There is no tool 'multiply'. There are: greet" in run["output"]


def test_a_conversation_is_known_also_after_its_process_has_ended(daemon: Daemon) -> None:
    agent = define(daemon, "talker", runnable=f"{PARTS}:with_history", input_key="input")
    session_id = daemon.call("sessions/create", agent=agent)["session_id"]
    prompted(daemon, session_id, "My name is Ada.")
    daemon.call("agents/stop", name=agent, wait=True)
    run = prompted(daemon, session_id, "stops early")
    assert run["output"] == "One two three stop here four five."
    messages = daemon.call("sessions/messages", session_id=session_id)["items"]
    assert len(messages) == 4


def test_its_tools_are_offered_with_their_own_schemas_sync_and_async(daemon: Daemon) -> None:
    agent = define(daemon, "bringer", offer=[f"{PARTS}:tools", f"{PARTS}:divide"])
    daemon.call("agents/start", name=agent, wait=True, timeout_s=PATIENCE_S)
    listed = {tool["name"]: tool for tool in daemon.call("tools/list", limit=1000)["items"]}
    schema = listed["bringer__multiply"]["input_schema"]
    assert schema["required"] == ["a", "b"]
    assert schema["properties"]["b"] == {"description": "the second factor", "maximum": 1000, "type": "integer"}
    assert listed["bringer__greet"]["input_schema"]["properties"]["times"]["default"] == 1

    def call(name: str, /, **arguments: Any) -> dict[str, Any]:
        result: dict[str, Any] = daemon.call("tools/call", name=f"bringer__{name}", arguments=arguments)
        return result

    assert call("multiply", a=6, b=7)["content"] == [{"type": "text", "text": "42"}]
    assert call("greet", name="Ada", times=2)["content"][0]["text"] == "Hello Ada! Hello Ada!"
    assert call("divide", a=1, b=4)["content"][0]["text"] == "0.25"
    nobody, zero = call("greet", name="nobody"), call("divide", a=1, b=0)
    for failing, says in ((nobody, "nobody to greet"), (zero, "ZeroDivision")):
        assert failing["is_error"]
        assert says in failing["content"][0]["text"]
    refused = daemon.ask(
        {"jsonrpc": "2.0", "id": 1, "method": "tools/call",
         "params": {"name": "bringer__multiply", "arguments": {"a": 6, "b": 5000}}}
    )  # fmt: skip
    assert "b" in str(refused)
    assert "1000" in str(refused)


def test_a_cancelled_run_is_cancelled_in_the_chain(daemon: Daemon) -> None:
    agent = define(daemon, "slow", runnable=f"{PARTS}:slow_chain")
    run_id = daemon.call("runs/start", agent=agent, input="x")["run_id"]
    deadline = time.monotonic() + PATIENCE_S
    while daemon.call("runs/get", run_id=run_id)["status"] != "running" and time.monotonic() < deadline:
        time.sleep(0.05)
    daemon.call("runs/cancel", run_id=run_id)
    assert daemon.call("runs/wait", run_id=run_id, timeout_s=PATIENCE_S)["status"] == "cancelled"


def test_an_exception_ends_the_run_and_not_the_agent(daemon: Daemon) -> None:
    agent = define(daemon, "raising", runnable=f"{PARTS}:raising_chain")
    run = ask(daemon, agent, "by zero", status="failed")
    assert "ZeroDivisionError: cannot divide by zero" in run["error"]["message"]
    assert daemon.call("agents/get", name=agent)["state"] == "active"


def test_without_the_grant_the_model_is_refused(daemon: Daemon) -> None:
    agent = define(daemon, "poor", grants={"models": []}, runnable=f"{PARTS}:chain")
    run = ask(daemon, agent, "Hello?", status="failed")
    assert run["error"]["code"] == -32003


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"runnable": "nowhere.to_be:found"}, "there is no module 'nowhere'"),
        ({"runnable": "/nowhere.py:chain"}, "there is no file /nowhere.py"),
        ({"runnable": f"{PARTS}:chian"}, "has no 'chian'; it has chain"),
        ({"runnable": f"{PARTS}:number"}, "is a int, and no Runnable"),
        ({"runnable": "chain"}, "is no import path"),
        ({"runable": "x"}, "unknown field `runable`"),
        ({"chat_model": f"{PARTS}:model"}, "asks the daemon, which would ask it again"),
        ({"chat_model": f"{PARTS}:number"}, "is a int, and no chat model"),
        ({"offer": [f"{PARTS}:number"]}, "is a int, and no tool"),
        ({"runnable": f"{PARTS}:with_history"}, ""),
    ],
)
def test_a_definition_that_names_what_is_not_there_says_so(
    daemon: Daemon, options: dict[str, Any], says: str
) -> None:
    name = "wrong"
    restart = {"policy": "never"}
    spec = {"name": name, "kind": "langchain", "start": "manual", "restart": restart, "options": options}
    daemon.call("agents/define", spec=spec)
    started = daemon.ask(
        {"jsonrpc": "2.0", "id": 1, "method": "agents/start",
         "params": {"name": name, "wait": True, "timeout_s": PATIENCE_S}}
    )  # fmt: skip
    if says:
        assert says in str(started)
    else:
        assert started["result"]["state"] == "active"
    daemon.call("agents/remove", name=name)


def test_a_chat_model_of_langchains_is_a_model_of_the_daemons(daemon: Daemon) -> None:
    define(daemon, "models", chat_model=f"{PARTS}:Echo", chat_model_options={"prefix": "Heard"})
    rows = {row["provider"]: row for row in daemon.call("models/list")["items"]}
    assert rows["mine"]["available"]
    assert "there is no agent 'nobody'" in rows["none"]["reason"]

    def complete(text: str, **more: Any) -> Any:
        messages = [{"role": "system", "content": "s"}, {"role": "user", "content": text}]
        params = {"model": "mine", "messages": messages, **more}
        return daemon.ask({"jsonrpc": "2.0", "id": 1, "method": "models/complete", "params": params})

    result = complete("hello")["result"]
    assert result["message"]["content"] == "Heard: hello"
    assert (result["provider"], result["finish_reason"]) == ("mine", "stop")
    assert (result["usage"]["input_tokens"], result["usage"]["output_tokens"]) == (3, 2)
    (call,) = complete("hello", tools=[{"name": "f"}])["result"]["message"]["tool_calls"]
    assert (call["name"], call["arguments"]) == ("f", '{"x": "hello"}')
    error = complete("fail")["error"]
    assert error["code"] == -32011
    assert "ConnectionError: the model is away" in error["message"]
    run = ask(daemon, define(daemon, "echoing", model="mine"), "hello")
    assert run["output"] == "Heard: hello"


def test_another_python_may_run_it(daemon: Daemon) -> None:
    spec = {
        "name": "other",
        "kind": "langchain",
        "start": "on_demand",
        "command": [sys.executable, "-X", "utf8", "-m", "witsd.adapters.langchain"],
        "options": {"runnable": f"{PARTS}:make"},
    }
    daemon.call("agents/define", spec=spec)
    assert ask(daemon, "other", "you")["output"] == "made for you"


def test_the_parts_are_where_the_test_says() -> None:
    assert Path(PARTS).is_file()
