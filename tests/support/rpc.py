"""Peers over real transports, with a table of methods made for tests."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, cast

import attrs
import msgspec
import trio
import trio_websocket as tws

from witsd.rpc.call import Call
from witsd.rpc.dispatch import Audit, Dispatcher
from witsd.rpc.framing import ByteStreamMessages
from witsd.rpc.methods import Method, Notification
from witsd.rpc.peer import Peer
from witsd.rpc.websocket import WebSocketMessages, Wire
from witsd.values.actor import OWNER, Actor
from witsd.values.wire.common import Empty
from witsd.values.wire.system import LimitsInfo

LIMITS = LimitsInfo(message_bytes=4 << 20, depth=128, in_flight=512, connections=512, batch=1000)


class CountedIds:
    """``log_1``, ``log_2`` ..."""

    def __init__(self) -> None:
        self.count = 0

    def new(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}_{self.count}"


def method(name: str, params: Any, call: Callable[[Call, Any], Awaitable[Any]], **flags: Any) -> tuple[str, Method]:
    return name, Method(name, params, cast(Any, object), "for a test", call, **flags)


def dispatcher(
    methods: Iterable[tuple[str, Method]],
    notifications: Iterable[Notification] = (),
    *,
    audit: Audit = lambda *_: None,
) -> Dispatcher:
    return Dispatcher(
        dict(methods), {n.name: n for n in notifications}, audit, CountedIds(), logging.getLogger("test.rpc")
    )


# ---- the methods of the JSON-RPC 2.0 specification's examples -------------------------------------------


class Subtract(msgspec.Struct, frozen=True, kw_only=True):
    minuend: int
    subtrahend: int


async def _subtract(_: Call, params: Subtract) -> int:
    return params.minuend - params.subtrahend


async def _sum(_: Call, params: tuple[int, ...]) -> int:
    return sum(params)


async def _get_data(_: Call, params: Empty) -> list[Any]:
    return ["hello", 5]


async def _nothing(_: Call, params: Any) -> None:
    return None


def spec_methods() -> list[tuple[str, Method]]:
    return [
        method("subtract", Subtract, _subtract),
        method("sum", tuple[int, ...], _sum),
        method("get_data", Empty, _get_data),
        method("update", tuple[int, ...], _nothing),
        method("notify_hello", tuple[int, ...], _nothing),
        method("notify_sum", tuple[int, ...], _nothing),
    ]


# ---- connections ----------------------------------------------------------------------------------------


class Line:
    """The other end of a connection, in the raw: text out, text in."""

    async def say(self, *texts: str) -> None:
        raise NotImplementedError

    async def hear(self) -> str:
        """The next message; raises ``EOFError`` at the end."""
        raise NotImplementedError

    async def hear_json(self) -> Any:
        return json.loads(await self.hear())

    async def ask(self, method: str, params: Any = None, **fields: Any) -> Any:
        message = {"jsonrpc": "2.0", "id": 1, "method": method, **fields}
        if params is not None:
            message["params"] = params
        await self.say(json.dumps(message))
        return await self.hear_json()


class UnixLine(Line):
    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._buffer = b""

    async def say(self, *texts: str) -> None:
        await self.stream.send_all("".join(f"{text}\n" for text in texts).encode())

    async def hear(self) -> str:
        while b"\n" not in self._buffer:
            data = await self.stream.receive_some(65536)
            if not data:
                raise EOFError(self._buffer)
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()


class WebSocketLine(Line):
    def __init__(self, ws: tws.WebSocketConnection) -> None:
        self.ws = ws

    async def say(self, *texts: str) -> None:
        for text in texts:
            await self.ws.send_message(text)

    async def hear(self) -> str:
        try:
            return cast(str, await self.ws.get_message())
        except tws.ConnectionClosed:
            raise EOFError from None


async def socket_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    ours, theirs = trio.socket.socketpair()
    return trio.SocketStream(ours), trio.SocketStream(theirs)


@attrs.define
class Joined:
    """A served connection: the peer under test, and the line to it."""

    peer: Peer
    line: UnixLine
    #: Set once ``serve`` has returned.
    over: trio.Event = attrs.field(factory=trio.Event)


@asynccontextmanager
async def unix_peer(
    served: Dispatcher, *, actor: Actor = OWNER, limits: LimitsInfo = LIMITS, newline_only: bool = False, **options: Any
) -> AsyncIterator[Joined]:
    """A peer on one end of a Unix socket pair; the other end is the test's."""
    mine, its = await socket_pair()
    messages = ByteStreamMessages(its, limit=limits.message_bytes, newline_only=newline_only)
    joined = Joined(Peer(messages, served, actor, limits, **options), UnixLine(mine))

    async def run() -> None:
        await joined.peer.serve()
        joined.over.set()

    async with trio.open_nursery() as nursery, mine:
        nursery.start_soon(run)
        yield joined
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def websocket_peer(
    served: Dispatcher, *, limits: LimitsInfo = LIMITS, peers: list[Peer] | None = None, **options: Any
) -> AsyncIterator[WebSocketLine]:
    """A peer behind a WebSocket on a loopback port."""

    async def serve(stream: trio.SocketStream) -> None:
        wire = Wire(stream, stream.socket.fileno())
        async with trio.open_nursery() as nursery:
            request = await tws.wrap_server_stream(nursery, wire, max_message_size=2 * limits.message_bytes)
            messages = WebSocketMessages(await request.accept(), wire, limit=limits.message_bytes)
            peer = Peer(messages, served, OWNER, limits, **options)
            if peers is not None:
                peers.append(peer)
            await peer.serve()
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        port = listeners[0].socket.getsockname()[1]
        async with tws.open_websocket_url(f"ws://127.0.0.1:{port}", max_message_size=1 << 26) as ws:
            yield WebSocketLine(ws)
        nursery.cancel_scope.cancel()
