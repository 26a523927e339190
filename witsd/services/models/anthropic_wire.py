"""Anthropic's Messages API (version 2023-06-01), sans I/O: requests out, answers and events in.

The API wants what OpenAI's does not: a system text apart from the messages, turns that alternate, the results of
tools as the beginning of a user's turn, ``max_tokens`` in every request, no empty text, and, while a model that
thinks uses tools, its thoughts given back as they came.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from witsd.services.models.answers import MAX_ANSWER_CHARS, StreamedError, WireError, count, json_object
from witsd.services.models.sse import SseEvent
from witsd.values.wire.common import UNSET
from witsd.values.wire.models import (
    ChatMessage,
    FinishReason,
    ModelsCompleteParams,
    ModelsCompleteResult,
    Thought,
    ToolCall,
)
from witsd.values.wire.runs import Usage

_FINISH: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
#: Options that this API has by the same name; it refuses requests with any that it does not know.
_PASSED = frozenset({"top_p", "top_k", "stop_sequences", "metadata", "service_tier"})
#: Inside a stream an error has a type and no HTTP status; these are what it would have had.
_STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}


def request_body(
    request: ModelsCompleteParams,
    model: str,
    *,
    stream: bool,
    max_tokens: int,
    thinking: bool = False,
    thinking_tokens: int = 0,
) -> dict[str, Any]:
    """The JSON to POST. ``max_tokens``: of the answer, where the request does not say. ``thinking`` is left out
    where the API would refuse it; ``thinking_tokens`` 0: as much as the model sees fit.
    """
    choice = _tool_choice(request) if request.tools else None
    thinks = thinking and _may_think(request.messages) and (choice or {}).get("type") not in ("any", "tool")
    answer_tokens = request.max_tokens or max_tokens
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": answer_tokens + (thinking_tokens if thinks else 0),
        "messages": _turns(request.messages, thinks=thinks),
    }
    system = "\n\n".join(m.content for m in request.messages if m.role == "system" and m.content)
    if system:
        body["system"] = system
    if request.tools:
        body["tools"] = [
            {
                "name": tool.name,
                **({"description": tool.description} if tool.description else {}),
                "input_schema": tool.input_schema or {"type": "object", "properties": {}},
            }
            for tool in request.tools
        ]
    if choice is not None:
        body["tool_choice"] = choice
    body |= {name: value for name, value in request.options.items() if name in _PASSED}
    stop = request.options.get("stop")
    if stop:
        body["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    if request.response_format is not None and request.response_format.get("type") == "json_schema":
        schema = request.response_format.get("json_schema") or {}
        body["output_config"] = {"format": {"type": "json_schema", "schema": schema.get("schema") or {}}}
    if thinks:
        # No temperature: the API takes none but 1 from a model that thinks.
        body["thinking"] = (
            {"type": "enabled", "budget_tokens": thinking_tokens} if thinking_tokens else {"type": "adaptive"}
        )
    elif request.temperature is not None:
        body["temperature"] = min(request.temperature, 1.0)
    if stream:
        body["stream"] = True
    return body


def _tool_choice(request: ModelsCompleteParams) -> dict[str, Any] | None:
    """OpenAI's way of saying which tool is to be called, as this API says it."""
    choice = request.tool_choice
    alone = {"disable_parallel_tool_use": True} if request.options.get("parallel_tool_calls") is False else {}
    match choice:
        case "none":
            return {"type": "none"}
        case "required":
            return {"type": "any", **alone}
        case {"function": {"name": str() as name}}:
            return {"type": "tool", "name": name, **alone}
    return {"type": "auto", **alone} if choice == "auto" or alone else None


def _may_think(messages: Sequence[ChatMessage]) -> bool:
    """Whether the API lets a model think now: not amid tool calls that it (or another) made without thoughts."""
    for message in reversed(messages):
        if message.role == "user":
            return True
        if message.role == "assistant" and message.tool_calls:
            return any(thought.signature for thought in message.thoughts or ())
    return True


