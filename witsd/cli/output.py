"""How results reach a person or a program: tables, fields, JSON.

rich is imported only where colour is wanted, which is on a terminal without ``NO_COLOR``; everything
else gets plain aligned text. Whatever came from an agent or a model passes ``neutral`` on its way.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from witsd.cli.text import neutral, one_line, to_json, width

#: Words that mean a state, and the colour each has on a terminal.
_STYLES: Mapping[str, str] = {
    **dict.fromkeys(("active", "completed", "ok", "running", "yes"), "green"),
    **dict.fromkeys(("starting", "stopping", "queued", "waiting", "backoff", "interrupted"), "yellow"),
    **dict.fromkeys(("failed", "hung", "cancelled"), "red"),
    **dict.fromkeys(("inactive", "idle", "unknown", "-"), "dim"),
}


def is_tty(stream: TextIO | None = None) -> bool:
    """Whether a person looks at ``stream`` (standard output when absent)."""
    try:
        return (stream or sys.stdout).isatty()
    except ValueError:  # closed
        return False


def coloured(stream: TextIO | None = None) -> bool:
    """Whether to colour: a terminal that can, and no ``NO_COLOR``."""
    return is_tty(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def say(text: str = "", *, err: bool = False) -> None:
    """A line of our own or an already neutral one."""
    stream = sys.stderr if err else sys.stdout
    stream.write(text + "\n")
    stream.flush()


def note(text: str) -> None:
    """A remark beside the result: neutral, on standard error, dim on a terminal."""
    text = neutral(text)
    say(f"\x1b[2m{text}\x1b[0m" if coloured(sys.stderr) else text, err=True)


def emit_json(value: Any) -> None:
    """One result: indented for a person, one line for a program."""
    say(to_json(value, indent=2 if is_tty() else None))


def emit_json_line(value: Any) -> None:
    """One element of a stream, as JSON Lines."""
    say(to_json(value))


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str = "none") -> None:
    """A table on standard output: rich on a terminal, aligned plain text elsewhere.

    Cells are neutralised and kept on one line. With no rows ``empty`` goes to standard error, so that
    a program reading standard output finds nothing.
    """
    cells = [[one_line("-" if cell is None or cell == "" else cell) for cell in row] for row in rows]
    if not cells:
        note(empty)
        return
    if is_tty():
        _rich_table(headers, cells)
        return
    widths = [max(width(row[i]) for row in [list(headers), *cells]) for i in range(len(headers))]
    for row in [[h.upper() for h in headers], *cells]:
        padded = (cell + " " * (w - width(cell)) for cell, w in zip(row, widths, strict=True))
        say("  ".join(padded).rstrip())


def fields(pairs: Iterable[tuple[str, object]]) -> None:
    """``name  value`` lines, aligned; a value of several lines is indented under its name."""
    shown = [(name, neutral(str(value))) for name, value in pairs if value is not None]
    if not shown:
        return
    pad = max(len(name) for name, _ in shown) + 2
    bold = ("\x1b[1m", "\x1b[0m") if coloured() else ("", "")
    for name, value in shown:
        lines = value.split("\n")
        say(f"{bold[0]}{name}{bold[1]}{' ' * (pad - len(name))}{lines[0]}".rstrip())
        for line in lines[1:]:
            say(" " * pad + line if line else "")


def counts(by_word: Mapping[str, Any]) -> str:
    """``2 active, 1 inactive``, or ``none``."""
    return ", ".join(f"{n} {word}" for word, n in sorted(by_word.items()) if n) or "none"


def dotted(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested definition as TOML's dotted keys: ``restart.policy`` and ``"never"``."""
    pairs: list[tuple[str, str]] = []
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            pairs += dotted(inner, f"{prefix}{key}.")
        elif inner not in (None, (), []):
            pairs.append((f"{prefix}{key}", to_json(inner)))
    return pairs


def _rich_table(headers: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold" if coloured() else "")
    for header in headers:
        drawn.add_column(header, overflow="fold")
    for row in cells:
        # Text, never markup: a cell's own [brackets] are its own.
        drawn.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    console = Console(file=sys.stdout, no_color=not coloured(), highlight=False)
    console.print(drawn)
