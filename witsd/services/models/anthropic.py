"""Servers with Anthropic's Messages API: Anthropic's own, and gateways that speak it."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs

from witsd.services.models.anthropic_wire import Assembly, model_ids, parse_answer, request_body
from witsd.services.models.http_provider import HttpProvider
from witsd.services.models.keys import Secret
from witsd.values.wire.models import ModelsCompleteParams, ModelsCompleteResult

ANTHROPIC_URL = "https://api.anthropic.com"
VERSION = "2023-06-01"


@attrs.define(eq=False)
class AnthropicProvider(HttpProvider):
    """See ``HttpProvider``. ``base_url`` ends before ``/v1``."""

    models_path: ClassVar[str] = "/v1/models"
    complete_path: ClassVar[str] = "/v1/messages"

    def base_url(self) -> str:
        return (self.config.base_url or ANTHROPIC_URL).rstrip("/").removesuffix("/v1")

    def auth_headers(self, secret: Secret | None) -> dict[str, str]:
        headers = {"anthropic-version": VERSION}
        return headers if secret is None else headers | {"x-api-key": secret.reveal()}

    def body(self, request: ModelsCompleteParams, model: str, *, stream: bool) -> dict[str, Any]:
        return request_body(
            request,
            model,
            stream=stream,
            max_tokens=self.config.max_tokens,
            thinking=self.config.thinking,
            thinking_tokens=self.config.thinking_tokens,
        )

    def assembly(self, model: str) -> Assembly:
        return Assembly(provider=self.name, model=model)

    def parse(self, raw: bytes, model: str) -> ModelsCompleteResult:
        return parse_answer(raw, provider=self.name, model=model)

    def model_ids(self, body: bytes) -> tuple[str, ...]:
        return model_ids(body)
