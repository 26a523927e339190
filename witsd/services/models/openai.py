"""Servers with OpenAI's ``/chat/completions`` and ``/embeddings``: OpenAI, Ollama, vLLM, llama.cpp, gateways."""

from __future__ import annotations

import math
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, TypeVar

import attrs
import msgspec
import trio

from witsd.services.models.chat_wire import (
    Assembly,
    StreamedError,
    WireError,
    model_ids,
    parse_answer,
    parse_embeddings,
    request_body,
)
from witsd.services.models.http_client import Chunks, HttpClient, HttpFailed
from witsd.services.models.http_errors import Refusal, Server, refusal
from witsd.services.models.keys import KeyUnavailable, Secret
from witsd.services.models.provider import OnDelta
from witsd.services.models.sse import SseParser, SseTooLong
from witsd.values.clock import Clock
from witsd.values.config_models import ProviderConfig
from witsd.values.errors import ModelError
from witsd.values.wire.common import UNSET
from witsd.values.wire.models import Model, ModelsCompleteParams, ModelsCompleteResult, ModelsEmbedResult

T = TypeVar("T")

OPENAI_URL = "https://api.openai.com/v1"
#: How long an answer to "which models have you" is believed.
PROBE_FRESH_S = 10.0
#: How long that answer may take; a server on this machine answers at once or is not there.
_PROBE_S, _PROBE_LOCAL_S = 5.0, 1.0
#: A wait longer than this is the caller's to decide on.
MAX_WAIT_S = 30.0
_MAX_BODY_BYTES = 16 * 1024 * 1024
#: 256 texts as vectors of 3,072 numbers.
_MAX_EMBEDDINGS_BYTES = 64 * 1024 * 1024
_MAX_ERROR_BYTES = 64 * 1024
#: What a stream may still bring once its answer is whole (usage), and once it has said [DONE] (its end).
_AFTER_FINISH_S, _AFTER_DONE_S = 5.0, 0.2

#: ``/models`` does not say what a model is for. By these words in their ids OpenAI's and Ollama's are told
#: apart; a wrong guess is mended by naming the models in the configuration.
_NO_CHAT = (
    "whisper", "tts", "dall-e", "moderation", "davinci-002", "babbage-002", "sora", "-image", "transcribe",
    "realtime", "-audio",
)  # fmt: skip


def system_jitter() -> float:
    """A random number from 0 up to 1."""
    return int.from_bytes(os.urandom(4), "big") / 2**32


def backoff_s(attempt: int, jitter: float) -> float:
    """0.5, 1, 2 ... 8 s, less up to a half by ``jitter`` (0 to 1), so that callers do not come in step."""
    return min(8.0, 0.5 * 2.0**attempt) * (1 - jitter / 2)


@attrs.frozen(kw_only=True)
class _Probe:
    """What ``/models`` said: ids, or why the server cannot be used."""

    ids: tuple[str, ...] = ()
    reason: str | None = None


