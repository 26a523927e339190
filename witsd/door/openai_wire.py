"""OpenAI's chat and embeddings API as a server speaks it, sans I/O: requests in, answers, chunks and errors out."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from witsd.values.errors import (
    InvalidParams,
    InvalidRequest,
    InvalidState,
    LimitExceeded,
    MethodNotFound,
    ModelError,
    NotFound,
    Overloaded,
    PermissionDenied,
    RequestCancelled,
    Timeout,
    Unauthenticated,
    WitsdError,
)
from witsd.values.wire.common import UNSET
from witsd.values.wire.models import (
    ChatMessage,
    ModelsCompleteParams,
    ModelsCompleteResult,
    ModelsEmbedParams,
    ModelsEmbedResult,
    ToolCall,
)
from witsd.values.wire.runs import Usage

_encode = msgspec.json.encode
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
#: Of the body: what is read here, and so is not handed on as it is.
_READ = frozenset(
    ("model", "messages", "tools", "tool_choice", "stream", "stream_options", "temperature", "max_tokens",
     "max_completion_tokens", "response_format", "n")
)  # fmt: skip
#: What an answer of ours would not have.
_REFUSED = {
    "functions": "use `tools`",
    "function_call": "use `tool_choice`",
    "logprobs": "leave it out: answers have no log probabilities here",
    "top_logprobs": "leave it out: answers have no log probabilities here",
    "audio": "leave it out: answers are text here",
    "web_search_options": "leave it out",
}
_TYPES: tuple[tuple[type[WitsdError], int, str, str], ...] = (
    (InvalidParams, 400, "invalid_request_error", "invalid_value"),
    (InvalidRequest, 400, "invalid_request_error", "invalid_request"),
    (Unauthenticated, 401, "invalid_request_error", "invalid_api_key"),
    (PermissionDenied, 403, "permission_error", "permission_denied"),
    (NotFound, 404, "invalid_request_error", "not_found"),
    (MethodNotFound, 405, "invalid_request_error", "method_not_allowed"),
    (InvalidState, 409, "invalid_request_error", "invalid_state"),
    (RequestCancelled, 409, "invalid_request_error", "cancelled"),
    (LimitExceeded, 429, "insufficient_quota", "insufficient_quota"),
    (Overloaded, 429, "rate_limit_error", "rate_limit_exceeded"),
    (Timeout, 504, "api_error", "timeout"),
    (ModelError, 502, "api_error", "model_error"),
)
#: What a provider says of a request that is its caller's to mend, or to send later. Whatever is wrong with the
#: daemon's own key there is not.
_PASSED_ON = (400, 404, 413, 422, 429)


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request, and what of it is for the answer's form alone."""

    params: ModelsCompleteParams
    stream: bool
    usage: bool


def read_chat(raw: bytes) -> ChatRequest:
    """Raises ``InvalidParams`` naming the field, ``InvalidRequest`` for what is no JSON object."""
    body = _object(raw)
    for field, advice in _REFUSED.items():
        if body.get(field):
            raise InvalidParams(f"`{field}` is not supported: {advice}", path=field)
    if body.get("n") not in (None, 1):
        raise InvalidParams("`n` may be 1 alone: ask several times instead", path="n")
    stream = body.get("stream") or False
    options = body.get("stream_options") or {}
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidParams("`messages` is a list of at least one message", path="messages")
    tools = body.get("tools") or ()
    if not isinstance(tools, list | tuple):
        raise InvalidParams("`tools` is a list", path="tools")
    limit = body.get("max_completion_tokens")
    given = {
        "model": body.get("model"),
        "messages": [_message(message, f"messages[{at}]") for at, message in enumerate(messages)],
        "tools": [_tool(tool, f"tools[{at}]") for at, tool in enumerate(tools)],
        "stream": stream,
        "temperature": body.get("temperature"),
        "max_tokens": body.get("max_tokens") if limit is None else limit,
        "response_format": body.get("response_format"),
        "tool_choice": body.get("tool_choice"),
        "options": {name: value for name, value in body.items() if name not in _READ and value is not None},
    }
    try:
        params = msgspec.convert(given, ModelsCompleteParams)
    except msgspec.ValidationError as error:
        raise _refusal(error) from None
    return ChatRequest(
        params=params, stream=params.stream, usage=isinstance(options, dict) and bool(options.get("include_usage"))
    )


