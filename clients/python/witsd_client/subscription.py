"""A subscription that outlives its connection: no gap, no duplicate, and told when it must start over."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

import anyio
import msgspec
from msgspec import Raw, UnsetType

from witsd_client.cursor import Cursor, Verdict, subscribe_params
from witsd_client.errors import ClientError, ConnectionLost, ResyncRequired
from witsd_client.generated import Event, EventsSubscribeResult, Snapshot

if TYPE_CHECKING:
    from witsd_client.client import Client

#: Events a subscription holds for a reader that is busy. Beyond it the rest is fetched again from the
#: journal once the reader has caught up: nothing is lost, and responses never wait behind events.
MAX_QUEUED = 4096
MAX_QUEUED_BYTES = 16 << 20


class Resync(msgspec.Struct, frozen=True, kw_only=True):
    """State instead of history: replace what you know by ``snapshot``; the events that follow come after it.

    ``reason`` is ``snapshot`` where one was asked for, else it says why the history could not go on.
    """

    reason: str
    pos: int
    epoch: str
    cursors: Mapping[str, int]
    snapshot: Snapshot | None


class Subscription:
    """Yields ``Event`` and, where history could not go on, ``Resync``. Made by ``Client.subscribe``.

    Iterate it, from one task. Leaving it by ``break`` is fine; ``aclose`` or ``async with`` ends it at once.
    """

    def __init__(
        self,
        client: Client,
        streams: Sequence[str],
        since: Mapping[str, int] | None,
        epoch: str | None,
        types: Sequence[str] | None,
        snapshot: bool,
    ) -> None:
        self._client = client
        self._streams = tuple(streams)
        self._types = None if types is None else tuple(types)
        self._want_snapshot = snapshot
        self._cursor = Cursor(self._streams, since, epoch=epoch, contiguous=types is None)
        self._queue: deque[tuple[Event | Resync, int]] = deque()
        self._bytes = 0
        self._changed = anyio.Event()
        self._wire_id: str | None = None
        self._live = False
        self._stale_wire_id: str | None = None
        self._gaps = 0
        self._resync_reason: str | None = None
        self._closed = False

    # ---- for the reader -------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event | Resync:
        while True:
            if self._queue:
                item, size = self._queue.popleft()
                self._bytes -= size
                return item
            if self._closed:
                raise StopAsyncIteration
            if not self._live:
                await self.start()
                continue
            self._changed = anyio.Event()
            await self._changed.wait()

    async def start(self) -> None:
        """Subscribe now and not at the first ``async for``: what happens from here on will be yielded.

        Waits for a connection as long as it takes. Raises the ``WitsdError`` the daemon answers.
        """
        while not self._live and not self._closed:
            await self._end_stale()
            if self._gaps > 1:
                # The same hole twice: the journal itself has it, so only the present state helps.
                self._start_over("events are missing from the journal")
            try:
                try:
                    await self._subscribe()
                except ResyncRequired as error:
                    self._start_over(error.message)
                    await self._subscribe()
            except ConnectionLost:
                await self._client.wait_connected()
            else:
                # Not to be tried again here if it has been interrupted since: there is a queue to use up.
                return

    async def aclose(self) -> None:
        """End the subscription; the daemon is told."""
        self._closed = True
        self._changed.set()
        self._queue.clear()
        for wire_id in (self._wire_id, self._stale_wire_id):
            if wire_id is not None:
                self._client.drop_feed(wire_id)
        self._wire_id, self._stale_wire_id, self._live = None, None, False

    @property
    def epoch(self) -> str | None:
        """Which database the events are from. To go on in another process, keep it with an event's ``pos``."""
        return self._cursor.epoch

    # ---- for the client, in its reading task ----------------------------------------------------------

    def put(self, event: Event, size: int) -> None:
        """Take an event off the wire."""
        if len(self._queue) >= MAX_QUEUED or self._bytes > MAX_QUEUED_BYTES:
            self._interrupt()
            return
        verdict = self._cursor.judge(event)
        if verdict is Verdict.NEXT:
            self._gaps = 0
            self._append(event, size)
        elif verdict is Verdict.GAP:
            self._gaps += 1
            self._interrupt()

    def lagged(self, pos: int) -> None:
        """The daemon has ended this subscription; the reader will begin a new one from its cursor."""
        self._cursor.lagged(pos)
        self._wire_id, self._live = None, False
        self._changed.set()

    def disconnected(self) -> None:
        """The connection is gone, and the wire's subscription with it."""
        self._wire_id, self._stale_wire_id, self._live = None, None, False
        self._changed.set()

    # ---- within ---------------------------------------------------------------------------------------

    def _append(self, item: Event | Resync, size: int) -> None:
        self._queue.append((item, size))
        self._bytes += size
        self._changed.set()

    def _interrupt(self) -> None:
        """Stop listening; the reader goes on from the cursor when it has used up what is here."""
        self._stale_wire_id, self._wire_id, self._live = self._wire_id, None, False
        if self._stale_wire_id is not None:
            self._client.forget_feed(self._stale_wire_id)
        self._changed.set()

    async def _end_stale(self) -> None:
        stale, self._stale_wire_id = self._stale_wire_id, None
        if stale is not None:
            try:
                await self._client.call("events/unsubscribe", {"subscription_id": stale})
            except ClientError:
                pass  # it has ended by itself, or with its connection

    def _start_over(self, reason: str) -> None:
        self._gaps = 0
        self._cursor.forget()
        self._resync_reason = reason

    async def _subscribe(self) -> None:
        since = self._cursor.since()
        # Kept until the daemon has answered: a drop in between must not turn a resync into silence.
        reason = self._resync_reason
        snapshot = self._want_snapshot or reason is not None

        def register(raw: Raw) -> None:
            result = msgspec.json.decode(raw, type=EventsSubscribeResult)
            self._cursor.begin(result, since)
            self._wire_id, self._live = result.subscription_id, True
            self._client.add_feed(result.subscription_id, self)
            why = reason
            if why is None and result.resync:
                why = "that part of the journal is no longer kept"
            if why is None and snapshot:
                why = "snapshot"
            if why is not None:
                state = Resync(
                    reason=why,
                    pos=result.pos,
                    epoch=result.epoch,
                    cursors=result.cursors,
                    snapshot=None if isinstance(result.snapshot, UnsetType) else result.snapshot,
                )
                self._append(state, 0)
            self._want_snapshot, self._resync_reason = False, None

        params = subscribe_params(self._streams, self._types, since, self._cursor.epoch, snapshot)
        await self._client.subscribe_call(params, register)