@attrs.define(eq=False)
class OpenAIProvider:
    """``key`` reads the key (blocking; may raise ``KeyUnavailable``); ``unusable`` says why it can never be
    used; ``default_model`` goes before the models the server lists; ``hint`` is what to do when the server
    is not there, ``empty_hint`` when it has no model. ``sleep`` waits between attempts.
    """

    config: ProviderConfig
    key: Callable[[], Secret | None]
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
    # What this server was found not to take; learnt once.
    _usage_option: bool = attrs.field(default=True, init=False)
    _new_limit: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._http = HttpClient(
            (self.config.base_url or OPENAI_URL).rstrip("/"),
            self.config.connect_timeout_s,
            self.config.timeout_s,
            self.hint,
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
            server = await self._server()
        except ModelError as error:
            reason: str | None = error.message
        else:
            probe = await self._probe(server)
            reason, ids = probe.reason, probe.ids
        names = self.config.models or tuple(
            dict.fromkeys((*filter(None, [self.default_model]), *(i for i in ids if _offered(i))))
        )
        if not names:
            reason = reason or f"{self.name}: it lists no model: {self.empty_hint}"
        return tuple(self._row(name, reason) for name in names or (self.name,))

    async def complete(
        self, request: ModelsCompleteParams, model: str, on_delta: OnDelta | None
    ) -> ModelsCompleteResult:
        server = await self._server()
        model = model or await self._default()
        delivered = False
        deliver: OnDelta | None = None
        if on_delta is not None and self.config.streams:
            wanted = on_delta

            async def deliver(text: str) -> None:
                nonlocal delivered
                delivered = True
                await wanted(text)

        return await self._persist(lambda: self._once(server, request, model, deliver), lambda: delivered)

    async def embed(self, texts: Sequence[str], model: str) -> ModelsEmbedResult:
        server = await self._server()
        return await self._persist(lambda: self._embed_once(server, texts, model), lambda: False)

    async def _persist(self, once: Callable[[], Awaitable[T]], too_late: Callable[[], bool]) -> T:
        """``once``, and again while that is worth it and ``too_late`` does not say otherwise."""
        attempt = 0
        while True:
            known = (self._usage_option, self._new_limit)
            try:
                return await once()
            except HttpFailed as failed:
                failure = failed.failure
            if known != (self._usage_option, self._new_limit):
                continue  # it has just been learnt how this server wants to be asked
            wait = failure.retry_after_s
            if wait is None:
                wait = backoff_s(attempt, self.jitter())
            if too_late() or not failure.worth_another or attempt >= self.config.retries or wait > MAX_WAIT_S:
                raise failure.error
            attempt += 1
            await self.sleep(wait)

    async def aclose(self) -> None:
        await self._http.aclose()

    # -- one attempt --------------------------------------------------------------------------------

    async def _once(
        self, server: Server, request: ModelsCompleteParams, model: str, deliver: OnDelta | None
    ) -> ModelsCompleteResult:
        stream = deliver is not None
        body = request_body(
            request, model, stream=stream, usage=self._usage_option, new_limit=self._new_limit
        )
        content = msgspec.json.encode(body)
        async with self._http.exchange(server, "POST", "/chat/completions", content) as (response, chunks):
            if response.status_code != 200:
                said = await chunks.read(_MAX_ERROR_BYTES, cut=True)
                self._learn(response.status_code, said, body)
                raise HttpFailed(
                    refusal(
                        server,
                        response.status_code,
                        response.headers,
                        said,
                        model=model,
                        now_us=self.clock.wall_us(),
                    )
                )
            media = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if media == "text/html":
                raise _wrong(server, f"{server.base_url} sent a web page, not JSON: check base_url")
            try:
                if deliver is None or media == "application/json":
                    raw = await chunks.read(_MAX_BODY_BYTES)
                    return parse_answer(raw, provider=self.name, model=model)
                return await self._read_stream(server, model, chunks, deliver)
            except WireError as error:
                text = f"{server.base_url} sent {error}: is that its API? check base_url"
                raise _wrong(server, text) from None
            except StreamedError as error:
                retryable = error.status is None or error.status == 429 or error.status >= 500
                text = f"failed while it answered: {server.excerpt(str(error))}"
                raise HttpFailed(
                    Refusal(error=server.error(text, status=error.status or 200, retryable=retryable))
                ) from None

    async def _embed_once(self, server: Server, texts: Sequence[str], model: str) -> ModelsEmbedResult:
        content = msgspec.json.encode({"model": model, "input": list(texts), "encoding_format": "float"})
        async with self._http.exchange(server, "POST", "/embeddings", content) as (response, chunks):
            if response.status_code != 200:
                said = await chunks.read(_MAX_ERROR_BYTES, cut=True)
                now_us = self.clock.wall_us()
                raise HttpFailed(
                    refusal(server, response.status_code, response.headers, said, model=model, now_us=now_us)
                )
            raw = await chunks.read(_MAX_EMBEDDINGS_BYTES)
            try:
                return parse_embeddings(raw, model)
            except WireError as error:
                text = f"{server.base_url} sent {error}: is that its API? check base_url"
                raise _wrong(server, text) from None

    async def _read_stream(
        self, server: Server, model: str, chunks: Chunks, deliver: OnDelta
    ) -> ModelsCompleteResult:
        parser, assembly = SseParser(), Assembly(provider=self.name, model=model)
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
                if not assembly.done and (text := assembly.event(event.data)):
                    await deliver(text)
        if not events:
            raise WireError("no server-sent event where a stream was asked for")
        if not assembly.complete:
            text = "broke off in the middle of its answer: try again"
            raise HttpFailed(Refusal(error=server.error(text, status=200, retryable=True)))
        return assembly.result()

    def _learn(self, status: int, said: bytes, body: dict[str, Any]) -> None:
        """Some servers know no ``stream_options``, and some models only the newer name of ``max_tokens``."""
        if status not in (400, 422):
            return
        if b"stream_options" in said and "stream_options" in body:
            self._usage_option = False
        elif b"max_completion_tokens" in said and "max_tokens" in body:
            self._new_limit = True

    # -- which models -------------------------------------------------------------------------------

    async def _server(self) -> Server:
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
            with trio.fail_after(limit):
                if self._http.local and not await self._http.reachable():
                    return _Probe(reason=f"{self.name}: nothing answers at {server.base_url}: {self.hint}")
                return await self._ask_models(server)
        except trio.TooSlowError:
            late = f"{self.name}: {server.base_url} did not answer within {limit:g} s: {self.hint}"
            return _Probe(reason=late)

    async def _ask_models(self, server: Server) -> _Probe:
        try:
            async with self._http.exchange(server, "GET", "/models", None) as (response, chunks):
                status = response.status_code
                body = await chunks.read(
                    _MAX_BODY_BYTES if status == 200 else _MAX_ERROR_BYTES, cut=status != 200
                )
        except HttpFailed as failed:
            return _Probe(reason=failed.failure.error.message)
        if status == 200:
            try:
                return _Probe(ids=model_ids(body))
            except WireError as error:
                return _Probe(reason=f"{self.name}: {server.base_url}/models sent {error}: check base_url")
        if status in (403, 404, 405, 429, 501) and (self.config.models or self.default_model):
            # It is there but will not list; the models that were named may well answer.
            return _Probe()
        now_us = self.clock.wall_us()
        return _Probe(
            reason=refusal(
                server, status, response.headers, body, model="/models", now_us=now_us
            ).error.message
        )

    def _row(self, name: str, reason: str | None) -> Model:
        kind: Literal["chat", "embedding"] = "embedding" if "embed" in name.lower() else "chat"
        return Model(
            name=name,
            provider=self.name,
            kind=kind,
            default=False,
            available=reason is None,
            streams=self.config.streams and kind == "chat",
            reason=UNSET if reason is None else reason,
        )


def _offered(model_id: str) -> bool:
    return not any(word in model_id.lower() for word in _NO_CHAT)


def _wrong(server: Server, text: str) -> HttpFailed:
    return HttpFailed(Refusal(error=server.error(text, status=200)))