def _message(message: object, where: str) -> ChatMessage:
    if not isinstance(message, dict):
        raise InvalidParams(f"`{where}` is an object", path=where)
    role = _ROLES.get(str(message.get("role")))
    if role is None:
        raise InvalidParams(f"`{where}.role` is one of {', '.join(_ROLES)}", path=f"{where}.role")
    calls = message.get("tool_calls") or ()
    given: dict[str, Any] = {"role": role, "content": _content(message, f"{where}.content")}
    if calls:
        if not isinstance(calls, list):
            raise InvalidParams(f"`{where}.tool_calls` is a list", path=f"{where}.tool_calls")
        given["tool_calls"] = [_tool_call(call, f"{where}.tool_calls[{at}]") for at, call in enumerate(calls)]
    if message.get("tool_call_id") is not None:
        given["tool_call_id"] = message["tool_call_id"]
    elif role == "tool":
        raise InvalidParams(f"`{where}.tool_call_id` says which call is answered", path=f"{where}.tool_call_id")
    try:
        return msgspec.convert(given, ChatMessage)
    except msgspec.ValidationError as error:
        raise _refusal(error, where) from None


def _content(message: dict[str, Any], where: str) -> str:
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidParams(f"`{where}` is a text, or a list of parts", path=where)
    texts = []
    for at, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text") if kind == "text" else part.get("refusal") if kind == "refusal" else None
        if not isinstance(text, str):
            raise InvalidParams(f"`{where}[{at}]`: only parts of type `text` are taken here", path=f"{where}[{at}]")
        texts.append(text)
    return "".join(texts)


