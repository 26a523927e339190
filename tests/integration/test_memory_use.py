"""Memory as agents use it through the SDK, and people on the command line."""

from __future__ import annotations

import json
import sys
from typing import Any

from tests.support.agents import PYTHONPATH, define
from tests.support.daemon import ROOT, Daemon
from tests.support.wire import wire


def cli(daemon: Daemon, *args: str, stdin: str | None = None) -> tuple[str, str]:
    """What ``witsd ARGS`` prints; its remarks. It must succeed."""
    done = daemon.cli(*args, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def parsed(daemon: Daemon, *args: str) -> Any:
    return json.loads(cli(daemon, *args, "--json")[0])


def test_the_example_remembers_over_a_restart_and_alone(daemon: Daemon) -> None:
    command = [sys.executable, str(ROOT / "examples/remembering_agent.py")]
    spec = {"name": "notes", "kind": "native", "command": command, "env": {"PYTHONPATH": PYTHONPATH}}
    daemon.call("agents/define", spec=spec)
    daemon.call("agents/define", spec={**spec, "name": "others"})
    assert cli(daemon, "ask", "notes", "The spare key is under the flower pot")[0] == "Noted.\n"
    assert cli(daemon, "ask", "notes", "The bins go out on Tuesday")[0] == "Noted.\n"
    daemon.restart()
    first = cli(daemon, "ask", "notes", "Where did I put my keys?")[0].splitlines()[0]
    assert first.startswith("The spare key is under the flower pot (noted on ")
    assert cli(daemon, "ask", "others", "Where did I put my keys?")[0] == "I have no note of that.\n"


def test_a_search_says_where_a_hit_is_from_and_why_it_was_found(daemon: Daemon) -> None:
    daemon.call("memory/add", namespace="team:a", text="We moved the\nstand-up to ten.", speaker="Ann", session_id="s1")
    source = {"file": "notes.md"}
    daemon.call("memory/add", namespace="shared", text="The stand-up is short.", source=source, kind="document")
    shown = cli(daemon, "memory", "search", "when is the stand-up?")[0]
    first, second, third = shown.splitlines()[:3]
    assert first.startswith(" 1  ")
    assert all(len(line) > 20 for line in (first, second, third))
    entries = ["\n".join(shown.splitlines()[n : n + 3]) for n in (0, 3)]
    ann = next(entry for entry in entries if "We moved the stand-up to ten." in entry)
    assert "Ann · 2" in ann
    assert " · team:a · s1 · mem_" in ann
    assert "words 0." in ann
    assert "(stand" in ann
    assert any("notes.md" in entry for entry in entries)
    assert cli(daemon, "memory", "search", "-N", "nowhere", "x")[1].strip().endswith("nothing found")


def test_blocks_on_the_command_line_reach_the_prompt(daemon: Daemon) -> None:
    said, remark = cli(daemon, "memory", "block", "list", "assistant")
    assert said == ""
    assert "memory block set assistant" in remark
    cli(daemon, "memory", "block", "set", "assistant", "human", "Ada,", "an engineer")
    cli(daemon, "memory", "block", "set", "assistant", "human", stdin="Ada, an engineer in Oslo")
    assert cli(daemon, "memory", "block", "get", "assistant", "human")[0] == "Ada, an engineer in Oslo\n"
    assert cli(daemon, "memory", "block", "get", "assistant", "human", "--version", "1")[0] == "Ada, an engineer\n"
    (only,) = parsed(daemon, "memory", "block", "list", "assistant")["items"]
    assert (only["name"], only["version"], only["author"]) == ("human", 2, "owner")
    late = daemon.cli("memory", "block", "set", "assistant", "human", "x", "--version", "1")
    assert late.returncode == 1
    assert "version 2" in late.stderr
    assert daemon.cli("memory", "block", "get", "assistant", "none").returncode == 1


def test_models_are_tried(daemon: Daemon) -> None:
    said, remarks = cli(daemon, "model", "test", "offline", "--text", "What is 12% of 80?")
    assert said == "12% of 80 = 9.6\n"
    assert "offline/offline: first words after 0." in remarks
    assert "tokens in" in remarks
    both = parsed(daemon, "model", "test", "--text", "hello")["items"]
    assert both[-1]["kind"] == "embedding"
    (only,) = parsed(daemon, "model", "test", "hash")["items"]
    assert (only["model"], only["dimensions"], only["texts"]) == ("hash", 384, 32)
    with wire(daemon.socket) as c:
        define(c, "letters", "embedding")
    assert "numbers for each text" in cli(daemon, "model", "test", "letters")[0]
    missing = daemon.cli("model", "test", "nobody")
    assert missing.returncode == 1
    assert "nobody" in missing.stderr
