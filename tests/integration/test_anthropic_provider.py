"""The anthropic provider against a server that speaks the Messages API over real HTTP on loopback."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from msgspec.structs import replace

from tests.doubles.clock import FakeClock
from tests.doubles.fake_anthropic import (
    KEY,
    MODEL,
    FakeAnthropic,
    block,
    event,
    failing,
    open_fake_anthropic,
    start,
    stop,
    streamed,
    text,
    whole,
)
from tests.doubles.fake_openai import Exchange, Step, raw
from witsd.services.models.anthropic import AnthropicProvider
from witsd.services.models.discover import find_providers
from witsd.services.models.keys import Secret, read_environment
from witsd.services.models.provider import Deltas
from witsd.values.config_models import ModelsConfig, ProviderConfig
from witsd.values.errors import ModelError
from witsd.values.wire.models import (
    ChatMessage,
    ModelsCompleteParams,
    ModelsCompleteResult,
    Thought,
    ToolCall,
    ToolDefinition,
)

ASK = ModelsCompleteParams(messages=(ChatMessage(role="user", content="Hello?"),), stream=True)
SIGNATURE = "EqQBCgIYAhIM1gbcDa9GJwZA2b3hGgxBdjrkzLoky3dl1pkiMOYds"


@attrs.define(eq=False)
class Rig:
    """A provider, its server and what was streamed."""

    fake: FakeAnthropic
    provider: AnthropicProvider
    slept: list[float]
    deltas: list[str] = attrs.field(factory=list)
    thoughts: list[str] = attrs.field(factory=list)

    async def ask(
        self, request: ModelsCompleteParams = ASK, *, stream: bool = True, model: str = MODEL
    ) -> ModelsCompleteResult:
        async def text(piece: str) -> None:
            self.deltas.append(piece)

        async def thought(piece: str) -> None:
            self.thoughts.append(piece)

        with trio.fail_after(30):
            return await self.provider.complete(request, model, Deltas(text, thought) if stream else None)

    async def fails(self, **options: Any) -> ModelError:
        with pytest.raises(ModelError) as caught:
            await self.ask(**options)
        assert KEY not in str(caught.value)
        assert KEY not in repr(caught.value.data)
        assert caught.value.data["provider"] == "fake"
        return caught.value


@asynccontextmanager
async def open_rig(*plan: Step, **config: Any) -> AsyncIterator[Rig]:
    async with open_fake_anthropic(plan=list(plan)) as fake:
        slept = list[float]()

        async def sleep(seconds: float) -> None:
            slept.append(seconds)

        provider = AnthropicProvider(
            ProviderConfig(**{"name": "fake", "kind": "anthropic", "base_url": fake.base_url, **config}),
            lambda: Secret(KEY, "the test"),
            FakeClock(),
            lambda: 1.0,
            sleep,
        )
        try:
            yield Rig(fake, provider, slept)
        finally:
            await provider.aclose()


# -- answers ------------------------------------------------------------------------------------------


async def test_a_stream_becomes_deltas_an_answer_and_usage() -> None:
    async with open_rig(streamed("Hel", "lo")) as rig:
        result = await rig.ask()
    assert rig.deltas == ["Hel", "lo"]
    assert result.message == ChatMessage(role="assistant", content="Hello")
    assert (result.finish_reason, result.model, result.provider) == ("stop", MODEL, "fake")
    # What was read from the prompt cache is input, too.
    assert (result.usage.input_tokens, result.usage.output_tokens, result.usage.calls) == (12, 15, 1)
    sent = rig.fake.chats[0].body
    assert sent["stream"] is True
    assert sent["max_tokens"] == 4096


async def test_an_answer_in_one_piece() -> None:
    async with open_rig(
        whole({"type": "text", "text": "Hi."}), whole({"type": "text", "text": "Ho."}, stop_reason="max_tokens")
    ) as rig:
        first = await rig.ask(stream=False)
        second = await rig.ask()  # it was asked for a stream and sends none
    assert (first.message.content, first.usage.input_tokens, first.usage.output_tokens) == ("Hi.", 12, 3)
    assert (second.message.content, second.finish_reason) == ("Ho.", "length")
    assert "stream" not in rig.fake.chats[0].body


async def test_tools_go_out_and_calls_come_back_in_fragments() -> None:
    async def step(exchange: Exchange) -> None:
        await start(exchange)
        await text(exchange, 0, "Let me see.")
        pieces = ("", '{"expr', 'ession": ', '"6*7"}')
        await block(
            exchange,
            1,
            {"type": "tool_use", "id": "toolu_01", "name": "calculator", "input": {}},
            *({"type": "input_json_delta", "partial_json": piece} for piece in pieces),
        )
        await block(exchange, 2, {"type": "tool_use", "id": "toolu_02", "name": "time", "input": {}})
        await stop(exchange, "tool_use")

    tool = ToolDefinition(name="calculator", description="d", input_schema={"type": "object", "properties": {}})
    async with open_rig(step) as rig:
        result = await rig.ask(replace(ASK, tools=(tool, ToolDefinition(name="time"))))
    assert result.message.tool_calls == (
        ToolCall(id="toolu_01", name="calculator", arguments='{"expression": "6*7"}'),
        ToolCall(id="toolu_02", name="time", arguments="{}"),
    )
    assert (result.message.content, result.finish_reason) == ("Let me see.", "tool_calls")
    assert rig.fake.chats[0].body["tools"] == [
        {"name": "calculator", "description": "d", "input_schema": {"type": "object", "properties": {}}},
        {"name": "time", "input_schema": {"type": "object", "properties": {}}},
    ]


async def test_a_whole_conversation_is_sent_as_the_api_wants_it() -> None:
    calls = tuple(ToolCall(id=f"c{i}", name="f", arguments=a) for i, a in enumerate(('{"x":1}', "{broken")))
    request = ModelsCompleteParams(
        messages=(
            ChatMessage(role="system", content="Be brief."),
            ChatMessage(role="assistant", content="Hello, I am here."),
            ChatMessage(role="user", content="One."),
            ChatMessage(role="user", content="Two."),
            ChatMessage(role="assistant", tool_calls=calls),
            ChatMessage(role="tool", content="1", tool_call_id="c0"),
            ChatMessage(role="user", content="And?"),
            ChatMessage(role="tool", content="", tool_call_id="c1"),
            ChatMessage(role="system", content="Be kind."),
            ChatMessage(role="assistant", content=""),
            ChatMessage(role="assistant", content="It is "),
        ),
        temperature=1.5,
        max_tokens=10,
    )
    async with open_rig(streamed("1")) as rig:
        await rig.ask(request)
    body = rig.fake.chats[0].body
    assert body["system"] == "Be brief.\n\nBe kind."
    assert (body["temperature"], body["max_tokens"]) == (1.0, 10)
    turns = body["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user", "assistant", "user", "assistant"]
    assert [block["text"] for block in turns[2]["content"]] == ["One.", "Two."]
    assert [block["input"] for block in turns[3]["content"]] == [{"x": 1}, {"malformed": "{broken"}]
    assert turns[4]["content"] == [
        {"type": "tool_result", "tool_use_id": "c0", "content": "1"},
        {"type": "tool_result", "tool_use_id": "c1"},
        {"type": "text", "text": "And?"},
    ]
    assert turns[5]["content"] == [{"type": "text", "text": "It is"}]


async def test_thoughts_are_streamed_apart_and_given_back_with_their_signature() -> None:
    async def thinking(exchange: Exchange) -> None:
        await start(exchange)
        await block(
            exchange,
            0,
            {"type": "thinking", "thinking": "", "signature": ""},
            {"type": "thinking_delta", "thinking": "27 * 453"},
            {"type": "thinking_delta", "thinking": " is much"},
            {"type": "signature_delta", "signature": SIGNATURE},
        )
        await block(exchange, 1, {"type": "redacted_thinking", "data": "EmwKAhgB"})
        await block(exchange, 2, {"type": "tool_use", "id": "toolu_01", "name": "calculator", "input": {}})
        await stop(exchange, "tool_use")

    async with open_rig(thinking, streamed("12231"), thinking=True, thinking_tokens=2048) as rig:
        first = await rig.ask(replace(ASK, temperature=0.3))
        assert first.message.thoughts == (
            Thought(text="27 * 453 is much", signature=SIGNATURE),
            Thought(signature="EmwKAhgB", redacted=True),
        )
        result = ChatMessage(role="tool", content="12231", tool_call_id="toolu_01")
        await rig.ask(replace(ASK, messages=(*ASK.messages, first.message, result)))
    assert rig.thoughts == ["27 * 453", " is much"]
    assert rig.deltas == ["12231"]
    one, other = (seen.body for seen in rig.fake.chats)
    assert one["thinking"] == {"type": "enabled", "budget_tokens": 2048}
    assert one["max_tokens"] == 4096 + 2048
    assert [block["type"] for block in other["messages"][1]["content"]] == [
        "thinking",
        "redacted_thinking",
        "tool_use",
    ]


async def test_a_model_does_not_think_amid_calls_that_were_made_without_thoughts() -> None:
    loop = (
        *ASK.messages,
        ChatMessage(role="assistant", tool_calls=(ToolCall(id="a", name="f", arguments="{}"),)),
        ChatMessage(role="tool", content="1", tool_call_id="a"),
    )
    async with open_rig(streamed("a"), streamed("b"), thinking=True) as rig:
        await rig.ask(replace(ASK, messages=loop))
        await rig.ask(replace(ASK, messages=(*loop, *ASK.messages)))
    assert [seen.body.get("thinking") for seen in rig.fake.chats] == [None, {"type": "adaptive"}]


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        (None, None),
        ("auto", {"type": "auto"}),
        ("none", {"type": "none"}),
        ("required", {"type": "any"}),
        ({"type": "function", "function": {"name": "f"}}, {"type": "tool", "name": "f"}),
    ],
)
async def test_which_tool_is_to_be_called(choice: Any, sent: Any) -> None:
    request = replace(ASK, tools=(ToolDefinition(name="f"),), tool_choice=choice)
    async with open_rig(streamed("a"), thinking=True) as rig:
        await rig.ask(request)
    body = rig.fake.chats[0].body
    assert body.get("tool_choice") == sent
    assert ("thinking" in body) == (choice in (None, "auto", "none"))


async def test_options_are_translated_and_those_that_the_api_does_not_know_left_out() -> None:
    schema = {"type": "object", "properties": {}}
    request = replace(
        ASK,
        tools=(ToolDefinition(name="f"),),
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        options={"stop": "END", "top_p": 0.5, "seed": 7, "parallel_tool_calls": False},
    )
    async with open_rig(streamed("a")) as rig:
        await rig.ask(request)
    body = rig.fake.chats[0].body
    assert body["stop_sequences"] == ["END"]
    assert body["top_p"] == 0.5
    assert body["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}
    assert body["output_config"] == {"format": {"type": "json_schema", "schema": schema}}


async def test_events_and_blocks_of_a_kind_not_known_are_passed_over() -> None:
    async def step(exchange: Exchange) -> None:
        await start(exchange)
        await event(exchange, {"type": "message_weather", "sky": "blue"})
        await block(exchange, 0, {"type": "server_tool_use", "id": "x", "name": "web", "input": {}})
        await block(exchange, 1, {"type": "text", "text": ""}, {"type": "citations_delta", "citation": {}})
        await text(exchange, 2, "Hi")
        await stop(exchange)

    async with open_rig(step) as rig:
        assert (await rig.ask()).message == ChatMessage(role="assistant", content="Hi")


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("pause_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "content_filter"),
        ("one_of_tomorrow", "stop"),
    ],
)
async def test_why_it_ended(reason: str, finish: str) -> None:
    async with open_rig(streamed("Hi", reason=reason)) as rig:
        assert (await rig.ask()).finish_reason == finish


# -- failures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "status", "retryable", "says"),
    [
        (failing(400, "max_tokens: too large"), 400, False, "max_tokens: too large"),
        (failing(401, "invalid x-api-key", "authentication_error"), 401, False, "put a valid one"),
        (failing(403, "no", "permission_error"), 403, False, "what the account may do"),
        (failing(404, "model: claude-x", "not_found_error"), 404, False, "witsd model list"),
        (failing(413, "too big", "request_too_large"), 413, False, "too big"),
        (failing(429, "slow down", "rate_limit_error"), 429, True, "try again"),
        (failing(500, "oops", "api_error"), 500, True, "try again later"),
        (failing(529, "Overloaded", "overloaded_error"), 529, True, "Overloaded"),
        (raw(200, b"<html>hello</html>", "text/html"), 200, False, "web page"),
        (raw(200, b"{not json", "application/json"), 200, False, "not JSON"),
        (raw(200, b'{"content": 3}', "application/json"), 200, False, "content"),
        (raw(200, b'{"content": [3]}', "application/json"), 200, False, "no object"),
        (raw(200, b"data: {broken\n\n", "text/event-stream"), 200, False, "not JSON"),
        (raw(200, b'data: {"type": "content_block_delta"}\n\n', "text/event-stream"), 200, False, "index"),
        (raw(200, b"no events at all", "text/event-stream"), 200, False, "no server-sent event"),
    ],
)
async def test_a_failure_says_what_to_do(step: Step, status: int, retryable: bool, says: str) -> None:
    async with open_rig(step, retries=0) as rig:
        error = await rig.fails()
    assert (error.data["status"], error.data["retryable"]) == (status, retryable)
    assert says in error.message
    assert rig.deltas == []


@pytest.mark.parametrize(
    ("kind", "status", "retryable"),
    [("overloaded_error", 529, True), ("invalid_request_error", 400, False), ("of_tomorrow", 200, True)],
)
async def test_an_error_inside_a_stream(kind: str, status: int, retryable: bool) -> None:
    async def step(exchange: Exchange) -> None:
        await start(exchange)
        await block(exchange, 0, {"type": "text", "text": ""}, {"type": "text_delta", "text": "Hel"})
        await event(exchange, {"type": "error", "error": {"type": kind, "message": "It is too much"}})
        await exchange.end()

    async with open_rig(step, streamed("never")) as rig:
        error = await rig.fails()
    assert "It is too much" in error.message
    assert (error.data["status"], error.data["retryable"]) == (status, retryable)
    assert rig.deltas == ["Hel"]
    assert len(rig.fake.chats) == 1  # what was delivered cannot be taken back


@pytest.mark.parametrize("clean", [True, False])
async def test_half_a_stream(clean: bool) -> None:
    async def step(exchange: Exchange) -> None:
        await start(exchange)
        await text(exchange, 0, "Hel")
        await (exchange.end() if clean else exchange.drop())

    async with open_rig(step, streamed("never")) as rig:
        error = await rig.fails()
    assert error.data["retryable"] is True
    assert "try again" in error.message


async def test_overloaded_is_tried_again_until_it_answers() -> None:
    async with open_rig(failing(529, retry_after="3"), failing(500), streamed("ok")) as rig:
        assert (await rig.ask()).message.content == "ok"
    assert rig.slept == [3.0, 0.5]


async def test_a_server_that_echoes_the_key_does_not_get_it_into_errors_or_logs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    async with open_rig(failing(401, f"bad key {KEY}"), retries=0) as rig:
        error = await rig.fails()
    assert "[key]" in error.message
    assert KEY not in caplog.text


# -- which models, and where the key is ---------------------------------------------------------------


async def test_models_are_listed() -> None:
    async with open_rig() as rig:
        rows = await rig.provider.models()
        rig.fake.plan.append(streamed("ok"))
        by_default = await rig.ask(model="")
    assert [(row.name, row.kind, row.available) for row in rows] == [
        (MODEL, "chat", True),
        ("claude-fake-3", "chat", True),
    ]
    assert by_default.message.content == "ok"
    assert rig.fake.chats[0].body["model"] == MODEL


async def test_it_is_found_by_the_environment_and_base_url_may_end_in_v1(tmp_path: Path) -> None:
    async with open_fake_anthropic(plan=[whole({"type": "text", "text": "Hi"})]) as fake:
        env = {"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": f"{fake.base_url}/v1/", "ANTHROPIC_MODEL": "mine"}
        found = find_providers(
            ModelsConfig(),
            environment=read_environment(env, tmp_path),
            env=env,
            config_dir=tmp_path,
            clock=FakeClock(),
            jitter=lambda: 0.5,
        )
        (provider,) = (provider for provider in found if provider.name == "anthropic")
        try:
            assert [row.name for row in await provider.models()] == ["mine", MODEL, "claude-fake-3"]
            result = await provider.complete(ASK, "mine", None)
        finally:
            for each in found:
                await each.aclose()
    assert result.message.content == "Hi"
    assert KEY not in repr(provider)


async def test_without_a_key_it_says_which_variable(tmp_path: Path) -> None:
    config = ModelsConfig(providers=(ProviderConfig(name="claude", kind="anthropic"),))
    found = find_providers(
        config,
        environment=read_environment({}, tmp_path),
        env={},
        config_dir=tmp_path,
        clock=FakeClock(),
        jitter=lambda: 0.5,
    )
    (row,) = await found[0].models()
    assert not row.available
    assert "ANTHROPIC_API_KEY" in str(row.reason)


@pytest.mark.parametrize(
    "wrong", [{"max_tokens": 0}, {"thinking_tokens": 2048}, {"thinking": True, "thinking_tokens": 100}]
)
def test_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"`{list(wrong)[-1]}`"):
        ProviderConfig(name="claude", kind="anthropic", **wrong)
