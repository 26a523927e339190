"""A clock that stands still until it is told."""

from __future__ import annotations

import attrs


@attrs.define(eq=False)
class FakeClock:
    """Both kinds of time; ``forward`` moves them together."""

    wall: int = 1_795_165_507_000_000  # 2026-11-20 09:05:07 UTC
    mono: float = 1000.0

    def wall_us(self) -> int:
        return self.wall

    def monotonic(self) -> float:
        return self.mono

    def forward(self, seconds: float) -> None:
        self.wall += int(seconds * 1_000_000)
        self.mono += seconds
