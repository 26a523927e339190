"""Any server with OpenAI's ``/chat/completions``: OpenAI itself, Ollama, vLLM, llama.cpp, gateways.

httpx is imported at the first call and in a thread: importing it and loading the certificates takes
longer than the event loop may stand still, and a daemon that calls no model never pays.
"""

from __future__ import annotations

import ipaddress
import math
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import attrs
import msgspec
import trio

from witsd.services.models.chat_wire import (
    Assembly,
    StreamedError,
    WireError,
    model_ids,
    parse_answer,
    request_body,
)
from witsd.services.models.http_errors import Refusal, Server, refusal
from witsd.services.models.keys import KeyUnavailable, Secret
from witsd.services.models.provider import OnDelta
from witsd.services.models.sse import SseParser, SseTooLong
from witsd.values.clock import Clock
from witsd.values.config_models import ProviderConfig
from witsd.values.errors import ModelError
from witsd.values.wire.common import UNSET
from witsd.values.wire.models import Model, ModelsCompleteParams, ModelsCompleteResult

if TYPE_CHECKING:
    import httpx

OPENAI_URL = "https://api.openai.com/v1"
#: How long an answer to "which models have you" is believed.
PROBE_FRESH_S = 10.0
#: A wait longer than this is the caller's to decide on.
MAX_WAIT_S = 30.0
_MAX_BODY_BYTES = 16 * 1024 * 1024
_MAX_ERROR_BYTES = 64 * 1024
#: What a stream may still bring once its answer is whole (usage), and once it has said [DONE] (its end).
_AFTER_FINISH_S, _AFTER_DONE_S = 5.0, 0.2
_CLOSE_S = 2.0

#: ``/models`` does not say what a model is for. By these words in their ids OpenAI's and Ollama's are told
#: apart; a wrong guess is mended by naming the models in the configuration.
_NO_CHAT = ("whisper", "tts", "dall-e", "moderation", "davinci-002", "babbage-002", "sora", "-image",
            "transcribe", "realtime", "-audio")  # fmt: skip


def system_jitter() -> float:
    """A random number from 0 up to 1."""
    return int.from_bytes(os.urandom(4), "big") / 2**32


def backoff_s(attempt: int, jitter: float) -> float:
    """0.5, 1, 2 ... 8 s, less up to a half by ``jitter`` (0 to 1), so that many callers do not come together."""
    return min(8.0, 0.5 * 2.0**attempt) * (1 - jitter / 2)


class _Failed(Exception):
    """One attempt failed; perhaps another is worth it."""

    def __init__(self, failure: Refusal) -> None:
        super().__init__(failure.error.message)
        self.failure = failure


@attrs.frozen(kw_only=True)
class _Probe:
    """What ``/models`` said: ids, or why the server cannot be used."""

    ids: tuple[str, ...] = ()
    reason: str | None = None


