"""The assistant's loop over model and tools: what it calls, what it makes of errors, and where it stops."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.daemon import PATIENCE_S, Daemon


@pytest.fixture
def home() -> Iterator[Daemon]:
    """A daemon, not started, that finds no model of this machine by chance."""
    it = Daemon({"OLLAMA_HOST": "127.0.0.1:1"})
    try:
        yield it
    finally:
        it.remove_after_showing()


def scripted(home: Daemon, *turns: dict[str, Any], options: str = "") -> None:
    """Start with a model that plays ``turns``."""
    (home.home / "script.jsonl").write_text("".join(json.dumps(turn) + "\n" for turn in turns))
    (home.home / "witsd.toml").write_text(
        '[models]\ndefault = "demo"\n[providers.demo]\nkind = "scripted"\nscript = "script.jsonl"\n'
    )
    (home.home / "agents").mkdir()
    (home.home / "agents" / "assistant.toml").write_text(
        'name = "assistant"\nkind = "assistant"\nstart = "on_demand"\n[grants]\nmodels = ["*"]\n'
        f'tools = ["calculator", "time"]\n[options]\n{options}\n'
    )
    home.start()


def calling(*calls: tuple[str, Any], text: str = "") -> dict[str, Any]:
    return {"text": text, "tool_calls": [{"name": name, "arguments": arguments} for name, arguments in calls]}


def finished(home: Daemon, text: str, session: str | None = None, stream: bool = True) -> Any:
    if session is None:
        run = home.call("runs/start", agent="assistant", input=text, stream=stream)["run_id"]
    else:
        run = home.call("sessions/prompt", session_id=session, text=text)["run_id"]
    return home.call("runs/wait", run_id=run, timeout_s=PATIENCE_S)


def calls_of(run: Any) -> list[Any]:
    return [item for item in run["items"] if item["type"] == "tool_call"]


def test_offline_it_calculates_by_a_tool_and_ask_shows_it(home: Daemon) -> None:
    home.start()
    done = home.cli("ask", "assistant", "What is 15 * 23 + 17?")
    assert done.returncode == 0, done.stderr
    assert 'calculator(expression="15 * 23 + 17") = 362' in done.stderr
    assert "362" in done.stdout


def test_offline_it_runs_python_and_keeps_what_is_written(home: Daemon) -> None:
    home.start()
    tried = home.call("tools/call", name="python", arguments={"code": "1"})
    if tried.get("is_error"):
        pytest.skip(f"no code can be walled in here: {tried['content']}")
    done = home.cli("ask", "assistant", "sum of squares from 1 to 10")
    assert ("python(code=" in done.stderr, "385" in done.stdout) == (True, True), done
    run = finished(home, "Run this Python: `open('made.txt', 'w').write('made')`")
    (made,) = home.call("artifacts/list", run_id=run["run_id"])["items"]
    assert (made["name"], made["bytes"], made["media_type"]) == ("made.txt", 4, "text/plain")


def test_several_calls_of_one_answer_are_all_made(home: Daemon) -> None:
    scripted(
        home,
        calling(("calculator", {"expression": "1+1"}), ("calculator", {"expression": "2+2"}), text="Let me see."),
        {"text": "Two and four."},
    )
    run = finished(home, "add")
    assert run["output"] == "Let me see.\n\nTwo and four."
    # The model is answered in its order; what is made side by side begins in any.
    assert sorted(call["result"]["result"] for call in calls_of(run)) == [2, 4]
    assert finished(home, "add", stream=False)["output"] == "Let me see.\n\nTwo and four."


def test_a_call_that_cannot_be_made_is_told_to_the_model(home: Daemon) -> None:
    scripted(
        home,
        calling(("calculator", '{"expression": "1+'), ("calculator", {"wrong": 1}), ("nothing", {}), ("python", {})),
        calling(("calculator", {"expression": "1/0"})),
        calling(("calculator", {"expression": "40+2"})),
        {"text": "42 it is."},
    )
    run = finished(home, "try")
    assert (run["status"], run["output"]) == ("completed", "42 it is.")
    calls = calls_of(run)
    assert [call["status"] for call in calls] == ["failed"] * 4 + ["completed"] * 2
    said = [str(call["result"]) for call in calls]
    for wanted, count in (("no JSON object", 1), ("it takes expression", 1), ("grants", 2)):
        assert sum(wanted in text for text in said[:4]) == count, said
    assert (calls[4]["is_error"], "divided by zero" in said[4]) == (True, True)
    assert calls[5]["result"] == {"result": 42}


def test_steps_are_bounded_and_the_last_has_no_tools(home: Daemon) -> None:
    scripted(
        home,
        {**calling(("calculator", {"expression": "1+1"})), "repeat": 3},
        {"text": "That is all."},
        options="max_steps = 3",
    )
    run = finished(home, "go on")
    assert (run["output"], len(calls_of(run))) == ("That is all.", 3)


def test_a_session_may_be_without_tools_and_goes_on_after_a_cancel(home: Daemon) -> None:
    scripted(home, {"deltas": ["slow", " text"], "delay_s": 60, "match": "slow"}, {"text": "Here I am."})
    session = home.call("sessions/create", agent="assistant")["session_id"]
    home.call("sessions/update", session_id=session, settings={"tools": []})
    run = home.call("sessions/prompt", session_id=session, text="slow")["run_id"]
    home.call("runs/cancel", run_id=run)
    assert home.call("runs/get", run_id=run)["status"] == "cancelled"
    assert finished(home, "hello", session)["output"] == "Here I am."


def test_what_does_not_fit_the_window_is_summarised(home: Daemon) -> None:
    scripted(
        home,
        {"match": "Summarise the conversation above", "text": "They like blue."},
        {"match": "long", "text": "word " * 400},
        {"match": "colour", "text": "Blue."},
        options="context_tokens = 900",
    )
    session = home.call("sessions/create", agent="assistant")["session_id"]
    finished(home, "long one", session)
    finished(home, "long two", session)
    run = finished(home, "which colour?", session)
    assert run["output"] == "Blue."
    assert any("summarised" in item.get("text", "") for item in run["items"] if item["type"] == "log")
