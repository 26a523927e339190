"""What providers over HTTP have in common: keys, one call and another after it failed, which models there are."""

from __future__ import annotations

import math
import os
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import attrs
import msgspec
import trio

from witsd.services.models.answers import StreamedError, WireError
from witsd.services.models.http_client import Chunks, HttpClient, HttpFailed
from witsd.services.models.http_errors import Refusal, Server, refusal
from witsd.services.models.keys import KeyUnavailable, Secret
from witsd.services.models.provider import Deltas, OnDelta, extra_try, offered
from witsd.services.models.sse import SseEvent, SseParser, SseTooLong
from witsd.values.clock import Clock
from witsd.values.config_models import ProviderConfig
from witsd.values.errors import ModelError
from witsd.values.wire.models import Model, ModelsCompleteParams, ModelsCompleteResult

T = TypeVar("T")

#: How long an answer to "which models have you" is believed.
PROBE_FRESH_S = 10.0
#: How long that answer may take; a server on this machine answers at once or is not there.
_PROBE_S, _PROBE_LOCAL_S = 5.0, 3.0
#: A wait longer than this is the caller's to decide on.
MAX_WAIT_S = 30.0
MAX_BODY_BYTES = 16 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
#: What a stream may still bring once its answer is whole (usage), and once it has said so (its end).
_AFTER_FINISH_S, _AFTER_DONE_S = 5.0, 0.2


def system_jitter() -> float:
    """A random number from 0 up to 1."""
    return int.from_bytes(os.urandom(4), "big") / 2**32


def backoff_s(attempt: int, jitter: float) -> float:
    """0.5, 1, 2 ... 8 s, less up to a half by ``jitter`` (0 to 1), so that callers do not come in step."""
    return min(8.0, 0.5 * 2.0**attempt) * (1 - jitter / 2)


class Assembling(Protocol):
    """An answer being put together from the events of a stream."""

    @property
    def complete(self) -> bool:
        """Whether the server has said that its answer is whole."""

    @property
    def done(self) -> bool:
        """Nothing that matters can follow."""

    def event(self, event: SseEvent) -> tuple[str, str]:
        """Take one event; the text and the reasoning it adds. Raises ``WireError`` or ``StreamedError``."""

    def result(self) -> ModelsCompleteResult:
        """The whole answer. Raises ``WireError``."""


@attrs.frozen(kw_only=True)
class _Probe:
    """What the list of models said: ids, or why the server cannot be used."""

    ids: tuple[str, ...] = ()
    reason: str | None = None


