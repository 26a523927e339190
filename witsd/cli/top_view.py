"""``witsd top`` as lines of text: a picture of its state for a screen of that size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from rich.cells import cell_len, chop_cells, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style
from witsd_client.generated import Agent

from witsd.cli.output import counts
from witsd.cli.text import clock_time, neutral, one_line, percent, size
from witsd.cli.top_state import KEYS, LogView, Top
from witsd.cli.top_table import Column, columns_for, remark, requests, state, vitals

Line = list[Segment]

_PLAIN, _BOLD, _DIM = Style.null(), Style(bold=True), Style(dim=True)
_HEAD, _SELECTED, _SORTED = Style(reverse=True), Style(reverse=True, bold=True), Style(reverse=True, underline=True)
_RED, _YELLOW, _GREEN = Style(color="red", bold=True), Style(color="yellow"), Style(color="green")
_STATES = {
    "active": _GREEN, "failed": _RED, "hung": _RED, "inactive": _DIM,
    "backoff": _YELLOW, "starting": _YELLOW, "stopping": _YELLOW,
}  # fmt: skip
_LEVELS = {"debug": _DIM, "warning": _YELLOW, "error": _RED, "critical": _RED}
#: Columns whose figure is worth a colour when it is not zero.
_WARN = {"errors", "restarts"}
#: First what leads to the others and out, so that it is there on the narrowest screen.
_FIRST_KEYS = (("?", "help"), ("q", "quit"))
_TABLE_KEYS = (("s", "start"), ("t", "stop"), ("r", "restart"), ("l", "logs"), ("/", "filter"), ("<>", "sort"))
_LOG_KEYS = (("q", "back"), ("↑↓ PgUp PgDn", "scroll"), ("f", "follow"))


class Frame:
    """Lines for rich to put on the screen."""

    def __init__(self, lines: list[Line]) -> None:
        self.lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self.lines:
            yield from line
            yield Segment.line()


def frame(top: Top, width: int, height: int, now: datetime) -> Frame:
    """The whole screen: ``height`` lines of at most ``width`` columns. Tells ``top`` how long a page is."""
    room = max(0, height - 4)
    if top.mode == "logs" and top.log is not None:
        room = max(0, height - 2)
        top.page = max(1, room - 1)
        body = [_log_head(top, top.log, width), *_log_lines(top.log, width, room)]
        foot = [_keys(_LOG_KEYS, width)]
    else:
        top.page = max(1, room - 1)
        body = [_summary(top, width, now), *(_help(width) if top.mode == "help" else _rows(top, width, room, now))]
        foot = [_status(top, width), _bottom(top, width)]
    body = body[: max(0, height - len(foot))]
    body += [[] for _ in range(height - len(foot) - len(body))]
    return Frame([_cut(line, width) for line in [*body, *foot]][:height])


def _cut(line: Line, width: int) -> Line:
    return list(Segment.adjust_line_length(line, width, pad=False)) if line else []


# ---- the table --------------------------------------------------------------------------------------


def _summary(top: Top, width: int, now: datetime) -> Line:
    clock = f"{now.astimezone():%H:%M:%S}"
    room = max(0, width - len(clock) - 1)
    if top.trouble:
        left: Line = [Segment(_fit(one_line(top.trouble), room), _RED)]
    else:
        name = f"witsd {top.version} · "
        what = _figures(top, room)
        left = [Segment(name, _BOLD)] if len(name) + len(what) <= room else []
        left.append(Segment(what))
    left = _cut(left, room)
    gap = width - sum(segment.cell_length for segment in left) - len(clock)
    return [*left, Segment(" " * max(1, gap) + clock)]


def _figures(top: Top, room: int) -> str:
    """Of all agents, as much as there is room for: half a figure would be a wrong one."""
    if not top.loaded:
        return ""
    agents = top.table.agents.values()
    used = [found for found in map(vitals, agents) if found is not None]
    many = _n(len(agents), "agent") if agents else "no agents"
    states = f"{many}: {counts(Counter(map(state, agents)))}" if agents else many
    cpu = f"cpu {percent(sum(one.cpu_percent for one in used))}%"
    memory = f"mem {size(sum(one.rss_bytes for one in used))}"
    choice = [" · ".join(parts) for parts in ([states, cpu, memory], [many, cpu, memory], [many, cpu], [many])]
    return next((text for text in choice if len(text) <= room), "")


def _rows(top: Top, width: int, room: int, now: datetime) -> Iterator[Line]:
    table = top.table
    shown, rest = columns_for(width, max((len(name) for name in table.agents), default=0))
    remarks = rest - 1 if rest >= 12 else 0
    yield _heads(top, shown, width, remarks)
    table.scroll_to_selected(room)
    for agent in table.rows[table.first : table.first + room]:
        yield _row(agent, shown, remarks, width, now, selected=agent.name == table.selected, stale=bool(top.trouble))
    if not table.rows and top.loaded:
        missing = "no agent has these words" if table.agents else "no agents: `witsd agent add NAME -- COMMAND`"
        yield [Segment(missing, _DIM)]


def _heads(top: Top, shown: list[tuple[Column, int]], width: int, remarks: int) -> Line:
    line: Line = []
    for column, columns in shown:
        sorted_by = column.name == top.table.sort
        head = column.head
        if sorted_by and len(head) < columns:
            down = column.figures != top.table.reverse
            head += "▼" if down else "▲"
        cell = head.rjust(columns) if column.figures else head.ljust(columns)
        line += [Segment(cell, _SORTED if sorted_by else _HEAD), Segment(" ", _HEAD)]
    if remarks:
        line.append(Segment("REMARK", _HEAD))
    used = sum(segment.cell_length for segment in line)
    return [*line, Segment(" " * max(0, width - used), _HEAD)]


def _row(
    agent: Agent, shown: list[tuple[Column, int]], remarks: int, width: int, now: datetime,
    *, selected: bool, stale: bool,
) -> Line:
    line: Line = []
    idle = agent.state == "inactive" or stale
    for column, columns in shown:
        text = column.show(agent, now)
        style = _DIM if idle or text is None else _PLAIN
        if column.name == "state" and not stale:
            style = _STATES.get(state(agent), _PLAIN)
        elif column.name in _WARN and text not in (None, "0", "0.0"):
            style = _YELLOW
        text = one_line(text or "-")
        cell = text.rjust(columns) if column.figures else set_cell_size(_fit(text, columns), columns)
        line += [Segment(cell + " ", _SELECTED if selected else style)]
    if remarks:
        line.append(Segment(_fit(remark(agent), remarks), _SELECTED if selected else _remark_style(agent)))
    if selected:
        used = sum(segment.cell_length for segment in line)
        line.append(Segment(" " * max(0, width - used), _SELECTED))
    return line


def _remark_style(agent: Agent) -> Style:
    return _RED if agent.state == "failed" else _YELLOW if agent.state != "inactive" else _DIM


def _fit(text: str, columns: int) -> str:
    return text if cell_len(text) <= columns else set_cell_size(text, max(0, columns - 1)) + "…"


# ---- below it ---------------------------------------------------------------------------------------


def _status(top: Top, width: int) -> Line:
    """What the last key did, else more of the selected agent than its row has room for."""
    if top.message:
        return [Segment(_fit(top.message, width), _BOLD)]
    agent = top.table.current()
    if agent is None or top.mode == "help":
        return []
    return [Segment(_fit(_about(agent), width), _remark_style(agent) if remark(agent) else _DIM)]


def _about(agent: Agent) -> str:
    """What is wrong with it comes first, since the end is what a narrow screen lacks."""
    used, asked = vitals(agent), requests(agent)
    parts = [remark(agent)]
    if asked is not None and asked.count:
        parts.append(f"{_n(asked.errors, 'error')} of {_n(asked.count, 'request')} in {asked.window_s / 60:g} minutes")
    parts.append(f"{agent.kind}, {state(agent)}")
    if used is not None:
        parts.append(f"{_n(used.processes, 'process', 'es')}, {_n(used.threads, 'thread')}, {used.fds} descriptors")
    return one_line(f"{agent.name}: " + "; ".join(part for part in parts if part))


def _n(count: int, word: str, plural: str = "s") -> str:
    return f"{count} {word}{'' if count == 1 else plural}"


def _bottom(top: Top, width: int) -> Line:
    if top.mode == "confirm" and top.asked is not None:
        key = {"stop": "t", "restart": "r"}.get(top.asked.verb, "y")
        question = f"{top.asked.verb} {top.asked.name}?  {key} again or y: yes, any other key: no"
        return [Segment(_fit(question, width), _SELECTED)]
    if top.mode == "filter":
        return [Segment("filter: ", _BOLD), Segment(one_line(top.table.filter)), Segment("▏", _BOLD),
                Segment("   Enter keeps it, Esc shows all", _DIM)]
    if top.mode == "help":
        return [Segment("any key goes back", _BOLD)]
    if top.table.filter:
        hidden = len(top.table.agents) - len(top.table.rows)
        first = _keys(_FIRST_KEYS, width)
        text = f" filter {one_line(top.table.filter)!r}: {hidden} not shown, Esc shows all "
        return [*first, Segment(_fit(text, max(0, width - Segment.get_line_length(first))), _YELLOW)]
    return _keys((*_FIRST_KEYS, *_TABLE_KEYS), width)


def _keys(keys: tuple[tuple[str, str], ...], width: int) -> Line:
    """As many as there is room for, none of them cut."""
    line: Line = []
    for key, what in keys:
        width -= cell_len(key) + cell_len(what) + 4
        if width < 0:
            break
        line += [Segment(f" {key} ", _HEAD), Segment(f" {what} ")]
    return line


def _help(width: int) -> Iterator[Line]:
    pad = max(len(key) for key, _ in KEYS) + 2
    yield []
    for key, what in KEYS:
        yield [Segment("  " + key.ljust(pad), _BOLD), Segment(_fit(what, max(0, width - pad - 2)))]
    yield []
    yield [Segment("  CPU% is of one core; MEM, PROC and FDS are of the agent's whole process tree;", _DIM)]
    yield [Segment("  REQ, ERR%, MEAN and P95 are of its requests of the last five minutes.", _DIM)]


# ---- a log ------------------------------------------------------------------------------------------


def _log_head(top: Top, log: LogView, width: int) -> Line:
    where = f"{log.back} lines below: f follows" if log.back else "following"
    if top.trouble:
        where = one_line(top.trouble)
    agent = top.table.agents.get(log.name)
    text = f"{log.name} · {state(agent) if agent else 'removed'} · {where}"
    return [Segment(set_cell_size(text, width), _HEAD)]


def _log_lines(log: LogView, width: int, room: int) -> list[Line]:
    """As many of the lines as there is room for, the last one at the bottom, long ones wrapped."""
    if not log.lines:
        return [[Segment("nothing is written yet", _DIM)]]
    shown: list[Line] = []
    at = len(log.lines) - log.back
    while at > 0 and len(shown) < room:
        at -= 1
        shown[:0] = _wrapped(log.lines[at], width, room)
    return shown[max(0, len(shown) - room) :]


def _wrapped(line: Mapping[str, Any], width: int, room: int) -> list[Line]:
    time = clock_time(line["time"])[:8] + " "
    # Cut first: a line may have 64 KiB, and nothing that does not fit has to be measured.
    text = neutral(line["text"][: max(1, width * room)]).replace("\n", "␤").expandtabs(8)
    pieces = chop_cells(text, max(10, width - len(time))) or [""]
    style = _LEVELS.get(line.get("level", "warning" if line["source"] == "witsd" else ""), _PLAIN)
    first = [Segment(time, _DIM), Segment(pieces[0], style)]
    return [first, *([Segment(" " * len(time)), Segment(piece, style)] for piece in pieces[1:])]
