"""WebSocket connections: the handshake, then a peer.

Imported for the first of them alone: its library would be a tenth of the daemon's start.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from trio_websocket import ConnectionClosed, HandshakeError, wrap_server_stream

from witsd.door.http import SECURITY_HEADERS, PrefixStream
from witsd.rpc.framing import MessageStream
from witsd.rpc.websocket import WebSocketMessages, Wire


async def serve(
    stream: trio.abc.HalfCloseableStream,
    serve_peer: Callable[[MessageStream], Awaitable[None]],
    *,
    handshake_s: float,
    limit: int,
) -> None:
    """Shake hands within ``handshake_s`` and serve messages of at most ``limit`` bytes until either side ends it.

    Raises ``trio.TooSlowError``; a handshake or connection that breaks off just ends.
    """
    wire = Wire(stream, stream.fd if isinstance(stream, PrefixStream) else -1)
    try:
        async with trio.open_nursery() as nursery:
            with trio.fail_after(handshake_s):
                request = await wrap_server_stream(
                    nursery,
                    wire,
                    # Somewhat more than the limit, so that what is just above it gets an error to itself.
                    max_message_size=2 * limit,
                    receive_buffer_size=64 * 1024,
                )
                websocket = await request.accept(extra_headers=list(SECURITY_HEADERS))
            await serve_peer(WebSocketMessages(websocket, wire, limit=limit))
            nursery.cancel_scope.cancel()
    except* (ConnectionClosed, HandshakeError):
        pass
