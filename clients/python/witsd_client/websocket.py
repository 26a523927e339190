"""Whole messages over a WebSocket."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

import anyio
import anyio.abc
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from witsd_client.errors import DaemonNotRunning, ProtocolError, Unauthenticated
from witsd_client.transport import CHUNK, HANDSHAKE_TIMEOUT_S, MAX_MESSAGE_BYTES


class WebSocketTransport:
    """One JSON message per text message; a backlog may arrive as a batch array. Pings are answered."""

    def __init__(self, stream: anyio.abc.ByteStream, max_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._stream = stream
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self._max = max_bytes
        self._text: list[str] = []
        self._size = 0
        self._lock = anyio.Lock()

    async def handshake(self, host: str, path: str) -> None:
        """Upgrade the connection. Raises ``ProtocolError`` where the other side does not want to."""
        await self._write(self._protocol.send(Request(host=host, target=path)))
        body, status = b"", 0
        while True:
            for event in await self._events():
                match event:
                    case AcceptConnection():
                        return
                    case RejectConnection():
                        status = event.status_code
                        if not event.has_body:
                            raise _refused(status, body)
                    case RejectData(data=data, body_finished=finished):
                        body = (body + data)[:1000]
                        if finished:
                            raise _refused(status, body)
                    case None:
                        raise ProtocolError("the connection ended during the WebSocket handshake")

    async def receive(self) -> list[bytes] | None:
        while True:
            messages: list[bytes] = []
            for event in await self._events():
                match event:
                    case TextMessage(data=data, message_finished=finished):
                        self._text.append(data)
                        self._size += len(data)
                        if self._size > self._max:
                            raise ProtocolError(f"a message of over {self._max} bytes")
                        if finished:
                            messages.append("".join(self._text).encode())
                            self._text, self._size = [], 0
                    case BytesMessage():
                        raise ProtocolError("a binary message: the protocol is text")
                    case Ping():
                        await self._write(self._protocol.send(event.response()))
                    case CloseConnection() | None:
                        # What came before the close still counts; the next call finds the end again.
                        return messages or None
            if messages:
                return messages

    async def _events(self) -> list[Event | None]:
        """The events of one read; None stands for the end of the stream."""
        try:
            data: bytes | None = await self._stream.receive(CHUNK)
        except anyio.EndOfStream:
            return [None]
        try:
            self._protocol.receive_data(data)
            return list(self._protocol.events())
        except (LocalProtocolError, RemoteProtocolError) as error:
            raise ProtocolError(f"not a WebSocket, or a broken one: {error}") from error

    async def send(self, messages: Sequence[bytes]) -> None:
        try:
            frames = b"".join(
                self._protocol.send(TextMessage(data=message.decode())) for message in messages
            )
        except LocalProtocolError as error:
            raise anyio.BrokenResourceError from error
        await self._write(frames)

    async def _write(self, data: bytes) -> None:
        # The reader answers pings while the writer sends: one write at a time.
        async with self._lock:
            await self._stream.send(data)

    async def aclose(self) -> None:
        await anyio.aclose_forcefully(self._stream)


def _refused(status: int, body: bytes) -> Exception:
    reason = body.decode(errors="replace").strip()
    text = f"the WebSocket was refused with status {status}{': ' + reason if reason else ''}"
    return Unauthenticated(text) if status == 401 else ProtocolError(text)


async def dial_websocket(url: str) -> WebSocketTransport:
    """Connect to a daemon's ``ws://`` URL. Raises as ``dial``."""
    parts = urlsplit(url)
    if parts.scheme != "ws":
        raise ValueError(f"{parts.scheme}:// is not served here: use ws://HOST:PORT/ws")
    if parts.username or parts.password or parts.query:
        raise ValueError("no secret goes into a URL: give the token as `token`")
    host = parts.hostname or "127.0.0.1"
    port = parts.port or 9487
    try:
        stream = await anyio.connect_tcp(host, port)
    except OSError as error:
        # Where several addresses were tried, the cause says more than anyio's summary.
        reason = error.__cause__ if isinstance(error.__cause__, OSError) else error
        raise DaemonNotRunning(url, reason.strerror or str(reason)) from error
    raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610 - no Django here
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    transport = WebSocketTransport(stream)
    try:
        with anyio.fail_after(HANDSHAKE_TIMEOUT_S):
            await transport.handshake(parts.netloc.rpartition("@")[2], parts.path or "/ws")
    except TimeoutError:
        await transport.aclose()
        raise DaemonNotRunning(url, "the WebSocket handshake was not answered") from None
    except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
        await transport.aclose()
        raise DaemonNotRunning(url, "the connection broke during the handshake") from error
    except BaseException:
        await transport.aclose()
        raise
    return transport
