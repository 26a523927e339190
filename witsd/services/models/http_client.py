"""HTTP to one model server: httpx on trio, loaded late, with every failure turned into ``HttpFailed``.

httpx is imported at the first exchange and in a thread: importing it and loading the certificates takes
longer than the event loop may stand still, and a daemon that calls no model never pays.
"""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import attrs
import trio

from witsd.services.models.http_errors import Refusal, Server
from witsd.services.models.keys import Secret

if TYPE_CHECKING:
    import httpx

_CLOSE_S = 2.0


class HttpFailed(Exception):
    """An attempt failed; ``failure`` says how and whether another is worth it."""

    def __init__(self, failure: Refusal) -> None:
        super().__init__(failure.error.message)
        self.failure = failure


class Chunks:
    """The body of an answer, piece by piece."""

    def __init__(self, source: AsyncIterator[bytes], http: HttpClient, server: Server) -> None:
        self._source = source
        self._http = http
        self._server = server

    async def next(self) -> bytes | None:
        """The next piece, None at the end. Raises ``HttpFailed``."""
        try:
            return await anext(self._source)
        except StopAsyncIteration:
            return None
        except _http_errors() as error:
            raise HttpFailed(self._http.failure(self._server, error)) from None

    async def read(self, limit: int, *, cut: bool = False) -> bytes:
        """All of it. Over ``limit`` bytes: the beginning where ``cut``, else ``HttpFailed``."""
        body = bytearray()
        while (piece := await self.next()) is not None:
            body += piece
            if len(body) > limit:
                if cut:
                    break
                text = f"sent more than {limit} bytes: is {self._server.base_url} its API?"
                raise HttpFailed(Refusal(error=self._server.error(text, status=200)))
        return bytes(body[:limit])

    async def drop(self) -> None:
        """Run httpx's generators to their end (the answer is closed, so that is at once).

        Left suspended they would be finalised by the garbage collector, with a warning.
        """
        try:
            async for _ in self._source:
                pass
        except _http_errors():
            return


@attrs.define(eq=False)
class HttpClient:
    """Exchanges with the server at ``base_url``; ``connect_s`` and ``read_s`` bound each such wait."""

    base_url: str
    connect_s: float
    read_s: float
    hint: str
    #: What goes with each request beside what HTTP wants.
    auth_headers: Callable[[Secret | None], dict[str, str]]
    _client: httpx.AsyncClient | None = attrs.field(default=None, init=False)
    _opening: trio.Lock = attrs.field(factory=trio.Lock, init=False)

    @property
    def local(self) -> bool:
        """Whether the server is on this machine."""
        host = urlsplit(self.base_url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    @asynccontextmanager
    async def exchange(
        self, server: Server, verb: str, path: str, content: bytes | None
    ) -> AsyncIterator[tuple[httpx.Response, Chunks]]:
        """One request; the answer's head and its body. Raises ``HttpFailed``."""
        client = await self.load()
        # No compression: it would let a small body grow without bound before its size is seen.
        headers = {"accept-encoding": "identity", "accept": "application/json, text/event-stream"}
        headers |= self.auth_headers(server.secret)
        if content is not None:
            headers["content-type"] = "application/json"
        try:
            request = client.build_request(verb, self.base_url + path, headers=headers, content=content)
            response = await client.send(request, stream=True)
        except _http_errors() as error:
            raise HttpFailed(self.failure(server, error)) from None
        chunks = Chunks(response.aiter_bytes(), self, server)
        try:
            yield response, chunks
        finally:
            with trio.move_on_after(_CLOSE_S) as closing:
                closing.shield = True
                await response.aclose()
                await chunks.drop()

    async def reachable(self) -> bool:
        """Whether something accepts connections there: a cheap question, asked without httpx."""
        parts = urlsplit(self.base_url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            stream = await trio.open_tcp_stream(parts.hostname or "", port)
        except OSError:
            return False
        await stream.aclose()
        return True

    def failure(self, server: Server, error: Exception) -> Refusal:
        """What went wrong between here and there. The words of the library are never passed on."""
        import httpx

        where = self.base_url
        match error:
            case httpx.ConnectTimeout():
                text, again = f"no connection to {where} within {self.connect_s:g} s: {self.hint}", True
            case httpx.ConnectError():
                text, again = f"cannot connect to {where}: {self.hint}", True
            case httpx.ReadTimeout():
                # Not tried again: the caller has waited long enough already.
                text, again = f"{where} was silent for {self.read_s:g} s: raise timeout_s or try again", False
            case httpx.TimeoutException():
                text, again = f"{where} did not take the request in time: try again", True
            case httpx.NetworkError() | httpx.RemoteProtocolError():
                text, again = f"{where} broke the connection off before its answer was whole: try again", True
            case httpx.DecodingError():
                text, again = f"{where} sent a body that cannot be decoded", False
            case _:
                text, again = f"{where} cannot be spoken to ({type(error).__name__}): check base_url", False
        retryable = again or isinstance(error, httpx.TimeoutException)
        return Refusal(error=server.error(text, status=None, retryable=retryable), retry=again)

    async def aclose(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with trio.move_on_after(_CLOSE_S) as closing:
                closing.shield = True
                await client.aclose()

    async def load(self) -> httpx.AsyncClient:
        """Have httpx ready; at first this takes a good part of a second, and more on a busy machine."""
        async with self._opening:
            if self._client is None:
                self._client = await trio.to_thread.run_sync(self._build)
            return self._client

    def _build(self) -> httpx.AsyncClient:
        import httpx

        return httpx.AsyncClient(
            timeout=httpx.Timeout(self.read_s, connect=self.connect_s),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=8, keepalive_expiry=30),
            headers={"user-agent": "witsd"},
            follow_redirects=False,
            # Proxies and certificates as the environment says, but never a proxy to this machine itself.
            trust_env=not self.local,
        )


def _http_errors() -> tuple[type[Exception], ...]:
    import httpx

    return (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, trio.ClosedResourceError)
