"""The openai provider against a server that speaks the API over real HTTP on loopback."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import attrs
import msgspec
import pytest
import trio

from tests.doubles.clock import FakeClock
from tests.doubles.fake_openai import (
    KEY,
    Exchange,
    FakeOpenAI,
    Step,
    chunk,
    error_body,
    failing,
    open_fake_openai,
    raw,
    streamed,
    whole,
)
from witsd.services.models.http_client import HttpClient
from witsd.services.models.keys import Secret
from witsd.services.models.openai import OpenAIProvider
from witsd.values.config_models import ProviderConfig
from witsd.values.errors import ModelError
from witsd.values.wire.common import UNSET
from witsd.values.wire.models import (
    ChatMessage,
    ModelsCompleteParams,
    ModelsCompleteResult,
    ToolCall,
    ToolDefinition,
)

ASK = ModelsCompleteParams(messages=(ChatMessage(role="user", content="Hello?"),), stream=True)


@attrs.define(eq=False)
class Rig:
    """A provider, its server and what was streamed."""

    fake: FakeOpenAI
    provider: OpenAIProvider
    clock: FakeClock
    #: The pauses between attempts; none is really made.
    slept: list[float]
    deltas: list[str] = attrs.field(factory=list)
    on_delta: Callable[[str], Awaitable[None]] | None = None

    async def ask(
        self, request: ModelsCompleteParams = ASK, *, stream: bool = True, model: str = "gpt-fake"
    ) -> ModelsCompleteResult:
        async def keep(text: str) -> None:
            self.deltas.append(text)

        with trio.fail_after(30):
            return await self.provider.complete(request, model, (self.on_delta or keep) if stream else None)

    async def fails(self, **options: Any) -> ModelError:
        with pytest.raises(ModelError) as caught:
            await self.ask(**options)
        assert KEY not in str(caught.value)
        assert KEY not in repr(caught.value.data)
        assert caught.value.data["provider"] == "fake"
        return caught.value


@asynccontextmanager
async def open_rig(
    *plan: Step, key: str | None = KEY, unusable: str | None = None, **config: Any
) -> AsyncIterator[Rig]:
    async with open_fake_openai(plan=list(plan)) as fake:
        clock, slept = FakeClock(), list[float]()

        async def sleep(seconds: float) -> None:
            slept.append(seconds)

        provider = OpenAIProvider(
            ProviderConfig(**{"name": "fake", "kind": "openai", "base_url": fake.base_url, **config}),
            lambda: None if key is None else Secret(key, "the test"),
            clock,
            lambda: 1.0,
            sleep,
            unusable=unusable,
        )
        try:
            yield Rig(fake, provider, clock, slept)
        finally:
            await provider.aclose()


# -- answers ------------------------------------------------------------------------------------------


async def test_an_answer_streams_as_it_is_produced() -> None:
    async with open_rig() as rig:
        first_seen = trio.Event()

        async def step(exchange: Exchange) -> None:
            await exchange.start_events()
            await exchange.event(chunk({"role": "assistant", "content": ""}))
            await exchange.event(chunk({"content": "Hel"}))
            await first_seen.wait()  # the rest is only written once the first piece has been delivered
            await exchange.event(chunk({"content": "lo"}))
            await exchange.event(chunk({}, "stop"))
            await exchange.event(
                {**chunk({}), "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}
            )
            await exchange.done()

        async def on_delta(text: str) -> None:
            rig.deltas.append(text)
            first_seen.set()

        rig.fake.plan.append(step)
        rig.on_delta = on_delta
        result = await rig.ask()
    assert rig.deltas == ["Hel", "lo"]
    assert result.message == ChatMessage(role="assistant", content="Hello")
    assert (result.finish_reason, result.model, result.provider) == ("stop", "gpt-fake-2026", "fake")
    assert (result.usage.input_tokens, result.usage.output_tokens, result.usage.calls) == (7, 2, 1)
    sent = rig.fake.chats[0].body
    assert sent["stream"] is True
    assert sent["stream_options"] == {"include_usage": True}
    assert sent["model"] == "gpt-fake"


async def test_an_answer_in_one_piece_when_nobody_wants_deltas_or_the_server_cannot_stream() -> None:
    async with open_rig(whole("Hi."), whole("Ho."), streams=False) as rig:
        assert (await rig.ask(stream=False)).message.content == "Hi."
        assert (await rig.ask(stream=True)).message.content == "Ho."
    assert rig.deltas == []
    assert all("stream" not in seen.body for seen in rig.fake.chats)


async def test_a_server_that_ignores_stream_is_understood() -> None:
    async with open_rig(whole("Hi.")) as rig:
        result = await rig.ask()
    assert result.message.content == "Hi."
    assert result.usage.input_tokens == 9


async def test_everything_asked_is_sent_as_the_api_wants_it() -> None:
    call = ToolCall(id="c1", name="calculator", arguments='{"expression":"2+2"}')
    request = ModelsCompleteParams(
        messages=(
            ChatMessage(role="system", content="Be brief."),
            ChatMessage(role="user", content="2+2?"),
            ChatMessage(role="assistant", tool_calls=(call,)),
            ChatMessage(role="tool", content="4", tool_call_id="c1"),
        ),
        tools=(ToolDefinition(name="calculator", description="d"),),
        temperature=0.5,
        max_tokens=10,
        stream=True,
    )
    async with open_rig(streamed("4")) as rig:
        assert (await rig.ask(request)).message.content == "4"
    body = rig.fake.chats[0].body
    assert body["messages"][2]["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "calculator", "arguments": call.arguments}}
    ]
    assert body["messages"][3] == {"role": "tool", "content": "4", "tool_call_id": "c1"}
    assert (body["temperature"], body["max_tokens"]) == (0.5, 10)
    assert rig.fake.chats[0].headers["authorization"] == f"Bearer {KEY}"


async def test_tool_calls_are_put_together_from_fragments_by_index() -> None:
    def fragment(index: int, arguments: str, **head: Any) -> dict[str, Any]:
        function = {"arguments": arguments, **({"name": head.pop("name")} if "name" in head else {})}
        return chunk({"tool_calls": [{"index": index, **head, "function": function}]})

    async def step(exchange: Exchange) -> None:
        await exchange.start_events()
        await exchange.event(chunk({"role": "assistant", "content": None}))
        await exchange.event(fragment(0, "", id="call_a", type="function", name="one"))
        await exchange.event(fragment(0, '{"x"'))
        await exchange.event(fragment(1, "", id="call_b", type="function", name="two"))
        await exchange.event(fragment(0, ":1}"))
        await exchange.event(fragment(1, "{}"))
        await exchange.event(chunk({}, "tool_calls"))
        await exchange.done()

    async with open_rig(step) as rig:
        result = await rig.ask()
    assert result.message.tool_calls == (
        ToolCall(id="call_a", name="one", arguments='{"x":1}'),
        ToolCall(id="call_b", name="two", arguments="{}"),
    )
    assert result.finish_reason == "tool_calls"
    assert rig.deltas == []


async def test_tool_calls_in_one_piece() -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    async with open_rig(whole(None, calls, "tool_calls")) as rig:
        result = await rig.ask(stream=False)
    assert result.message == ChatMessage(
        role="assistant", tool_calls=(ToolCall(id="c", name="f", arguments="{}"),)
    )


async def test_a_stream_without_usage_and_without_done_is_whole_once_it_has_a_finish_reason() -> None:
    async def step(exchange: Exchange) -> None:
        await exchange.start_events()
        await exchange.data(b": keep-alive\r\n\r\n")
        await exchange.event(chunk({"content": "Hi"}, "length"))
        await exchange.end()

    async with open_rig(step) as rig:
        result = await rig.ask()
    assert (result.message.content, result.finish_reason, result.usage.output_tokens) == ("Hi", "length", 0)


async def test_a_server_without_stream_options_is_asked_again_without_them_and_remembered() -> None:
    refuse = failing(400, "Unrecognized request argument supplied: stream_options")
    async with open_rig(refuse, streamed("a"), streamed("b"), retries=0) as rig:
        assert (await rig.ask()).message.content == "a"
        assert (await rig.ask()).message.content == "b"
    assert ["stream_options" in seen.body for seen in rig.fake.chats] == [True, False, False]


async def test_a_model_that_wants_the_newer_name_of_max_tokens_gets_it() -> None:
    refuse = failing(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
    async with open_rig(refuse, streamed("a"), retries=0) as rig:
        await rig.ask(msgspec.structs.replace(ASK, max_tokens=5))
    assert "max_tokens" not in rig.fake.chats[1].body
    assert rig.fake.chats[1].body["max_completion_tokens"] == 5


async def test_no_key_sends_no_header() -> None:
    async with open_rig(streamed("a"), key=None) as rig:
        rig.fake.key = None
        await rig.ask()
    assert "authorization" not in rig.fake.chats[0].headers


# -- failures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "status", "retryable", "says"),
    [
        (failing(400, "bad temperature"), 400, False, "bad temperature"),
        (failing(401, "Incorrect API key"), 401, False, "put a valid one"),
        (failing(403, "no access"), 403, False, "what the account may do"),
        (failing(404, "no such model"), 404, False, "witsd model list"),
        (failing(429, "slow down"), 429, True, "try again"),
        (failing(429, "spent", "insufficient_quota"), 429, False, "no quota left"),
        (failing(500, "oops"), 500, True, "try again later"),
        (failing(503, "busy"), 503, True, "try again later"),
        (failing(501, "no"), 501, False, "501"),
        (raw(418, b"<h1>teapot</h1>", "text/html"), 418, False, "check base_url"),
        (failing(302, "", location="https://elsewhere.example/v1"), 302, False, "elsewhere.example"),
        (raw(200, b"<html>hello</html>", "text/html"), 200, False, "web page"),
        (raw(200, b"{not json", "application/json"), 200, False, "not JSON"),
        (raw(200, b'{"choices": 3}', "application/json"), 200, False, "choices"),
        (raw(200, b"[1]", "application/json"), 200, False, "no JSON object"),
        (raw(200, b'{"choices": [{"message": "x"}]}', "application/json"), 200, False, "message"),
        (raw(200, b"data: {broken\n\n", "text/event-stream"), 200, False, "not JSON"),
        (raw(200, b"these are no events", "text/event-stream"), 200, False, "no server-sent event"),
        (raw(200, b"", "text/event-stream"), 200, False, "no server-sent event"),
        (raw(200, b"[" * 100_000, "application/json"), 200, False, "not JSON"),
    ],
)
async def test_a_failure_says_what_to_do(step: Step, status: int, retryable: bool, says: str) -> None:
    async with open_rig(step, retries=0) as rig:
        error = await rig.fails()
    assert (error.data["status"], error.data["retryable"]) == (status, retryable)
    assert says in error.message
    assert rig.deltas == []


async def test_an_error_inside_a_stream() -> None:
    async def step(exchange: Exchange) -> None:
        await exchange.start_events()
        await exchange.event(chunk({"content": "Hel"}))
        await exchange.event(error_body("The server had an error", "server_error"))
        await exchange.end()

    async with open_rig(step, streamed("never")) as rig:
        error = await rig.fails()
    assert "The server had an error" in error.message
    assert rig.deltas == ["Hel"]
    assert len(rig.fake.chats) == 1  # what was delivered cannot be taken back


@pytest.mark.parametrize("clean", [True, False])
async def test_half_a_stream(clean: bool) -> None:
    async def step(exchange: Exchange) -> None:
        await exchange.start_events()
        await exchange.event(chunk({"content": "Hel"}))
        await (exchange.end() if clean else exchange.drop())

    async with open_rig(step, streamed("never")) as rig:
        error = await rig.fails()
    assert error.data["retryable"] is True
    assert "try again" in error.message
    assert rig.deltas == ["Hel"]
    assert len(rig.fake.chats) == 1


async def test_a_server_that_is_not_there() -> None:
    async with open_rig(retries=0) as rig:
        port = rig.fake.port
    async with open_rig(retries=0, base_url=f"http://127.0.0.1:{port}/v1") as rig:
        error = await rig.fails()
    assert (error.data["status"], error.data["retryable"]) == (None, True)
    assert f"cannot connect to http://127.0.0.1:{port}/v1" in error.message


@pytest.mark.parametrize("started", [False, True])
async def test_a_silent_server(started: bool) -> None:
    async def step(exchange: Exchange) -> None:
        if started:
            await exchange.start_events()
            await exchange.event(chunk({"content": "Hel"}))
        await trio.sleep_forever()

    async with open_rig(step, timeout_s=0.2) as rig:
        error = await rig.fails()
    assert "silent for 0.2 s" in error.message
    assert "timeout_s" in error.message
    assert len(rig.fake.chats) == 1


async def test_a_slow_server_is_no_silent_one() -> None:
    async def step(exchange: Exchange) -> None:
        await exchange.start_events()
        for _ in range(8):
            await trio.sleep(0.3)  # each pause is far under the limit, all together are far over it
            await exchange.event(chunk({"content": "."}))
        await exchange.event(chunk({}, "stop"))
        await exchange.done()

    async with open_rig(step, timeout_s=2) as rig:
        assert (await rig.ask()).message.content == "." * 8


async def test_an_answer_without_end_is_cut_off() -> None:
    async def step(exchange: Exchange) -> None:
        await exchange.start_events()
        for _ in range(100):
            await exchange.data(b"data: " + b"x" * 100_000)

    async with open_rig(step, retries=0) as rig:
        error = await rig.fails()
    assert "more than" in error.message


async def test_cancelling_closes_the_connection() -> None:
    gone = trio.Event()

    async def step(exchange: Exchange) -> None:
        await exchange.start_events()
        await exchange.event(chunk({"content": "Hel"}))
        while await exchange.stream.receive_some():
            pass
        gone.set()

    async with open_rig(step) as rig:
        async with trio.open_nursery() as nursery:

            async def on_delta(_: str) -> None:
                nursery.cancel_scope.cancel()

            rig.on_delta = on_delta
            await rig.ask()
        with trio.fail_after(60):
            await gone.wait()


# -- trying again -------------------------------------------------------------------------------------


async def test_retry_after_is_obeyed_in_seconds_and_as_a_date() -> None:
    date = format_datetime(datetime.fromtimestamp(FakeClock().wall_us() / 1e6 + 7, UTC), usegmt=True)
    async with open_rig(
        failing(429, "slow", retry_after="3"), failing(503, "busy", retry_after=date), streamed("ok")
    ) as rig:
        assert (await rig.ask()).message.content == "ok"
    assert rig.slept == [3.0, pytest.approx(7.0, abs=1)]


async def test_without_retry_after_the_pauses_grow() -> None:
    async with open_rig(*[failing(500)] * 3, streamed("ok"), retries=3) as rig:
        assert (await rig.ask()).message.content == "ok"
    assert rig.slept == [0.25, 0.5, 1.0]  # jitter is 1: the lower bound of each


async def test_a_long_retry_after_is_the_callers_to_decide() -> None:
    async with open_rig(failing(429, "slow", retry_after="3600"), streamed("never")) as rig:
        error = await rig.fails()
    assert "3600 s" in error.message
    assert rig.slept == []


async def test_retries_end() -> None:
    async with open_rig(*[failing(500)] * 5, retries=2) as rig:
        await rig.fails()
    assert len(rig.fake.chats) == 3
    assert len(rig.slept) == 2


async def test_a_stream_that_breaks_before_the_first_delta_is_tried_again() -> None:
    async def step(exchange: Exchange) -> None:
        await exchange.start_events()
        await exchange.event(chunk({"role": "assistant", "content": ""}))
        await exchange.drop()

    async with open_rig(step, streamed("ok")) as rig:
        assert (await rig.ask()).message.content == "ok"
    assert rig.deltas == ["ok"]


# -- which models -------------------------------------------------------------------------------------


async def test_models_are_listed_and_the_answer_is_kept_for_a_while() -> None:
    async with open_rig(models=()) as rig:
        rows = await rig.provider.models()
        assert [(row.name, row.kind, row.available) for row in rows] == [
            ("gpt-fake", "chat", True),
            ("text-embedding-fake", "embedding", True),
        ]
        rig.fake.models = ["new"]
        assert (await rig.provider.models())[0].name == "gpt-fake"
        rig.clock.forward(11)
        assert [row.name for row in await rig.provider.models()] == ["new"]
    assert len(rig.fake.requests) == 2


@pytest.mark.parametrize(
    ("step", "available", "says"),
    [
        (failing(404), True, ""),
        (failing(403), True, ""),
        (failing(401), False, "put a valid one"),
        (failing(500), False, "try again later"),
        (raw(200, b"nope", "application/json"), False, "check base_url"),
    ],
)
async def test_named_models_are_available_unless_the_server_says_otherwise(
    step: Step, available: bool, says: str
) -> None:
    async with open_rig(models=("mine",)) as rig:
        rig.fake.models_step = step
        (row,) = await rig.provider.models()
    assert (row.name, row.available) == ("mine", available)
    assert says in (row.reason if row.reason is not UNSET else "")


async def test_what_loading_httpx_takes_is_not_held_against_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    build = HttpClient._build

    def slowly(self: HttpClient) -> Any:
        time.sleep(2.5)
        return build(self)

    monkeypatch.setattr(HttpClient, "_build", slowly)
    async with open_rig(connect_timeout_s=2) as rig:
        rows = await rig.provider.models()
    assert [row.available for row in rows] == [True] * len(rows)


async def test_a_server_that_does_not_answer_the_probe() -> None:
    async def hang(_: Exchange) -> None:
        await trio.sleep_forever()

    async with open_rig(connect_timeout_s=0.2) as rig:
        rig.fake.models_step = hang
        with trio.fail_after(60):
            (row,) = await rig.provider.models()
    assert (row.name, row.available) == ("fake", False)
    assert "did not answer within 0.2 s" in str(row.reason)


# -- keys ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500])
async def test_a_server_that_echoes_the_key_does_not_get_it_into_errors_or_logs(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    # Neither a key of a well-known shape nor any other one, alone or cut off by the excerpt's end.
    for key in (KEY, "f00dcafe0123456789abcdef"):
        await _echoed(key, status)
        assert key not in caplog.text


async def test_a_foreign_key_in_what_a_server_says_is_not_passed_on() -> None:
    async with open_rig(failing(400, "upstream refused sk-other-0123456789"), retries=0) as rig:
        error = await rig.fails()
    assert "upstream refused [key]" in error.message


async def _echoed(key: str, status: int) -> None:
    echo = f"bad key {key} in Authorization: Bearer {key}. " + "x" * 240 + key
    async with open_rig(failing(status, echo), retries=0, key=key) as rig:
        rig.fake.key = key
        error = await rig.fails()
    assert len(error.message) < 700
    assert "[key]" in error.message
    # Not half of it either, where the excerpt was cut.
    assert key[3:20] not in error.message
    assert key not in repr(rig.provider)
