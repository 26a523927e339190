"""OpenAI's chat-completions wire format, sans I/O: requests out, answers and chunks in.

What servers are known to get wrong and is harmless is accepted: content that is null or a list of
parts, a missing ``index`` or ``id`` of a tool call, no usage, no ``[DONE]`` after a finish reason.
"""

from __future__ import annotations

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
    ModelsEmbedResult,
    Thought,
    ToolCall,
)
from witsd.values.wire.runs import Usage

_FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


def request_body(
    request: ModelsCompleteParams, model: str, *, stream: bool, usage: bool = True, new_limit: bool = False
) -> dict[str, Any]:
    """The JSON to POST. ``usage``: ask a stream to end with its usage; ``new_limit``: ``max_tokens`` by its
    newer name.
    """
    body: dict[str, Any] = {"model": model, "messages": [_message_out(m) for m in request.messages]}
    if request.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": tool.input_schema or {"type": "object", "properties": {}},
                },
            }
            for tool in request.tools
        ]
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if request.max_tokens is not None:
        body["max_completion_tokens" if new_limit else "max_tokens"] = request.max_tokens
    if request.response_format is not None:
        body["response_format"] = request.response_format
    if request.tool_choice is not None and request.tools:
        body["tool_choice"] = request.tool_choice
    body = {**request.options, **body}
    if stream:
        body["stream"] = True
        if usage:
            body["stream_options"] = {"include_usage": True}
    return body


