"""Agents of several frameworks under the real daemon: the examples, as they are."""

from __future__ import annotations

import subprocess
import sys
import time
from importlib.util import find_spec
from typing import Any

import pytest

from tests.support.daemon import ROOT, Daemon

EXAMPLES = ROOT / "examples"
PATIENCE_S = 120.0


def need(*modules: str) -> None:
    for module in modules:
        if find_spec(module) is None:
            pytest.skip(f"{module} is not installed here: see tests/frameworks/requirements.txt")


def need_import(module: str) -> None:
    """For what may be installed and still not be importable, as where it fetches something first."""
    need(module)
    tried = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"{module} cannot be imported here: {tried.stderr.strip().splitlines()[-1][:200]}")


def define(daemon: Daemon, name: str, **more: Any) -> None:
    grants = {"models": ["*"], "tools": ["*"]}
    daemon.call("agents/define", spec={"name": name, "start": "on_demand", "grants": grants, **more})


def hosted(daemon: Daemon, name: str, **options: Any) -> None:
    define(daemon, name, kind="langchain", cwd=str(EXAMPLES), ready={"timeout_s": PATIENCE_S}, options=options)


def native(daemon: Daemon, name: str, example: str) -> None:
    command = [sys.executable, str(EXAMPLES / example)]
    define(daemon, name, kind="native", command=command, ready={"timeout_s": PATIENCE_S})


def ask(daemon: Daemon, agent: str, text: str) -> dict[str, Any]:
    run_id = daemon.call("runs/start", agent=agent, input=text)["run_id"]
    run: dict[str, Any] = daemon.call("runs/wait", run_id=run_id, timeout_s=PATIENCE_S)
    assert run["status"] == "completed", run.get("error") or run
    return run


def calls(run: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(item["tool"], item["arguments"]) for item in run["items"] if item["type"] == "tool_call"]


def test_an_agent_of_langchain_with_a_tool_of_its_own_and_one_of_the_daemons(daemon: Daemon) -> None:
    need("langchain")
    hosted(daemon, "lc", runnable="langchain_agent.py:agent")
    run = ask(daemon, "lc", "How many letters has the word supervisor?")
    assert run["output"].endswith("The tool says: 10")
    assert calls(run) == [("count_letters", {"word": "supervisor"})]
    run = ask(daemon, "lc", "Use the calculator: 15 * 23 + 17")
    assert run["output"].endswith("The tool says: 362")
    assert calls(run) == [("calculator", {"expression": "15 * 23 + 17"})]


def test_a_graph_that_asks_a_person_and_goes_on_by_the_answer(daemon: Daemon) -> None:
    need("langgraph")
    hosted(daemon, "writer", runnable="langgraph_agent.py:graph")
    run_id = daemon.call("runs/start", agent="writer", input="A line about supervisors")["run_id"]
    deadline = time.monotonic() + PATIENCE_S
    while (run := daemon.call("runs/get", run_id=run_id))["status"] in ("queued", "running"):
        assert time.monotonic() < deadline, run
        time.sleep(0.1)
    assert run["status"] == "waiting", run
    (asked,) = (item for item in run["items"] if item["type"] == "input_request")
    assert asked["message"] == "Will that do?"
    daemon.call("runs/respond", run_id=run_id, request_id=asked["request_id"], response="make it shorter")
    run = daemon.call("runs/wait", run_id=run_id, timeout_s=PATIENCE_S)
    assert run["status"] == "completed", run
    assert run["output"].startswith("Hello, I play rules")
    assert run["output"].endswith("You said: make it shorter")


def test_the_openai_agents_sdk_speaks_to_the_daemon_as_if_it_were_openai(daemon: Daemon) -> None:
    need("agents")
    native(daemon, "sdk", "openai_sdk_agent.py")
    run = ask(daemon, "sdk", "What is 15 * 23?")
    assert run["output"].endswith("The tool says: 345")
    assert any("multiply" in item.get("text", "") for item in run["items"] if item["type"] == "log")


def test_one_task_of_langroids_lives_through_a_conversation_and_asks_its_user(daemon: Daemon) -> None:
    need_import("langroid")  # which is large, and fetches a tokenizer when it is first imported
    native(daemon, "guide", "langroid_agent.py")
    session_id = daemon.call("sessions/create", agent="guide")["session_id"]
    run_id = daemon.call("sessions/prompt", session_id=session_id, text="Hello there")["run_id"]
    deadline = time.monotonic() + PATIENCE_S
    while (run := daemon.call("runs/get", run_id=run_id))["status"] in ("queued", "running"):
        assert time.monotonic() < deadline, run
        time.sleep(0.1)
    assert run["status"] == "waiting", run
    (asked,) = (item for item in run["items"] if item["type"] == "input_request")
    assert asked["message"].endswith("What can I do for you?")
    daemon.call("runs/respond", run_id=run_id, request_id=asked["request_id"], response="stops early")
    run = daemon.call("runs/wait", run_id=run_id, timeout_s=PATIENCE_S)
    assert run["output"] == "One two three stop here four five."
    run_id = daemon.call("sessions/prompt", session_id=session_id, text="stops early, again")["run_id"]
    run = daemon.call("runs/wait", run_id=run_id, timeout_s=PATIENCE_S)
    assert run["output"] == "One two three stop here four five."
