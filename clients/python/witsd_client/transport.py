"""Framed messages over a byte stream: newline-delimited JSON (Unix socket, pipes) and WebSocket.

A transport moves whole messages and knows nothing of JSON-RPC. One task reads and one writes; neither
write nor read may be cancelled half-way by anything but the end of the connection.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Sequence
from typing import Protocol
from urllib.parse import urlsplit

import anyio
import anyio.abc
import anyio.lowlevel
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
from witsd_client.paths import MAX_SOCKET_PATH, Paths

#: Longest message taken from the other side, so that nothing it sends can exhaust memory.
MAX_MESSAGE_BYTES = 64 << 20
_CHUNK = 65536
#: How long being connected, or a WebSocket handshake, may take.
HANDSHAKE_TIMEOUT_S = 10.0


class Transport(Protocol):
    """A connection that carries whole messages."""

    async def receive(self) -> list[bytes] | None:
        """The next messages, at least one; None when the other side has ended the connection.

        A message may be a batch array. Raises ``ProtocolError`` for one that is too long, and anyio's
        stream errors when the connection breaks.
        """

    async def send(self, messages: Sequence[bytes]) -> None:
        """Send messages in order, in as few writes as the framing allows."""

    async def aclose(self) -> None:
        """Close at once. Closing twice does nothing."""


class LineSplitter:
    """Bytes in any chunking to lines, without their newlines; blank lines are dropped."""

    def __init__(self, max_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._max = max_bytes
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that ``chunk`` completes. Raises ``ProtocolError`` over the limit."""
        head, newline, rest = chunk.partition(b"\n")
        self._parts.append(head)
        self._size += len(head)
        if self._size > self._max:
            raise ProtocolError(f"a message of over {self._max} bytes")
        if not newline:
            return []
        lines = [b"".join(self._parts), *rest.split(b"\n")]
        tail = lines.pop()
        self._parts, self._size = [tail], len(tail)
        return [line for line in lines if line.strip()]

    def rest(self) -> bytes:
        """What came after the last newline; at the end of a stream it counts as a line."""
        return b"".join(self._parts).strip()


class DescriptorTransport:
    """Newline-delimited JSON over a pair of file descriptors, which it owns.

    They are an agent's stdin and stdout, or twice the same socket. A socket is no anyio stream here: under
    asyncio those report an error to the loop when a read is cancelled just as something arrives.
    """

    def __init__(self, read_fd: int, write_fd: int, max_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._lines = LineSplitter(max_bytes)
        # A regular file or /dev/null cannot be polled, and is always ready.
        self._poll_read = _pollable(read_fd)
        self._poll_write = stat.S_ISFIFO(mode := os.fstat(write_fd).st_mode) or stat.S_ISSOCK(mode)
        if self._poll_write:
            os.set_blocking(write_fd, False)

    async def receive(self) -> list[bytes] | None:
        while True:
            if self._poll_read:
                await anyio.wait_readable(self._read_fd)
            else:
                await anyio.lowlevel.checkpoint()
            try:
                chunk = os.read(self._read_fd, _CHUNK)
            except BlockingIOError:
                continue
            if not chunk:
                rest = self._lines.rest()
                self._lines = LineSplitter()
                return [rest] if rest else None
            if lines := self._lines.feed(chunk):
                return lines

    async def send(self, messages: Sequence[bytes]) -> None:
        left = memoryview(b"\n".join(messages) + b"\n")
        while left:
            try:
                left = left[os.write(self._write_fd, left) :]
            except BlockingIOError:
                await anyio.wait_writable(self._write_fd)

    async def aclose(self) -> None:
        fds, self._read_fd, self._write_fd = {self._read_fd, self._write_fd} - {-1}, -1, -1
        for fd in fds:
            anyio.notify_closing(fd)
            os.close(fd)


def _pollable(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd)


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
            data: bytes | None = await self._stream.receive(_CHUNK)
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


async def dial(target: str | os.PathLike[str] | None = None) -> Transport:
    """Connect to a daemon: a socket's path, a ``ws://`` URL, or None for where this machine keeps it.

    Raises ``DaemonNotRunning`` where nobody answers, ``ProtocolError`` where something else does.
    """
    if target is None:
        target = Paths.from_environment().socket
    address = os.fspath(target)
    if address.startswith(("ws://", "wss://", "http://", "https://")):
        return await _dial_websocket(address)
    return await _dial_unix(address.removeprefix("unix:"))


async def _dial_unix(path: str) -> Transport:
    size = len(os.fsencode(path))
    if size > MAX_SOCKET_PATH:
        raise DaemonNotRunning(
            path,
            f"a socket's path has at most {MAX_SOCKET_PATH} bytes and this one has {size}; "
            "set WITSD_LISTEN_UNIX or XDG_RUNTIME_DIR to a shorter one",
        )
    try:
        with anyio.fail_after(HANDSHAKE_TIMEOUT_S):
            descriptor = await _connect_unix(path)
    except TimeoutError:
        raise DaemonNotRunning(path, "it is there, but takes no more connections") from None
    except FileNotFoundError:
        raise DaemonNotRunning(path) from None
    except ConnectionRefusedError:
        raise DaemonNotRunning(path, "the socket is there, but nobody listens") from None
    except OSError as error:
        raise DaemonNotRunning(path, error.strerror or str(error)) from error
    return DescriptorTransport(descriptor, descriptor)


async def _connect_unix(path: str) -> int:
    """The descriptor of a connected socket."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        while True:
            await anyio.lowlevel.checkpoint()
            try:
                sock.connect(path)
                return sock.detach()
            except BlockingIOError:  # as many wait already as may, and nothing tells when one no longer does
                await anyio.sleep(0.01)


async def _dial_websocket(url: str) -> Transport:
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
