"""HTTP/1.1 on one connection, by h11: heads, bodies, answers, and a deadline for each phase.

What a request means is the business of ``site``; here a slow, huge or broken one is answered and ended.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Protocol

import attrs
import h11
import msgspec
import trio

from witsd.door.auth import Headers, header
from witsd.values.errors import InvalidRequest, LimitExceeded, Timeout, WitsdError

HEAD_BYTES = 16 * 1024
_CHUNK = 64 * 1024
_END_OF_HEAD = re.compile(rb"\n\r?\n")

_CONTENT_SECURITY_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    b"connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
#: On every response, errors and the 101 included. Everything a page of ours needs comes from here.
SECURITY_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"content-security-policy", _CONTENT_SECURITY_POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


class Deadlines(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds each phase may take. A connection that says nothing is closed without a word."""

    idle_s: float = 15
    head_s: float = 3
    body_s: float = 10
    handshake_s: float = 3
    authenticate_s: float = 5
    send_s: float = 30
    #: How long a closing connection is still read, so that the answer is not lost to a reset.
    linger_s: float = 1


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A request's head. ``headers`` have lower-case names."""

    method: str
    path: str
    headers: Headers

    def header(self, name: bytes) -> str | None:
        return header(self.headers, name)

    @property
    def wants_upgrade(self) -> bool:
        return (self.header(b"upgrade") or "").lower() == "websocket"


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer; ``SECURITY_HEADERS`` and the length are added when it is sent."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: Sequence[tuple[bytes, bytes]] = ()


class WantsBody(msgspec.Struct, frozen=True):
    """The head is fine: go on reading, up to ``limit`` bytes, then call ``answer``."""

    limit: int
    answer: Callable[[bytes], Awaitable[Response]]


class Outlet(Protocol):
    """An answer that is sent as it comes to be: server-sent events."""

    @property
    def begun(self) -> bool:
        """Whether anything was sent: from then on no other answer can be given."""

    async def send(self, data: bytes) -> None:
        """The next piece; with the first one goes the head, status 200."""

    async def end(self) -> None:
        """That was all."""


class WantsStream(msgspec.Struct, frozen=True):
    """As ``WantsBody``, but ``serve`` may use the outlet instead of giving an answer (None then)."""

    limit: int
    serve: Callable[[bytes, Outlet], Awaitable[Response | None]]


class Upgrade(msgspec.Struct, frozen=True):
    """The connection becomes something else: ``serve`` has it until it ends."""

    serve: Callable[[trio.abc.HalfCloseableStream], Awaitable[None]]


class Site(Protocol):
    """What is served."""

    def begin(self, request: Request) -> Response | WantsBody | WantsStream | Upgrade:
        """Decide on the head alone."""

    def finish(self, request: Request, response: Response) -> Response:
        """Add what depends on the request to a response made without ``begin``."""


def error_body(error: WitsdError) -> bytes:
    """A JSON-RPC error response with a null id: the one shape of every error here."""
    return msgspec.json.encode(
        {
            "jsonrpc": "2.0",
            "id": None,
            "error": {"code": error.code, "message": error.message, "data": error.data},
        }
    )


def error_response(status: int, error: WitsdError, *headers: tuple[bytes, bytes]) -> Response:
    return Response(status=status, body=error_body(error), headers=headers)


class PrefixStream(trio.abc.HalfCloseableStream):
    """A stream that first gives back bytes that have been read from it already."""

    def __init__(self, prefix: bytes, inner: trio.abc.HalfCloseableStream) -> None:
        self._prefix = prefix
        self._inner = inner

    @property
    def fd(self) -> int:
        """The socket's descriptor; -1 where the stream below is no socket."""
        return self._inner.socket.fileno() if isinstance(self._inner, trio.SocketStream) else -1

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if not self._prefix:
            return bytes(await self._inner.receive_some(max_bytes))
        await trio.lowlevel.checkpoint()
        count = len(self._prefix) if max_bytes is None else max_bytes
        data, self._prefix = self._prefix[:count], self._prefix[count:]
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._inner.send_eof()

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Problem(Exception):
    """This request cannot be gone on with; the connection ends after ``response``."""

    def __init__(self, status: int, error: WitsdError) -> None:
        super().__init__(status)
        self.response = error_response(status, error)


