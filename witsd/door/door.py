"""The door: everything that comes in, who it is for, and how it is told to go.

``open_door`` owns the nursery in which each connection has one task. The layers below know connections
only as ``Peer``; how many there may be, how long they have to say who they are, and when they end is
decided here.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import attrs
import trio

from witsd.door.auth import EVERYWHERE, Policy
from witsd.door.exchange import Exchange
from witsd.door.http import (
    SECURITY_HEADERS,
    Deadlines,
    HttpConnection,
    error_body,
    linger,
)
from witsd.door.identity import HasOptions, Identifier, Refused
from witsd.door.listen import UnixSocket, accept_forever, claim_unix, open_tcp
from witsd.door.openai_door import OpenAIDoor
from witsd.door.site import Pages, Rooms, load_page
from witsd.rpc.dispatch import Dispatcher, answer_message
from witsd.rpc.framing import ByteStreamMessages, MessageStream
from witsd.rpc.peer import Peer
from witsd.services.access import Access, Visit
from witsd.values.actor import Actor
from witsd.values.errors import Overloaded, Unauthenticated
from witsd.values.wire.system import LimitsInfo

log = logging.getLogger("witsd.door")

#: HTTP connections that have shown no credential yet; beyond that newcomers are told to come later.
MAX_UNAUTHENTICATED_HTTP = 64
#: Newcomers that are being told so at the same time; beyond that they are closed without a word.
_MAX_FAREWELLS = 64
_RETRY_AFTER_MS = 1000
_PAGE = Path(__file__).parent.parent / "page"


class ListenSettings(Protocol):
    """The part of the settings that is read here."""

    @property
    def unix(self) -> Path: ...
    @property
    def http(self) -> str: ...
    @property
    def allowed_hosts(self) -> Sequence[str]: ...
    @property
    def allowed_origins(self) -> Sequence[str]: ...
    @property
    def allow_remote(self) -> bool: ...


@attrs.define(eq=False)
class _Connection:
    """An open connection: ``finish`` asks it to end after what it is doing, ``scope`` ends it now."""

    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    finish: Callable[[], None] = lambda: None
    #: Counted against the cap on connections that have not shown a credential.
    unknown_http: bool = False
    since: float = attrs.field(factory=trio.current_time)
    gone: trio.Event = attrs.field(factory=trio.Event)


@attrs.define(eq=False)
class Door:
    """What listens, and the connections that came in. Made by ``open_door``."""

    _nursery: trio.Nursery
    _dispatcher: Dispatcher
    _http_dispatcher: Dispatcher
    _access: Access
    _identifier: Identifier
    _limits: LimitsInfo
    _deadlines: Deadlines
    unix: Path
    #: ``127.0.0.1:9487`` as bound; None when HTTP is off.
    http: str | None = None
    _pages: Callable[[Rooms], Pages] | None = None
    _listeners: list[trio.SocketListener] = attrs.field(factory=list)
    _connections: set[_Connection] = attrs.field(factory=set)
    _farewells: int = 0
    #: ``websocket.serve``, once somebody has come that way.
    _serve_websocket: Callable[..., Awaitable[None]] | None = None
    _none_left: trio.Event = attrs.field(factory=trio.Event)

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    def identify(self, sock: HasOptions) -> Actor:
        """Who is at the other end of a Unix socket of whatever kind; raises as ``Identifier.identify``."""
        return self._identifier.identify(sock)

    async def stop_accepting(self) -> None:
        """From now on connecting fails; what is open stays. The socket file and its lock go with the door."""
        for listener in self._listeners:
            await listener.aclose()

    async def close_connections(self, *, within_s: float, newcomers_s: float = 0) -> None:
        """Let each connection end what it is sending, for ``within_s`` seconds at most, then cut the rest.

        One that came in less than ``newcomers_s`` ago may end by itself until it is that old.
        """
        with trio.move_on_after(within_s):
            for connection in sorted(self._connections, key=lambda each: each.since):
                with trio.move_on_at(connection.since + newcomers_s):
                    await connection.gone.wait()
                if not connection.gone.is_set():
                    connection.finish()
            while self._connections:
                self._none_left = trio.Event()
                await self._none_left.wait()
        for connection in tuple(self._connections):
            connection.scope.cancel()

    # ---- accepting --------------------------------------------------------------------------------

    def _take_unix(self, stream: trio.SocketStream) -> None:
        overloaded = error_body(_overloaded(self._limits.connections)) + b"\n"
        self._take(stream, self._serve_unix, overloaded, unknown_http=False)

    def _take_http(self, stream: trio.SocketStream) -> None:
        unknown = sum(connection.unknown_http for connection in self._connections)
        full = unknown >= MAX_UNAUTHENTICATED_HTTP
        overloaded = _http_overloaded(MAX_UNAUTHENTICATED_HTTP if full else self._limits.connections)
        self._take(stream, self._serve_http, overloaded, unknown_http=True, full=full)

    def _take(
        self,
        stream: trio.SocketStream,
        serve: Callable[[trio.SocketStream, _Connection], Awaitable[None]],
        overloaded: bytes,
        *,
        unknown_http: bool,
        full: bool = False,
    ) -> None:
        if full or len(self._connections) >= self._limits.connections:
            self._nursery.start_soon(self._turn_away, stream, overloaded)
            self._farewells += 1
            return
        connection = _Connection(unknown_http=unknown_http)
        self._connections.add(connection)
        self._nursery.start_soon(self._hold, stream, serve, connection)

    async def _turn_away(self, stream: trio.SocketStream, message: bytes) -> None:
        try:
            if self._farewells <= _MAX_FAREWELLS:
                with trio.move_on_after(self._deadlines.linger_s):
                    await stream.send_all(message)
                    await linger(stream, self._deadlines.linger_s)
        except (OSError, trio.BrokenResourceError):
            pass
        finally:
            self._farewells -= 1
            await trio.aclose_forcefully(stream)

    async def _hold(
        self,
        stream: trio.SocketStream,
        serve: Callable[[trio.SocketStream, _Connection], Awaitable[None]],
        connection: _Connection,
    ) -> None:
        """The task of one connection, and the boundary at which its failure stays its own."""
        try:
            with connection.scope:
                try:
                    await serve(stream, connection)
                except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
                    pass
                except* Refused as refused:
                    log.warning("door.refused reason=%s", refused.exceptions[0])
                except* Exception:
                    log.exception("door.connection_failed")
        finally:
            self._connections.discard(connection)
            connection.gone.set()
            if not self._connections:
                self._none_left.set()
            await trio.aclose_forcefully(stream)

    # ---- serving ----------------------------------------------------------------------------------

    async def _serve_unix(self, stream: trio.SocketStream, connection: _Connection) -> None:
        actor = self._identifier.identify(stream.socket)
        messages = ByteStreamMessages(stream, limit=self._limits.message_bytes)
        await self._serve_peer(messages, actor, (), connection)

    async def _serve_http(self, stream: trio.SocketStream, connection: _Connection) -> None:
        assert self._pages is not None
        rooms = Rooms(
            rpc=partial(self._rpc, connection),
            websocket=partial(self._websocket, connection),
            known=lambda: setattr(connection, "unknown_http", False),
        )
        http = HttpConnection(stream, self._pages(rooms), self._deadlines)

        def finish() -> None:
            http.closing = True
            if http.idle:
                connection.scope.cancel()

        connection.finish = finish
        await http.serve()

    async def _rpc(self, connection: _Connection, actor: Actor, body: bytes) -> bytes:
        """One HTTP body. Raises ``Unauthenticated`` when the token ends before the answer is there."""
        connection.unknown_http = False
        answer = None
        exchange = Exchange(actor)
        with trio.CancelScope() as scope, self._access.visit(scope, actor) as visit:
            visit.connection = exchange
            try:
                answer = await answer_message(self._http_dispatcher, body, actor, exchange, self._limits)
            finally:
                exchange.end()
        if scope.cancelled_caught:
            raise Unauthenticated("the token was revoked, or expired, before the answer was there")
        return answer or b""

    async def _websocket(
        self,
        connection: _Connection,
        stream: trio.abc.HalfCloseableStream,
        actor: Actor,
        cookies: tuple[str, ...],
    ) -> None:
        if self._serve_websocket is None:
            self._serve_websocket = await trio.to_thread.run_sync(_load_websocket)
        await self._serve_websocket(
            stream,
            lambda messages: self._serve_peer(messages, actor, cookies, connection),
            handshake_s=self._deadlines.handshake_s,
            limit=self._limits.message_bytes,
        )

    async def _serve_peer(
        self, messages: MessageStream, actor: Actor, cookies: tuple[str, ...], connection: _Connection
    ) -> None:
        with trio.CancelScope() as scope, self._access.visit(scope, actor, cookies) as visit:
            async with trio.open_nursery() as nursery:
                peer = self._peer(messages, actor, self._dispatcher)
                visit.connection = peer
                connection.finish = partial(nursery.start_soon, peer.close_when_flushed)
                nursery.start_soon(self._expect_authentication, visit, connection)
                await peer.serve()
                nursery.cancel_scope.cancel()

    async def _expect_authentication(self, visit: Visit, connection: _Connection) -> None:
        """Whoever has not said who they are in time is cut off."""
        with trio.move_on_after(self._deadlines.authenticate_s) as waiting:
            await visit.authenticated.wait()
            connection.unknown_http = False
        if waiting.cancelled_caught:
            visit.scope.cancel()

    def _peer(self, messages: MessageStream, actor: Actor, dispatcher: Dispatcher) -> Peer:
        return Peer(messages, dispatcher, actor, self._limits, send_timeout_s=self._deadlines.send_s)


def _load_websocket() -> Callable[..., Awaitable[None]]:
    """Blocks: reads and runs some thirty modules the first time."""
    from witsd.door.websocket import serve

    return serve


def _overloaded(limit: int) -> Overloaded:
    return Overloaded(
        f"all {limit} connections are taken: try again in a moment", retry_after_ms=_RETRY_AFTER_MS
    )


def _http_overloaded(limit: int) -> bytes:
    body = error_body(_overloaded(limit))
    headers = [
        *SECURITY_HEADERS,
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"retry-after", str(_RETRY_AFTER_MS // 1000).encode()),
        (b"connection", b"close"),
    ]
    lines = b"".join(b"%s: %s\r\n" % header for header in headers)
    return b"HTTP/1.1 503 Service Unavailable\r\n" + lines + b"\r\n" + body


async def _no_metrics() -> str:
    return ""


@asynccontextmanager
async def open_door(
    settings: ListenSettings,
    *,
    dispatcher: Dispatcher,
    http_dispatcher: Dispatcher,
    access: Access,
    limits: LimitsInfo,
    identifier: Identifier | None = None,
    deadlines: Deadlines | None = None,
    claimed: UnixSocket | None = None,
    bound: trio.SocketListener | None = None,
    page: Path = _PAGE,
    metrics: Callable[[], Awaitable[str]] = _no_metrics,
    openai: OpenAIDoor | None = None,
) -> AsyncIterator[Door]:
    """Listen on the Unix socket and, unless ``settings.http`` is empty, on the HTTP address.

    Both are bound when the block begins: ``door.unix`` and ``door.http`` say where. At its end the
    listeners close, and every connection with them. ``http_dispatcher`` serves ``POST /rpc``: its table
    is ``without_streams`` of the other's. ``claimed``: the Unix socket where the caller, who had to be the
    only daemon before it opened anything else, holds it already.

    Raises ``AlreadyRunning`` or ``ListenError``.
    """
    with ExitStack() as stack:
        unix = claimed or stack.enter_context(claim_unix(settings.unix))
        listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(unix.socket))]
        if settings.http:
            tcp = bound or open_tcp(settings.http, allow_remote=settings.allow_remote)
            stack.callback(tcp.socket.close)
            listeners.append(tcp)
        files = load_page(page)
        async with trio.open_nursery() as nursery:
            door = Door(
                nursery,
                dispatcher,
                http_dispatcher,
                access,
                identifier or Identifier(),
                limits,
                deadlines or Deadlines(),
                unix=unix.path,
                listeners=listeners,
            )
            nursery.start_soon(accept_forever, listeners[0], door._take_unix, "unix")
            if settings.http:
                address, port = tcp.socket.getsockname()[:2]
                door.http = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
                # Bound to every address, it is reached by the one that a browser here can use.
                everywhere = address in EVERYWHERE
                access.http_url = f"http://127.0.0.1:{port}" if everywhere else f"http://{door.http}"
                policy = Policy.make(
                    address=address,
                    port=port,
                    allowed_hosts=settings.allowed_hosts,
                    allowed_origins=settings.allowed_origins,
                )
                door._pages = partial(
                    Pages,
                    policy=policy,
                    port=port,
                    access=access,
                    files=files,
                    message_bytes=limits.message_bytes,
                    metrics=metrics,
                    openai=openai,
                )
                nursery.start_soon(accept_forever, tcp, door._take_http, "http")
            try:
                yield door
            finally:
                nursery.cancel_scope.cancel()
