"""``ping`` over the Unix socket and over WebSocket, beside the barest echoes that trio can do.

Server and client have a core each. The client is blocking sockets, so that it costs as little as can be.
"""

from __future__ import annotations

import base64
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from tests.bench.measure import Figure, Round, Run, Sample, cores, daemon, pin, pinned_here, program, quantile

_REQUEST = b'{"jsonrpc":"2.0","id":%d,"method":"ping","params":{}}'
#: Requests of the pipelined client that are on their way at a time.
_WINDOW = 64
#: Requests before the first that counts.
_WARM = 200


def _line(number: int) -> bytes:
    return _REQUEST % number + b"\n"


def _frame(number: int) -> bytes:
    return client_frame(_REQUEST % number)


def client_frame(text: bytes) -> bytes:
    """A short text message from a client, masked with zeros, which the protocol allows and costs us nothing."""
    assert len(text) < 126
    return b"\x81" + bytes((0x80 | len(text),)) + b"\0\0\0\0" + text


def _medians_us(
    socks: Mapping[str, socket.socket],
    times: int,
    message: Callable[[int], bytes],
    ended: Callable[[bytes], bool],
) -> dict[str, float]:
    """The median for each, asked by turns, so that what else goes on hits all alike."""
    took: dict[str, list[float]] = {name: [] for name in socks}
    for number in range(times):
        request = message(number)
        for name, sock in socks.items():
            begun = time.perf_counter_ns()
            sock.sendall(request)
            answer = sock.recv(65536)
            while not ended(answer):
                answer += sock.recv(65536)
            if number >= _WARM:
                took[name].append((time.perf_counter_ns() - begun) / 1000)
    return {name: quantile(sorted(each), 0.5) for name, each in took.items()}


def _per_second(sock: socket.socket, times: int) -> float:
    chunk = b"".join(map(_line, range(_WINDOW)))
    begun = time.perf_counter()
    sock.sendall(chunk + chunk)
    sent, got = 2 * _WINDOW, 0
    while got < sent:
        got += sock.recv(1 << 16).count(b"\n")
        while sent < times and sent - got <= _WINDOW:
            sock.sendall(chunk)
            sent += _WINDOW
    return sent / (time.perf_counter() - begun)


def _line_ended(answer: bytes) -> bool:
    return answer.endswith(b"\n")


def _frame_ended(answer: bytes) -> bool:
    return len(answer) >= 2 and len(answer) >= 2 + answer[1]


class UnixPing:
    name = "ping"
    title = "ping over the Unix socket, one client"
    figures = (
        Figure(
            key="ping",
            what="median",
            unit="us",
            best="lowest",
            limit=2.0,
            as_ratio=True,
            floor="echo",
            floor_is="a bare trio line echo that parses and writes JSON",
        ),
        Figure(
            key="pipelined",
            what="pipelined on one core",
            unit="/s",
            best="highest",
            limit=30_000,
            floor="echo_pipelined",
            floor_is="the same echo",
        ),
    )

    @contextmanager
    def open(self, run: Run) -> Iterator[Round]:
        server, client = cores()[0], cores()[-1]
        where = run.folder / "echo.sock"
        with (
            daemon() as witsd,
            program("echo_unix", str(where), core=server),
            pinned_here(client),
            socket.socket(socket.AF_UNIX) as ours,
            socket.socket(socket.AF_UNIX) as floor,
        ):
            pin(witsd.pid, server)
            ours.connect(str(witsd.socket))
            floor.connect(str(where))

            def once() -> Sample:
                sample = _medians_us({"echo": floor, "ping": ours}, run.scaled(8000), _line, _line_ended)
                for name, sock in (("echo_pipelined", floor), ("pipelined", ours)):
                    sample[name] = _per_second(sock, run.scaled(60_000))
                return sample

            yield once


class ToolCall:
    name = "tool"
    title = "tools/call of calculator over the Unix socket, one client"
    figures = (
        Figure(
            key="call",
            what="median",
            unit="us",
            best="lowest",
            limit=1.5,
            as_ratio=True,
            floor="ping",
            floor_is="ping on the same daemon",
        ),
    )

    @contextmanager
    def open(self, run: Run) -> Iterator[Round]:
        server, client = cores()[0], cores()[-1]
        with daemon() as witsd, pinned_here(client), socket.socket(socket.AF_UNIX) as sock:
            pin(witsd.pid, server)
            sock.connect(str(witsd.socket))

            def once() -> Sample:
                sample: dict[str, float] = {}
                for name, request in (("ping", _line), ("call", _call)):
                    sample[name] = _medians_us({name: sock}, run.scaled(8000), request, _line_ended)[name]
                return sample

            yield once


def _call(number: int) -> bytes:
    params = b'{"name":"calculator","arguments":{"expression":"15 * 23 + 17"}}'
    return b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":%b}\n' % (number, params)


class WebSocketPing:
    name = "websocket"
    title = "ping over WebSocket, one client"
    figures = (
        Figure(
            key="ping",
            what="median",
            unit="us",
            best="lowest",
            limit=1.5,
            as_ratio=True,
            floor="echo",
            floor_is="a bare trio-websocket echo",
        ),
    )

    @contextmanager
    def open(self, run: Run) -> Iterator[Round]:
        server, client = cores()[0], cores()[-1]
        with (
            daemon() as witsd,
            program("echo_websocket", core=server) as echo,
            pinned_here(client),
        ):
            pin(witsd.pid, server)
            token = witsd.call("tokens/create", name="bench", scopes=["read"])["token"]
            with connect(witsd.http, "/ws", token) as ours, connect(f"127.0.0.1:{echo.said}", "/", "") as floor:

                def once() -> Sample:
                    return _medians_us({"echo": floor, "ping": ours}, run.scaled(8000), _frame, _frame_ended)

                yield once


def connect(address: str, path: str, token: str) -> socket.socket:
    """A WebSocket as a bare socket, the handshake done."""
    host, _, port = address.rpartition(":")
    sock = socket.create_connection((host, int(port)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    key = base64.b64encode(os.urandom(16)).decode()
    credential = f"Authorization: Bearer {token}\r\n" if token else ""
    sock.sendall(
        f"GET {path} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"{credential}Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):  # nothing follows it unasked
        got = sock.recv(1)
        if not got:
            raise ConnectionError(f"the handshake failed: {head.decode()}")
        head += got
    if b" 101 " not in head.split(b"\r\n")[0]:
        raise ConnectionError(head.decode())
    return sock
