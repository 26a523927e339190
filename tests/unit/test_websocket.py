"""WebSocket messages of our own framing, read by a client that did not write it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trio_websocket as tws

from witsd.rpc.websocket import WebSocketMessages, Wire

PATIENCE_S = 30


@attrs.frozen
class Joined:
    messages: WebSocketMessages
    wire: Wire
    client: tws.WebSocketConnection


@asynccontextmanager
async def joined() -> AsyncIterator[Joined]:
    """Our side over one end of a loopback connection, trio-websocket's client over the other."""
    with trio.fail_after(PATIENCE_S):
        async with (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0] as listener:
            there = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
            here = await listener.accept()
        wire = Wire(here, here.socket.fileno())
        clients: list[tws.WebSocketConnection] = []
        async with there, wire, trio.open_nursery() as nursery:

            async def connect() -> None:
                clients.append(await tws.wrap_client_stream(nursery, there, "h", "/", max_message_size=1 << 26))

            async with trio.open_nursery() as both:
                both.start_soon(connect)
                ws = await (await tws.wrap_server_stream(nursery, wire)).accept()
            yield Joined(WebSocketMessages(ws, wire, limit=1 << 20), wire, clients[0])
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 3_000_000])
async def test_every_length_arrives_whole(size: int) -> None:
    text = "x" * size
    async with joined() as it, trio.open_nursery() as nursery:
        nursery.start_soon(it.messages.send_all, [text.encode(), b'"next"'])
        assert await it.client.get_message() == text
        assert await it.client.get_message() == '"next"'


async def test_what_does_not_fit_goes_before_what_is_next_whoever_sends_it() -> None:
    """Ours written in part, then a pong of trio-websocket's own, then ours again: no frame within a frame."""
    async with joined() as it:
        big = b'"' + b"b" * (8 << 20) + b'"'  # more than the sockets hold
        assert it.messages.try_send(big)
        assert it.messages.unsent
        assert not it.messages.try_send(b'"too early"')
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.client.ping, b"?")
            assert await it.client.get_message() == big.decode()
            await it.messages.send_all([])
            await it.messages.send_all([b'"then"'])
            assert await it.client.get_message() == '"then"'
            # `ping` returns when its pong has come.


async def test_nothing_is_sent_on_a_closed_websocket() -> None:
    async with joined() as it:
        await it.client.aclose()
        assert await it.messages.receive() is None
        assert not it.messages.try_send(b"1")
        with pytest.raises(trio.BrokenResourceError):
            await it.messages.send_all([b"1"])


async def test_a_client_that_stops_reading_is_given_up() -> None:
    async with joined() as it:
        with pytest.raises(trio.TooSlowError):
            # Its client takes in a few messages unasked, and then no more.
            await it.messages.send_all([*[b"1"] * 9, b"x" * (32 << 20)], stall_s=0.001)
