"""When an exec agent is ready: told by itself, seen in its log, or found by asking."""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import attrs
import trio

#: Between two tries of a probe, and how long one may take, in seconds.
_PROBE_EVERY_S = 0.1
_PROBE_S = 2.0
_MESSAGE = 8 << 10


@attrs.define(eq=False)
class NotifySocket:
    """A private NOTIFY_SOCKET (sd_notify(3)): what an agent says of itself, from its own processes only."""

    path: Path
    _socket: socket.socket
    _belongs: Callable[[int], bool]

    async def messages(self) -> AsyncGenerator[dict[str, str], None]:
        """What is said, for ever. Words from a process that is not the agent's are dropped."""
        listening = trio.socket.from_stdlib_socket(self._socket)
        while True:
            data, ancillary, _, _ = await listening.recvmsg(_MESSAGE, socket.CMSG_SPACE(12))
            if not self._belongs(_sender(ancillary)):
                continue
            lines = (line.partition("=") for line in data.decode(errors="replace").splitlines())
            yield {key: value for key, _, value in lines}


def _sender(ancillary: list[tuple[int, int, bytes]]) -> int:
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            pid: int = struct.unpack("3i", data[:12])[0]
            return pid
    return 0


@contextmanager
def notify_socket(folder: Path, belongs: Callable[[int], bool]) -> Iterator[NotifySocket]:
    """Bind ``<folder>/notify``; ``belongs(pid)`` says whether a process is one of the agent's."""
    path = folder / "notify"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        # A long folder: the kernel takes 107 bytes, a descriptor's name in /proc is always short.
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sock.bind(f"/proc/self/fd/{directory}/notify")
        finally:
            os.close(directory)
        sock.setblocking(False)
        yield NotifySocket(path, sock, belongs)


#: How much of a line is looked at, in bytes, and for how long, in seconds.
_LOOKED_AT, _SEARCH_S = 8192, 0.05


class LogPattern:
    """Looks for the line that says it is ready among those that are being kept anyway."""

    def __init__(self, pattern: str) -> None:
        import regex  # only by those who have such a pattern

        self._pattern = regex.compile(pattern)
        self.seen = trio.Event()

    def look(self, lines: list[bytes]) -> None:
        if not self.seen.is_set() and any(self._matches(line) for line in lines):
            self.seen.set()

    def _matches(self, line: bytes) -> bool:
        # In the event loop: some pattern on some line would search for hours, and all would wait for it.
        try:
            return self._pattern.search(line[:_LOOKED_AT].decode(errors="replace"), timeout=_SEARCH_S) is not None
        except TimeoutError:
            return False


async def probe_tcp(address: str) -> None:
    """Return once ``HOST:PORT`` accepts a connection."""
    host, _, port = address.rpartition(":")
    while True:
        with trio.move_on_after(_PROBE_S):
            try:
                stream = await trio.open_tcp_stream(host.strip("[]") or "127.0.0.1", int(port))
            except (OSError, UnicodeError):  # of a name that cannot be one
                pass
            else:
                await stream.aclose()
                return
        await trio.sleep(_PROBE_EVERY_S)


async def probe_http(url: str) -> None:
    """Return once ``url`` (http only) answers with a status below 400."""
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    request = f"GET {target} HTTP/1.0\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode()
    while True:
        with trio.move_on_after(_PROBE_S):
            try:
                stream = await trio.open_tcp_stream(parts.hostname or "127.0.0.1", parts.port or 80)
                async with stream:
                    await stream.send_all(request)
                    head = b""
                    while b"\r\n" not in head and (data := await stream.receive_some(4096)):
                        head += data
            except (OSError, UnicodeError, trio.BrokenResourceError):
                head = b""
            status = re.match(rb"HTTP/1\.[01] (\d{3})", head)
            if status and int(status[1]) < 400:
                return
        await trio.sleep(_PROBE_EVERY_S)
