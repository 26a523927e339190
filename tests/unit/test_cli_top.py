"""``witsd top`` without a terminal: keys, order, selection, and pictures that fit every screen."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from witsd_client.generated import Agent

from witsd.cli.keyboard import Decoder
from witsd.cli.text import milliseconds, sparkline
from witsd.cli.top_state import KEPT_LINES, Control, Follow, LogView, Quit, Top, Unfollow
from witsd.cli.top_table import COLUMNS, Table
from witsd.cli.top_view import frame

NOW = datetime(2026, 1, 31, 9, 5, 7, tzinfo=UTC)
TIME = "2026-01-31T09:05:00.000000Z"
VITALS = {
    "time": TIME, "cpu_percent": 1.0, "rss_bytes": 1 << 20, "fds": 3, "threads": 2, "processes": 1,
    "read_bytes": 0, "write_bytes": 0,
}  # fmt: skip


def agent(name: str, *, cpu: float | None = None, state: str = "active", **more: Any) -> Agent:
    shown: dict[str, Any] = {
        "name": name, "kind": "exec", "state": state, "health": "unknown", "since": TIME, "restarts": 0,
        "spec": {"name": name, "kind": "exec", "command": ["true"]}, **more,
    }  # fmt: skip
    if cpu is not None:
        shown["vitals"] = {**VITALS, "cpu_percent": cpu}
    return msgspec.convert(shown, Agent)


def table(*agents: Agent, **more: Any) -> Table:
    it = Table(**more)
    it.refresh(agents)
    return it


def names(it: Table) -> list[str]:
    return [one.name for one in it.rows]


def keys(*pieces: bytes) -> list[str]:
    decoder = Decoder()
    found = [key for piece in pieces for key in decoder.feed(piece)]
    return [*found, *decoder.flush()]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([b"js\x1b[A\x1bOB"], ["j", "s", "up", "down"]),
        ([b"\x1b", b"[5~q"], ["pageup", "q"]),
        ([b"\x1b[", b"6", b"~"], ["pagedown"]),
        ([b"\x1b"], ["escape"]),
        ([b"\x1bq"], ["escape", "q"]),
        ([b"\x1b[99;9X", b"q"], ["q"]),
        ([b"\r\n\x7f\x00"], ["enter", "enter", "backspace"]),
        (["ü".encode()[:1], "ü".encode()[1:]], ["ü"]),
        ([b"\xff"], ["\ufffd"]),
    ],
)
def test_keys_are_named_however_they_are_cut(pieces: list[bytes], expected: list[str]) -> None:
    assert keys(*pieces) == expected


def test_figures_are_sorted_largest_first_and_what_has_none_last() -> None:
    it = table(agent("a", cpu=1), agent("b"), agent("c", cpu=9), agent("d", cpu=1), sort="cpu")
    assert names(it) == ["c", "a", "d", "b"]
    it.sort_by("cpu")
    assert names(it) == ["a", "d", "c", "b"]
    it.sort_by("name")
    assert names(it) == ["a", "b", "c", "d"]


def test_state_puts_first_what_needs_a_person() -> None:
    hung = agent("h", health="hung")
    it = table(agent("a"), agent("f", state="failed"), agent("i", state="inactive"), hung, sort="state")
    assert names(it) == ["h", "f", "a", "i"]


def test_the_selection_follows_its_agent_and_falls_to_a_neighbour() -> None:
    it = table(agent("a", cpu=3), agent("b", cpu=2), agent("c", cpu=1), sort="cpu")
    it.move(1)
    assert it.selected == "b"
    it.refresh([agent("a", cpu=3), agent("b", cpu=9), agent("c", cpu=1)])
    assert (it.selected, it.position()) == ("b", 0)
    it.refresh([agent("a", cpu=3), agent("c", cpu=1)])
    assert it.selected == "a"
    it.refresh([])
    assert it.selected == ""
    it.move(1)


def test_the_agent_that_is_asked_about_is_the_one_that_is_stopped() -> None:
    top = Top(table(agent("a", cpu=9), agent("b", cpu=1), sort="cpu"))
    assert top.press("t") is None
    top.table.refresh([agent("a", cpu=1), agent("b", cpu=9)])
    assert top.press("t") == Control("stop", "a")
    assert top.press("r") is None
    assert top.press("t") is None, "another key than that of the question is no yes"
    assert top.mode == "table"


def test_logs_open_and_close_and_keys_lead_out_of_everything() -> None:
    top = Top(table(agent("a")))
    assert top.press("enter") == Follow("a")
    assert top.press("escape") == Unfollow()
    for key in ("?", "/", "t"):
        top.press(key)
        top.press("escape")
        assert top.mode == "table", key
    assert top.press("q") == Quit()


def test_a_filter_narrows_and_is_taken_back() -> None:
    top = Top(table(agent("digest"), agent("other"), agent("digger", state="failed")))
    for key in "/dig":
        top.press(key)
    assert names(top.table) == ["digest", "digger"] or names(top.table) == ["digger", "digest"]
    for key in " fail":
        top.press(key)
    assert names(top.table) == ["digger"]
    top.press("enter")
    assert top.press("s") == Control("start", "digger")
    top.press("escape")
    assert len(top.table.rows) == 3


def test_without_agents_no_key_does_anything() -> None:
    top = Top(table())
    for key in "jkstrlgG":
        assert top.press(key) is None
    assert top.mode == "table"


def test_who_reads_further_up_in_a_log_is_not_moved_and_memory_is_bounded() -> None:
    log = LogView("a")
    for number in range(100):
        log.add({"seq": number, "time": TIME, "source": "stderr", "text": str(number)})
    log.scroll(10)
    log.add({"seq": 100, "time": TIME, "source": "stderr", "text": "new"})
    assert log.back == 11
    log.scroll(-1000)
    assert log.back == 0
    for _ in range(2 * KEPT_LINES):
        log.add({"seq": 1, "time": TIME, "source": "stderr", "text": "x"})
    assert len(log.lines) == KEPT_LINES


AGENTS = [
    agent("a", cpu=1600.0, restarts=123_456, pid=4_194_304),
    agent("n" * 63, state="failed", reason="漢字 \x1b[2J " * 30),
    agent("h", health="hung", requests={"count": 9_999_999, "errors": 5_000_000, "error_rate": 0.5, "mean_ms": 1e9,
                                        "p95_ms": 1e9, "window_s": 300.0}),
    agent("z", alerts=[{"alert": "memory_bytes", "threshold": 1, "value": 1e12, "since": TIME}]),
    *(agent(f"many-{number}", state="inactive") for number in range(500)),
]  # fmt: skip


def _log(top: Top) -> None:
    top.press("l")
    assert top.log is not None
    for text in ("", "x" * 65_536, "漢字" * 100, "\x1b[2J\ttab"):
        top.log.add({"seq": 1, "time": TIME, "source": "witsd", "text": text})


SCENES: dict[str, Callable[[Top], object]] = {
    "table": lambda top: None,
    "end": lambda top: top.press("G"),
    "asked": lambda top: top.press("t"),
    "filter": lambda top: [top.press(key) for key in "/many-4"],
    "filtered": lambda top: [top.press(key) for key in ["/", "z", "enter"]],
    "none": lambda top: [top.press(key) for key in "/%%%"],
    "help": lambda top: top.press("?"),
    "trouble": lambda top: setattr(top, "trouble", "no connection \x1b[2J" * 20),
    "said": lambda top: top.said("said\n" * 100),
    "log": _log,
}


@given(width=st.integers(1, 200), height=st.integers(1, 60), scene=st.sampled_from(sorted(SCENES)))
def test_every_picture_fits_its_screen_and_nothing_in_it_acts(width: int, height: int, scene: str) -> None:
    top = Top(table(*AGENTS), version="0.1.0", loaded=True)
    SCENES[scene](top)
    lines = frame(top, width, height, NOW).lines
    assert len(lines) == height
    for line in lines:
        assert sum(segment.cell_length for segment in line) <= width
        assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 for segment in line for c in segment.text)


def test_the_selected_agent_is_on_the_screen() -> None:
    top = Top(table(*AGENTS), loaded=True)
    for key in ("G", "k", "g", "pagedown", "pagedown", "j", "pageup"):
        top.press(key)
        shown = "\n".join("".join(segment.text for segment in line) for line in frame(top, 100, 24, NOW).lines)
        assert top.table.selected in shown, key


def test_a_narrow_screen_keeps_what_matters_most() -> None:
    top = Top(table(agent("a", cpu=12.5, restarts=3)), loaded=True)
    shown = ["".join(segment.text for segment in line) for line in frame(top, 80, 24, NOW).lines]
    for head in ("NAME", "STATE", "PID", "SINCE", "RST", "CPU%", "MEM", "REQ", "ERR%", "P95"):
        assert head in shown[1]
    assert "12.5" in shown[2]
    wide = frame(top, 140, 40, NOW).lines[1]
    assert all(column.head in "".join(segment.text for segment in wide) for column in COLUMNS)


def _text(top: Top, width: int, height: int = 24) -> list[str]:
    return ["".join(segment.text for segment in line) for line in frame(top, width, height, NOW).lines]


@pytest.mark.parametrize("width", range(10, 160))
def test_the_head_drops_a_figure_rather_than_cut_it(width: int) -> None:
    states = ("active", "failed", "backoff", "starting", "stopping", "inactive")
    top = Top(table(*(agent(state, cpu=10.0, state=state) for state in states)), version="0.1.0", loaded=True)
    head = _text(top, width)[0]
    parts = head[:-8].removeprefix("witsd 0.1.0 · ").strip().split(" · ")
    assert parts[0] in ("", "6 agents", "6 agents: " + parts[0].partition(": ")[2])
    assert ":" not in parts[0] or all(f"1 {state}" in parts[0] for state in states)
    assert parts[1:] in ([], ["cpu 60.0%"], ["cpu 60.0%", "mem 6.3 MB"])
    assert width < 80 or len(parts) == 3


@pytest.mark.parametrize("width", [20, 60])
@pytest.mark.parametrize("scene", ["table", "filtered", "none"])
def test_a_narrow_foot_still_says_how_to_get_help_and_out(width: int, scene: str) -> None:
    top = Top(table(*AGENTS), version="0.1.0", loaded=True)
    SCENES[scene](top)
    if top.mode == "filter":
        top.press("enter")
    assert _text(top, width)[-1].startswith(" ?  help  q  quit ")


def test_help_is_whole_on_eighty_columns() -> None:
    top = Top(table(*AGENTS), version="0.1.0", loaded=True)
    top.press("?")
    narrow, wide = _text(top, 80), _text(top, 200)
    assert [line.rstrip() for line in narrow[1:]] == [line.rstrip() for line in wide[1:]]


def test_what_is_wrong_with_the_selected_agent_comes_first() -> None:
    asked = {"count": 9, "errors": 4, "error_rate": 0.4, "mean_ms": 1.0, "p95_ms": 1.0, "window_s": 300.0}
    top = Top(table(agent("a", cpu=1.0, state="backoff", reason="exited with code 1", requests=asked)), loaded=True)
    assert _text(top, 80)[-2].startswith("a: exited with code 1; 4 errors of 9 requests in 5 minutes; exec, backoff; ")


@pytest.mark.parametrize(
    ("values", "columns", "drawn"),
    [([], 5, ""), ([0, 0], 5, "▁▁"), ([0, 1, 2, 7], 4, "▁▂▃█"), ([1, 9, 1, 1], 2, "█▂"), ([5], 9, "█")],
)
def test_sparklines_show_the_highest(values: list[float], columns: int, drawn: str) -> None:
    assert sparkline(values, columns) == drawn


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0ms"), (999.4, "999ms"), (1234, "1.2s"), (59_999, "60.0s"), (180_000, "3m")]
)
def test_milliseconds(value: float, shown: str) -> None:
    assert milliseconds(value) == shown
