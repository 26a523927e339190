"""A server with OpenAI's API on loopback: real HTTP (h11), its wire format to the letter.

It checks what it is sent as the API does (method, path, key, JSON, required fields) and answers each
chat request with the next of ``plan``, a list of steps; each step writes one answer. Requests are kept
in ``requests``.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import h11
import trio

KEY = "sk-test-0123456789abcdefSECRET"


@attrs.frozen(kw_only=True)
class Seen:
    """One request as it arrived."""

    method: str
    target: str
    headers: dict[str, str]
    body: Any


@attrs.define(eq=False)
class Exchange:
    """One request being answered: what a step writes with."""

    seen: Seen
    stream: trio.SocketStream
    connection: h11.Connection

    async def head(self, status: int, headers: dict[str, str]) -> None:
        await self._send(h11.Response(status_code=status, headers=list(headers.items())))

    async def data(self, data: bytes) -> None:
        await self._send(h11.Data(data=data))

    async def end(self) -> None:
        await self._send(h11.EndOfMessage())

    async def answer(self, status: int, body: bytes, media: str = "application/json", **more: str) -> None:
        headers = {"content-type": media, "content-length": str(len(body))}
        await self.head(status, headers | {name.replace("_", "-"): value for name, value in more.items()})
        await self.data(body)
        await self.end()

    async def json(self, status: int, document: Any, **more: str) -> None:
        await self.answer(status, json.dumps(document).encode(), **more)

    async def start_events(self) -> None:
        await self.head(
            200, {"content-type": "text/event-stream; charset=utf-8", "transfer-encoding": "chunked"}
        )

    async def event(self, document: Any) -> None:
        await self.data(f"data: {json.dumps(document)}\n\n".encode())

    async def done(self) -> None:
        await self.data(b"data: [DONE]\n\n")
        await self.end()

    async def drop(self) -> None:
        """Break the connection off."""
        await self.stream.aclose()

    async def _send(self, event: h11.Event) -> None:
        data = self.connection.send(event)
        if data:
            await self.stream.send_all(data)


Step = Callable[[Exchange], Awaitable[None]]


def error_body(message: str, code: str | None = None, kind: str = "invalid_request_error") -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    """A ``chat.completion.chunk``."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_795_165_507,
        "model": "gpt-fake-2026",
        "system_fingerprint": "fp_1",
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}],
        **more,
    }


def usage_chunk(prompt: int, completion: int) -> dict[str, Any]:
    """The chunk that ``stream_options.include_usage`` asks for: no choices, then ``[DONE]``."""
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {**chunk({}), "choices": [], "usage": usage}


def whole(
    content: str | None = "Hello there.", tool_calls: list[dict[str, Any]] | None = None, finish: str = "stop"
) -> Step:
    """A ``chat.completion`` in one piece."""
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if tool_calls:
        message["tool_calls"] = tool_calls
    document = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_795_165_507,
        "model": "gpt-fake-2026",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
    }

    async def step(exchange: Exchange) -> None:
        await exchange.json(200, document)

    return step


def streamed(*pieces: str, finish: str = "stop") -> Step:
    """A stream as OpenAI sends it: the role first, the pieces, the finish, usage if asked for, [DONE]."""

    async def step(exchange: Exchange) -> None:
        options = exchange.seen.body.get("stream_options") or {}
        more = {"usage": None} if options.get("include_usage") else {}
        await exchange.start_events()
        await exchange.event(chunk({"role": "assistant", "content": "", "refusal": None}, **more))
        for piece in pieces:
            await exchange.event(chunk({"content": piece}, **more))
        await exchange.event(chunk({}, finish, **more))
        if options.get("include_usage"):
            await exchange.event(usage_chunk(9, len(pieces)))
        await exchange.done()

    return step


def embeddings(*vectors: tuple[float, ...]) -> Step:
    """An ``/embeddings`` answer, its rows in another order than they were asked for."""
    data = [{"object": "embedding", "index": i, "embedding": list(v)} for i, v in enumerate(vectors)]
    document = {
        "object": "list",
        "data": data[::-1],
        "model": "text-embedding-fake",
        "usage": {"prompt_tokens": 2, "total_tokens": 2},
    }

    async def step(exchange: Exchange) -> None:
        await exchange.json(200, document)

    return step


def failing(status: int, message: str = "no", code: str | None = None, **headers: str) -> Step:
    async def step(exchange: Exchange) -> None:
        await exchange.json(status, error_body(message, code), **headers)

    return step


def raw(status: int, body: bytes, media: str) -> Step:
    async def step(exchange: Exchange) -> None:
        await exchange.answer(status, body, media)

    return step


