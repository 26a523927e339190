"""Text from agents and models made safe for a terminal, and figures made readable. Imports nothing heavy."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

#: C0 controls become their Unicode pictures; DEL and C1 (0x9b is a one-byte escape sequence) become ``\x9b``.
_CONTROLS: dict[int, str] = {
    **{c: chr(0x2400 + c) for c in range(0x20) if chr(c) not in "\n\t"},
    0x7F: "\u2421",
    **{c: f"\\x{c:02x}" for c in range(0x80, 0xA0)},
    # What turns the order of letters round can make a line say another thing than it does.
    **{c: f"\\u{c:04x}" for c in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))},
}
_BARS = "▁▂▃▄▅▆▇█"
#: What ``json.dumps`` leaves raw although a terminal acts on it. Inside JSON these occur in strings only.
_JSON_CONTROLS: dict[int, str] = {c: f"\\u{c:04x}" for c in range(0x7F, 0xA0)}


def neutral(text: str) -> str:
    """``text`` with every terminal control but newline and tab made visible, so that none can act."""
    return text.replace("\r\n", "\n").translate(_CONTROLS)


def one_line(value: object, limit: int = 0) -> str:
    """``value`` neutralised on a single line, cut to ``limit`` characters when that is over 0."""
    line = neutral(" ".join(str(value).split()))
    return line if not limit or len(line) <= limit else line[: limit - 1] + "…"


class Neutralizer:
    """``neutral`` for text that comes in pieces: a CR LF cut in two is still one line end."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, piece: str) -> str:
        piece = self._held + piece
        self._held = "\r" if piece.endswith("\r") else ""
        return neutral(piece.removesuffix("\r"))

    def end(self) -> str:
        """What was held back at the end of the text."""
        rest, self._held = self._held, ""
        return neutral(rest)


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON that is safe to print: no raw control character, whatever the strings contain."""
    return json.dumps(value, ensure_ascii=False, indent=indent).translate(_JSON_CONTROLS)


def width(text: str) -> int:
    """Terminal columns ``text`` takes: wide characters count two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def size(count: float | None) -> str:
    """Bytes for people: ``1.5 MB``; powers of 1000."""
    if count is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def milliseconds(value: float) -> str:
    """``340ms``, ``1.2s``, ``3m``: five characters at most."""
    if value < 999.5:
        return f"{value:.0f}ms"
    return f"{value / 1000:.1f}s" if value < 60_000 else duration(value / 1000).split()[0]


def percent(value: float) -> str:
    """``12.3``, ``250``: five characters at most."""
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def sparkline(values: Sequence[float], columns: int) -> str:
    """The course of ``values`` (none below 0) from zero to the highest, in at most so many characters.

    Where there are more values than that, each character stands for the highest of several.
    """
    if not values:
        return ""
    columns = min(columns, len(values))
    parts = [values[n * len(values) // columns : (n + 1) * len(values) // columns] for n in range(columns)]
    highest = max(values) or 1
    return "".join(_BARS[min(len(_BARS) - 1, round(max(part) / highest * (len(_BARS) - 1)))] for part in parts)


def duration(seconds: float) -> str:
    """``4s``, ``12m``, ``3h 5m``, ``2d 4h``: at most two units."""
    whole = int(max(seconds, 0))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m"
    if whole < 86_400:
        hours, minutes = whole // 3600, whole % 3600 // 60
        return f"{hours}h {minutes}m" if minutes else f"{hours}h"
    days, hours = whole // 86_400, whole % 86_400 // 3600
    return f"{days}d {hours}h" if hours else f"{days}d"


def _parse(timestamp: str) -> datetime | None:
    try:
        return datetime.fromisoformat(timestamp).astimezone()
    except ValueError:
        return None


def when(timestamp: str | None, now: datetime | None = None) -> str:
    """An RFC 3339 time as local time and how long ago: ``2026-01-31 10:05:07 (3m ago)``."""
    if not timestamp:
        return "-"
    moment = _parse(timestamp)
    if moment is None:
        return one_line(timestamp)
    ago = ((now or datetime.now(UTC)) - moment).total_seconds()
    relative = f"{duration(ago)} ago" if ago >= 0 else f"in {duration(-ago)}"
    return f"{moment:%Y-%m-%d %H:%M:%S} ({relative})"


def clock_time(timestamp: str) -> str:
    """Local time of day with milliseconds, for lines of a log."""
    moment = _parse(timestamp)
    return one_line(timestamp) if moment is None else f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03d}"


def spent(figures: dict[str, Any] | None) -> str | None:
    """What was used of models, or may be yet: ``12 calls, 340 tokens, $0.05``; None where nothing is said."""
    if not figures:
        return None
    words = [
        f"{figures[key]:,} {word}" for key, word in (("calls", "calls"), ("tokens", "tokens")) if key in figures
    ]
    if "cost_usd" in figures:
        words.append(f"${figures['cost_usd']:,.4f}".rstrip("0").rstrip("."))
    if "wall_s" in figures:
        words.append(duration(figures["wall_s"]))
    return ", ".join(words) or None
