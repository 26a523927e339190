"""The table of ``witsd top``: its columns, order, filter and selection. Knows no terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import attrs
from witsd_client.generated import Agent, RequestStats, VitalsSample

from witsd.cli.text import duration, milliseconds, one_line, percent, size

_STATES = ("failed", "backoff", "starting", "stopping", "active", "inactive")


def vitals(agent: Agent) -> VitalsSample | None:
    return agent.vitals if isinstance(agent.vitals, VitalsSample) else None


def requests(agent: Agent) -> RequestStats | None:
    return agent.requests if isinstance(agent.requests, RequestStats) else None


def state(agent: Agent) -> str:
    """The word for how it is: one that runs and does not answer is hung."""
    return "hung" if agent.health == "hung" and agent.state == "active" else agent.state


def remark(agent: Agent) -> str:
    """What a person should know of it: why it is not up, or what alarms."""
    alerts = agent.alerts if isinstance(agent.alerts, tuple) else ()
    said = [f"alert: {alert.alert} {_figure(alert.alert, alert.value)}" for alert in alerts]
    if isinstance(agent.reason, str):
        said.insert(0, agent.reason)
    return one_line("; ".join(said))


def _figure(name: str, value: float) -> str:
    return size(value) if name == "memory_bytes" else f"{value:.3g}"


def _count(value: int) -> str:
    return str(value) if value < 100_000 else f"{value // 1000}k"


def _since(agent: Agent, now: datetime) -> str:
    try:
        return duration((now - datetime.fromisoformat(agent.since)).total_seconds())
    except ValueError:
        return "-"


@attrs.frozen
class Column:
    """``order`` is what it is sorted by, ``show`` what is in a cell; None is shown as ``-`` and sorted last.

    ``figures``: to the right, and the largest first. Columns of a lower ``rank`` stay where there is little room.
    """

    name: str
    head: str
    width: int
    rank: int
    order: Callable[[Agent], Any]
    show: Callable[[Agent, datetime], str | None]
    figures: bool = True


def _of_vitals(field: str, shown: Callable[[Any], str]) -> dict[str, Any]:
    def order(agent: Agent) -> Any:
        found = vitals(agent)
        return None if found is None else getattr(found, field)

    def show(agent: Agent, _now: datetime) -> str | None:
        value = order(agent)
        return None if value is None else shown(value)

    return {"order": order, "show": show}


def _of_requests(field: str, shown: Callable[[Any], str]) -> dict[str, Any]:
    def order(agent: Agent) -> Any:
        found = requests(agent)
        return None if found is None or not found.count else getattr(found, field)

    def show(agent: Agent, _now: datetime) -> str | None:
        value = order(agent)
        return None if value is None else shown(value)

    return {"order": order, "show": show}


COLUMNS: Sequence[Column] = (
    Column("name", "NAME", 20, 0, lambda a: a.name, lambda a, _: a.name, figures=False),
    Column("kind", "KIND", 9, 13, lambda a: a.kind, lambda a, _: a.kind, figures=False),
    Column("state", "STATE", 8, 1, lambda a: _rank_of(state(a)), lambda a, _: state(a), figures=False),
    Column("pid", "PID", 7, 4, lambda a: a.pid if isinstance(a.pid, int) else None,
           lambda a, _: str(a.pid) if isinstance(a.pid, int) else None),
    Column("since", "SINCE", 7, 5, lambda a: a.since, _since),
    Column("restarts", "RST", 3, 6, lambda a: a.restarts, lambda a, _: _count(a.restarts)),
    Column("cpu", "CPU%", 5, 2, **_of_vitals("cpu_percent", percent)),
    Column("memory", "MEM", 7, 3, **_of_vitals("rss_bytes", size)),
    Column("processes", "PROC", 4, 10, **_of_vitals("processes", _count)),
    Column("fds", "FDS", 5, 11, **_of_vitals("fds", _count)),
    Column("requests", "REQ", 5, 7, **_of_requests("count", _count)),
    Column("errors", "ERR%", 5, 8, **_of_requests("error_rate", lambda rate: percent(100 * rate))),
    Column("mean", "MEAN", 6, 12, **_of_requests("mean_ms", milliseconds)),
    Column("p95", "P95", 6, 9, **_of_requests("p95_ms", milliseconds)),
)


def _rank_of(word: str) -> int:
    """What needs a person first."""
    return -1 if word == "hung" else _STATES.index(word) if word in _STATES else len(_STATES)


def columns_for(width: int, longest_name: int) -> tuple[list[tuple[Column, int]], int]:
    """The columns that fit, each with its width, and what is left for remarks. Names are cut last."""
    name = COLUMNS[0]
    named = max(4, min(longest_name, name.width, width))
    left = width - named
    chosen = {name.name}
    for column in sorted(COLUMNS[1:], key=lambda c: c.rank):
        if left < column.width + 1:
            break
        chosen.add(column.name)
        left -= column.width + 1
    more = max(0, min(longest_name - named, left))
    shown = [(c, named + more if c is name else c.width) for c in COLUMNS if c.name in chosen]
    return shown, left - more


@attrs.define(eq=False)
class Table:
    """All agents, of which those that pass the filter are ``rows``, in order. One is selected, by name."""

    sort: str = "name"
    reverse: bool = False
    filter: str = ""
    selected: str = ""
    #: The first row that is on the screen.
    first: int = 0
    agents: dict[str, Agent] = attrs.field(factory=dict)
    rows: list[Agent] = attrs.field(factory=list)

    def refresh(self, agents: Sequence[Agent]) -> None:
        self.agents = {agent.name: agent for agent in agents}
        self._arrange()

    def replace(self, agent: Agent) -> None:
        """What a request has said of one agent; its figures stay till the next refresh."""
        before = self.agents.get(agent.name)
        if before is not None:
            self.agents[agent.name] = agent
            self._arrange()

    def sort_by(self, name: str) -> None:
        """In that order; the other way round when it is the one already."""
        self.sort, self.reverse = name, not self.reverse if name == self.sort else False
        self._arrange()

    def next_sort(self, step: int) -> None:
        names = [column.name for column in COLUMNS]
        self.sort_by(names[(names.index(self.sort) + step) % len(names)])

    def search(self, text: str) -> None:
        self.filter = text
        self._arrange()

    def current(self) -> Agent | None:
        return self.agents.get(self.selected)

    def move(self, step: int) -> None:
        """Select the row so many further down; 0 makes sure that one is selected."""
        if self.rows:
            at = max(0, min(len(self.rows) - 1, self.position() + step))
            self.selected = self.rows[at].name

    def position(self) -> int:
        return next((n for n, agent in enumerate(self.rows) if agent.name == self.selected), 0)

    def scroll_to_selected(self, height: int) -> None:
        """Move the rows on the screen as little as shows the selected one, without empty room at the end."""
        at, height = self.position(), max(1, height)
        self.first = max(at - height + 1, min(self.first, at))
        self.first = max(0, min(self.first, len(self.rows) - height))

    def _arrange(self) -> None:
        before = self.position()
        words = self.filter.lower().split()
        found = [a for a in self.agents.values() if all(w in f"{a.name} {a.kind} {state(a)}".lower() for w in words)]
        found.sort(key=lambda agent: agent.name)
        column = next(c for c in COLUMNS if c.name == self.sort)
        known = [a for a in found if column.order(a) is not None]
        unknown = [a for a in found if column.order(a) is None]
        known.sort(key=column.order, reverse=column.figures != self.reverse)
        self.rows = known + unknown
        if not any(agent.name == self.selected for agent in self.rows):
            # It is gone or filtered out: whoever stands there now.
            self.selected = self.rows[min(before, len(self.rows) - 1)].name if self.rows else ""