@attrs.define(eq=False)
class FakeOpenAI:
    """The server. ``models`` is what ``GET /models`` lists; ``models_step`` answers it otherwise."""

    port: int = 0
    key: str | None = KEY
    models: list[str] = attrs.field(factory=lambda: ["gpt-fake", "text-embedding-fake"])
    models_step: Step | None = None
    plan: list[Step] = attrs.field(factory=list)
    #: What answers once the plan is played.
    always: Step | None = None
    requests: list[Seen] = attrs.field(factory=list)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def chats(self) -> list[Seen]:
        return [seen for seen in self.requests if seen.target == "/v1/chat/completions"]

    async def serve(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        try:
            while True:
                seen = await self._receive(stream, connection)
                if seen is None:
                    break
                self.requests.append(seen)
                await self._route(Exchange(seen, stream, connection))
                if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                    break
                connection.start_next_cycle()
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
            pass  # the client went away, or a step broke the connection off
        finally:
            await trio.aclose_forcefully(stream)

    async def _receive(self, stream: trio.SocketStream, connection: h11.Connection) -> Seen | None:
        request: h11.Request | None = None
        body = bytearray()
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some())
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage) and request is not None:
                headers = {name.decode(): value.decode() for name, value in request.headers}
                try:
                    document = json.loads(body) if body else None
                except ValueError:
                    document = bytes(body)
                return Seen(
                    method=request.method.decode(),
                    target=request.target.decode(),
                    headers=headers,
                    body=document,
                )
            else:
                return None

    async def _route(self, exchange: Exchange) -> None:
        seen = exchange.seen
        if self.key is not None and seen.headers.get("authorization") != f"Bearer {self.key}":
            await exchange.json(401, error_body("Incorrect API key provided.", "invalid_api_key"))
        elif (seen.method, seen.target) == ("GET", "/v1/models"):
            if self.models_step is not None:
                await self.models_step(exchange)
            else:
                rows = [
                    {"id": name, "object": "model", "created": 1, "owned_by": "x"} for name in self.models
                ]
                await exchange.json(200, {"object": "list", "data": rows})
        elif (seen.method, seen.target) not in (("POST", "/v1/chat/completions"), ("POST", "/v1/embeddings")):
            await exchange.json(404, error_body(f"Invalid URL ({seen.method} {seen.target})"))
        elif (wrong := _check(seen)) is not None:
            await exchange.json(400, error_body(wrong))
        elif not self.plan and self.always is not None:
            await self.always(exchange)
        elif not self.plan:
            await exchange.json(500, error_body("the test planned no more answers", kind="server_error"))
        else:
            await self.plan.pop(0)(exchange)


def _check(seen: Seen) -> str | None:
    """What the API itself would refuse."""
    body = seen.body
    if seen.headers.get("content-type") != "application/json" or not isinstance(body, dict):
        return "We could not parse the JSON body of your request."
    if not isinstance(body.get("model"), str) or not body["model"]:
        return "you must provide a model parameter"
    if seen.target == "/v1/embeddings":
        given = body.get("input")
        if not isinstance(given, list) or not given or not all(isinstance(t, str) and t for t in given):
            return "'$.input' is invalid. Please check the API reference."
        return None
    if not isinstance(body.get("messages"), list) or not body["messages"]:
        return "Invalid 'messages': empty array."
    known: set[str] = set()
    for message in body["messages"]:
        if message.get("role") not in ("system", "user", "assistant", "tool"):
            return f"Invalid value: {message.get('role')!r}"
        for call in message.get("tool_calls", ()):
            if call.get("type") != "function" or not isinstance(call["function"]["arguments"], str):
                return "Invalid tool call"
            known.add(call["id"])
        if message["role"] == "tool" and message.get("tool_call_id") not in known:
            return "messages with role 'tool' must be a response to a preceding message with 'tool_calls'."
        if message.get("content") is None and not message.get("tool_calls"):
            return "Invalid value for 'content': expected a string, got null."
    for tool in body.get("tools", ()):
        if tool.get("type") != "function" or tool["function"]["parameters"].get("type") != "object":
            return "Invalid schema for function"
    if "tools" in body and not body["tools"]:
        return "Invalid 'tools': empty array."
    if "stream_options" in body and not body.get("stream"):
        return "The 'stream_options' parameter is only allowed when 'stream' is enabled."
    return None


@asynccontextmanager
async def open_fake_openai(**settings: Any) -> AsyncIterator[FakeOpenAI]:
    """Serve on a free port of loopback until the block ends."""
    fake = FakeOpenAI(**settings)
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        fake.port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, fake.serve, listeners)
        yield fake
        nursery.cancel_scope.cancel()
