"""``/v1`` under the real daemon, with the openai package and LangChain as clients, before a real server."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, SecretStr

from tests.doubles.fake_openai import KEY, Exchange, chunk, embeddings, failing, raw, streamed, whole
from tests.support.agents import PYTHONPATH, begin, define, wait
from tests.support.daemon import ROOT, Daemon
from tests.support.gate import gate
from tests.support.upstream import configure, upstream
from tests.support.wire import wire

HELLO: list[Any] = [{"role": "user", "content": "Hello!"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Calculates",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}},
    },
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "calculator", "arguments": '{"expression": "6*7"}'}}


@pytest.fixture
def home() -> Iterator[Daemon]:
    """A daemon, not started, that finds no model of this machine by chance."""
    it = Daemon({"OLLAMA_HOST": "127.0.0.1:1"})
    try:
        yield it
    finally:
        it.remove_after_showing()


def token(daemon: Daemon, *scopes: str) -> str:
    secret: str = daemon.call("tokens/create", name="test", scopes=scopes or ("chat", "read"))["token"]
    return secret


def client(daemon: Daemon, key: str | None = None, **more: Any) -> OpenAI:
    return OpenAI(base_url=f"http://{daemon.http}/v1", api_key=key or token(daemon), **more)


def keyed(c: Any, **more: Any) -> None:
    define(c, "keyed", "keyed", **{"grants": {"models": ["*"]}, **more})


# ---- the openai package -----------------------------------------------------------------------------------


def test_an_answer_in_one_piece_and_as_a_stream(home: Daemon) -> None:
    with upstream(plan=[whole("Hi."), streamed("Hel", "lo\n", "“you”"), streamed("x")]) as fake:
        configure(home, fake)
        home.start()
        with client(home) as models:
            done = models.chat.completions.create(model="up/gpt-fake", messages=HELLO, seed=7, stop=["END"])
            assert (done.choices[0].message.content, done.choices[0].finish_reason) == ("Hi.", "stop")
            assert done.usage is not None
            assert (done.usage.prompt_tokens, done.usage.total_tokens, done.model) == (9, 12, "gpt-fake-2026")
            chunks = list(
                models.chat.completions.create(
                    model="up/gpt-fake", messages=HELLO, stream=True, stream_options={"include_usage": True}
                )
            )
            assert [c.choices[0].delta.content for c in chunks[:-1]] == ["", "Hel", "lo\n", "“you”", None]
            assert chunks[-2].choices[0].finish_reason == "stop"
            assert chunks[-1].usage is not None
            assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 3)
            with models.chat.completions.stream(model="up/gpt-fake", messages=HELLO) as stream:
                assert stream.get_final_completion().choices[0].message.content == "x"
        assert (fake.chats[0].body["seed"], fake.chats[0].body["stop"]) == (7, ["END"])


def test_tools_and_a_form_for_the_answer_go_there_and_back(home: Daemon) -> None:
    class Sum(BaseModel):
        value: int

    async def call(exchange: Exchange) -> None:
        await exchange.start_events()
        await exchange.event(chunk({"role": "assistant", "content": None, "tool_calls": [{"index": 0, **CALL}]}))
        await exchange.event(chunk({}, "tool_calls"))
        await exchange.done()

    with upstream(plan=[whole(None, [CALL], "tool_calls"), call, whole("42"), whole('{"value": 42}')]) as fake:
        configure(home, fake)
        home.start()
        with client(home) as models:
            ask: Any = {"model": "up/gpt-fake", "messages": HELLO, "tools": [TOOL], "tool_choice": "required"}
            first = models.chat.completions.create(**ask).choices[0]
            assert first.finish_reason == "tool_calls"
            assert first.message.tool_calls is not None
            assert first.message.tool_calls[0].to_dict() == CALL
            deltas = [c.choices[0].delta for c in models.chat.completions.create(**ask, stream=True)]
            (made,) = [delta.tool_calls for delta in deltas if delta.tool_calls]
            assert (made[0].index, made[0].id, made[0].function and made[0].function.arguments) == (
                0,
                "call_1",
                '{"expression": "6*7"}',
            )
            told = [*HELLO, first.message, {"role": "tool", "tool_call_id": "call_1", "content": "42"}]
            done = models.chat.completions.create(model="up/gpt-fake", messages=told, tools=[TOOL])
            assert done.choices[0].message.content == "42"
            parsed = models.chat.completions.parse(model="up/gpt-fake", messages=HELLO, response_format=Sum)
            assert parsed.choices[0].message.parsed == Sum(value=42)
        assert fake.chats[0].body["tool_choice"] == "required"
        assert fake.chats[0].body["tools"] == [TOOL]
        assert fake.chats[2].body["messages"][1]["tool_calls"] == [CALL]
        assert fake.chats[3].body["response_format"]["json_schema"]["name"] == "Sum"


def test_the_client_for_asyncio_and_many_at_once(home: Daemon) -> None:
    async def ask(daemon: Daemon, key: str) -> list[str]:
        async with AsyncOpenAI(base_url=f"http://{daemon.http}/v1", api_key=key) as models:

            async def once() -> str:
                stream = await models.chat.completions.create(model="up/gpt-fake", messages=HELLO, stream=True)
                return "".join([c.choices[0].delta.content or "" async for c in stream])

            return await asyncio.gather(*(once() for _ in range(20)))

    with upstream(always=streamed("a", "b", "c")) as fake:
        configure(home, fake)
        home.start()
        assert asyncio.run(ask(home, token(home))) == ["abc"] * 20
        assert len(fake.chats) == 20


def test_models_and_embeddings(home: Daemon) -> None:
    routes = '[routes."text-embedding-*"]\nmodels = ["hash"]\n[routes.smart]\nmodels = ["up/gpt-fake"]\n'
    with upstream(plan=[embeddings((1.0, 0.0), (0.0, 2.0))], models=["gpt-fake", "text-embedding-fake"]) as fake:
        configure(home, fake, settings=routes)
        home.start()
        with client(home) as models:
            names = [model.id for model in models.models.list()]
            assert names == ["smart", "up/gpt-fake", "up/text-embedding-fake", "offline/offline"]
            assert models.models.retrieve("up/gpt-fake").owned_by == "up"
            with pytest.raises(openai.NotFoundError):
                models.models.retrieve("none")
            made = models.embeddings.create(model="up/text-embedding-fake", input=["one", "two"])
            assert [row.embedding for row in made.data] == [[1.0, 0.0], [0.0, 1.0]]
            here = models.embeddings.create(model="text-embedding-3-small", input="blue", encoding_format="float")
            assert (here.model, len(here.data[0].embedding)) == ("hash", 384)
            with pytest.raises(openai.BadRequestError, match="dimensions"):
                models.embeddings.create(model="hash", input="blue", dimensions=7)
            with pytest.raises(openai.BadRequestError, match="numbers of tokens"):
                models.embeddings.create(model="hash", input=[1, 2])


# ---- LangChain --------------------------------------------------------------------------------------------


def test_langchain_as_a_client(home: Daemon) -> None:
    plan = [whole("Hi."), streamed("a", "b"), whole(None, [CALL], "tool_calls"), whole("42")]
    with upstream(plan=plan) as fake:
        configure(home, fake)
        home.start()
        key, url = SecretStr(token(home)), f"http://{home.http}/v1"
        model = ChatOpenAI(model="up/gpt-fake", api_key=key, base_url=url)
        assert model.invoke("Hello!").content == "Hi."
        assert [piece.content for piece in model.stream("Hello!") if piece.content] == ["a", "b"]
        asked = model.bind_tools([TOOL]).invoke("What is 6*7?")
        assert isinstance(asked, AIMessage)
        assert (asked.tool_calls[0]["name"], asked.tool_calls[0]["args"]) == ("calculator", {"expression": "6*7"})
        done = model.invoke([HumanMessage("What is 6*7?"), asked, ToolMessage("42", tool_call_id="call_1")])
        assert done.content == "42"
        embed = OpenAIEmbeddings(model="hash", api_key=key, base_url=url, check_embedding_ctx_length=False)
        assert len(embed.embed_query("blue")) == 384


# ---- keys -------------------------------------------------------------------------------------------------


def test_an_agent_finds_its_key_and_calls_within_its_grants_and_budget(home: Daemon) -> None:
    with upstream(always=whole("Hi.")) as fake:
        configure(home, fake)
        home.start()
        with wire(home.socket) as c:
            keyed(c, grants={"models": ["up/*"]}, budget={"calls": 3, "per": "total"})
            run = play_keyed(c)
            out = run["output"]
            assert (out["base_url"], out["answer"], out["same"]) == (f"http://{home.http}/v1", "Hi.", False)
            assert run["usage"]["calls"] == 1
            own = play_keyed(c, own=True)
            assert (own["output"]["answer"], own["output"]["same"], own["usage"]["calls"]) == ("Hi.", True, 1)
            refused = play_keyed(c, ask={"model": "offline"})["output"]["error"]
            assert (refused["status"], refused["code"]) == (403, "permission_denied")
            assert "answer" in play_keyed(c)["output"]
            spent = play_keyed(c)["output"]["error"]
            assert (spent["status"], spent["code"]) == (429, "insufficient_quota")
            assert "3 of 3 calls" in spent["message"]
        assert len(fake.chats) == 3


def play_keyed(c: Any, text: str = "Hello!", **data: Any) -> dict[str, Any]:
    return wait(c, c.call("runs/start", agent="keyed", input={"text": text, "data": data})["run_id"])


def test_keys_end_with_the_run_and_with_the_process(home: Daemon) -> None:
    home.start()
    with wire(home.socket) as c, gate(home.home) as held:
        keyed(c)
        c.subscribe("run:*", types=["item.delta"])
        mine = c.call("runs/start", agent="keyed", input={"text": "Hi", "data": {"own": True, "gate": held.path}})
        c.until("item.delta")
        held.let()
        own = wait(c, mine["run_id"])["output"]["key"]
        theirs = play_keyed(c, "Hi")["output"]["key"]
        with client(home, theirs) as models:
            assert models.chat.completions.create(model="offline", messages=HELLO).choices
        with client(home, own) as models, pytest.raises(openai.AuthenticationError):
            models.chat.completions.create(model="offline", messages=HELLO)
        c.call("agents/stop", name="keyed")
        with client(home, theirs) as models, pytest.raises(openai.AuthenticationError):
            models.chat.completions.create(model="offline", messages=HELLO)


def test_a_stream_ends_with_the_key_of_its_run(home: Daemon) -> None:
    async def slow(exchange: Exchange) -> None:
        await exchange.start_events()
        await exchange.event(chunk({"role": "assistant", "content": "first"}))
        await exchange.stream.receive_some()  # until the caller hangs up

    with upstream(always=slow) as fake:
        configure(home, fake)
        home.start()
        with wire(home.socket) as c, gate(home.home) as held:
            # Its own process waits in the call; somebody else holds a key of the same run.
            define(c, "script", "script", grants={"models": ["*"]})
            run = begin(c, "script", ["gate", held.path])
            keyed(c)
            started = c.call("runs/start", agent="keyed", input={"text": "x", "data": {"ask": {"model": "up/m"}}})
            while not fake.chats:
                c.call("ping")
            c.call("runs/cancel", run_id=started["run_id"])
            over = wait(c, started["run_id"])
            assert [i["status"] for i in over["items"] if i["type"] == "usage"] == ["cancelled"]
            held.let()
            wait(c, run)


def test_a_program_for_each_run_has_the_key_of_that_run(home: Daemon) -> None:
    program = (
        "import openai, sys; print(openai.OpenAI().chat.completions.create(model='offline', "
        "messages=[{'role': 'user', 'content': sys.stdin.read()}]).choices[0].message.content)"
    )
    home.start()
    with wire(home.socket) as c:
        spec = {
            "name": "once", "kind": "exec", "run_per_request": True, "command": [sys.executable, "-c", program],
            "grants": {"models": ["*"]},
        }  # fmt: skip
        c.call("agents/define", spec=spec)
        run = wait(c, c.call("runs/start", agent="once", input="What is 6 * 7?", budget={"calls": 1})["run_id"])
        assert ("42" in run["output"], run["usage"]["calls"], run["budget"]["left"]) == (True, 1, {"calls": 0})


def test_without_http_there_is_no_key(home: Daemon) -> None:
    home.env["WITSD_LISTEN_HTTP"] = ""
    home.start()
    with wire(home.socket) as c:
        spec = {"name": "once", "kind": "exec", "run_per_request": True, "command": ["env"]}
        c.call("agents/define", spec=spec)
        run = wait(c, c.call("runs/start", agent="once", input="x")["run_id"])
        assert "WITSD_" in run["output"]
        assert "OPENAI_" not in run["output"]


def test_a_definition_may_name_another_key(home: Daemon) -> None:
    home.start()
    with wire(home.socket) as c:
        env = {"OPENAI_API_KEY": "mine", "PYTHONPATH": PYTHONPATH}
        spec = {"name": "once", "kind": "exec", "run_per_request": True, "command": ["env"], "env": env}
        c.call("agents/define", spec=spec)
        run = wait(c, c.call("runs/start", agent="once", input="x")["run_id"])
        assert "OPENAI_API_KEY=mine\n" in run["output"]


# ---- who may, and what goes wrong -------------------------------------------------------------------------


def ask_raw(daemon: Daemon, head: str, body: bytes = b"") -> tuple[int, Any]:
    """One request as bytes; its status and JSON."""
    host, _, port = daemon.http.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as stream:
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        stream.sendall(f"{head}\r\nHost: {daemon.http}\r\nConnection: close\r\n{length}\r\n".encode() + body)
        with stream.makefile("rb") as file:
            answer = file.read()
    top, _, rest = answer.partition(b"\r\n\r\n")
    return int(top.split()[1]), json.loads(rest)


def test_who_has_no_key_or_too_little_of_one_is_refused(home: Daemon) -> None:
    home.start()
    status, said = ask_raw(home, "GET /v1/models HTTP/1.1")
    assert (status, said["error"]["code"]) == (401, "invalid_api_key")
    with client(home, "sk-wrong", max_retries=0) as models, pytest.raises(openai.AuthenticationError):
        models.models.list()
    with client(home, token(home, "memory")) as models:
        with pytest.raises(openai.PermissionDeniedError, match="chat"):
            models.chat.completions.create(model="offline", messages=HELLO)
        with pytest.raises(openai.PermissionDeniedError, match="read"):
            models.models.list()
    bearer = f"Authorization: Bearer {token(home)}"
    status, said = ask_raw(home, f"GET /v1/chat/completions HTTP/1.1\r\n{bearer}")
    assert (status, said["error"]["code"]) == (405, "method_not_allowed")
    status, said = ask_raw(home, f"POST /v1/responses HTTP/1.1\r\n{bearer}", b"{}")
    assert status == 404
    assert "/v1/chat/completions" in said["error"]["message"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"no json", None),
        (b"[]", None),
        (b"{}", "messages"),
        (b'{"messages": [{"role": "robot", "content": "x"}]}', "messages[0].role"),
        (b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "messages[0].content[0]"),
        (b'{"messages": [{"role": "tool", "content": "x"}]}', "messages[0].tool_call_id"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": 9}', "temperature"),
        (b'{"messages": [{"role": "user", "content": "x"}], "n": 2}', "n"),
        (b'{"messages": [{"role": "user", "content": "x"}], "functions": [{}]}', "functions"),
        (b'{"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "x"}]}', "tools[0]"),
        (b'{"messages": [{"role": "user", "content": "x"}], "stream": "yes"}', "stream"),
    ],
)
def test_a_request_that_is_wrong_names_its_field(shared_daemon: Daemon, body: bytes, field: str | None) -> None:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nAuthorization: Bearer {token(shared_daemon)}"
    status, said = ask_raw(shared_daemon, head, body)
    assert (status, said["error"]["type"], said["error"]["param"]) == (400, "invalid_request_error", field)


@pytest.fixture(scope="module")
def shared_daemon() -> Iterator[Daemon]:
    it = Daemon({"OLLAMA_HOST": "127.0.0.1:1"})
    try:
        it.start()
        yield it
    finally:
        it.remove_after_showing()


async def half(exchange: Exchange) -> None:
    await exchange.start_events()
    await exchange.event(chunk({"role": "assistant", "content": "half of"}))
    await exchange.drop()


async def broken_event(exchange: Exchange) -> None:
    await exchange.start_events()
    await exchange.data(b"data: {this is no JSON\n\n")
    await exchange.end()


async def silent(exchange: Exchange) -> None:
    await exchange.stream.receive_some()


BROKEN: list[tuple[str, Any, int, str, bool]] = [
    ("a key that is refused", failing(401, f"Incorrect API key {KEY}"), 502, "model_error", False),
    ("too many requests", failing(429, "slow down"), 429, "rate_limit_exceeded", True),
    ("an error there", failing(500, "oops"), 502, "model_error", True),
    ("a page", raw(200, b"<html>", "text/html"), 502, "model_error", False),
    ("no JSON", raw(200, b"{", "application/json"), 502, "model_error", False),
    ("another JSON", raw(200, b'{"answer": 42}', "application/json"), 502, "model_error", False),
    ("silence", silent, 502, "model_error", True),
]


@pytest.mark.parametrize(("step", "status", "code", "retryable"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN])
def test_what_goes_wrong_there_is_an_error_here(
    home: Daemon, step: Any, status: int, code: str, retryable: bool
) -> None:
    with upstream(always=step) as fake:
        configure(home, fake, more="retries = 0\ntimeout_s = 0.5")
        home.start()
        with client(home) as models:
            for stream in (False, True):
                with pytest.raises(openai.APIStatusError) as failed:
                    list(models.chat.completions.create(model="up/m", messages=HELLO, stream=stream))
                assert (failed.value.status_code, failed.value.code) == (status, code)
                body: Any = failed.value.body
                assert body["witsd"]["data"]["retryable"] is retryable
                assert KEY not in str(failed.value.body)
        assert len(fake.chats) == 2, "the client tried again what the daemon had tried"


@pytest.mark.parametrize("step", [half, broken_event], ids=["half a stream", "an event that is no JSON"])
def test_a_stream_that_breaks_says_so(home: Daemon, step: Any) -> None:
    with upstream(always=step) as fake:
        configure(home, fake, more="retries = 0")
        home.start()
        heard: list[str | None] = []

        def listen(models: OpenAI) -> None:
            stream = models.chat.completions.create(model="up/m", messages=HELLO, stream=True)
            heard.extend(piece.choices[0].delta.content for piece in stream)

        with client(home) as models, pytest.raises(openai.APIError):
            listen(models)
        assert heard == (["", "half of"] if step is half else [])


def test_a_route_goes_on_to_the_next_model(home: Daemon) -> None:
    routes = '[routes."gpt-*"]\nmodels = ["nowhere", "bad/m", "up/gpt-fake"]\n'
    with upstream(always=failing(500)) as bad, upstream(always=streamed("fine")) as fake:
        configure(home, bad, name="bad", more="retries = 0", settings=routes)
        configure(home, fake)
        home.start()
        with client(home) as models:
            made = models.chat.completions.create(model="gpt-4o", messages=HELLO, stream=True)
            assert "".join(c.choices[0].delta.content or "" for c in made) == "fine"
        assert (len(bad.chats), len(fake.chats)) == (1, 1)


def test_no_key_is_ever_in_an_event_a_log_or_an_error(home: Daemon, tmp_path: Path) -> None:
    steps = [failing(401, f"Incorrect API key provided: {KEY}"), failing(500, KEY), whole("Hi."), half]
    with upstream(plan=steps) as fake:
        configure(home, fake, more="retries = 0")
        home.start()
        with wire(home.socket) as c:
            keyed(c)
            seen = [play_keyed(c, ask={"model": "up/m"}, own=True) for _ in range(4)]
            lent = {run["output"].pop("key") for run in seen}
            shown = json.dumps([seen, c.call("agents/get", name="keyed"), c.call("models/list")])
            for run in seen:
                shown += json.dumps(c.call("runs/get", run_id=run["run_id"])["items"])
                events = c.call("events/read", stream=f"run:{run['run_id']}")["events"]
                shown += json.dumps([e for e in events if not e["type"].startswith("run.")])
            shown += json.dumps(c.call("events/read", stream="audit")["events"])
            shown += json.dumps(c.call("agents/logs", name="keyed", tail=1000))
            c.call("agents/stop", name="keyed")
        shown += home.log()
        assert KEY not in shown
        assert len(lent) == 4
        assert not [key for key in lent if key in shown]
        home.stop()
        assert KEY.encode() not in (home.home / "witsd.db").read_bytes()


def test_the_example_calculates(home: Daemon) -> None:
    home.start()
    with wire(home.socket) as c:
        text = (ROOT / "examples/openai.toml").read_text().replace("~/witsd/examples", str(ROOT / "examples"))
        (home.home / "agents" / "openai.toml").write_text(text)
        assert c.call("system/reload")["errors"] == []
        run = wait(c, c.call("runs/start", agent="openai", input="What is 15 * 23 + 17?")["run_id"])
        assert run["output"] == "15 * 23 + 17 = 362", run
        assert [item["type"] for item in run["items"]] == ["usage", "tool_call", "usage", "message"]
