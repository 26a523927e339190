"""What a tool has returned, in the shape of an answer and within its size."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET

from witsd.services.tools.tool import Answer
from witsd.values.wire.tools import Content, TextContent, ToolsCallResult

_encode = msgspec.json.Encoder(enc_hook=str).encode
#: Where text is cut off, so much of it is from the end.
_TAIL = 0.25


def result_of(value: object, most_bytes: int) -> ToolsCallResult:
    """Text as it is, an ``Answer`` as it says, and anything else as JSON, with its value beside it.

    What JSON cannot say is answered as an error of the tool.
    """
    if isinstance(value, Answer):
        answer = ToolsCallResult(content=value.content, structured_content=value.structured, is_error=value.is_error)
    elif value is None:
        answer = ToolsCallResult(content=())
    elif isinstance(value, str):
        answer = ToolsCallResult(content=(TextContent(text=value),))
    else:
        try:
            text = _encode(value).decode()
            structured = msgspec.json.decode(text)
        except (TypeError, ValueError, RecursionError) as error:
            return failure(f"the tool returned what is no JSON: {error}")
        if not isinstance(structured, dict):
            structured = {"result": structured}
        answer = ToolsCallResult(content=(TextContent(text=text),), structured_content=structured)
    return bounded(answer, most_bytes)


def failure(text: str) -> ToolsCallResult:
    return ToolsCallResult(content=(TextContent(text=text),), is_error=True)


def bounded(answer: ToolsCallResult, most_bytes: int) -> ToolsCallResult:
    """The answer with no more than ``most_bytes`` of text; what was cut out is said in its place."""
    if len(answer.content) == 1 and answer.structured_content is UNSET:
        (only,) = answer.content
        if isinstance(only, TextContent) and len(only.text) * 4 <= most_bytes:
            return answer
    left, cut, content = most_bytes, False, list[Content]()
    for part in answer.content:
        size = _size(part)
        if size <= left:
            content.append(part)
        elif isinstance(part, TextContent):
            content.append(TextContent(text=shortened(part.text, left)))
            cut = True
        else:
            content.append(TextContent(text=f"[{size} bytes left out: a tool's answer may have {most_bytes}]"))
            cut = True
        left = max(0, left - size)
    structured: Any = answer.structured_content
    if structured is not UNSET and len(_encode(structured)) > most_bytes:
        structured, cut = UNSET, True
    if not cut:
        return answer
    return ToolsCallResult(content=tuple(content), structured_content=structured, is_error=answer.is_error)


def shortened(text: str, most_bytes: int) -> str:
    """``text`` without its middle: as many bytes as there may be, and the words that say what is missing."""
    data = text.encode("utf-8", "replace")
    if len(data) <= most_bytes:
        return text
    tail = int(most_bytes * _TAIL)
    head = most_bytes - tail
    said = f"\n[... {len(data) - most_bytes} of {len(data)} bytes left out ...]\n"
    end = data[len(data) - tail :] if tail else b""
    return data[:head].decode("utf-8", "ignore") + said + end.decode("utf-8", "ignore")


def text_of(answer: ToolsCallResult) -> str:
    """The answer as a model reads it."""
    parts = []
    for part in answer.content:
        match part:
            case TextContent():
                parts.append(part.text)
            case _:
                parts.append(f"[{msgspec.to_builtins(part).get('name', 'image')}]")
    return "\n".join(parts)


def _size(part: Content) -> int:
    if isinstance(part, TextContent):
        return len(part.text) if part.text.isascii() else len(part.text.encode("utf-8", "replace"))
    return len(_encode(part))
