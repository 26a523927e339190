"""What waits to be sent on one connection, and the one task that sends it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence

import trio

from witsd.rpc.framing import MessageStream

#: Bytes waiting to be sent. Above, ``wait_room`` waits. Answers are never dropped, so what the requests
#: in flight answer comes on top.
HIGH_WATER = 1 << 20
#: Bytes handed to the transport in one write.
_WRITE_BYTES = 256 * 1024

_log = logging.getLogger("witsd.rpc")


class Outbox:
    """Encoded messages in order. ``run`` sends them; it ends the scope it is given when it cannot."""

    def __init__(self, messages: MessageStream, stall_s: float) -> None:
        self._messages = messages
        self._stall_s = stall_s
        # A list stands for a backlog that goes out as one array.
        self._queue: deque[bytes | list[bytes]] = deque()
        self._bytes = 0
        self._writing = False
        self._ended = False
        self._filled = trio.Event()
        self._room = trio.Event()
        self._empty = trio.Event()

    @property
    def is_full(self) -> bool:
        return self._bytes > HIGH_WATER

    def put(self, message: bytes, *, alone: bool = False) -> None:
        """Queue a message without waiting. ``alone`` when no other is expected within this moment."""
        if self._ended:
            return
        if alone and not self._queue and not self._writing and self._messages.try_send(message):
            # Spared the way through the writer's task. In a crowd one write for many is cheaper.
            if self._messages.unsent:
                self._filled.set()
            return
        self._queue.append(message)
        self._bytes += len(message)
        self._filled.set()

    def put_many(self, messages: Sequence[bytes]) -> None:
        """Queue a backlog without waiting."""
        if self._ended:
            return
        if self._messages.batches and len(messages) > 1:
            self._queue.append(list(messages))
        else:
            self._queue.extend(messages)
        self._bytes += sum(map(len, messages))
        self._filled.set()

    async def wait_room(self) -> None:
        """Wait while full. Raises ``trio.BrokenResourceError`` once nothing is sent any more."""
        while self.is_full and not self._ended:
            await self._room.wait()
        if self._ended:
            raise trio.BrokenResourceError("the connection is over")

    async def wait_empty(self) -> None:
        """Wait until all is handed to the transport, or never will be."""
        while (self._queue or self._writing or self._messages.unsent) and not self._ended:
            await self._empty.wait()

    def end(self) -> None:
        """Send nothing more and wake whoever waits."""
        self._ended = True
        self._queue.clear()
        self._bytes = 0
        self._room.set()
        self._empty.set()

    async def run(self, connection: trio.CancelScope) -> None:
        """Send until cancelled; cancels ``connection`` when the other side is gone or has stalled."""
        queue = self._queue
        try:
            while True:
                await self._filled.wait()
                self._filled = trio.Event()
                self._writing = True
                while queue or self._messages.unsent:
                    sent = await self._send_some()
                    self._bytes -= sent  # not `-= await`, which would forget what was put meanwhile
                    if self._bytes <= HIGH_WATER:
                        self._room.set()
                        self._room = trio.Event()
                self._writing = False
                self._empty.set()
                self._empty = trio.Event()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            connection.cancel()
        except trio.TooSlowError:
            _log.warning("rpc.stalled waiting_bytes=%d", self._bytes)
            connection.cancel()

    async def _send_some(self) -> int:
        queue = self._queue
        some: list[bytes] = []
        size = 0
        while queue and size < _WRITE_BYTES:
            message = queue[0]
            if isinstance(message, list):
                if some:
                    break
                queue.popleft()
                await self._messages.send_all(message, batch=True, stall_s=self._stall_s)
                return sum(map(len, message))
            queue.popleft()
            some.append(message)
            size += len(message)
        await self._messages.send_all(some, stall_s=self._stall_s)
        return size
