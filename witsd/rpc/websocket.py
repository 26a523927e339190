"""Messages over a WebSocket. trio-websocket reads, and answers what is not a message; we write ours ourselves.

What a server sends is a few bytes of head and the text as it is (RFC 6455, 5.2: not masked, here never
fragmented). Written by us, an answer takes no lock, no turn of the loop and no other task on its way, and
a backlog is one write.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection

from witsd.rpc.codec import batch as batch_array
from witsd.rpc.framing import CHUNK, SHOWN, Incoming, Oversize, Refused

#: A backlog goes out in arrays of at most this many messages and bytes.
_ARRAY_MESSAGES = 500
_ARRAY_BYTES = 256 * 1024


class Wire(trio.abc.HalfCloseableStream):
    """The stream below a WebSocket, shared by two that send: each send is whole before the next begins.

    ``fd`` is the descriptor of the socket, for ``try_write``; -1 where there is none.
    """

    def __init__(self, inner: trio.abc.HalfCloseableStream, fd: int) -> None:
        self._inner = inner
        #: -1 once closed: a descriptor's number may be another's by then.
        self._fd = fd
        self._tail = b""
        self._lock = trio.StrictFIFOLock()

    def try_write(self, data: bytes) -> bool:
        """Write without waiting; False when ``send_all`` must do it. What did not fit goes before what is next."""
        if self._fd < 0 or self._tail or self._lock.locked():
            return False
        try:
            sent = os.write(self._fd, data)
        except OSError:
            return False  # full, or gone: send_all finds out which
        self._tail = data[sent:]
        return True

    @property
    def unsent(self) -> bool:
        return bool(self._tail)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        async with self._lock:
            tail, self._tail = self._tail, b""
            if tail:
                await self._inner.send_all(tail)
            await self._inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._inner.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self._inner.receive_some(max_bytes))

    async def aclose(self) -> None:
        self._fd = -1
        await self._inner.aclose()


class WebSocketMessages:
    """One JSON text each, a backlog as batch arrays. ``wire`` is the stream that ``ws`` runs on."""

    batches = True

    def __init__(self, ws: WebSocketConnection, wire: Wire, *, limit: int) -> None:
        self._ws = ws
        self._wire = wire
        self._limit = limit
        self._sending: trio.CancelScope | None = None

    async def receive(self) -> list[Incoming] | None:
        try:
            message = await self._ws.get_message()
        except ConnectionClosed:
            return None
        if not isinstance(message, str):
            return [Refused("send JSON as text messages, not as binary ones")]
        data = message.encode()
        if len(data) > self._limit:
            return [Oversize(len(data), data[:SHOWN])]
        return [data]

    async def send_all(self, messages: Sequence[bytes], *, batch: bool = False, stall_s: float = 30) -> None:
        texts = _arrays(messages) if batch and len(messages) > 1 else messages
        data = b"".join(map(_frame, texts))
        # A send given up half-way leaves half a frame in the stream, so no cancellation reaches it;
        # its own deadline does.
        allowed = stall_s * (1 + len(data) // CHUNK)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + allowed) as self._sending:
            if self._ws.closed is not None:
                raise trio.BrokenResourceError("the WebSocket is closed")
            await self._wire.send_all(data)
        if self._sending.cancelled_caught:
            raise trio.TooSlowError
        await trio.lowlevel.checkpoint_if_cancelled()

    def try_send(self, message: bytes) -> bool:
        return self._ws.closed is None and self._wire.try_write(_frame(message))

    @property
    def unsent(self) -> bool:
        return self._wire.unsent

    def hung_up(self) -> bool:
        return True  # a WebSocket has no half-closed state

    def hurry(self) -> None:
        if self._sending is not None:
            self._sending.deadline = min(self._sending.deadline, trio.current_time() + 1)

    async def aclose(self) -> None:
        await self._ws.aclose()


def _frame(text: bytes) -> bytes:
    """A whole text message as a server sends it."""
    size = len(text)
    if size < 126:
        return b"\x81%c%b" % (size, text)
    if size < 1 << 16:
        return b"\x81\x7e%b%b" % (size.to_bytes(2, "big"), text)
    return b"\x81\x7f%b%b" % (size.to_bytes(8, "big"), text)


def _arrays(messages: Sequence[bytes]) -> list[bytes]:
    out: list[bytes] = []
    part: list[bytes] = []
    size = 0
    for message in messages:
        if part and (len(part) >= _ARRAY_MESSAGES or size + len(message) > _ARRAY_BYTES):
            out.append(batch_array(part))
            part, size = [], 0
        part.append(message)
        size += len(message)
    out.append(batch_array(part) if len(part) > 1 else part[0])
    return out
