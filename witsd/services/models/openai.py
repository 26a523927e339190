"""Servers with OpenAI's ``/chat/completions`` and ``/embeddings``: OpenAI, Ollama, vLLM, llama.cpp, gateways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import attrs

from witsd.services.models.chat_wire import (
    Assembly,
    model_ids,
    parse_answer,
    parse_embeddings,
    request_body,
)
from witsd.services.models.http_client import Chunks
from witsd.services.models.http_provider import HttpProvider, system_jitter
from witsd.services.models.keys import Secret
from witsd.values.wire.models import ModelsCompleteParams, ModelsCompleteResult, ModelsEmbedResult

__all__ = ["OPENAI_URL", "OpenAIProvider", "system_jitter"]

OPENAI_URL = "https://api.openai.com/v1"
#: 256 texts as vectors of 3,072 numbers.
_MAX_EMBEDDINGS_BYTES = 64 * 1024 * 1024

#: ``/models`` does not say what a model is for. By these words in their ids OpenAI's and Ollama's are told
#: apart; a wrong guess is mended by naming the models in the configuration.
_NO_CHAT = (
    "whisper", "tts", "dall-e", "moderation", "davinci-002", "babbage-002", "sora", "-image", "transcribe",
    "realtime", "-audio",
)  # fmt: skip


@attrs.define(eq=False)
class OpenAIProvider(HttpProvider):
    """See ``HttpProvider``."""

    # What this server was found not to take; learnt once.
    _usage_option: bool = attrs.field(default=True, init=False)
    _new_limit: bool = attrs.field(default=False, init=False)

    models_path: ClassVar[str] = "/models"
    complete_path: ClassVar[str] = "/chat/completions"

    def base_url(self) -> str:
        return (self.config.base_url or OPENAI_URL).rstrip("/")

    def auth_headers(self, secret: Secret | None) -> dict[str, str]:
        return {} if secret is None else {"authorization": f"Bearer {secret.reveal()}"}

    def body(self, request: ModelsCompleteParams, model: str, *, stream: bool) -> dict[str, Any]:
        return request_body(request, model, stream=stream, usage=self._usage_option, new_limit=self._new_limit)

    def assembly(self, model: str) -> Assembly:
        return Assembly(provider=self.name, model=model)

    def parse(self, raw: bytes, model: str) -> ModelsCompleteResult:
        return parse_answer(raw, provider=self.name, model=model)

    def learn(self, status: int, said: bytes, body: dict[str, Any]) -> None:
        """Some servers know no ``stream_options``, and some models only the newer name of ``max_tokens``."""
        if status not in (400, 422):
            return
        if b"stream_options" in said and "stream_options" in body:
            self._usage_option = False
        elif b"max_completion_tokens" in said and "max_tokens" in body:
            self._new_limit = True

    def learnt(self) -> object:
        return self._usage_option, self._new_limit

    def model_ids(self, body: bytes) -> tuple[str, ...]:
        return model_ids(body)

    def offered(self, model_id: str) -> bool:
        return not any(word in model_id.lower() for word in _NO_CHAT)

    def model_kind(self, name: str) -> Literal["chat", "embedding"]:
        return "embedding" if "embed" in name.lower() else "chat"

    async def embed(self, texts: Sequence[str], model: str) -> ModelsEmbedResult:
        """See ``EmbeddingProvider``."""
        server = await self.server()
        body = {"model": model, "input": list(texts), "encoding_format": "float"}

        async def read(_: str, chunks: Chunks) -> ModelsEmbedResult:
            return parse_embeddings(await chunks.read(_MAX_EMBEDDINGS_BYTES), model)

        return await self.persist(lambda: self.exchange(server, "/embeddings", body, model, read), lambda: False)
