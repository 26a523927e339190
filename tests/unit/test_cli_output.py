"""Rendering: nothing from an agent acts on a terminal, tables stay aligned, streams print once."""

from __future__ import annotations

import json
import os
import pty
import sys
from datetime import UTC, datetime
from typing import Any

import pytest

from witsd.cli import output, text
from witsd.cli.stream import RunPrinter

ATTACKS = {
    "clear screen": "\x1b[2J",
    "set title": "\x1b]0;owned\x07",
    "one-byte CSI": "\x9b2J",
    "carriage return": "safe\rfake",
    "backspace": "ab\b\bxy",
    "delete": "\x7f",
    "nul": "\x00",
}


def acting(shown: str) -> list[str]:
    return [c for c in shown if (ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0]


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_no_control_character_survives(attack: str) -> None:
    assert acting(text.neutral(attack)) == []
    assert acting(text.one_line(attack)) == []
    assert acting(text.to_json({attack: attack})) == []
    assert json.loads(text.to_json({"t": attack})) == {"t": attack}


def test_ordinary_text_is_left_alone() -> None:
    ordinary = "Ünïcødé 漢字 🎉\n\tindented, שלום"
    assert text.neutral(ordinary) == ordinary
    assert text.neutral("a\r\nb") == "a\nb"


def test_crlf_cut_in_two_is_one_line_end_and_a_lone_cr_is_shown() -> None:
    pieces = text.Neutralizer()
    assert pieces.feed("a\r") + pieces.feed("\nb\r") + pieces.end() == "a\nb\u240d"


def test_plain_table_is_aligned_by_terminal_columns(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("name", "n"), [("漢字", 1), ("abcd\x1b[2J\nx", None)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "N"]
    starts = {text.width(line[: len(line) - len(line.split("  ")[-1].lstrip())]) for line in lines}
    assert len(starts) == 1
    assert acting("".join(lines)) == []


def test_empty_table_leaves_standard_output_empty(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("name",), [], empty="no agents")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "no agents\n")


def on_terminal(monkeypatch: pytest.MonkeyPatch, **env: str) -> str:
    """What a table with a hostile cell looks like to a real terminal."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    leader, follower = pty.openpty()
    try:
        with open(follower, "w", encoding="utf-8", closefd=False) as terminal:
            monkeypatch.setattr(sys, "stdout", terminal)
            output.table(("name", "state"), [("[red]x[/red]", "active"), ("\x1b[2J", "failed")])
            monkeypatch.undo()
        return os.read(leader, 65_536).decode()
    finally:
        os.close(leader)
        os.close(follower)


def test_terminal_table_has_colour_but_no_markup_and_no_escape_of_a_cell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = on_terminal(monkeypatch)
    assert "\x1b[" in seen
    assert "\x1b[2J" not in seen
    assert "[red]x[/red]" in seen


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = on_terminal(monkeypatch, NO_COLOR="1")
    assert "active" in seen
    assert "\x1b[3" not in seen


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (59.9, "59s"), (60, "1m"), (3600, "1h"), (3900, "1h 5m"), (86_400, "1d"), (180_000, "2d 2h")],
)
def test_duration(seconds: float, shown: str) -> None:
    assert text.duration(seconds) == shown


def test_time_is_local_and_relative() -> None:
    now = datetime(2026, 1, 31, 9, 8, 7, tzinfo=UTC)
    shown = text.when("2026-01-31T09:05:07.123456Z", now)
    local = datetime(2026, 1, 31, 9, 5, 7, tzinfo=UTC).astimezone()
    assert shown == f"{local:%Y-%m-%d %H:%M:%S} (2m ago)"
    assert text.when(None) == "-"
    assert text.when("\x1b[2J") == "␛[2J"


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (48_000_000, "48.0 MB"), (5e12, "5000 GB")],
)
def test_size(count: float, shown: str) -> None:
    assert text.size(count) == shown


def test_definition_as_dotted_keys() -> None:
    spec = {"name": "a", "restart": {"policy": "never"}, "command": ["x", "y"], "skills": []}
    assert output.dotted(spec) == [
        ("name", '"a"'), ("restart.policy", '"never"'), ("command", '["x", "y"]'),
    ]


# ---- a run as it is printed ------------------------------------------------------------------------------


def message(item_id: str, text: str, **more: Any) -> dict[str, Any]:
    return {"item": {"type": "message", "item_id": item_id, "text": text, **more}}


def delta(item_id: str, text: str) -> tuple[str, dict[str, Any]]:
    return "item.delta", {"item_id": item_id, "text": text}


def printed(*events: tuple[str, dict[str, Any]], verbose: bool = False) -> tuple[str, RunPrinter]:
    pieces: list[str] = []
    printer = RunPrinter(pieces.append, verbose=verbose)
    for kind, data in events:
        printer.feed({"type": kind, "data": data})
    return "".join(pieces), printer


DONE = ("run.completed", {"output": "Hello world"})


def test_deltas_then_completion_print_once() -> None:
    shown, printer = printed(
        ("item.started", message("1", "")), delta("1", "Hello "), delta("1", "world"),
        ("item.completed", message("1", "Hello world")), DONE,
    )
    assert shown == "Hello world\n"
    assert printer.failure() is None


def test_without_deltas_the_completed_item_is_printed() -> None:
    assert printed(("item.completed", message("1", "Hello world")), DONE)[0] == "Hello world\n"


def test_joined_midway_the_rest_is_printed() -> None:
    shown, _ = printed(
        ("item.started", message("1", "Hel")), delta("1", "lo"),
        ("item.completed", message("1", "Hello!")), DONE,
    )
    assert shown == "Hello!\n"


def test_what_an_agent_took_back_is_printed_anew() -> None:
    shown, _ = printed(delta("1", "Wrong"), ("item.completed", message("1", "Right")), DONE)
    assert shown == "Wrong\nRight\n"


def test_output_stands_in_where_nothing_was_said() -> None:
    assert printed(("run.completed", {"output": "42"}))[0] == "42\n"
    assert json.loads(printed(("run.completed", {"output": {"a": 1}}))[0]) == {"a": 1}
    assert printed(("run.completed", {"output": None}))[0] == ""


def test_two_messages_stand_on_lines_of_their_own() -> None:
    shown, _ = printed(delta("1", "one"), delta("2", "two"), ("run.completed", {"output": "two"}))
    assert shown == "one\ntwo\n"


def test_thoughts_and_the_users_words_are_not_the_answer() -> None:
    thought = {"item": {"type": "thought", "item_id": "t", "text": ""}}
    shown, _ = printed(
        ("item.started", thought), delta("t", "hmm"), ("item.started", message("u", "question", role="user")),
        delta("1", "answer"), ("run.completed", {"output": "answer"}),
    )
    assert shown == "answer\n"


def test_escape_sequences_cut_into_deltas_do_not_act() -> None:
    shown, _ = printed(delta("1", "\x1b"), delta("1", "[2J"), ("run.completed", {"output": ""}))
    assert acting(shown) == []


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        ("run.failed", {"error": {"code": -32007, "message": "ValueError: no"}}, "ValueError: no"),
        ("run.cancelled", {"reason": "keyboard"}, "cancelled: keyboard"),
        ("run.interrupted", {"reason": ""}, "interrupted"),
    ],
)
def test_other_ends_are_failures(kind: str, data: dict[str, Any], words: str) -> None:
    shown, printer = printed(delta("1", "partial"), (kind, data))
    assert shown == "partial\n"
    failure = printer.failure()
    assert failure is not None
    assert words in failure.message
    assert failure.status == 1
    assert words.split(":")[0] in printer.failure_text()


def test_a_question_stays_until_it_is_resolved() -> None:
    asked = {"request_id": "r", "message": "sure?"}
    assert printed(("input.requested", asked))[1].question == asked
    assert printed(("input.requested", asked), ("input.resolved", {"request_id": "r"}))[1].question is None


def test_verbose_names_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    usage = {"item": {"type": "usage", "item_id": "u", "model": "offline", "input_tokens": 3}}
    printed(("item.completed", usage))
    assert capsys.readouterr().err == ""
    printed(("item.completed", usage), verbose=True)
    assert "model offline: 3 tokens in" in capsys.readouterr().err


def test_what_was_spent_stands_on_a_line() -> None:
    figures = {"calls": 12, "tokens": 3400, "cost_usd": 0.05, "wall_s": 61.0}
    assert text.spent(figures) == f"12 calls, 3,400 tokens, $0.05, {text.duration(61.0)}"
    assert text.spent({"calls": 0}) == "0 calls"
    assert (text.spent({}), text.spent(None)) == (None, None)