def _message_out(message: ChatMessage) -> dict[str, Any]:
    out: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls is not UNSET and message.tool_calls:
        out["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
        if not message.content:
            out["content"] = None
    if message.tool_call_id is not UNSET:
        out["tool_call_id"] = message.tool_call_id
    return out


def parse_answer(raw: bytes, *, provider: str, model: str) -> ModelsCompleteResult:
    """A whole (not streamed) answer. Raises ``WireError`` or ``StreamedError``."""
    assembly = Assembly(provider=provider, model=model)
    document = json_object(raw, "an answer")
    assembly.head(document)
    choice = _first_choice(document)
    if choice is None:
        raise WireError('an answer without "choices"')
    message = choice.get("message")
    if not isinstance(message, dict):
        raise WireError('a choice without "message"')
    assembly.piece(message, whole=True)
    assembly.think(_reasoning(message))
    assembly.finish(choice.get("finish_reason") or "stop")
    return assembly.result()


class Assembly:
    """Puts an answer together from its chunks; tool calls grow by their ``index``."""

    def __init__(self, *, provider: str, model: str) -> None:
        self._provider = provider
        self._model = model
        self._usage = Usage(calls=1)
        self._text: list[str] = []
        self._thought: list[str] = []
        self._size = 0
        self._calls: dict[int, list[str]] = {}  # index -> [id, name, *arguments]
        self._finish: FinishReason | None = None
        self._done = False

    @property
    def complete(self) -> bool:
        """Whether the server has said that its answer is whole."""
        return self._done or self._finish is not None

    @property
    def done(self) -> bool:
        """``[DONE]``: nothing that matters can follow."""
        return self._done

    def event(self, event: SseEvent) -> tuple[str, str]:
        """Take one event; the text and the reasoning it adds. Raises ``WireError`` or ``StreamedError``."""
        if event.data.strip() == "[DONE]":
            self._done = True
            return "", ""
        document = json_object(event.data.encode(), "an event")
        self.head(document)
        choice = _first_choice(document)
        if choice is None:
            return "", ""
        delta = choice.get("delta")
        text = thought = ""
        if isinstance(delta, dict):
            text = self.piece(delta, whole=False)
            thought = _reasoning(delta)
            self.think(thought)
        if choice.get("finish_reason"):
            self.finish(choice["finish_reason"])
        return text, thought

    def head(self, document: dict[str, Any]) -> None:
        """What every document may carry beside its choices: an error, the model's name, the usage."""
        error = document.get("error")
        if error:
            fields = error if isinstance(error, dict) else {"message": error}
            code = fields.get("code", fields.get("status"))
            known = type(code) is int and 100 <= code <= 599
            raise StreamedError(str(fields.get("message") or error), code if known else None)
        model = document.get("model")
        if isinstance(model, str) and model:
            self._model = model[:200]
        usage = document.get("usage")
        if isinstance(usage, dict):
            self._usage = Usage(
                input_tokens=count(usage.get("prompt_tokens")),
                output_tokens=count(usage.get("completion_tokens")),
                calls=1,
            )

    def piece(self, message: dict[str, Any], *, whole: bool) -> str:
        """A message or a delta of one; the text it adds."""
        text = _text(message.get("content")) or _text(message.get("refusal"))
        calls = message.get("tool_calls")
        if calls is not None and not isinstance(calls, list):
            raise WireError('"tool_calls" that is no list')
        grown = len(text)
        for position, call in enumerate(calls or ()):
            grown += self._tool_call(call, position if whole else None)
        self._size += grown
        if self._size > MAX_ANSWER_CHARS:
            raise WireError(f"more than {MAX_ANSWER_CHARS} characters of answer")
        if text:
            self._text.append(text)
        return text

    def think(self, text: str) -> None:
        """Reasoning that stands beside the answer."""
        self._size += len(text)
        if text:
            self._thought.append(text)

    def finish(self, reason: object) -> None:
        self._finish = _FINISH.get(reason, "stop") if isinstance(reason, str) else "stop"

    def result(self) -> ModelsCompleteResult:
        calls = tuple(
            ToolCall(id=head[0] or f"call_{index}", name=head[1], arguments="".join(head[2:]) or "{}")
            for index, head in sorted(self._calls.items())
        )
        if any(not call.name for call in calls):
            raise WireError("a tool call without a name")
        finish: FinishReason = self._finish or "stop"
        if calls and finish == "stop":
            finish = "tool_calls"
        return ModelsCompleteResult(
            message=ChatMessage(
                role="assistant",
                content="".join(self._text),
                tool_calls=calls or UNSET,
                thoughts=(Thought(text="".join(self._thought)),) if self._thought else UNSET,
            ),
            usage=self._usage,
            finish_reason=finish,
            model=self._model,
            provider=self._provider,
        )

    def _tool_call(self, call: object, position: int | None) -> int:
        if not isinstance(call, dict) or not isinstance(call.get("function", {}), dict):
            raise WireError("a tool call that is no object")
        index = call.get("index") if position is None else position
        name_of = call.get("id")
        if type(index) is not int:
            # Without an index a fragment with a new id begins a call, any other one continues the last.
            last = max(self._calls, default=-1)
            known = {head[0]: at for at, head in self._calls.items() if head[0]}
            index = known.get(name_of, last + 1) if name_of else max(last, 0)
        head = self._calls.setdefault(index, ["", ""])
        function = call.get("function") or {}
        if not head[0] and isinstance(name_of, str):
            head[0] = name_of
        if not head[1] and isinstance(function.get("name"), str):
            head[1] = function["name"]
        arguments = function.get("arguments")
        if isinstance(arguments, dict):
            arguments = msgspec.json.encode(arguments).decode()
        if isinstance(arguments, str) and arguments:
            head.append(arguments)
            return len(arguments)
        return 0


def model_ids(raw: bytes) -> tuple[str, ...]:
    """The ids in the answer of ``/models``. Raises ``WireError``."""
    document = json_object(raw, "a list of models")
    data = document.get("data")
    if data is None and document.get("object") == "list":
        return ()  # how Ollama says that it has none yet
    if not isinstance(data, list):
        raise WireError('a list of models without "data"')
    return tuple(
        row["id"] for row in data if isinstance(row, dict) and isinstance(row.get("id"), str) and row["id"]
    )


def parse_embeddings(raw: bytes, model: str) -> ModelsEmbedResult:
    """The answer of ``/embeddings``, by ``index``. Raises ``WireError``."""
    document = json_object(raw, "embeddings")
    data = document.get("data")
    if not isinstance(data, list) or not data:
        raise WireError('embeddings without "data"')
    by_index: dict[int, tuple[float, ...]] = {}
    for position, row in enumerate(data):
        vector = row.get("embedding") if isinstance(row, dict) else None
        if not isinstance(vector, list) or not all(type(x) in (int, float) for x in vector):
            raise WireError('embeddings with an "embedding" that is no list of numbers')
        index = row.get("index", position)
        by_index[index if type(index) is int else position] = tuple(map(float, vector))
    if sorted(by_index) != list(range(len(data))):
        raise WireError('embeddings whose "index" does not count them')
    vectors = tuple(by_index[index] for index in range(len(data)))
    said = document.get("model")
    name = said if isinstance(said, str) and said else model
    return ModelsEmbedResult(vectors=vectors, dimensions=len(vectors[0]), model=name)


def _first_choice(document: dict[str, Any]) -> dict[str, Any] | None:
    choices = document.get("choices")
    if choices is None:
        return None
    if not isinstance(choices, list):
        raise WireError('"choices" that is no list')
    for choice in choices:
        if not isinstance(choice, dict):
            raise WireError("a choice that is no object")
        if choice.get("index", 0) == 0:
            return choice
    return None


def _reasoning(message: dict[str, Any]) -> str:
    """Not in OpenAI's own API; DeepSeek, vLLM and Ollama put it in one of these."""
    for field in ("reasoning_content", "reasoning"):
        text = message.get(field)
        if isinstance(text, str) and text:
            return text
    return ""


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(
            part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    return ""
