"""``witsd chat`` and ``ask`` at a real terminal."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.terminal import CTRL_C, CTRL_D, Terminal

PROBE = str(ROOT / "tests/support/probe_agent.py")


@pytest.fixture
def probe(daemon: Daemon) -> Daemon:
    env = f"PYTHONPATH={daemon.env['PYTHONPATH']}"
    added = daemon.cli("agent", "add", "probe", "--env", env, "--", sys.executable, PROBE)
    assert added.returncode == 0, added.stderr
    return daemon


def terminal(daemon: Daemon, *args: str) -> Terminal:
    return Terminal([sys.executable, "-m", "witsd.cli.main", *args], env=daemon.env, cwd=daemon.user_home)


def _leave(chat: Terminal) -> None:
    chat.until("> ")  # pressed while an answer is still coming, the key would mean something else
    chat.press(CTRL_D)
    assert chat.end() == 0


def test_a_conversation_goes_on_where_it_was_left(probe: Daemon) -> None:
    with terminal(probe, "chat", "probe") as first:
        first.until("> ")
        first.line("mind the gap")
        first.until("mind the gap \n")  # the echo is followed by a newline without the blank
        _leave(first)
    with terminal(probe, "chat", "probe") as again:
        again.until("> mind the gap")
        again.until("mind the gap")
        again.until("> ")
        again.line("/new")
        again.until("/help, Ctrl-D leaves")
        again.line("/quit")
        assert again.end() == 0
    sessions = json.loads(probe.cli("session", "list", "--json").stdout)["items"]
    assert len(sessions) == 2


def test_ctrl_c_interrupts_the_answer_and_what_was_typed_comes_next(probe: Daemon) -> None:
    with terminal(probe, "chat", "probe", "--new") as chat:
        chat.until("> ")
        chat.line("wait")
        chat.until("begun ")
        chat.line("typed meanwhile")
        chat.until("(comes next)")  # before that the terminal would drop the line at Ctrl-C
        chat.press(CTRL_C)
        chat.until("cancelled")
        chat.until("typed meanwhile \n")
        chat.until("> ")
        chat.line("still here")
        chat.until("still here \n")
        _leave(chat)
    runs = json.loads(probe.cli("run", "list", "--json").stdout)["items"]
    assert [run["status"] for run in runs] == ["completed", "completed", "cancelled"]


def test_ctrl_c_at_the_prompt_drops_the_line(probe: Daemon) -> None:
    with terminal(probe, "chat", "probe") as chat:
        chat.until("> ")
        chat.press("never said")
        chat.until("never said")
        chat.press(CTRL_C)
        chat.until("> ")
        chat.line("said")
        chat.until("said \n")
        _leave(chat)
    runs = json.loads(probe.cli("run", "list", "--json").stdout)["items"]
    assert [run["input"]["text"] for run in runs] == ["said"]


def test_an_answer_in_progress_is_shown_when_the_terminal_comes_back(probe: Daemon) -> None:
    with terminal(probe, "chat", "probe") as chat:
        chat.until("> ")
        chat.line("wait")
        chat.until("begun ")
    with terminal(probe, "chat", "probe") as again:
        again.until("begun ")
        again.press(CTRL_C)
        again.until("cancelled")
        _leave(again)


def test_commands_of_the_conversation(probe: Daemon, tmp_path: Path) -> None:
    target = tmp_path / "chat.md"
    with terminal(probe, "chat", "probe") as chat:
        chat.until("> ")
        chat.line("/title On herons")
        chat.until("On herons\n")
        chat.line("hello")
        chat.until("hello \n")
        chat.until("> ")
        chat.line(f"/export {target}")
        chat.until("characters written")
        chat.line("/sessions")
        chat.until("On herons")
        chat.line("/clear")
        chat.until("cleared")
        chat.line("/frob")
        chat.until("no command /frob")
        chat.line("/help")
        chat.until("/export [FILE]")
        chat.line("//slash")
        chat.until("/slash \n")
        _leave(chat)
    assert "hello" in target.read_text()


def test_a_question_of_the_agent_is_answered_at_the_terminal(probe: Daemon) -> None:
    with terminal(probe, "ask", "probe", "question") as ask:
        ask.until("which colour?")
        ask.line("green")
        ask.until("painted green")
        assert ask.end() == 0
    with terminal(probe, "chat", "probe", "--new") as chat:
        chat.until("> ")
        chat.line("question")
        chat.until("which colour?")
        chat.line("blue")
        chat.until("painted blue")
        _leave(chat)


def test_lines_piped_in_are_said_one_after_the_other(probe: Daemon) -> None:
    done = probe.cli("chat", "probe", stdin="one\ntwo\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["one", "two"]
    failed = probe.cli("chat", "probe", stdin="fail\nnever\n")
    assert failed.returncode == 1
    assert "no luck" in failed.stderr
    assert "never" in failed.stdout, "what follows is said all the same"


def test_colour_only_on_a_terminal_that_wants_it(probe: Daemon) -> None:
    with terminal(probe, "agent", "list") as shown:
        shown.until("probe")
        assert shown.end() == 0
        assert "\x1b[" in shown.raw
    assert "\x1b[" not in probe.cli("agent", "list").stdout


def test_a_question_in_between_is_not_the_conversation(probe: Daemon) -> None:
    assert probe.cli("chat", "probe", stdin="first\n").returncode == 0
    assert probe.cli("ask", "probe", "by the way").returncode == 0
    assert probe.cli("chat", "probe", stdin="second\n").returncode == 0
    sessions = json.loads(probe.cli("session", "list", "--json").stdout)["items"]
    assert sorted((session["origin"], session["messages"]) for session in sessions) == [("", 4), ("ask", 2)]
