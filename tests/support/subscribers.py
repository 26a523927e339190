"""Subscribers without a socket: they hold the real ``Events`` to its word, event by event."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from tests.support.rpc import CountedIds
from witsd.journal.event import Event
from witsd.journal.journal import Journal
from witsd.services.events import Events, open_events
from witsd.values.actor import OWNER
from witsd.values.wire.events import EventsSubscribeParams, EventsSubscribeResult, Snapshot


class NoLogs:
    async def follow(self, stream: str, after_seq: int | None) -> AsyncGenerator[Sequence[Event], None]:
        raise AssertionError("no log was asked for")
        yield ()

    def last_seq(self, stream: str) -> int:
        raise AssertionError("no log was asked for")


@asynccontextmanager
async def events_of(journal: Journal) -> AsyncIterator[Events]:
    """The service on this journal, where everybody may read everything."""
    nothing = Snapshot(agents=(), runs=(), sessions=())
    async with open_events(journal, CountedIds(), NoLogs(), lambda *_: nothing, lambda *_: True) as events:
        yield events


@attrs.define(eq=False)
class Line:
    """One connection in memory. While it is ``shut`` whoever sends waits, as with a client that does not read."""

    take: Callable[[dict[str, Any]], None]
    shut: bool = False
    gone: bool = False
    _changed: trio.Event = attrs.field(factory=trio.Event)
    _callbacks: list[Callable[[], None]] = attrs.field(factory=list)
    #: Batches that are waiting to be let through.
    waiting: int = 0

    async def send(self, message: bytes) -> None:
        await self.send_many([message])

    async def send_many(self, messages: Sequence[bytes]) -> None:
        self.waiting += 1
        try:
            await trio.lowlevel.checkpoint()
            while self.shut and not self.gone:
                await self._changed.wait()
        finally:
            self.waiting -= 1
        if self.gone:
            raise trio.BrokenResourceError
        for message in messages:
            self.take(json.loads(message))

    def on_close(self, callback: Callable[[], None]) -> None:
        if self.gone:
            callback()
        else:
            self._callbacks.append(callback)

    def set_shut(self, shut: bool) -> None:
        self.shut = shut
        self._changed.set()
        self._changed = trio.Event()

    def drop(self) -> None:
        self.gone = True
        self._changed.set()
        for callback in self._callbacks:
            callback()


@attrs.define(eq=False)
class Reader:
    """A client that keeps only what the protocol tells it to keep: the last seq of each stream, or a ``pos``.

    Every event must be the next one of its stream. It comes back ``by`` ``seq`` (streams by name) or ``pos``.
    """

    events: Events
    streams: tuple[str, ...]
    by: str
    last: dict[str, int] = attrs.field(factory=dict)
    pos: int = 0
    line: Line | None = None
    lagged: dict[str, Any] | None = None
    result: EventsSubscribeResult | None = None
    got: list[dict[str, Any]] = attrs.field(factory=list)
    moments: int = 0
    _id: str = ""
    _heard: trio.Event = attrs.field(factory=trio.Event)

    async def subscribe(self, *, shut: bool = False, answered: trio.Event | None = None) -> EventsSubscribeResult:
        """Subscribe from where this reader stands, on a new connection. Raises what the service raises.

        The subscription begins once ``answered`` is set: at once unless the caller brings it.
        """
        assert not self.live
        since = {s: self.last.get(s, 0) for s in self.streams} if self.by == "seq" else {"pos": self.pos}
        line = Line(self._take, shut)
        begin = trio.Event() if answered is None else answered
        params = EventsSubscribeParams(streams=self.streams, since=since, epoch="e")
        self.result = await self.events.subscribe(OWNER, params, line, begin)
        self.line, self.lagged, self._id = line, None, self.result.subscription_id
        if answered is None:
            begin.set()
        return self.result

    @property
    def live(self) -> bool:
        return self.line is not None and self.lagged is None

    def drop(self) -> None:
        """The connection breaks; what was on its way is lost."""
        if self.line is not None:
            self.line.drop()
        self.line, self.lagged = None, None

    def start_at(self, last: dict[str, int], pos: int) -> None:
        """Take over a state as from a snapshot."""
        self.last, self.pos = last, pos

    def _take(self, message: dict[str, Any]) -> None:
        params = message["params"]
        assert params["subscription_id"] == self._id, "nothing comes from a subscription that is over"
        assert self.lagged is None, "nothing comes after lagged"
        if message["method"] == "notifications/lagged":
            self.lagged = params
            if self.by == "pos":
                assert params["pos"] >= self.pos, "it takes nobody back to what has come"
                self.pos = params["pos"]
        else:
            assert message["method"] == "notifications/event"
            self._event(params)
        self._heard.set()
        self._heard = trio.Event()

    def _event(self, event: dict[str, Any]) -> None:
        if "seq" not in event:
            self.moments += 1
            return
        stream, seq = event["stream"], event["seq"]
        first = event.get("first_seq", seq)
        last = self.last.get(stream, 0)
        assert first <= last + 1 <= seq, f"{stream} {first}..{seq} after {last}"
        self.last[stream] = seq
        if self.by == "pos":
            assert event["pos"] > self.pos, f"{event['pos']} after {self.pos}"
            self.pos = event["pos"]
        self.got.append(event)

    async def until(self, there: Callable[[], bool]) -> None:
        """Wait until ``there``, or until it lags."""
        while not there() and self.lagged is None:
            await self._heard.wait()
