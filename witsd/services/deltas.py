"""Coalescing: text that arrives within a tick becomes one ``item.delta`` for each item.

One ticker serves all runs. It sleeps while nothing streams. What agents have said meanwhile is read when the
tick begins, of all agents in one turn of the loop: waking up for each line of each of them costs more than
all the rest of its way (a hundred agents with fifty lines a second: 0.4 of a core, instead of 0.3).
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
#: Turns of the loop from the moment readers are woken until they have read: awake, scheduled again, read.
_TURNS_TO_READ = 3

_encode = msgspec.json.Encoder().encode


@attrs.define(eq=False)
class Deltas:
    """Text on its way into the journal, by run and item."""

    _journal: Journal
    _pending: dict[tuple[str, str], list[str]] = attrs.field(factory=dict)
    #: The agents it comes from.
    _streaming: set[str] = attrs.field(factory=set)
    _armed: trio.Event = attrs.field(factory=trio.Event)
    _ticked: trio.Event = attrs.field(factory=trio.Event)

    async def wait_tick(self, agent: str) -> None:
        """For an agent with text pending, return when the next tick begins; for any other at once.

        Between two reads of an agent's output: what is read on return goes along with that tick.
        """
        if agent in self._streaming:
            self._armed.set()
            await self._ticked.wait()

    def add(self, agent: str, run_id: str, item_id: str, text: str) -> None:
        self._streaming.add(agent)
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
            self._streaming.clear()
            self._ticked.set()
            self._ticked = trio.Event()
            for _ in range(_TURNS_TO_READ):
                await trio.lowlevel.checkpoint()
            pending, self._pending = self._pending, {}
            for (run_id, item_id), parts in pending.items():
                self._journal.append_nowait(_delta(run_id, item_id, parts))


def _delta(run_id: str, item_id: str, parts: list[str]) -> Entry:
    data = ItemDeltaData(run_id=run_id, item_id=item_id, text="".join(parts))
    return Entry(f"run:{run_id}", "item.delta", _encode(data))