@attrs.define(eq=False)
class HttpConnection:
    """Requests on one connection, one after the other, until either side has enough."""

    _stream: trio.abc.HalfCloseableStream
    _site: Site
    _deadlines: Deadlines
    #: Set to have the connection end after the request it is serving.
    closing: bool = False
    #: True while no request is being served: it can be ended at any moment.
    idle: bool = True
    _buffer: bytes = b""

    async def serve(self) -> None:
        """Returns when the connection is over; the caller closes the stream. Lets network errors pass."""
        while not self.closing:
            self.idle = True
            if not self._buffer:
                with trio.move_on_after(self._deadlines.idle_s):
                    self._buffer = bytes(await self._stream.receive_some(_CHUNK))
                if not self._buffer:
                    return
            if not await self._serve_one():
                return

    async def _serve_one(self) -> bool:
        """One request; False when the connection must end."""
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=2 * HEAD_BYTES)
        request = None
        try:
            head = await self._read_head()
            if not head:
                return False
            self.idle = False
            raw = self._buffer
            request = _parse_head(connection, raw)
            if request is None:
                raise _Problem(400, InvalidRequest("the target of a request here is a path, such as /rpc"))
            decision = self._site.begin(request)
            if isinstance(decision, Upgrade):
                self._buffer = b""
                await decision.serve(PrefixStream(raw, self._stream))
                return False
            if isinstance(decision, WantsBody):
                body = await self._read_body(connection, request.headers, decision.limit)
                response = await self._while_connected(connection, decision.answer, body)
                if response is None:
                    return False
            elif isinstance(decision, WantsStream):
                body = await self._read_body(connection, request.headers, decision.limit)
                outlet = _Outlet(self._stream, connection, request, self._site, self._deadlines.send_s)
                serve = decision.serve
                response = await self._while_connected(connection, lambda body: serve(body, outlet), body)
                if response is None:
                    return outlet.ended and await self._after(connection)
                response = self._site.finish(request, response)
            else:
                response = decision
        except _Problem as problem:
            response = problem.response
            if request is not None:
                response = self._site.finish(request, response)
        except h11.RemoteProtocolError as error:
            response = error_response(error.error_status_hint, InvalidRequest(f"not HTTP/1.1: {error}"))
        return await self._send(connection, request, response)

    async def _read_head(self) -> bool:
        """Read until the buffer has a whole head; False when the client left before."""
        try:
            with trio.fail_after(self._deadlines.head_s):
                while not (end := _END_OF_HEAD.search(self._buffer)):
                    if len(self._buffer) > HEAD_BYTES:
                        break
                    data = await self._stream.receive_some(_CHUNK)
                    if not data:
                        return False
                    self._buffer += data
        except trio.TooSlowError:
            raise _Problem(408, Timeout("the head of the request took too long")) from None
        if end is None or end.end() > HEAD_BYTES:
            raise _Problem(
                431,
                LimitExceeded(
                    f"the head of a request may have {HEAD_BYTES} bytes", limit="head_bytes", value=HEAD_BYTES
                ),
            )
        return True

    async def _read_body(self, connection: h11.Connection, headers: Headers, limit: int) -> bytes:
        too_big = LimitExceeded(
            f"the body of this request may have {limit} bytes", limit="message_bytes", value=limit
        )
        body = bytearray()
        if int(header(headers, b"content-length") or 0) > limit:
            raise _Problem(413, too_big)
        try:
            with trio.fail_after(self._deadlines.body_s):
                while True:
                    event = connection.next_event()
                    if event is h11.NEED_DATA:
                        if connection.they_are_waiting_for_100_continue:
                            go_on = h11.InformationalResponse(status_code=100, headers=[])
                            await self._stream.send_all(connection.send(go_on) or b"")
                        connection.receive_data(bytes(await self._stream.receive_some(_CHUNK)))
                    elif isinstance(event, h11.Data):
                        body += event.data
                        if len(body) > limit:
                            raise _Problem(413, too_big)
                    else:
                        return bytes(body)
        except trio.TooSlowError:
            raise _Problem(408, Timeout("the body of the request took too long")) from None

    async def _while_connected(
        self,
        connection: h11.Connection,
        answer: Callable[[bytes], Awaitable[Response | None]],
        body: bytes,
    ) -> Response | None:
        """The answer, or None when the client left before there was one; its work is cancelled then."""
        response: Response | None = None
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                pipelined = 0
                while pipelined <= HEAD_BYTES:
                    try:
                        data = await self._stream.receive_some(_CHUNK)
                    except trio.BrokenResourceError:
                        data = b""
                    connection.receive_data(bytes(data))
                    if not data:
                        # Some tools only half-close: what is answered at once still reaches them.
                        await trio.sleep(self._deadlines.linger_s)
                        nursery.cancel_scope.cancel()
                        return
                    pipelined += len(data)

            nursery.start_soon(watch)
            response = await answer(body)
            nursery.cancel_scope.cancel()
        return response

    async def _send(self, connection: h11.Connection, request: Request | None, response: Response) -> bool:
        """Send it all; True when another request may follow."""
        headers = [*SECURITY_HEADERS, *response.headers]
        if response.status != 204:
            headers.append((b"content-length", str(len(response.body)).encode()))
        if response.body:
            headers.append((b"content-type", response.content_type.encode()))
        if connection.their_state is h11.SEND_BODY:
            with suppress(h11.RemoteProtocolError):
                connection.next_event()  # without a body this is the end of the request already
        if self.closing or connection.their_state is not h11.DONE:
            headers.append((b"connection", b"close"))
        data = b""
        if connection.our_state is h11.SEND_RESPONSE or connection.our_state is h11.IDLE:
            reason = HTTPStatus(response.status).phrase.encode()
            head = h11.Response(status_code=response.status, headers=headers, reason=reason)
            data += connection.send(head) or b""
            if request is None or request.method != "HEAD":
                data += connection.send(h11.Data(data=response.body)) or b""
            data += connection.send(h11.EndOfMessage()) or b""
        with trio.fail_after(self._deadlines.send_s):
            await self._stream.send_all(data)
        return await self._after(connection)

    async def _after(self, connection: h11.Connection) -> bool:
        """Whether another request may follow."""
        if connection.our_state is h11.DONE and connection.their_state is h11.DONE:
            self._buffer, ended = connection.trailing_data
            return not ended or bool(self._buffer)
        await linger(self._stream, self._deadlines.linger_s)
        return False


