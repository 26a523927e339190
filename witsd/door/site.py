"""What is served over HTTP: health, ``/rpc``, ``/ws``, the way in for a browser, and the page's files."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import attrs
import msgspec
import trio

from witsd.door.auth import Policy, bearer_token, cookie_prefix, our_cookies
from witsd.door.http import Request, Response, Upgrade, WantsBody, WantsStream, error_response
from witsd.door.metrics_text import CONTENT_TYPE
from witsd.values.actor import ANONYMOUS, Actor, Scope
from witsd.values.errors import (
    InvalidParams,
    InvalidRequest,
    MethodNotFound,
    NotFound,
    PermissionDenied,
    Unauthenticated,
)

if TYPE_CHECKING:
    from witsd.door.openai_door import OpenAIDoor
    from witsd.services.access import Access

_FORM_BYTES = 4096
_HTML = "text/html; charset=utf-8"
_TYPES = {
    ".html": _HTML,
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
}


def load_page(directory: Path) -> dict[str, Response]:
    """The files below ``directory`` by path. Nothing else can ever be asked for: no path is joined later."""
    files = {}
    for path in sorted(directory.rglob("*")):
        kind = _TYPES.get(path.suffix)
        if kind is not None and path.is_file():
            name = path.relative_to(directory).as_posix()
            files["/" + name] = Response(status=200, body=path.read_bytes(), content_type=kind)
    if "/index.html" in files:
        files["/"] = files["/index.html"]
    return files


class Rooms(msgspec.Struct, frozen=True, kw_only=True):
    """What the door does with a request that has been let in."""

    #: One JSON-RPC body for an actor: the encoded answer, b"" where there is none to give. Raises
    #: ``Unauthenticated`` when the credential ends meanwhile.
    rpc: Callable[[Actor, bytes], Awaitable[bytes]]
    #: A connection that becomes a WebSocket, and the cookies that came with it.
    websocket: Callable[[trio.abc.HalfCloseableStream, Actor, tuple[str, ...]], Awaitable[None]]
    #: Whoever is on this connection has shown a good credential.
    known: Callable[[], None] = lambda: None


@attrs.frozen
class Pages:
    """The site of one listener, as one connection sees it."""

    rooms: Rooms
    policy: Policy = attrs.field(kw_only=True)
    port: int = attrs.field(kw_only=True)
    access: Access = attrs.field(kw_only=True)
    files: Mapping[str, Response] = attrs.field(kw_only=True)
    message_bytes: int = attrs.field(kw_only=True)
    metrics: Callable[[], Awaitable[str]] = attrs.field(kw_only=True)
    #: What serves ``/v1``.
    openai: OpenAIDoor | None = attrs.field(kw_only=True, default=None)

    def begin(self, request: Request) -> Response | WantsBody | WantsStream | Upgrade:
        """Host and Origin first, then everything else."""
        decision = self._refuse_stranger(request) or self._route(request)
        return self.finish(request, decision) if isinstance(decision, Response) else decision

    def finish(self, request: Request, response: Response) -> Response:
        """Let a page of another origin that is allowed read its answer (CORS); cookies never count there."""
        origin = request.header(b"origin")
        if origin is None or self._origin(request) != "allowed":
            return response
        extra = (
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"vary", b"Origin"),
        )
        return msgspec.structs.replace(response, headers=(*response.headers, *extra))

    def _origin(self, request: Request) -> str:
        host = request.header(b"host") or ""
        return self.policy.judge_origin(request.header(b"origin"), host)

    def _refuse_stranger(self, request: Request) -> Response | None:
        host = request.header(b"host") or ""
        if not self.policy.answers_to(host):
            return error_response(
                403,
                PermissionDenied(
                    f"this daemon does not answer to the host {host!r}: add it to listen.allowed_hosts",
                    needs="listen.allowed_hosts",
                ),
            )
        origin = self._origin(request)
        # The file that brings a ticket has no origin of its own; the ticket is what counts there.
        if origin == "foreign" or (origin == "null" and request.path != "/session"):
            return error_response(
                403,
                PermissionDenied(
                    f"pages from {request.header(b'origin')} may not talk to this daemon: "
                    "listen.allowed_origins names those that may",
                    needs="listen.allowed_origins",
                ),
            )
        return None

    def _route(self, request: Request) -> Response | WantsBody | WantsStream | Upgrade:
        path = request.path
        if request.method == "OPTIONS" and self._origin(request) == "allowed":
            return _PREFLIGHT
        if path == "/rpc":
            return self._rpc(request)
        if path == "/metrics":
            return self._metrics(request)
        if path == "/ws":
            return self._ws(request)
        if path == "/session":
            return self._session(request)
        if path.startswith("/v1/") and self.openai is not None:
            return self.openai.begin(request, self.rooms.known)
        file = _HEALTHY if path == "/healthz" else self.files.get(path)
        if file is None:
            return error_response(404, NotFound("there is nothing at this path", kind="path", id=path))
        if request.method not in ("GET", "HEAD"):
            return _wrong_method("GET, HEAD")
        return self._drop_dead_cookies(request, file) if path == "/" else file

    # ---- /rpc -------------------------------------------------------------------------------------

    def _rpc(self, request: Request) -> Response | WantsBody:
        if request.method != "POST":
            return _wrong_method("POST")
        actor = self._bearer(request)
        if isinstance(actor, Response):
            return actor
        if actor is None:
            return _unauthenticated("POST /rpc needs the header Authorization: Bearer TOKEN")
        kind = (request.header(b"content-type") or "").partition(";")[0].strip().lower()
        if kind != "application/json":
            return error_response(415, InvalidRequest("send the header Content-Type: application/json"))

        async def answer(body: bytes) -> Response:
            try:
                result = await self.rooms.rpc(actor, body)
            except Unauthenticated as ended:
                return self.finish(request, _unauthenticated(ended.message))
            return self.finish(request, Response(status=200 if result else 204, body=result))

        return WantsBody(self.message_bytes, answer)

    # ---- /metrics ---------------------------------------------------------------------------------

    def _metrics(self, request: Request) -> Response | WantsBody:
        if request.method != "GET":
            return _wrong_method("GET")
        actor = self._bearer(request)
        if isinstance(actor, Response):
            return actor
        if actor is None:
            return _unauthenticated("GET /metrics needs the header Authorization: Bearer TOKEN")
        try:
            actor.require(Scope.READ)
        except PermissionDenied as refused:
            return error_response(403, refused)

        async def answer(body: bytes) -> Response:
            text = await self.metrics()
            return self.finish(request, Response(status=200, body=text.encode(), content_type=CONTENT_TYPE))

        return WantsBody(self.message_bytes, answer)

    def _bearer(self, request: Request) -> Actor | Response | None:
        """The actor of the token in the header, None without one, a 401 for one that is not good."""
        token = bearer_token(request.headers)
        if token is None:
            return None
        actor = self.access.authenticate_token(token)
        if actor is None:
            return _unauthenticated("this token is not known here: it may be mistyped, revoked or expired")
        return actor

    # ---- /ws --------------------------------------------------------------------------------------

    def _ws(self, request: Request) -> Response | Upgrade:
        if request.method != "GET":
            return _wrong_method("GET")
        if not request.wants_upgrade:
            return error_response(
                426, InvalidRequest("/ws speaks WebSocket only"),
                (b"upgrade", b"websocket"), (b"connection", b"upgrade"),
            )  # fmt: skip
        if problem := _handshake_problem(request):
            return error_response(400, InvalidRequest(problem), (b"sec-websocket-version", b"13"))
        actor = self._bearer(request)
        if isinstance(actor, Response):
            return actor
        own = self._origin(request) == "own"
        cookies = tuple(our_cookies(request.headers, self.port).values()) if own else ()

        async def serve(stream: trio.abc.HalfCloseableStream) -> None:
            await self.rooms.websocket(stream, actor or ANONYMOUS, cookies)

        return Upgrade(serve)

    # ---- /session ---------------------------------------------------------------------------------

    def _session(self, request: Request) -> Response | WantsBody:
        if request.method != "POST":
            return _wrong_method("POST")
        if self._origin(request) == "allowed":
            return error_response(
                403, PermissionDenied("tickets are for the daemon's own page", needs="own origin")
            )

        async def answer(body: bytes) -> Response:
            try:
                form = parse_qs(body.decode("ascii"), strict_parsing=True, max_num_fields=10)
                ticket = form["ticket"][0]
            except (ValueError, KeyError):
                return error_response(400, InvalidParams("the form has no field ticket", path="ticket"))
            keys = await self.access.redeem_ticket(ticket)
            if keys is None:
                return Response(status=403, body=_STALE, content_type=_HTML)
            name = cookie_prefix(self.port) + keys.credential[-8:]
            cookie = f"{name}={keys.cookie}; Path=/; HttpOnly; SameSite=Strict"
            page = _WELCOME % keys.tab_secret.encode()  # letters, digits, - and _: nothing to escape
            return Response(
                status=200, body=page, content_type=_HTML, headers=((b"set-cookie", cookie.encode()),)
            )

        return WantsBody(_FORM_BYTES, answer)

    def _drop_dead_cookies(self, request: Request, file: Response) -> Response:
        """Each ticket brings a cookie of its own: those whose session has ended go when the page loads."""
        dead = [
            name
            for name, value in our_cookies(request.headers, self.port).items()
            if not self.access.knows_cookie(value)
        ]
        gone = "=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0"
        drop = tuple((b"set-cookie", (name + gone).encode("latin-1")) for name in dead)
        return msgspec.structs.replace(file, headers=drop) if drop else file


def _handshake_problem(request: Request) -> str:
    """What is wrong with a WebSocket handshake (RFC 6455, 4.2.1), "" when nothing is."""
    options = {part.strip().lower() for part in (request.header(b"connection") or "").split(",")}
    if "upgrade" not in options:
        return "a WebSocket handshake has the header Connection: Upgrade"
    if request.header(b"sec-websocket-version") != "13":
        return "the WebSocket version here is 13"
    try:
        key = base64.b64decode(request.header(b"sec-websocket-key") or "", validate=True)
    except (binascii.Error, ValueError):
        key = b""
    return "" if len(key) == 16 else "Sec-WebSocket-Key must be 16 bytes in base64"


def _unauthenticated(message: str) -> Response:
    challenge = (b"www-authenticate", b'Bearer realm="witsd"')
    return error_response(401, Unauthenticated(message), challenge)


def _wrong_method(allowed: str) -> Response:
    error = MethodNotFound(f"only {allowed} here", path="method")
    return error_response(405, error, (b"allow", allowed.encode()))


_HEALTHY = Response(status=200, body=b'{"status":"ok"}')
_PREFLIGHT = Response(
    status=204,
    headers=(
        (b"access-control-allow-methods", b"GET, POST"),
        (b"access-control-allow-headers", b"authorization, content-type"),
        (b"access-control-max-age", b"600"),
    ),
)
_WELCOME = (
    b'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>witsd</title>'
    b'<link rel="stylesheet" href="/style.css"></head><body data-tab="%s"><main><p>Signing in\xe2\x80\xa6</p>'
    b"<noscript><p>This page needs JavaScript.</p></noscript></main>"
    b'<script src="/session.js"></script></body></html>'
)
_STALE = (
    b'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>witsd</title>'
    b'<link rel="stylesheet" href="/style.css"></head><body><main><h1>This ticket is no longer good</h1>'
    b"<p>A ticket works once and for 30 seconds. Make a new one and try again.</p>"
    b'<p><a href="/">Back</a></p></main></body></html>'
)
