"""TOML as people write it: read with every mistake named, and the line found on which a key stands."""

from __future__ import annotations

import re
import tomllib
from typing import Any

_SYNTAX = re.compile(r" \(at line (\d+), column \d+\)$")
_HEADER = re.compile(r"^\s*(\[{1,2})([^\[\]]+)\]{1,2}\s*(?:#.*)?$")
_KEY = re.compile(r"""^\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")
_PART = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")


class TomlError(ValueError):
    """The text is no TOML; ``line`` says where, from 1, and the message why."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


def parse(text: str) -> dict[str, Any]:
    """The table that ``text`` is. Raises ``TomlError``."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise TomlError(0, "nested too deeply") from None
    except ValueError as error:  # also what int() and datetime say of values that nobody can mean
        found = _SYNTAX.search(str(error))
        line = int(found[1]) if found else len(text.splitlines()) if "end of document" in str(error) else 0
        raise TomlError(line, _SYNTAX.sub("", str(error))) from None


def line_of(text: str, path: str) -> int:
    """The line, from 1, of the key at ``path`` (``restart.policy``, ``skills[0].name``), else of the nearest
    table or key around it; 0 where nothing of it is in the text."""
    keys = tuple(key for key in re.split(r"[.\[\]]+", path) if key and key != "...")
    table: tuple[str, ...] = ()
    counts: dict[tuple[str, ...], int] = {}
    best, depth = 0, 0
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = _parts(header[2])
            if header[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
                table = (*table, str(counts[table]))
            here = table
        elif key := _KEY.match(line):
            here = (*table, *_parts(key[1]))
        else:
            continue
        if keys and here == keys:
            return number
        if len(here) > depth and here == keys[: len(here)]:
            best, depth = number, len(here)
    return best


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in _PART.findall(dotted))