def _turns(messages: Sequence[ChatMessage], *, thinks: bool) -> list[dict[str, Any]]:
    """The conversation as turns that alternate; several messages of one side become one turn."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        if message.role == "system":
            continue
        role = "assistant" if message.role == "assistant" else "user"
        blocks = _blocks(message, thinks=thinks)
        if not blocks:
            continue
        if not turns and role == "assistant":
            turns.append({"role": "user", "content": [_text("(What was said before is left out.)")]})
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": role, "content": blocks})
    for turn in turns:
        if turn["role"] == "user":  # results of tools stand first
            turn["content"].sort(key=lambda block: block["type"] != "tool_result")
    last = turns[-1]["content"][-1] if turns else {}
    if turns and turns[-1]["role"] == "assistant" and last["type"] == "text":
        last["text"] = last["text"].rstrip() or "..."  # an answer to be continued may not end in a blank
    return turns


def _blocks(message: ChatMessage, *, thinks: bool) -> list[dict[str, Any]]:
    if message.role == "tool":
        result: dict[str, Any] = {"type": "tool_result", "tool_use_id": message.tool_call_id or ""}
        if message.content:
            result["content"] = message.content
        return [result]
    blocks: list[dict[str, Any]] = []
    if thinks:
        for thought in message.thoughts or ():
            if thought.redacted:
                blocks.append({"type": "redacted_thinking", "data": thought.signature})
            elif thought.signature:
                blocks.append({"type": "thinking", "thinking": thought.text, "signature": thought.signature})
    if message.content.strip():
        blocks.append(_text(message.content))
    blocks += [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": _input(call.arguments)}
        for call in message.tool_calls or ()
    ]
    return blocks


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _input(arguments: str) -> dict[str, Any]:
    """A call's arguments as the object the API wants; a malformed text is shown as what it was."""
    try:
        value = msgspec.json.decode(arguments or "{}")
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"malformed": arguments}


