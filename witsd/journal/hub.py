"""Where committed events become visible: one ring in memory that every live reader walks at its own pace.

There is no queue for each subscriber. A reader holds an index into the ring; publishing costs the same
for one reader and for a thousand, memory is bounded once for all, and a reader that the ring has
overtaken knows that it lags.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import trio

from witsd.journal.event import Event

#: Bounds of the ring. 16 MiB of events is seconds at the highest rate the journal reaches.
MAX_EVENTS = 16_384
MAX_BYTES = 16 << 20


class Hub:
    """The ring. Slots are numbered from 0 for ever; ``start`` is the oldest still held, ``end`` the next."""

    def __init__(self, pos: int, max_events: int = MAX_EVENTS, max_bytes: int = MAX_BYTES) -> None:
        self._ring: list[Event | None] = [None] * max_events
        self._size = max_events
        self._max_bytes = max_bytes
        self._bytes = 0
        self._first_pos = pos + 1
        self._published = trio.Event()
        self.start = 0
        self.end = 0
        #: The position of the last event published.
        self.pos = pos

    def publish(self, events: Sequence[Event]) -> None:
        """Make events visible, dropping the oldest where a bound is reached."""
        if not events:
            return
        ring, size = self._ring, self._size
        for event in events:
            if self.end - self.start == size:
                self._drop()
            ring[self.end % size] = event
            self.end += 1
            self._bytes += len(event.data)
            if event.pos:
                self.pos = event.pos
        while self._bytes > self._max_bytes and self.start < self.end - 1:
            self._drop()
        self._published.set()
        self._published = trio.Event()

    def _drop(self) -> None:
        slot = self.start % self._size
        event = self._ring[slot]
        assert event is not None
        self._ring[slot] = None
        self._bytes -= len(event.data)
        if event.pos:
            self._first_pos = event.pos + 1
        self.start += 1

    def index_after(self, pos: int) -> int | None:
        """The slot of the first event after ``pos``; None where the ring no longer reaches back that far."""
        if pos + 1 < self._first_pos:
            return None
        low, high = self.start, self.end
        # Ephemeral events carry no position: walk back from the end past what is newer.
        while high > low:
            event = self._ring[(high - 1) % self._size]
            assert event is not None
            if event.pos and event.pos <= pos:
                break
            high -= 1
        return high

    def slice(self, start: int, end: int) -> Iterator[Event]:
        """The events in slots ``start`` to ``end - 1``, which must be held."""
        ring, size = self._ring, self._size
        for slot in range(start, end):
            event = ring[slot % size]
            assert event is not None
            yield event

    def rewrite(self, data: Mapping[int, bytes]) -> None:
        """Replace the data of events still held, by position: what was blotted out is not shown from here either."""
        for slot in range(self.start, self.end):
            event = self._ring[slot % self._size]
            assert event is not None
            changed = data.get(event.pos)
            if changed is not None:
                self._bytes += len(changed) - len(event.data)
                event.data = changed
                event._wire = None

    async def wait(self) -> None:
        """Return when something has been published after this call."""
        await self._published.wait()
