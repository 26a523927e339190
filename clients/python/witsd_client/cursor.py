"""Where a subscription stands, and how it goes on from there: pure, so that it can be tested to death.

Several streams by name are replayed one after the other, out of the order of ``pos``. So until the first
event that lies beyond the position the subscription began at (then all that was missed has come), a resume
must start where the last one did; what comes twice is dropped by its ``seq``. From then on, and for any
other subscription from the start, ``pos`` alone leads back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from msgspec import UNSET

from witsd_client.generated import Event, EventsSubscribeResult

#: Streams whose last seq is remembered. The oldest goes first; ``pos`` still tells what came twice.
MAX_STREAMS = 10_000


class Verdict(Enum):
    """What an event is to a reader that has applied everything before it."""

    NEXT = "next"
    DUPLICATE = "duplicate"
    GAP = "gap"


def is_exact(pattern: str) -> bool:
    """Whether a stream pattern names one stream."""
    return not any(character in pattern for character in "*?[")


class Cursor:
    """The position of one subscription, across as many connections as it takes."""

    def __init__(
        self,
        streams: Sequence[str],
        since: Mapping[str, int] | None,
        *,
        epoch: str | None = None,
        contiguous: bool = True,
    ) -> None:
        """``contiguous`` is False where a filter by type leaves holes in every stream."""
        exact = all(map(is_exact, streams))
        logs = [stream for stream in streams if stream.startswith("log:")]
        if logs and not exact:
            raise ValueError("a log is followed by its name, and not together with patterns")
        # Log lines have no position: such a subscription goes on from its seqs, whatever else is in it.
        self._by_seq = bool(logs)
        # Only several streams by name are replayed one after the other.
        self._ordered = not exact or len(streams) == 1
        self._contiguous = contiguous
        self._since = dict(since) if since is not None else None
        self._start_pos = 0
        self._pos: int | None = None
        self._last: dict[str, int] = {}
        self._began = False
        self.epoch = epoch
        if since is not None and "pos" not in since:
            self._last.update(since)

    @property
    def pos(self) -> int | None:
        """The position of the last event, once the replay is behind."""
        return self._pos

    @property
    def last(self) -> Mapping[str, int]:
        """Stream -> the last seq applied."""
        return self._last

    def since(self) -> dict[str, int] | None:
        """The ``since`` with which to subscribe (again). None: from now on."""
        if not self._began:
            return self._since
        if self._by_seq:
            return {**(self._since or {}), **self._last}
        if self._pos is not None:
            return {"pos": self._pos}
        if self._since is None:
            return {"pos": self._start_pos}
        if "pos" in self._since:
            return self._since
        return {stream: self._last.get(stream, seq) for stream, seq in self._since.items()}

    def begin(self, result: EventsSubscribeResult, since: Mapping[str, int] | None) -> None:
        """Take in the answer to a subscription made with ``since``."""
        self._began = True
        self._start_pos = result.pos
        self.epoch = result.epoch
        self._pos = None
        if since is None or result.resync:
            self._since, self._last = None, dict(result.cursors)
            return
        self._since = dict(since)
        if "pos" not in since:
            # Streams that were not asked for from a seq begin where they end now.
            self._last = {**result.cursors, **self._last, **since}
        elif self._ordered:
            self._start_pos = self._pos = since["pos"]

    def judge(self, event: Event) -> Verdict:
        """Say what ``event`` is, and step over it when it is the next one."""
        if event.seq is UNSET:
            return Verdict.NEXT  # of the moment: it is not counted
        stream, seq = event.stream, event.seq
        last = self._last.get(stream)
        if last is not None:
            if seq <= last:
                return Verdict.DUPLICATE
            first = seq if event.first_seq is UNSET else event.first_seq
            if self._contiguous and first > last + 1:
                return Verdict.GAP
        if event.pos is not UNSET:
            if last is None and self._pos is not None and event.pos <= self._pos:
                return Verdict.DUPLICATE
            if event.pos > self._start_pos:
                self._pos = max(self._pos or 0, event.pos)
        if last is not None:
            del self._last[stream]  # the latest stands last
        elif len(self._last) >= MAX_STREAMS and not self._by_seq:
            del self._last[next(iter(self._last))]
        self._last[stream] = seq
        return Verdict.NEXT

    def lagged(self, pos: int) -> None:
        """The daemon has sent everything up to ``pos`` and then given up on this subscription."""
        if pos > self._start_pos and not self._by_seq:
            self._pos = max(self._pos or 0, pos)

    def forget(self) -> None:
        """Start over from now: the next ``since`` is None."""
        self._since, self._pos, self._began, self.epoch = None, None, False, None
        self._last.clear()


def subscribe_params(
    streams: Sequence[str],
    types: Sequence[str] | None,
    since: Mapping[str, int] | None,
    epoch: str | None,
    snapshot: bool,
) -> dict[str, Any]:
    """The params of ``events/subscribe``."""
    params: dict[str, Any] = {"streams": list(streams)}
    if types is not None:
        params["types"] = list(types)
    if since is not None:
        params["since"] = dict(since)
        if epoch is not None:
            params["epoch"] = epoch
    if snapshot:
        params["snapshot"] = True
    return params
