"""What ``witsd top`` shows and what a key makes of it: decided here, carried out in ``top``."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Literal

import attrs

from witsd.cli.text import one_line
from witsd.cli.top_table import Table

Mode = Literal["table", "filter", "confirm", "logs", "help"]
Verb = Literal["start", "stop", "restart"]
#: Lines of a log that can be scrolled back to.
KEPT_LINES = 5000
#: For the help and for nothing else; ``_table_key`` is what counts.
KEYS: tuple[tuple[str, str], ...] = (
    ("↑ ↓  j k", "select an agent; PgUp, PgDn, g and G go further"),
    ("s", "start it"),
    ("t", "stop it, after a second key"),
    ("r", "restart it, after a second key"),
    ("l  Enter", "follow its log; q or Esc comes back"),
    ("/", "only agents with these words in name, kind or state; Esc shows all"),
    ("← →  < >", "sort by the column beside"),
    ("n u m e", "sort by name, cpu, memory, error rate; again: the other way round"),
    ("R", "turn the order round"),
    ("q  Ctrl-C", "leave"),
)
_SORTS = {"n": "name", "N": "name", "u": "cpu", "P": "cpu", "m": "memory", "M": "memory", "e": "errors"}
_ASKS: dict[str, Verb] = {"t": "stop", "r": "restart"}


@attrs.frozen
class Control:
    verb: Verb
    name: str


@attrs.frozen
class Follow:
    name: str


@attrs.frozen
class Unfollow:
    pass


@attrs.frozen
class Quit:
    pass


Effect = Control | Follow | Unfollow | Quit


@attrs.define(eq=False)
class LogView:
    """The log of one agent. ``back``: how many of its newest lines are below the screen; 0 follows."""

    name: str
    lines: deque[Mapping[str, Any]] = attrs.field(factory=lambda: deque(maxlen=KEPT_LINES))
    back: int = 0

    def add(self, line: Mapping[str, Any]) -> None:
        self.lines.append(line)
        if self.back:  # who reads further up is not moved
            self.back = min(self.back + 1, len(self.lines) - 1)

    def scroll(self, lines: int) -> None:
        self.back = max(0, min(self.back + lines, len(self.lines) - 1))


@attrs.define(eq=False)
class Top:
    """``trouble``: why what is shown is not fresh. ``message`` stays until the next key."""

    table: Table
    version: str = ""
    mode: Mode = "table"
    asked: Control | None = None
    log: LogView | None = None
    message: str = ""
    trouble: str = ""
    loaded: bool = False
    #: Rows of the table, or lines of the log, that the screen has: what a page is.
    page: int = 10

    def press(self, key: str) -> Effect | None:
        """Take a key; returns what is to be done about it beside drawing."""
        self.message = ""
        match self.mode:
            case "filter":
                self._filter_key(key)
                return None
            case "confirm":
                asked, self.asked, self.mode = self.asked, None, "table"
                assert asked is not None
                if key in ("y", "Y", "enter") or _ASKS.get(key) == asked.verb:
                    self.message = f"{asked.name}: {asked.verb} ..."
                    return asked
                self.message = f"{asked.name} is left as it is"
                return None
            case "help":
                self.mode = "table"
                return Quit() if key == "Q" else None
            case "logs":
                return self._log_key(key)
        return self._table_key(key)

    def _table_key(self, key: str) -> Effect | None:
        table = self.table
        name = table.selected
        steps = {"up": -1, "k": -1, "down": 1, "j": 1, "pageup": -self.page, "pagedown": self.page, " ": self.page,
                 "home": -len(table.rows), "g": -len(table.rows), "end": len(table.rows), "G": len(table.rows)}
        if key in steps:
            table.move(steps[key])
        elif key in ("q", "Q"):
            return Quit()
        elif key in ("?", "h"):
            self.mode = "help"
        elif key == "/":
            self.mode = "filter"
        elif key == "escape":
            table.search("")
        elif key in ("<", "left", ">", "right"):
            table.next_sort(1 if key in (">", "right") else -1)
        elif key == "R":
            table.sort_by(table.sort)
        elif key in _SORTS:
            table.sort_by(_SORTS[key])
        elif not name:
            self.message = "no agent is selected"
        elif key == "s":
            self.message = f"{name}: start ..."
            return Control("start", name)
        elif key in _ASKS:
            # The name is kept: the order may change before the second key comes.
            self.asked, self.mode = Control(_ASKS[key], name), "confirm"
        elif key in ("l", "enter"):
            self.log, self.mode = LogView(name), "logs"
            return Follow(name)
        else:
            self.message = "? shows the keys"
        return None

    def _filter_key(self, key: str) -> None:
        table = self.table
        if key == "enter":
            self.mode = "table"
        elif key == "escape":
            table.search("")
            self.mode = "table"
        elif key == "backspace":
            if table.filter:
                table.search(table.filter[:-1])
            else:
                self.mode = "table"
        elif key in ("up", "down"):
            table.move(1 if key == "down" else -1)
        elif len(key) == 1:
            table.search(table.filter + key)

    def _log_key(self, key: str) -> Effect | None:
        assert self.log is not None
        most = len(self.log.lines)
        steps = {"up": 1, "k": 1, "down": -1, "j": -1, "pageup": self.page, "b": self.page, "pagedown": -self.page,
                 " ": -self.page, "home": most, "g": most, "end": -most, "G": -most, "f": -most}
        if key in steps:
            self.log.scroll(steps[key])
        elif key in ("q", "escape", "l", "left"):
            self.log, self.mode = None, "table"
            return Unfollow()
        elif key == "Q":
            return Quit()
        return None

    def said(self, text: str) -> None:
        """Something to tell, on the line above the keys."""
        self.message = one_line(text)