class Assembly:
    """Puts an answer together: from the events of a stream, or from a whole message."""

    def __init__(self, *, provider: str, model: str) -> None:
        self._provider = provider
        self._model = model
        self._blocks: dict[int, dict[str, Any]] = {}
        self._size = 0
        self._input_tokens = self._output_tokens = 0
        self._finish: FinishReason | None = None
        self._done = False

    @property
    def complete(self) -> bool:
        """Whether the server has said why its answer ends."""
        return self._done or self._finish is not None

    @property
    def done(self) -> bool:
        """``message_stop`` has come."""
        return self._done

    def event(self, event: SseEvent) -> tuple[str, str]:
        """Take one event; the text and the reasoning it adds. Raises ``WireError`` or ``StreamedError``.

        Events of a kind that is not known are passed over, as the API asks.
        """
        document = json_object(event.data.encode(), "an event")
        match document.get("type"):
            case "message_start":
                self._head(_part(document, "message"))
            case "content_block_start":
                return self._start(_index(document), _part(document, "content_block"))
            case "content_block_delta":
                return self._grow(_index(document), _part(document, "delta"))
            case "message_delta":
                self._usage(document.get("usage"))
                reason = _part(document, "delta").get("stop_reason")
                if reason:
                    self._end(reason)
            case "message_stop":
                self._done = True
            case "error":
                raise _streamed_error(document)
        return "", ""

    def whole(self, document: dict[str, Any]) -> None:
        """Take a message that was not streamed. Raises ``WireError`` or ``StreamedError``."""
        if document.get("type") == "error":
            raise _streamed_error(document)
        content = document.get("content")
        if not isinstance(content, list):
            raise WireError('an answer without "content"')
        self._head(document)
        for index, block in enumerate(content):
            if not isinstance(block, dict):
                raise WireError("a content block that is no object")
            self._start(index, block)
        self._end(document.get("stop_reason"))
        self._done = True

    def result(self) -> ModelsCompleteResult:
        """The answer so far. Raises ``WireError`` for a tool call that cannot be made out."""
        texts: list[str] = []
        thoughts: list[Thought] = []
        calls: list[ToolCall] = []
        for index, block in sorted(self._blocks.items()):
            grown = "".join(block["grown"])
            match block["type"]:
                case "text":
                    texts.append(grown)
                case "thinking":
                    thoughts.append(Thought(text=grown, signature=block["signature"]))
                case "redacted_thinking":
                    thoughts.append(Thought(signature=grown, redacted=True))
                case "tool_use":
                    if not block["name"]:
                        raise WireError("a tool call without a name")
                    calls.append(
                        ToolCall(id=block["id"] or f"call_{index}", name=block["name"], arguments=grown or "{}")
                    )
        finish: FinishReason = self._finish or "stop"
        if calls and finish == "stop":
            finish = "tool_calls"
        return ModelsCompleteResult(
            message=ChatMessage(
                role="assistant",
                content="".join(texts),
                tool_calls=tuple(calls) or UNSET,
                thoughts=tuple(thoughts) or UNSET,
            ),
            usage=Usage(input_tokens=self._input_tokens, output_tokens=self._output_tokens, calls=1),
            finish_reason=finish,
            model=self._model,
            provider=self._provider,
        )

    def _head(self, message: dict[str, Any]) -> None:
        model = message.get("model")
        if isinstance(model, str) and model:
            self._model = model[:200]
        self._usage(message.get("usage"))

    def _usage(self, usage: object) -> None:
        """Figures so far; what was read from or written to the prompt cache is input, too."""
        if not isinstance(usage, dict):
            return
        given = sum(
            count(usage.get(name))
            for name in ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
        )
        self._input_tokens = max(self._input_tokens, given)
        self._output_tokens = max(self._output_tokens, count(usage.get("output_tokens")))

    def _end(self, reason: object) -> None:
        self._finish = _FINISH.get(reason, "stop") if isinstance(reason, str) else "stop"

    def _start(self, index: int, given: dict[str, Any]) -> tuple[str, str]:
        block: dict[str, Any] = {"type": given.get("type"), "grown": [], "signature": "", "id": "", "name": ""}
        self._blocks[index] = block
        match block["type"]:
            case "text":
                return self._grow(index, {"type": "text_delta", "text": given.get("text")})
            case "thinking":
                self._grow(index, {"type": "signature_delta", "signature": given.get("signature")})
                return self._grow(index, {"type": "thinking_delta", "thinking": given.get("thinking")})
            case "redacted_thinking":
                self._add(block, given.get("data"))
            case "tool_use":
                block["id"], block["name"] = _word(given.get("id")), _word(given.get("name"))
                whole = given.get("input")
                if whole:  # in a stream it begins empty and comes as input_json_delta
                    self._add(block, msgspec.json.encode(whole).decode())
        return "", ""

    def _grow(self, index: int, delta: dict[str, Any]) -> tuple[str, str]:
        block = self._blocks.get(index)
        if block is None:
            raise WireError("a piece of a content block that was not begun")
        match delta.get("type"):
            case "text_delta":
                return self._add(block, delta.get("text")), ""
            case "thinking_delta":
                return "", self._add(block, delta.get("thinking"))
            case "signature_delta":
                block["signature"] += _word(delta.get("signature"))
            case "input_json_delta":
                self._add(block, delta.get("partial_json"))
        return "", ""

    def _add(self, block: dict[str, Any], text: object) -> str:
        if not isinstance(text, str) or not text:
            return ""
        self._size += len(text)
        if self._size > MAX_ANSWER_CHARS:
            raise WireError(f"more than {MAX_ANSWER_CHARS} characters of answer")
        block["grown"].append(text)
        return text


def parse_answer(raw: bytes, *, provider: str, model: str) -> ModelsCompleteResult:
    """A whole (not streamed) answer. Raises ``WireError`` or ``StreamedError``."""
    assembly = Assembly(provider=provider, model=model)
    assembly.whole(json_object(raw, "an answer"))
    return assembly.result()


def model_ids(raw: bytes) -> tuple[str, ...]:
    """The ids in the answer of ``/v1/models``. Raises ``WireError``."""
    data = json_object(raw, "a list of models").get("data")
    if not isinstance(data, list):
        raise WireError('a list of models without "data"')
    return tuple(row["id"] for row in data if isinstance(row, dict) and isinstance(row.get("id"), str) and row["id"])


def _streamed_error(document: dict[str, Any]) -> StreamedError:
    error = document.get("error")
    fields = error if isinstance(error, dict) else {"message": error}
    kind = _word(fields.get("type"))
    return StreamedError(str(fields.get("message") or kind or "no reason given"), _STATUS.get(kind))


def _part(document: dict[str, Any], name: str) -> dict[str, Any]:
    part = document.get(name)
    if not isinstance(part, dict):
        raise WireError(f'an event {document.get("type")!r} without "{name}"')
    return part


def _index(document: dict[str, Any]) -> int:
    index = document.get("index")
    if type(index) is not int:
        raise WireError(f'an event {document.get("type")!r} without "index"')
    return index


def _word(value: object) -> str:
    return value if isinstance(value, str) else ""
