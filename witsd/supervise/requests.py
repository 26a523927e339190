"""What an agent's requests took and how many failed, over the last minutes, in bounded memory.

Durations are counted in histograms with buckets that grow by the fourth root of two, one for each twenty
seconds: 7 KB an agent, nothing for one without requests. A p95 of fewer than twenty requests is exact (the longest),
else off by at most 9 %; by 19 % where the mean lies in its bucket, since it is not said to be below that by rounding.
"""

from __future__ import annotations

import math
from array import array

import attrs
import msgspec

#: Seconds a slot stands for, and how many are kept: five minutes.
SLOT_S, SLOTS = 20, 15
#: Buckets for each doubling; the first holds what is under a millisecond, the last what is over 1.2 hours.
_PER_OCTAVE, _BUCKETS = 4, 90


class RequestFigures(msgspec.Struct, frozen=True, kw_only=True):
    """``window_s`` is what these cover: not more than is kept. Without requests the times and the rate are 0."""

    count: int
    errors: int
    error_rate: float
    mean_ms: float
    p95_ms: float
    window_s: float


class _Slots:
    """All slots of one agent in a few arrays: as objects they would be three times as large."""

    __slots__ = ("buckets", "counts", "errors", "longest_ms", "numbers", "sums_ms")

    def __init__(self) -> None:
        self.numbers = array("q", [-1] * SLOTS)
        self.counts = array("Q", [0] * SLOTS)
        self.errors = array("Q", [0] * SLOTS)
        self.sums_ms = array("d", [0.0] * SLOTS)
        self.longest_ms = array("d", [0.0] * SLOTS)
        self.buckets = array("I", [0] * (SLOTS * _BUCKETS))

    def clear(self, slot: int, number: int) -> None:
        self.numbers[slot] = number
        self.counts[slot] = self.errors[slot] = 0
        self.sums_ms[slot] = self.longest_ms[slot] = 0.0
        self.buckets[slot * _BUCKETS : (slot + 1) * _BUCKETS] = array("I", [0] * _BUCKETS)


@attrs.define(eq=False)
class Requests:
    """The requests of one agent. ``total_*`` count since it was made and never fall."""

    total_count: int = 0
    total_errors: int = 0
    total_ms: float = 0.0
    _slots: _Slots | None = None

    def record(self, duration_ms: float, error: bool, now: float) -> None:
        """One request that has just ended. ``now``: seconds that only grow."""
        duration_ms = max(0.0, duration_ms)
        slots = self._slots
        if slots is None:
            slots = self._slots = _Slots()
        number = int(now // SLOT_S)
        slot = number % SLOTS
        if slots.numbers[slot] != number:
            slots.clear(slot, number)
        slots.counts[slot] += 1
        slots.errors[slot] += error
        slots.sums_ms[slot] += duration_ms
        slots.longest_ms[slot] = max(slots.longest_ms[slot], duration_ms)
        slots.buckets[slot * _BUCKETS + _bucket(duration_ms)] += 1
        self.total_count += 1
        self.total_errors += error
        self.total_ms += duration_ms

    def figures(self, now: float, window_s: float = SLOT_S * SLOTS) -> RequestFigures:
        """Over the last ``window_s``, in whole slots of which the one that is under way counts as the last."""
        wanted = min(SLOTS, max(1, math.ceil(window_s / SLOT_S)))
        slots = self._slots
        if slots is None:
            return RequestFigures(
                count=0, errors=0, error_rate=0.0, mean_ms=0.0, p95_ms=0.0, window_s=float(wanted * SLOT_S)
            )
        newest = int(now // SLOT_S)
        chosen = [slot for slot in range(SLOTS) if newest - wanted < slots.numbers[slot] <= newest]
        count = sum(slots.counts[slot] for slot in chosen)
        errors = sum(slots.errors[slot] for slot in chosen)
        mean_ms = sum(slots.sums_ms[slot] for slot in chosen) / count if count else 0.0
        return RequestFigures(
            count=count,
            errors=errors,
            error_rate=errors / count if count else 0.0,
            mean_ms=mean_ms,
            p95_ms=_quantile(slots, chosen, count, 0.95, mean_ms),
            window_s=float(wanted * SLOT_S),
        )


def _bucket(duration_ms: float) -> int:
    if duration_ms < 1:
        return 0
    return min(_BUCKETS - 1, 1 + int(math.log2(duration_ms) * _PER_OCTAVE)) if duration_ms < 1e9 else _BUCKETS - 1


def _quantile(slots: _Slots, chosen: list[int], count: int, share: float, mean_ms: float) -> float:
    """The middle (of logarithms) of the bucket in which that many lie at or below, or the mean where that is in the
    upper half of it; the longest where it is less, or where it takes them all.
    """
    if not count:
        return 0.0
    longest = max(slots.longest_ms[slot] for slot in chosen)
    rank, seen = math.ceil(share * count), 0
    if rank == count:
        return longest
    for bucket in range(_BUCKETS - 1):
        seen += sum(slots.buckets[slot * _BUCKETS + bucket] for slot in chosen)
        if seen >= rank:
            middle: float = 2 ** ((bucket - 0.5) / _PER_OCTAVE) if bucket else 0.5
            return min(max(middle, mean_ms) if bucket == _bucket(mean_ms) else middle, longest)
    return longest
