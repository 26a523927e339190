"""Time as a parameter: nothing below the composition root reads a clock of its own."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol


class Clock(Protocol):
    """Wall time for what people read, monotonic time for every deadline and duration."""

    def wall_us(self) -> int:
        """Microseconds since the epoch, UTC. May jump."""

    def monotonic(self) -> float:
        """Seconds that only grow, also while the wall clock is set back."""


class SystemClock:
    """The machine's own clocks."""

    def wall_us(self) -> int:
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        return time.monotonic()


@lru_cache(maxsize=64)  # events of one batch share their time
def rfc3339(wall_us: int) -> str:
    """``2026-01-31T09:05:07.123456Z``: always UTC, always six decimals, so text order is time order."""
    moment = datetime.fromtimestamp(wall_us // 1_000_000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{wall_us % 1_000_000:06d}Z"
