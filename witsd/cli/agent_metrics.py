"""``witsd agent metrics`` for a person: a table of what is used, and a few lines on requests and alerts."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from witsd.cli.output import fields, note, say, table
from witsd.cli.text import duration, milliseconds, percent, size, sparkline, when

#: Columns of the course of a figure.
_COURSE = 30
_GAUGES: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("cpu", "cpu_percent", lambda value: f"{percent(value)}%"),
    ("memory", "rss_bytes", size),
    ("processes", "processes", str),
    ("threads", "threads", str),
    ("descriptors", "fds", str),
)
_TOTALS = (("read", "read_bytes"), ("written", "write_bytes"))


def show_metrics(name: str, found: dict[str, Any], window_s: float) -> None:
    """``found`` is the answer of ``agents/metrics``."""
    samples = found["samples"]
    if "current" in found:
        drawn = _can_draw()
        rows = []
        for label, field, shown in _GAUGES:
            row = [label, *(shown(found[which][field]) for which in ("current", "average", "peak"))]
            rows.append([*row, sparkline([sample[field] for sample in samples], _COURSE)] if drawn else row)
        for label, field in _TOTALS:
            rows.append([label, size(found["current"][field]), *[""] * (3 if drawn else 2)])
        table(["", "now", "average", "peak", *([f"last {duration(window_s)}"] if drawn else [])], rows)
        say()
    else:
        note(f"{name} was not measured in the last {duration(window_s)}: it had no process, or sampling is off")
    asked = found["requests"]
    told = f"none in the last {duration(asked['window_s'])}"
    if asked["count"]:
        told = (
            f"{asked['count']} in the last {duration(asked['window_s'])}, {asked['errors']} failed "
            f"({percent(100 * asked['error_rate'])}%), mean {milliseconds(asked['mean_ms'])}, "
            f"p95 {milliseconds(asked['p95_ms'])}"
        )
    alerts = [
        f"{alert['alert']} {alert['value']:g}, threshold {alert['threshold']:g}, since {when(alert['since'])}"
        for alert in found["alerts"]
    ]
    fields([("requests", told), ("alerts", "\n".join(alerts) or "none")])


def _can_draw() -> bool:
    try:
        sparkline([1, 0], 2).encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
