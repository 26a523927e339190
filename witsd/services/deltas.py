"""Coalescing: text that arrives within a tick becomes one ``item.delta`` for each item.

One ticker serves all runs. It sleeps while nothing streams.
"""

from __future__ import annotations

import attrs
import msgspec
import trio

from witsd.journal.event import Entry
from witsd.journal.journal import Journal
from witsd.values.wire.event_types import ItemDeltaData

#: Long enough to put a model's tokens together, short enough that nobody sees it.
TICK_S = 0.02

_encode = msgspec.json.Encoder().encode


@attrs.define(eq=False)
class Deltas:
    """Text on its way into the journal, by run and item."""

    _journal: Journal
    _pending: dict[tuple[str, str], list[str]] = attrs.field(factory=dict)
    _armed: trio.Event = attrs.field(factory=trio.Event)

    def add(self, run_id: str, item_id: str, text: str) -> None:
        key = (run_id, item_id)
        parts = self._pending.get(key)
        if parts is None:
            self._pending[key] = [text]
            self._armed.set()
        else:
            parts.append(text)

    def flush(self, run_id: str, item_id: str) -> None:
        """Append what is pending for one item now: something about it is about to follow."""
        parts = self._pending.pop((run_id, item_id), None)
        if parts:
            self._journal.append_nowait(_delta(run_id, item_id, parts))

    async def run(self) -> None:
        while True:
            await self._armed.wait()
            await trio.sleep(TICK_S)
            self._armed = trio.Event()
            pending, self._pending = self._pending, {}
            for (run_id, item_id), parts in pending.items():
                self._journal.append_nowait(_delta(run_id, item_id, parts))


def _delta(run_id: str, item_id: str, parts: list[str]) -> Entry:
    data = ItemDeltaData(run_id=run_id, item_id=item_id, text="".join(parts))
    return Entry(f"run:{run_id}", "item.delta", _encode(data))
