"""A server with Anthropic's Messages API on loopback: its wire format to the letter, and its refusals.

Events are named, begin with ``message_start`` and end with ``message_stop``; a ``ping`` stands among them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from tests.doubles.fake_openai import Exchange, FakeOpenAI, Seen, Step

KEY = "sk-ant-api03-0123456789abcdefSECRET"
MODEL = "claude-fake-4-20260101"


def error_body(message: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_011CSHoEeqs5C35K2UUqR7Fy"}


def failing(status: int, message: str = "no", kind: str = "invalid_request_error", **headers: str) -> Step:
    async def step(exchange: Exchange) -> None:
        await exchange.json(status, error_body(message, kind), request_id="req_1", **headers)

    return step


def message(content: list[dict[str, Any]], stop_reason: str | None, usage: dict[str, int]) -> dict[str, Any]:
    return {
        "id": "msg_01XFDUDYJgAACzvnptvVoYEL",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": usage,
    }


def whole(*content: dict[str, Any], stop_reason: str = "end_turn") -> Step:
    usage = {"input_tokens": 9, "cache_creation_input_tokens": 2, "cache_read_input_tokens": 1, "output_tokens": 3}

    async def step(exchange: Exchange) -> None:
        await exchange.json(200, message(list(content), stop_reason, usage))

    return step


async def event(exchange: Exchange, document: dict[str, Any]) -> None:
    await exchange.data(f"event: {document['type']}\ndata: {json.dumps(document)}\n\n".encode())


async def start(exchange: Exchange) -> None:
    await exchange.start_events()
    usage = {"input_tokens": 9, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 3, "output_tokens": 1}
    await event(exchange, {"type": "message_start", "message": message([], None, usage)})


async def block(exchange: Exchange, index: int, begun: dict[str, Any], *deltas: dict[str, Any]) -> None:
    await event(exchange, {"type": "content_block_start", "index": index, "content_block": begun})
    if index == 0:
        await event(exchange, {"type": "ping"})
    for delta in deltas:
        await event(exchange, {"type": "content_block_delta", "index": index, "delta": delta})
    await event(exchange, {"type": "content_block_stop", "index": index})


async def stop(exchange: Exchange, reason: str = "end_turn", output_tokens: int = 15) -> None:
    await event(
        exchange,
        {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": None},
            "usage": {"output_tokens": output_tokens},
        },
    )
    await event(exchange, {"type": "message_stop"})
    await exchange.end()


async def text(exchange: Exchange, index: int, *pieces: str) -> None:
    deltas = [{"type": "text_delta", "text": piece} for piece in pieces]
    await block(exchange, index, {"type": "text", "text": ""}, *deltas)


def streamed(*pieces: str, reason: str = "end_turn") -> Step:
    async def step(exchange: Exchange) -> None:
        await start(exchange)
        await text(exchange, 0, *pieces)
        await stop(exchange, reason)

    return step


@attrs.define(eq=False)
class FakeAnthropic(FakeOpenAI):
    """The server; see ``FakeOpenAI``."""

    key: str | None = KEY
    models: list[str] = attrs.field(factory=lambda: [MODEL, "claude-fake-3"])

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def chats(self) -> list[Seen]:
        return [seen for seen in self.requests if seen.target == "/v1/messages"]

    async def _route(self, exchange: Exchange) -> None:
        seen = exchange.seen
        if self.key is not None and seen.headers.get("x-api-key") != self.key:
            await exchange.json(401, error_body("invalid x-api-key", "authentication_error"))
        elif seen.headers.get("anthropic-version") != "2023-06-01":
            await exchange.json(400, error_body("anthropic-version: header is required"))
        elif (seen.method, seen.target) == ("GET", "/v1/models"):
            if self.models_step is not None:
                await self.models_step(exchange)
                return
            rows = [
                {"type": "model", "id": name, "display_name": name.title(), "created_at": "2026-01-01T00:00:00Z"}
                for name in self.models
            ]
            page = {"data": rows, "has_more": False, "first_id": rows[0]["id"], "last_id": rows[-1]["id"]}
            await exchange.json(200, page)
        elif (seen.method, seen.target) != ("POST", "/v1/messages"):
            await exchange.json(404, error_body("Not found", "not_found_error"))
        elif (wrong := check(seen)) is not None:
            await exchange.json(400, error_body(wrong))
        elif not self.plan:
            await exchange.json(500, error_body("the test planned no more answers", "api_error"))
        else:
            await self.plan.pop(0)(exchange)


def check(seen: Seen) -> str | None:
    """What the API itself would refuse, in its words."""
    body = seen.body
    if seen.headers.get("content-type") != "application/json" or not isinstance(body, dict):
        return "The request body is not valid JSON"
    for field, kind in (("model", str), ("max_tokens", int), ("messages", list)):
        if not isinstance(body.get(field), kind) or not body[field]:
            return f"{field}: Field required"
    unknown = set(body) - {
        "model", "max_tokens", "messages", "system", "tools", "tool_choice", "temperature", "thinking", "stream",
        "stop_sequences", "top_p", "output_config",
    }  # fmt: skip
    if unknown:
        return f"{unknown.pop()}: Extra inputs are not permitted"
    if not 0 <= body.get("temperature", 1) <= 1:
        return "temperature: Input should be less than or equal to 1"
    for tool in body.get("tools", ()):
        if set(tool) - {"name", "description", "input_schema"} or tool["input_schema"].get("type") != "object":
            return "tools.0.input_schema.type: Field required"
    thinking = body.get("thinking")
    if thinking is not None and (wrong := _check_thinking(body, thinking)):
        return wrong
    return _check_turns(body["messages"], thinking is not None)


def _check_thinking(body: dict[str, Any], thinking: dict[str, Any]) -> str | None:
    if body.get("tool_choice", {}).get("type") in ("any", "tool"):
        return "Thinking may not be enabled when tool_choice forces tool use."
    if body.get("temperature", 1) != 1:
        return "`temperature` may only be set to 1 when thinking is enabled."
    if thinking["type"] == "adaptive":
        return "thinking.adaptive.budget_tokens: Extra inputs are not permitted" if len(thinking) > 1 else None
    if thinking["budget_tokens"] < 1024:
        return "thinking.enabled.budget_tokens: Input should be greater than or equal to 1024"
    if thinking["budget_tokens"] >= body["max_tokens"]:
        return "`max_tokens` must be greater than `thinking.budget_tokens`."
    return None


def _check_turns(turns: list[dict[str, Any]], thinks: bool) -> str | None:
    if turns[0]["role"] != "user":
        return "messages: first message must use the \"user\" role"
    asked: set[str] = set()
    for number, turn in enumerate(turns):
        if turn["role"] not in ("user", "assistant"):
            return f"messages.{number}.role: Input should be 'user' or 'assistant'"
        if number and turns[number - 1]["role"] == turn["role"]:
            return "messages: roles must alternate"
        blocks = turn["content"]
        if any(block["type"] == "text" and not block["text"] for block in blocks):
            return "messages: text content blocks must be non-empty"
        answered = {block["tool_use_id"] for block in blocks if block["type"] == "tool_result"}
        if missing := asked - answered:
            return f"messages.{number}: `tool_use` ids were found without `tool_result` blocks after: {missing}"
        if foreign := answered - asked:
            return f"messages.{number}: unexpected `tool_use_id` found in `tool_result` blocks: {foreign}"
        first = [block["type"] for block in blocks].index("text") if answered and len(blocks) > len(answered) else 0
        if answered and first and first < len(answered):
            return "messages: `tool_result` blocks must come first"
        asked = {block["id"] for block in blocks if block["type"] == "tool_use"}
        if any(block["type"] == "tool_use" and not isinstance(block["input"], dict) for block in blocks):
            return "messages: tool_use.input: Input should be a valid dictionary"
        following = turns[number + 1 :]
        looping = asked and not any(_says(turn) for turn in following)
        if thinks and looping and blocks[0]["type"] not in ("thinking", "redacted_thinking"):
            return "messages: Expected `thinking` or `redacted_thinking`, but found `tool_use`."
        for block in blocks:
            if block["type"] == "thinking" and not block["signature"].startswith("EqQB"):
                return "messages: Invalid `signature` in `thinking` block"
    last = turns[-1]
    if last["role"] == "assistant" and last["content"][-1].get("text", "").endswith(" "):
        return "messages: final assistant content cannot end with trailing whitespace"
    return None


def _says(turn: dict[str, Any]) -> bool:
    """Whether a person speaks in it, and not only a tool."""
    return turn["role"] == "user" and any(block["type"] == "text" for block in turn["content"])


@asynccontextmanager
async def open_fake_anthropic(**settings: Any) -> AsyncIterator[FakeAnthropic]:
    """Serve on a free port of loopback until the block ends."""
    fake = FakeAnthropic(**settings)
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        fake.port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, fake.serve, listeners)
        yield fake
        nursery.cancel_scope.cancel()