@attrs.define(eq=False)
class HttpProvider:
    """``key`` reads the key (blocking; may raise ``KeyUnavailable``); ``unusable`` says why it can never be
    used; ``default_model`` goes before the models the server lists; ``hint`` is what to do when the server
    is not there, ``empty_hint`` when it has no model. ``sleep`` waits between attempts.

    A subclass says where its server is, how it is asked and what it sends.
    """

    config: ProviderConfig
    key: Callable[[], Secret | None] = attrs.field(repr=False)  # it may hold the whole environment
    clock: Clock
    jitter: Callable[[], float] = system_jitter
    sleep: Callable[[float], Awaitable[None]] = trio.sleep
    default_model: str = ""
    unusable: str | None = None
    hint: str = "check base_url and the network"
    empty_hint: str = "name one under `models` of its section"
    _http: HttpClient = attrs.field(init=False)
    _probing: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    _probed: tuple[float, _Probe] | None = attrs.field(default=None, init=False)

    models_path: ClassVar[str]
    complete_path: ClassVar[str]

    def __attrs_post_init__(self) -> None:
        self._http = HttpClient(
            self.base_url(), self.config.connect_timeout_s, self.config.timeout_s, self.hint, self.auth_headers
        )

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def kind(self) -> str:
        return self.config.kind

    async def models(self) -> tuple[Model, ...]:
        ids: tuple[str, ...] = ()
        try:
            server = await self.server()
        except ModelError as error:
            reason: str | None = error.message
        else:
            probe = await self._probe(server)
            reason, ids = probe.reason, probe.ids
        names = self.config.models or tuple(
            dict.fromkeys((*filter(None, [self.default_model]), *(i for i in ids if self.offered(i))))
        )
        if not names:
            reason = reason or f"{self.name}: it lists no model: {self.empty_hint}"
        return tuple(self._row(name, reason) for name in names or (self.name,))

    async def complete(
        self, request: ModelsCompleteParams, model: str, on_delta: OnDelta | None
    ) -> ModelsCompleteResult:
        server = await self.server()
        model = model or await self._default()
        delivered = False
        deliver: Deltas | None = None
        if on_delta is not None and self.config.streams:
            wanted = Deltas.of(on_delta)

            async def text(piece: str) -> None:
                nonlocal delivered
                delivered = True
                await wanted.text(piece)

            async def thought(piece: str) -> None:
                nonlocal delivered
                if wanted.thought is not None:
                    delivered = True
                    await wanted.thought(piece)

            deliver = Deltas(text, thought)
        return await self.persist(lambda: self._once(server, request, model, deliver), lambda: delivered)

    async def aclose(self) -> None:
        await self._http.aclose()

    # -- what a subclass says -----------------------------------------------------------------------

    def base_url(self) -> str:
        """Where the server is, without a slash at the end."""
        raise NotImplementedError

    def auth_headers(self, secret: Secret | None) -> dict[str, str]:
        """What goes with each request: the key, and whatever else the server wants to see."""
        raise NotImplementedError

    def body(self, request: ModelsCompleteParams, model: str, *, stream: bool) -> dict[str, Any]:
        """What to POST."""
        raise NotImplementedError

    def assembly(self, model: str) -> Assembling:
        """For a new answer that comes in pieces."""
        raise NotImplementedError

    def parse(self, raw: bytes, model: str) -> ModelsCompleteResult:
        """An answer that came whole. Raises ``WireError`` or ``StreamedError``."""
        raise NotImplementedError

    def model_ids(self, body: bytes) -> tuple[str, ...]:
        """The ids in a list of models. Raises ``WireError``."""
        raise NotImplementedError

    def offered(self, model_id: str) -> bool:
        """Whether a listed model is one to call at all."""
        return True

    def model_kind(self, name: str) -> Literal["chat", "embedding"]:
        return "chat"

    def learn(self, status: int, said: bytes, body: dict[str, Any]) -> None:
        """Whether an error's answer to ``body`` tells how this server wants to be asked."""

    def learnt(self) -> object:
        """What is known of how the server wants to be asked: where it has changed, a call is made anew at once."""
        return None

    # -- for subclasses -----------------------------------------------------------------------------

    async def persist(self, once: Callable[[], Awaitable[T]], too_late: Callable[[], bool]) -> T:
        """``once``, and again while that is worth it and ``too_late`` does not say otherwise."""
        attempt = 0
        while True:
            known = self.learnt()
            try:
                return await once()
            except HttpFailed as failed:
                failure = failed.failure
            if known != self.learnt():
                extra_try.get()()
                continue
            wait = failure.retry_after_s
            if wait is None:
                wait = backoff_s(attempt, self.jitter())
            if too_late() or not failure.worth_another or attempt >= self.config.retries or wait > MAX_WAIT_S:
                raise failure.error
            extra_try.get()()
            attempt += 1
            await self.sleep(wait)

    async def exchange(
        self, server: Server, path: str, body: dict[str, Any], model: str, read: Callable[[str, Chunks], Awaitable[T]]
    ) -> T:
        """POST ``body``; what ``read(media, chunks)`` makes of the answer. Raises ``HttpFailed``."""
        async with self._http.exchange(server, "POST", path, msgspec.json.encode(body)) as (response, chunks):
            if response.status_code != 200:
                said = await chunks.read(MAX_ERROR_BYTES, cut=True)
                self.learn(response.status_code, said, body)
                now_us = self.clock.wall_us()
                raise HttpFailed(
                    refusal(server, response.status_code, response.headers, said, model=model, now_us=now_us)
                )
            media = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if media == "text/html":
                text = f"{server.base_url} sent a web page, not JSON: check base_url"
                raise HttpFailed(Refusal(error=server.error(text, status=200)))
            try:
                return await read(media, chunks)
            except WireError as error:
                text = f"{server.base_url} sent {error}: is that its API? check base_url"
                raise HttpFailed(Refusal(error=server.error(text, status=200))) from None
            except StreamedError as error:
                again = error.status is None or error.status in (408, 425, 429) or error.status >= 500
                text = f"failed while it answered: {server.excerpt(str(error))}"
                raise HttpFailed(
                    Refusal(error=server.error(text, status=error.status or 200, retryable=again))
                ) from None

    async def _once(
        self, server: Server, request: ModelsCompleteParams, model: str, deliver: Deltas | None
    ) -> ModelsCompleteResult:
        async def read(media: str, chunks: Chunks) -> ModelsCompleteResult:
            if deliver is None or media == "application/json":
                return self.parse(await chunks.read(MAX_BODY_BYTES), model)
            assembly = self.assembly(model)
            await _read_events(chunks, assembly, deliver)
            if not assembly.complete:
                text = "broke off in the middle of its answer: try again"
                raise HttpFailed(Refusal(error=server.error(text, status=200, retryable=True)))
            return assembly.result()

        body = self.body(request, model, stream=deliver is not None)
        return await self.exchange(server, self.complete_path, body, model, read)

    # -- which models -------------------------------------------------------------------------------

    async def server(self) -> Server:
        """Who to speak to, with the key of this moment. Raises ``ModelError``."""
        server = Server(provider=self.name, base_url=self._http.base_url)
        if self.unusable is not None:
            raise server.error(self.unusable)
        try:
            secret = await trio.to_thread.run_sync(self.key)
        except KeyUnavailable as error:
            raise server.error(str(error)) from None
        return attrs.evolve(server, secret=secret)

    async def _default(self) -> str:
        rows = await self.models()
        row = next((row for row in rows if row.kind == "chat"), rows[0])
        if not row.available or row.kind != "chat":
            reason = row.reason or f"{self.name}: it lists no chat model: {self.empty_hint}"
            raise ModelError(reason, provider=self.name, status=None)
        return row.name

    async def _probe(self, server: Server) -> _Probe:
        async with self._probing:
            now = self.clock.monotonic()
            if self._probed is None or now - self._probed[0] >= PROBE_FRESH_S:
                self._probed = (now, await self._ask(server))
            return self._probed[1]

    async def _ask(self, server: Server) -> _Probe:
        limit = min(self.config.connect_timeout_s, _PROBE_LOCAL_S if self._http.local else _PROBE_S)
        try:
            if self._http.local:
                with trio.fail_after(limit):
                    if not await self._http.reachable():
                        return _Probe(reason=f"{self.name}: nothing answers at {server.base_url}: {self.hint}")
            await self._http.load()  # what that takes on a busy machine is not the server's fault
            with trio.fail_after(limit):
                return await self._ask_models(server)
        except trio.TooSlowError:
            late = f"{self.name}: {server.base_url} did not answer within {limit:g} s: {self.hint}"
            return _Probe(reason=late)

    async def _ask_models(self, server: Server) -> _Probe:
        try:
            async with self._http.exchange(server, "GET", self.models_path, None) as (response, chunks):
                status = response.status_code
                body = await chunks.read(
                    MAX_BODY_BYTES if status == 200 else MAX_ERROR_BYTES, cut=status != 200
                )
        except HttpFailed as failed:
            return _Probe(reason=failed.failure.error.message)
        if status == 200:
            try:
                return _Probe(ids=self.model_ids(body))
            except WireError as error:
                return _Probe(reason=f"{self.name}: {server.base_url}{self.models_path} sent {error}: check base_url")
        if status in (403, 404, 405, 429, 501) and (self.config.models or self.default_model):
            # It is there but will not list; the models that were named may well answer.
            return _Probe()
        now_us = self.clock.wall_us()
        return _Probe(
            reason=refusal(
                server, status, response.headers, body, model=self.models_path, now_us=now_us
            ).error.message
        )

    def _row(self, name: str, reason: str | None) -> Model:
        kind = self.model_kind(name)
        return offered(name, self.name, reason, kind=kind, streams=self.config.streams and kind == "chat")


async def _read_events(chunks: Chunks, assembly: Assembling, deliver: Deltas) -> None:
    """Until the stream ends, or has nothing more to say."""
    parser = SseParser()
    events = 0
    while True:
        patience = _AFTER_DONE_S if assembly.done else _AFTER_FINISH_S if assembly.complete else math.inf
        chunk = None
        with trio.move_on_after(patience):
            try:
                chunk = await chunks.next()
            except HttpFailed:
                if not assembly.complete:
                    raise
        if chunk is None:
            break
        try:
            found = parser.feed(chunk)
        except SseTooLong as error:
            raise WireError(f"an event of more than {error.args[0]} bytes") from None
        for event in found:
            events += 1
            if assembly.done:
                continue
            text, thought = assembly.event(event)
            if thought and deliver.thought is not None:
                await deliver.thought(thought)
            if text:
                await deliver.text(text)
    if not events:
        raise WireError("no server-sent event where a stream was asked for")
