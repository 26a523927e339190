"""Framed messages over a byte stream: newline-delimited JSON (Unix socket, pipes); for WebSocket see ``websocket``.

A transport moves whole messages and knows nothing of JSON-RPC. One task reads and one writes; neither
write nor read may be cancelled half-way by anything but the end of the connection.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Sequence
from typing import Protocol

import anyio
import anyio.abc
import anyio.lowlevel

from witsd_client.errors import DaemonNotRunning, ProtocolError
from witsd_client.paths import MAX_SOCKET_PATH, Paths

#: Longest message taken from the other side, so that nothing it sends can exhaust memory.
MAX_MESSAGE_BYTES = 64 << 20
CHUNK = 65536  # bytes of one read
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
                chunk = os.read(self._read_fd, CHUNK)
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


async def dial(target: str | os.PathLike[str] | None = None) -> Transport:
    """Connect to a daemon: a socket's path, a ``ws://`` URL, or None for where this machine keeps it.

    Raises ``DaemonNotRunning`` where nobody answers, ``ProtocolError`` where something else does.
    """
    if target is None:
        target = Paths.from_environment().socket
    address = os.fspath(target)
    if address.startswith(("ws://", "wss://", "http://", "https://")):
        # Loaded here, as that takes a quarter of a client's start, and most never need it.
        from witsd_client.websocket import dial_websocket

        return await dial_websocket(address)
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
