"""Where one message ends and the next begins: lines, ``Content-Length`` headers. For WebSocket see there.

``Framer`` decides on bytes alone and does no I/O; ``MessageStream`` is what the peer talks to. Input is
bounded: what is longer than the limit is skipped, and one ``Oversize`` stands in its place.
"""

from __future__ import annotations

import os
import select
from collections.abc import Sequence
from typing import Protocol

import attrs
import msgspec
import trio

_BLANK = b" \t\r\n"
#: Bytes read, or written and timed, at once.
CHUNK = 65536
#: A head of ``Content-Length`` framing is this long at most.
_HEAD_BYTES = 8192
#: What is kept of a message that is too long, so that a log can show how it began.
SHOWN = 200


@attrs.frozen
class Oversize:
    """Stands for a message beyond the limit, as soon as it is known to be; its bytes are skipped."""

    size: int = attrs.field(eq=False)
    head: bytes = attrs.field(eq=False, default=b"")


class Truncated(msgspec.Struct, frozen=True):
    """The input ended within a message, or its framing is broken: nothing more can be read."""

    reason: str


class Refused(msgspec.Struct, frozen=True):
    """A message that is no text; the connection goes on."""

    reason: str


Incoming = bytes | Oversize | Truncated | Refused


class MessageStream(Protocol):
    """Messages over some transport. One task receives, one sends."""

    #: Whether ``send_all(batch=True)`` makes one array of a backlog.
    batches: bool

    async def receive(self) -> list[Incoming] | None:
        """What has arrived, at least one; None at the end. Raises ``trio.BrokenResourceError``."""

    async def send_all(self, messages: Sequence[bytes], *, batch: bool = False, stall_s: float = 30) -> None:
        """Send messages in order.

        Raises ``trio.TooSlowError`` when nothing moves for ``stall_s`` and ``trio.BrokenResourceError``
        when the other side is gone; the stream is of no more use after either.
        """

    def try_send(self, message: bytes) -> bool:
        """Send without waiting, where that is cheap; False when ``send_all`` must do it.

        Only while no ``send_all`` is under way. What it could not send at once is ``unsent``.
        """

    @property
    def unsent(self) -> bool:
        """Whether ``try_send`` left a part behind, which the next ``send_all`` begins with."""

    def hung_up(self) -> bool:
        """After the end of input: whether the other side cannot hear an answer any more either."""

    def hurry(self) -> None:
        """The connection is ending: a send that cannot be cancelled gets one more second."""

    async def aclose(self) -> None:
        """Close; waits for the other side only as long as a caller lets it."""


