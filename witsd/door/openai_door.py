"""``/v1``: OpenAI's API on the daemon's HTTP port, for whatever speaks it: chat completions, models, embeddings.

An agent calls with the key in its environment or its run's own, a program with a token; both only ever reach the
gateway, where it is looked at what they may and who pays.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from urllib.parse import unquote

import attrs
import msgspec
import trio

from witsd.door import openai_wire as wire
from witsd.door.auth import bearer_token
from witsd.door.http import Outlet, Request, Response, WantsBody, WantsStream
from witsd.services.access import Access
from witsd.services.model_keys import ModelKey, ModelKeys
from witsd.services.models.embedders import Embedders
from witsd.services.models.gateway import Models
from witsd.services.models.routing import ROUTE
from witsd.values.actor import Actor, Scope
from witsd.values.clock import Clock
from witsd.values.errors import (
    InternalError,
    InvalidParams,
    InvalidState,
    MethodNotFound,
    NotFound,
    Unauthenticated,
    WitsdError,
)
from witsd.values.ids import AgentName, Ids
from witsd.values.wire.models import Model, ModelsListParams

log = logging.getLogger("witsd.door")

#: What may wait to be sent, in bytes: who reads slowly slows the model down.
_UNSENT = 64 * 1024
_NEEDS_KEY = (
    "/v1 needs the header Authorization: Bearer KEY: agents find theirs in OPENAI_API_KEY, "
    "programs use a token (witsd token create)"
)


@attrs.frozen
class Caller:
    """Who calls, and for which run. ``key`` is an agent's; without one it is a program's token."""

    actor: Actor
    key: ModelKey | None = None

    @property
    def run_id(self) -> str | None:
        return None if self.key is None else self.key.run_id


@attrs.frozen(kw_only=True)
class OpenAIDoor:
    """Serves every path below ``/v1/``."""

    models: Models
    embedders: Embedders
    keys: ModelKeys
    access: Access
    actor_of: Callable[[AgentName], Actor | None]
    clock: Clock
    ids: Ids
    body_bytes: int

    def begin(self, request: Request, known: Callable[[], None]) -> Response | WantsBody | WantsStream:
        """Decide on the head alone. ``known`` is called where the credential is good."""
        try:
            caller = self._caller(request)
            known()
            return self._route(request, caller)
        except WitsdError as error:
            return _refused(error)

    def _caller(self, request: Request) -> Caller:
        secret = bearer_token(request.headers)
        if secret is None:
            raise Unauthenticated(_NEEDS_KEY)
        key = self.keys.find(secret)
        actor = self.access.authenticate_token(secret) if key is None else self.actor_of(key.agent)
        if actor is None:
            raise Unauthenticated("this key is not known here: it may be mistyped, revoked or expired, or its run over")
        return Caller(actor, key)

    def _route(self, request: Request, caller: Caller) -> Response | WantsBody | WantsStream:
        path = request.path.removeprefix("/v1")
        if path == "/chat/completions" or path == "/embeddings":
            if request.method != "POST":
                raise MethodNotFound("only POST here", path="method")
            _allow(caller, Scope.CHAT)
            if path == "/embeddings":
                return WantsBody(self.body_bytes, lambda body: self._whole(caller, lambda: self._embed(caller, body)))
            return WantsStream(self.body_bytes, lambda body, outlet: self._chat(caller, body, outlet))
        if path == "/models" or path.startswith("/models/"):
            if request.method not in ("GET", "HEAD"):
                raise MethodNotFound("only GET here", path="method")
            _allow(caller, Scope.READ)
            name = unquote(path.removeprefix("/models").removeprefix("/"))
            return WantsBody(0, lambda _: self._whole(caller, lambda: self._list(caller, name)))
        raise NotFound(
            f"there is nothing at {request.path}: /v1/chat/completions, /v1/models and /v1/embeddings are served",
            kind="path",
            id=request.path,
        )

    # ---- what is served ---------------------------------------------------------------------------

    async def _chat(self, caller: Caller, body: bytes, outlet: Outlet) -> Response | None:
        async def answer() -> Response | None:
            asked = wire.read_chat(body)
            params = msgspec.structs.replace(asked.params, run_id=caller.run_id)
            name, created = self.ids.new("chatcmpl"), self.clock.wall_us() // 1_000_000
            if not asked.stream:
                result = await self.models.complete(caller.actor, params, _Silent())
                return Response(status=200, body=wire.chat_body(result, name=name, created=created))
            chunks = wire.Chunks(name=name, model=params.model or "auto", created=created, usage=asked.usage)
            failed: WitsdError | None = None
            last = b""
            async with trio.open_nursery() as nursery:
                told = _Told(outlet, chunks)
                nursery.start_soon(told.deliver, nursery.cancel_scope)
                try:
                    result = await self.models.complete(caller.actor, params, told)
                    last = chunks.end(result, said=told.said)
                except WitsdError as error:  # within the nursery, which would wrap it
                    failed = error
                told.over()
            if told.gone:
                raise trio.BrokenResourceError("the client takes no more")
            if failed is not None:
                if not outlet.begun:
                    raise failed
                last = chunks.failed(failed)
            await outlet.send(last)
            await outlet.end()
            return None

        return await self._guarded(caller, answer, outlet)

    async def _embed(self, caller: Caller, body: bytes) -> Response:
        params, packed, dimensions = wire.read_embeddings(body)
        params = msgspec.structs.replace(params, run_id=caller.run_id)
        result = await self.embedders.embed(caller.actor, params)
        if dimensions is not None and dimensions != result.dimensions:
            text = f"{result.model} makes vectors of {result.dimensions} numbers: leave `dimensions` out"
            raise InvalidParams(text, path="dimensions")
        return Response(status=200, body=wire.embeddings_body(result, params.texts, packed=packed))

    async def _list(self, caller: Caller, name: str) -> Response:
        page = await self.models.list(caller.actor, ModelsListParams(limit=1000))
        rows = {_id(row): row.provider for row in page.items if row.available and not set("*?[") & set(row.name)}
        if name:
            if name not in rows:
                raise NotFound(f"there is no model {name!r}, or it is not available", kind="model", id=name)
            return Response(status=200, body=msgspec.json.encode(wire.model_body(name, rows[name])))
        data = [wire.model_body(name, owner) for name, owner in rows.items()]
        return Response(status=200, body=msgspec.json.encode({"object": "list", "data": data}))

    # ---- for as long as the key is good, and never with a bug's own words ---------------------------

    async def _whole(self, caller: Caller, answer: Callable[[], Awaitable[Response]]) -> Response:
        response = await self._guarded(caller, answer, None)
        assert response is not None
        return response

    async def _guarded(
        self, caller: Caller, answer: Callable[[], Awaitable[Response | None]], outlet: Outlet | None
    ) -> Response | None:
        error: WitsdError
        try:
            with trio.CancelScope() as scope, self._visit(caller, scope):
                return await answer()
            text = "the key was revoked before the answer was there: its run or its agent is over"
            error = InvalidState(text, state="over")
        except WitsdError as refused:
            error = refused
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            raise  # of the connection
        except Exception:  # the boundary: a bug's words stay in the log
            log_id = self.ids.new("log")
            log.exception("door.openai_failed log_id=%s", log_id)
            error = InternalError(f"an internal error; the daemon's log has it as {log_id}", log_id=log_id)
        if outlet is not None and outlet.begun:
            await outlet.send(b"data: " + msgspec.json.encode(wire.error_document(error)) + b"\n\n")
            await outlet.end()
            return None
        return _refused(error)

    @contextmanager
    def _visit(self, caller: Caller, scope: trio.CancelScope) -> Iterator[None]:
        if caller.key is not None:
            with caller.key.visit(scope):
                yield
            return
        with self.access.visit(scope, caller.actor):
            yield


class _Silent:
    """Nobody wants pieces."""

    wanted = False

    async def __call__(self, *, delta: str | None = None, thought: str | None = None) -> None:
        await trio.lowlevel.checkpoint()


@attrs.define(eq=False)
class _Told:
    """Pieces become chunks as they come; those that come while others are sent go out together."""

    outlet: Outlet
    chunks: wire.Chunks
    said: bool = False
    wanted: bool = True
    _waiting: list[bytes] = attrs.field(factory=list)
    _size: int = 0
    _over: bool = False
    #: The client has hung up, or does not read.
    gone: bool = False
    _more: trio.Event = attrs.field(factory=trio.Event)
    _room: trio.Event = attrs.field(factory=trio.Event)

    async def __call__(self, *, delta: str | None = None, thought: str | None = None) -> None:
        if delta:
            self.said = True
            self._add(self.chunks.text(delta))
        if thought:
            self._add(self.chunks.thought(thought))
        while self._size > _UNSENT:
            self._room = trio.Event()
            await self._room.wait()

    def _add(self, chunk: bytes) -> None:
        self._waiting.append(chunk)
        self._size += len(chunk)
        self._more.set()

    def over(self) -> None:
        """No more comes."""
        self._over = True
        self._more.set()

    async def deliver(self, scope: trio.CancelScope) -> None:
        """Send until it is over; ``scope`` is cancelled where nobody takes it."""
        while True:
            await self._more.wait()
            if not self._waiting:
                return
            data, self._waiting, self._size = b"".join(self._waiting), [], 0
            self._room.set()
            if not self._over:
                self._more = trio.Event()
            try:
                await self.outlet.send(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
                self.gone = True
                scope.cancel()
                return


def _allow(caller: Caller, scope: Scope) -> None:
    """An agent is bound by its grants, which the gateway looks at; a program by its token's scopes."""
    if caller.key is None:
        caller.actor.require(scope)


def _id(row: Model) -> str:
    return row.name if row.provider == ROUTE else f"{row.provider}/{row.name}"


def _refused(error: WitsdError) -> Response:
    return Response(
        status=wire.error_status(error),
        body=msgspec.json.encode(wire.error_document(error)),
        headers=wire.error_headers(error),
    )