@attrs.define(eq=False)
class _Outlet:
    """Each piece is a chunk. Raises ``trio.TooSlowError`` where the client does not take it."""

    _stream: trio.abc.HalfCloseableStream
    _connection: h11.Connection
    _request: Request
    _site: Site
    _send_s: float
    begun: bool = False
    ended: bool = False

    async def send(self, data: bytes) -> None:
        out = b""
        if not self.begun:
            self.begun = True
            head = self._site.finish(self._request, Response(status=200))
            headers = [*SECURITY_HEADERS, *head.headers, (b"content-type", b"text/event-stream; charset=utf-8")]
            out = self._connection.send(h11.Response(status_code=200, headers=headers, reason=b"OK")) or b""
        out += self._connection.send(h11.Data(data=data)) or b""
        with trio.fail_after(self._send_s):
            await self._stream.send_all(out)

    async def end(self) -> None:
        with trio.fail_after(self._send_s):
            await self._stream.send_all(self._connection.send(h11.EndOfMessage()) or b"")
        self.ended = True


async def linger(stream: trio.abc.HalfCloseableStream, seconds: float) -> None:
    """Say that nothing more comes, then read on for a moment.

    Closing with unread bytes makes the kernel send a reset, which can overtake the answer.
    """
    with trio.move_on_after(seconds):
        await stream.send_eof()
        while await stream.receive_some(_CHUNK):
            pass


def _parse_head(connection: h11.Connection, raw: bytes) -> Request | None:
    """The head that stands at the beginning of ``raw``; None for a target that is no path."""
    connection.receive_data(raw)
    event = connection.next_event()
    if not isinstance(event, h11.Request):
        raise h11.RemoteProtocolError("no request line")
    path = event.target.partition(b"?")[0]
    if not path.startswith(b"/"):
        return None
    return Request(
        method=event.method.decode("ascii"), path=path.decode("latin-1"), headers=list(event.headers)
    )