class Framer:
    """Bytes in, messages out, for one direction of one stream.

    The first byte that is no blank decides: ``C`` begins ``Content-Length`` headers, all else lines.
    """

    def __init__(self, limit: int, *, newline_only: bool = False) -> None:
        self.limit = limit
        #: None until the first byte has told.
        self.headers: bool | None = False if newline_only else None
        self._buffer = bytearray()
        self._body: int | None = None
        self._skip = 0
        self._skipping_line = False
        self._broken = False

    def feed(self, data: bytes) -> list[Incoming]:
        """The messages that ``data`` completes."""
        if self.headers is None:
            data = data.lstrip(_BLANK)
            if not data:
                return []
            self.headers = data[:1] in b"Cc"
        return self._feed_headers(data) if self.headers else self._feed_lines(data)

    @property
    def broken(self) -> bool:
        """Whether the framing cannot be made out any more."""
        return self._broken

    def end(self) -> list[Incoming]:
        """What the end of input completes: a last line without a newline, or a message cut short."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        if self._broken or self._skipping_line:
            return []
        if not self.headers:
            return [rest] if rest and not rest.isspace() else []
        if self._skip or self._body is not None or rest.strip(_BLANK):
            return [Truncated("the input ended within a message")]
        return []

    # ---- lines ------------------------------------------------------------------------------------------

    def _feed_lines(self, data: bytes) -> list[Incoming]:
        out: list[Incoming] = []
        if self._skipping_line:
            cut = data.find(b"\n")
            if cut < 0:
                return out
            self._skipping_line = False
            data = data[cut + 1 :]
        lines = data.split(b"\n")
        buffer = self._buffer
        limit = self.limit
        if buffer:
            if len(lines) == 1:
                self._keep(data, out)
                return out
            if len(buffer) + len(lines[0]) > limit:
                out.append(Oversize(len(buffer) + len(lines[0]), bytes(buffer[:SHOWN])))
                buffer.clear()
            else:
                buffer += lines[0]
                if not buffer.isspace():
                    out.append(bytes(buffer))
                buffer.clear()
            del lines[0]
        rest = lines.pop()
        for line in lines:
            if len(line) > limit:
                out.append(Oversize(len(line), line[:SHOWN]))
            elif line and not line.isspace():
                out.append(line)
        if rest:
            self._keep(rest, out)
        return out

    def _keep(self, part: bytes, out: list[Incoming]) -> None:
        """Keep the beginning of a line, or give it up once it is too long."""
        buffer = self._buffer
        if len(buffer) + len(part) > self.limit:
            out.append(Oversize(len(buffer) + len(part), bytes(buffer[:SHOWN]) or part[:SHOWN]))
            buffer.clear()
            self._skipping_line = True
        else:
            buffer += part

    # ---- Content-Length ---------------------------------------------------------------------------------

    def _feed_headers(self, data: bytes) -> list[Incoming]:
        out: list[Incoming] = []
        if self._broken:
            return out
        if self._skip:
            dropped = min(self._skip, len(data))
            self._skip -= dropped
            data = data[dropped:]
        buffer = self._buffer
        buffer += data
        while buffer:
            if self._body is None:
                end = buffer.find(b"\r\n\r\n", 0, _HEAD_BYTES)
                if end < 0:
                    if len(buffer) >= _HEAD_BYTES:
                        self._give_up(f"a head longer than {_HEAD_BYTES} bytes", out)
                    return out
                length = _content_length(bytes(buffer[:end]))
                del buffer[: end + 4]
                if length is None:
                    self._give_up("a head without a valid Content-Length", out)
                    return out
                if length > self.limit:
                    out.append(Oversize(length, bytes(buffer[: min(SHOWN, length)])))
                    self._skip = max(0, length - len(buffer))
                    del buffer[:length]
                    continue
                self._body = length
            if len(buffer) < self._body:
                return out
            message = bytes(buffer[: self._body])
            del buffer[: self._body]
            self._body = None
            out.append(message)
        return out

    def _give_up(self, reason: str, out: list[Incoming]) -> None:
        self._broken = True
        self._buffer.clear()
        out.append(Truncated(reason))

    # ---- out --------------------------------------------------------------------------------------------

    def frame(self, messages: Sequence[bytes]) -> bytes:
        """Messages as they go out, framed as the other side frames its own."""
        if self.headers:
            return b"".join([b"Content-Length: %d\r\n\r\n%b" % (len(m), m) for m in messages])
        data = b"\n".join(messages)
        if data.count(b"\n") >= len(messages):
            # Raw JSON passed on as it came may be spread over lines; there a newline is only space.
            data = b"\n".join([m.replace(b"\n", b" ") for m in messages])
        return data + b"\n"


def _content_length(head: bytes) -> int | None:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            value = value.strip()
            # isdigit: int() would also take "+5" and "1_0"
            return int(value) if value.isdigit() and len(value) < 19 else None
    return None


class ByteStreamMessages:
    """Messages over a byte stream: a socket, or an agent's pipes (``newline_only``)."""

    batches = False

    def __init__(self, stream: trio.abc.Stream, *, limit: int, newline_only: bool = False) -> None:
        self._stream = stream
        self._framer = Framer(limit, newline_only=newline_only)
        self._ended = False
        self._tail = b""
        self._socket = stream.socket if isinstance(stream, trio.SocketStream) else None
        #: -1 once closed: a descriptor's number may be another's by then.
        self._fd = -1 if self._socket is None else self._socket.fileno()

    async def receive(self) -> list[Incoming] | None:
        framer = self._framer
        while not self._ended:
            data = await self._stream.receive_some(CHUNK)
            messages = framer.feed(bytes(data)) if data else framer.end()
            self._ended = not data or framer.broken
            if messages:
                return messages
        return None

    async def send_all(self, messages: Sequence[bytes], *, batch: bool = False, stall_s: float = 30) -> None:
        data = self._tail + self._framer.frame(messages) if messages else self._tail
        self._tail = b""
        if len(data) <= CHUNK:
            with trio.fail_after(stall_s):
                await self._stream.send_all(data)
            return
        view = memoryview(data)
        for start in range(0, len(data), CHUNK):  # a slow reader is not a stalled one: time each part
            with trio.fail_after(stall_s):
                await self._stream.send_all(view[start : start + CHUNK])

    def try_send(self, message: bytes) -> bool:
        if self._fd < 0 or self._tail:
            return False
        data = self._framer.frame((message,))
        try:
            sent = os.write(self._fd, data)
        except OSError:
            return False  # full, or gone: send_all finds out which
        self._tail = data[sent:]
        return True

    @property
    def unsent(self) -> bool:
        return bool(self._tail)

    def hung_up(self) -> bool:
        if self._fd < 0 or self._framer.broken:
            return True
        poll = select.poll()
        poll.register(self._fd, 0)  # POLLHUP and POLLERR are always reported
        return bool(poll.poll(0))

    def hurry(self) -> None:
        """Nothing to do: sends on bytes are cancelled with their task."""

    async def aclose(self) -> None:
        self._fd = -1
        await self._stream.aclose()
