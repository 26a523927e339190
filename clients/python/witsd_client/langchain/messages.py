"""LangChain's messages and tools as the daemon's, and back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    InvalidToolCall,
    SystemMessage,
    ToolCall,
    ToolMessage,
)
from langchain_core.messages.ai import UsageMetadata
from langchain_core.output_parsers.openai_tools import make_invalid_tool_call
from langchain_core.utils.function_calling import convert_to_openai_tool

from witsd_client.generated import ModelsCompleteResult

#: Blocks of a message's content that say again what stands elsewhere in it.
_TOLD_ELSEWHERE = frozenset({
    "tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call", "input_json_delta", "thinking",
    "redacted_thinking", "reasoning", "function_call",
})  # fmt: skip


def to_wire(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """As ``models/complete`` takes them. Raises ``ValueError`` for what is no text."""
    return [_to_wire(message) for message in messages]


def _to_wire(message: BaseMessage) -> dict[str, Any]:
    content = text_of(message)
    match message:
        case SystemMessage():
            return {"role": "system", "content": content}
        case ToolMessage():
            return {"role": "tool", "content": content, "tool_call_id": message.tool_call_id}
        case AIMessage():
            wire: dict[str, Any] = {"role": "assistant", "content": content}
            calls = [
                {"id": call["id"] or "", "name": call["name"], "arguments": json.dumps(call["args"])}
                for call in message.tool_calls
            ] + [
                {"id": call["id"] or "", "name": call["name"] or "", "arguments": call["args"] or ""}
                for call in message.invalid_tool_calls
            ]
            if calls:
                wire["tool_calls"] = calls
            thoughts = message.additional_kwargs.get("witsd_thoughts")
            if thoughts:
                wire["thoughts"] = thoughts
            return wire
        case HumanMessage():
            return {"role": "user", "content": content}
        case ChatMessage():
            role = message.role if message.role in ("system", "user", "assistant", "tool") else "user"
            return {"role": role, "content": content}
    raise ValueError(f"a {type(message).__name__} cannot be sent to a witsd model")


def text_of(message: BaseMessage) -> str:
    """The text of a message. Raises ``ValueError`` where it holds something else."""
    if isinstance(message.content, str):
        return message.content
    texts: list[str] = []
    for block in message.content:
        if isinstance(block, str):
            texts.append(block)
        elif block.get("type") in ("text", "text-plain"):
            texts.append(str(block.get("text") or ""))
        elif block.get("type") == "tool_result":
            texts.append(json.dumps(block.get("content"), ensure_ascii=False))
        elif block.get("type") not in _TOLD_ELSEWHERE:
            raise ValueError(f"a witsd model takes text; this message holds a block of type {block.get('type')!r}")
    return "".join(texts)


def tools_to_wire(tools: Sequence[Any]) -> list[dict[str, Any]]:
    """Tools, functions, pydantic models or schemas, as ``models/complete`` takes them."""
    wire = []
    for tool in tools:
        function = convert_to_openai_tool(tool)["function"]
        wire.append(
            {
                "name": function["name"],
                "description": function.get("description") or "",
                "input_schema": function.get("parameters") or {"type": "object", "properties": {}},
            }
        )
    return wire


def tool_choice_to_wire(choice: str | dict[str, Any] | bool) -> Any:
    """LangChain's ways of saying which tool is to be called, as OpenAI's API says it."""
    if choice is True or choice == "any":
        return "required"
    if isinstance(choice, str) and choice not in ("auto", "none", "required"):
        return {"type": "function", "function": {"name": choice}}
    return choice


def calls_of(result: ModelsCompleteResult) -> tuple[list[ToolCall], list[InvalidToolCall]]:
    """The calls a model asks for: those that can be read, and those that cannot."""
    calls: list[ToolCall] = []
    invalid: list[InvalidToolCall] = []
    for call in result.message.tool_calls or ():
        try:
            args = json.loads(call.arguments or "{}")
        except ValueError:
            args = None
        if isinstance(args, dict):
            calls.append(ToolCall(name=call.name, args=args, id=call.id, type="tool_call"))
        else:
            raw = {"id": call.id, "function": {"name": call.name, "arguments": call.arguments}}
            invalid.append(make_invalid_tool_call(raw, "the arguments are no JSON object"))
    return calls, invalid


def extras_of(result: ModelsCompleteResult) -> dict[str, Any]:
    """``additional_kwargs``: thoughts that the model wants back."""
    thoughts = [
        {"text": thought.text, "signature": thought.signature, "redacted": thought.redacted}
        for thought in result.message.thoughts or ()
        if thought.signature
    ]
    return {"witsd_thoughts": thoughts} if thoughts else {}


def usage_of(result: ModelsCompleteResult) -> UsageMetadata:
    """What the call used."""
    given, made = result.usage.input_tokens, result.usage.output_tokens
    return UsageMetadata(input_tokens=given, output_tokens=made, total_tokens=given + made)


def about(result: ModelsCompleteResult) -> dict[str, Any]:
    """``response_metadata``: which model answered, and why it ended."""
    return {
        "model_name": result.model,
        "model_provider": result.provider,
        "finish_reason": result.finish_reason,
    }