@attrs.define(eq=False)
class OpenAIProvider:
    """``key`` reads the key (blocking; ``KeyUnavailable``), ``unusable`` says why it can never be used,
    ``default_model`` goes before the models the server lists, ``hint`` is what to do when it is not there."""

    config: ProviderConfig
    key: Callable[[], Secret | None]
    clock: Clock
    jitter: Callable[[], float] = system_jitter
    default_model: str = ""
    unusable: str | None = None
    hint: str = "check base_url and the network"
    _client: httpx.AsyncClient | None = attrs.field(default=None, init=False)
    _opening: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    _probing: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    _probed: tuple[float, _Probe] | None = attrs.field(default=None, init=False)
    # What this server was found not to take; learnt once.
    _usage_option: bool = attrs.field(default=True, init=False)
    _new_limit: bool = attrs.field(default=False, init=False)

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def kind(self) -> str:
        return self.config.kind

    @property
    def base_url(self) -> str:
        return (self.config.base_url or OPENAI_URL).rstrip("/")

    async def models(self) -> tuple[Model, ...]:
        reason, ids = self.unusable, ()
        if reason is None:
            try:
                server = await self._server()
            except KeyUnavailable as error:
                reason = str(error)
            else:
                probe = await self._probe(server)
                reason, ids = probe.reason, probe.ids
        names = self.config.models or tuple(
            dict.fromkeys((*filter(None, [self.default_model]), *(i for i in ids if _is_offered(i))))
        )
        if not names:
            reason = reason or f"it lists no model: {self.hint}"
        return tuple(self._model(name, reason) for name in names or (self.name,))

    async def complete(
        self, request: ModelsCompleteParams, model: str, on_delta: OnDelta | None
    ) -> ModelsCompleteResult:
        if self.unusable is not None:
            raise ModelError(f"{self.name}: {self.unusable}", provider=self.name, status=None)
        model = model or await self._default()
        try:
            server = await self._server()
        except KeyUnavailable as error:
            raise ModelError(f"{self.name}: {error}", provider=self.name, status=None) from None
        delivered = False

        async def deliver(text: str) -> None:
            nonlocal delivered
            delivered = True
            assert on_delta is not None
            await on_delta(text)

        attempt = 0
        while True:
            adapted = (self._usage_option, self._new_limit)
            try:
                return await self._once(server, request, model, deliver if on_delta is not None else None)
            except _Failed as failed:
                failure = failed.failure
            if adapted != (self._usage_option, self._new_limit):
                continue
            wait = failure.retry_after_s
            if wait is None:
                wait = backoff_s(attempt, self.jitter())
            if delivered or not failure.error.retryable or attempt >= self.config.retries or wait > MAX_WAIT_S:
                raise failure.error
            attempt += 1
            await trio.sleep(wait)

    async def aclose(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with trio.move_on_after(_CLOSE_S, shield=True):
                await client.aclose()

    # -- one attempt --------------------------------------------------------------------------------

    async def _once(
        self, server: Server, request: ModelsCompleteParams, model: str, deliver: OnDelta | None
    ) -> ModelsCompleteResult:
        stream = deliver is not None and self.config.streams
        body = request_body(
            request, model, stream=stream, usage=self._usage_option, new_limit=self._new_limit
        )
        async with self._exchange(server, "POST", "/chat/completions", body) as (response, chunks):
            if response.status_code != 200:
                said = await self._read(server, chunks, _MAX_ERROR_BYTES, cut=True)
                failure = refusal(
                    server, response.status_code, response.headers, said, model=model, now_us=self.clock.wall_us()
                )
                self._learn(response.status_code, said, body)
                raise _Failed(failure)
            media = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if media == "text/html":
                raise _Failed(self._wrong(server, "answers with a web page instead of the API: check base_url"))
            try:
                if deliver is None or not stream or media == "application/json":
                    raw = await self._read(server, chunks, _MAX_BODY_BYTES)
                    return parse_answer(raw, provider=self.name, model=model)
                return await self._read_stream(server, model, chunks, deliver)
            except WireError as error:
                raise _Failed(self._wrong(server, f"sent {error}: is {self.base_url} its API?")) from None
            except StreamedError as error:
                retryable = error.status is None or error.status == 429 or error.status >= 500
                text = f"failed while it answered: {server.excerpt(str(error))}"
                raise _Failed(
                    Refusal(error=server.error(text, status=error.status or 200, retryable=retryable))
                ) from None

    async def _read_stream(
        self, server: Server, model: str, chunks: AsyncIterator[bytes], deliver: OnDelta
    ) -> ModelsCompleteResult:
        parser, assembly = SseParser(), Assembly(provider=self.name, model=model)
        events, ended = 0, False
        while not ended:
            patience = _AFTER_DONE_S if assembly.done else _AFTER_FINISH_S if assembly.complete else math.inf
            chunk = b""
            with trio.move_on_after(patience) as waited:
                try:
                    chunk = await anext(chunks)
                except StopAsyncIteration:
                    ended = True
                except _Failed:
                    if not assembly.complete:
                        raise
                    ended = True
            ended = ended or waited.cancelled_caught
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
            raise _Failed(
                Refusal(error=server.error(
                    "broke off in the middle of its answer: try again", status=200, retryable=True
                ))
            )  # fmt: skip
        return assembly.result()

    def _learn(self, status: int, said: bytes, body: dict[str, Any]) -> None:
        """Some servers know no ``stream_options``, and some models only the newer name of ``max_tokens``."""
        if status not in (400, 422):
            return
        if b"stream_options" in said and "stream_options" in body:
            self._usage_option = False
        elif b"max_completion_tokens" in said and "max_tokens" in body:
            self._new_limit = True

    def _wrong(self, server: Server, text: str) -> Refusal:
        return Refusal(error=server.error(text, status=200, retryable=False))

    # -- HTTP ---------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _exchange(
        self, server: Server, verb: str, path: str, body: dict[str, Any] | None
    ) -> AsyncIterator[tuple[httpx.Response, AsyncIterator[bytes]]]:
        """One request and its answer's head; every failure on the way, also in the chunks, is ``_Failed``."""
        client = await self._open()
        # No compression: it would let a small body grow without bound before its size is seen.
        headers = {"accept-encoding": "identity", "accept": "application/json, text/event-stream"}
        if server.secret is not None:
            headers["authorization"] = f"Bearer {server.secret.reveal()}"
        content = None
        if body is not None:
            headers["content-type"] = "application/json"
            content = msgspec.json.encode(body)
        with self._failures(server):
            request = client.build_request(verb, self.base_url + path, headers=headers, content=content)
            response = await client.send(request, stream=True)
        chunks = response.aiter_bytes()
        try:
            yield response, self._guarded(server, chunks)
        finally:
            with trio.move_on_after(_CLOSE_S, shield=True):
                await response.aclose()