def _tool_call(call: object, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        raise InvalidParams(f"`{where}` is a call of a function", path=where)
    return {"id": call.get("id"), "name": function.get("name"), "arguments": function.get("arguments") or "{}"}


def _tool(tool: object, where: str) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(tool, dict) or tool.get("type") != "function" or not isinstance(function, dict):
        raise InvalidParams(f"`{where}` is to be of type `function`", path=where)
    return {
        "name": function.get("name"),
        "description": function.get("description") or "",
        "input_schema": function.get("parameters") or {},
    }


def usage_body(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def chat_body(result: ModelsCompleteResult, *, name: str, created: int) -> bytes:
    """A whole ``chat.completion``."""
    calls = _calls_out(result.message)
    message: dict[str, Any] = {"role": "assistant", "content": result.message.content, "refusal": None}
    if calls:
        message["tool_calls"] = calls
        message["content"] = result.message.content or None
    return _encode(
        {
            "id": name,
            "object": "chat.completion",
            "created": created,
            "model": result.model,
            "choices": [
                {"index": 0, "message": message, "logprobs": None, "finish_reason": result.finish_reason}
            ],
            "usage": usage_body(result.usage),
        }
    )


def _calls_out(message: ChatMessage) -> list[dict[str, Any]]:
    calls: Sequence[ToolCall] = () if message.tool_calls is UNSET else message.tool_calls
    return [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in calls
    ]


class Chunks:
    """The events of one streamed answer. Each text is put between two halves that are always the same."""

    def __init__(self, *, name: str, model: str, created: int, usage: bool) -> None:
        self._head = {"id": name, "object": "chat.completion.chunk", "created": created, "model": model}
        self._usage = usage
        self._first = True
        before, after = self._chunk({"content": "\0"}).split(b'"\\u0000"')
        self._halves = before, after

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self._event({**self._head, "choices": [choice], **({"usage": None} if self._usage else {})})

    def _event(self, document: dict[str, Any]) -> bytes:
        return b"data: " + _encode(document) + b"\n\n"

    def _begin(self) -> bytes:
        if not self._first:
            return b""
        self._first = False
        return self._chunk({"role": "assistant", "content": "", "refusal": None})

    def text(self, piece: str) -> bytes:
        before, after = self._halves
        return self._begin() + before + _encode(piece) + after

    def thought(self, piece: str) -> bytes:
        return self._begin() + self._chunk({"reasoning_content": piece})

    def end(self, result: ModelsCompleteResult, *, said: bool) -> bytes:
        """What follows the text; all of it where none was streamed (``said`` False)."""
        parts = [self._begin()]
        if not said and result.message.content:
            parts.append(self.text(result.message.content))
        for index, call in enumerate(_calls_out(result.message)):
            parts.append(self._chunk({"tool_calls": [{"index": index, **call}]}))
        parts.append(self._chunk({}, result.finish_reason))
        if self._usage:
            parts.append(self._event({**self._head, "choices": [], "usage": usage_body(result.usage)}))
        return b"".join(parts) + b"data: [DONE]\n\n"

    def failed(self, error: WitsdError) -> bytes:
        """An error after the answer has begun, as OpenAI's clients look for it."""
        return self._event(error_document(error))


def read_embeddings(raw: bytes) -> tuple[ModelsEmbedParams, bool, int | None]:
    """The request, whether it wants base64, and how many dimensions it wants. Raises as ``read_chat``."""
    body = _object(raw)
    given = body.get("input")
    texts = [given] if isinstance(given, str) else given
    if isinstance(texts, list) and texts and not all(isinstance(text, str) for text in texts):
        raise InvalidParams(
            "`input` is to be text: numbers of tokens mean something to one model alone "
            "(in LangChain: check_embedding_ctx_length=False)",
            path="input",
        )
    form, dimensions = body.get("encoding_format") or "float", body.get("dimensions")
    if form not in ("float", "base64"):
        raise InvalidParams("`encoding_format` is float or base64", path="encoding_format")
    model = body.get("model")
    try:
        params = msgspec.convert({"texts": texts, "model": None if model == "auto" else model}, ModelsEmbedParams)
        wanted = msgspec.convert(dimensions, int | None)
    except msgspec.ValidationError as error:
        raise _refusal(error) from None
    return params, form == "base64", wanted


def embeddings_body(result: ModelsEmbedResult, texts: Sequence[str], *, packed: bool) -> bytes:
    def shown(vector: tuple[float, ...]) -> object:
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if packed else vector

    tokens = sum(-(-len(text) // 4) for text in texts)
    return _encode(
        {
            "object": "list",
            "model": result.model,
            "data": [
                {"object": "embedding", "index": at, "embedding": shown(vector)}
                for at, vector in enumerate(result.vectors)
            ],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


def model_body(name: str, owner: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": owner}


def error_document(error: WitsdError) -> dict[str, Any]:
    """OpenAI's form of an error, with ours in ``witsd``."""
    _, kind, code = _of(error)
    return {
        "error": {
            "message": error.message,
            "type": kind,
            "param": error.data.get("path"),
            "code": code,
            "witsd": {"code": error.code, "data": error.data},
        }
    }


def error_status(error: WitsdError) -> int:
    return _of(error)[0]


def error_headers(error: WitsdError) -> tuple[tuple[bytes, bytes], ...]:
    """The daemon has tried again already where that was worth it: only where a queue is full should the client."""
    if isinstance(error, Overloaded):
        wait_ms = int(error.data.get("retry_after_ms", 1000))
        return ((b"retry-after", str(-(-wait_ms // 1000)).encode()), (b"retry-after-ms", str(wait_ms).encode()))
    return ((b"x-should-retry", b"false"),)


def _of(error: WitsdError) -> tuple[int, str, str]:
    if isinstance(error, NotFound) and error.data.get("kind") == "model":
        return 404, "invalid_request_error", "model_not_found"
    if isinstance(error, ModelError) and error.data.get("status") in _PASSED_ON:
        status = int(error.data["status"])
        kind = "rate_limit_error" if status == 429 else "invalid_request_error"
        return status, kind, "rate_limit_exceeded" if status == 429 else "model_error"
    for of, status, kind, code in _TYPES:
        if isinstance(error, of):
            return status, kind, code
    return 500, "api_error", error.name


def _object(raw: bytes) -> dict[str, Any]:
    try:
        body = msgspec.json.decode(raw)
    except (ValueError, RecursionError):
        raise InvalidRequest("the body is not JSON") from None
    if not isinstance(body, dict):
        raise InvalidRequest("the body is to be a JSON object")
    return body


def _refusal(error: msgspec.ValidationError, where: str = "") -> InvalidParams:
    text, _, path = str(error).partition(" - at `$")
    field = (where + path.rstrip("`")).lstrip(".").replace("input_schema", "function.parameters")
    field = field.replace("texts", "input", 1) if field.startswith("texts") else field
    return InvalidParams(f"`{field}`: {text[:1].lower()}{text[1:]}", path=field)
