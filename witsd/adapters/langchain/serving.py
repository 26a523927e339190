"""A chat model of LangChain's that answers the daemon's model calls: the provider of kind ``langchain``."""

from __future__ import annotations

import json
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolCall, ToolMessage
from witsd_client import Agent, ModelError
from witsd_client.generated import ChatMessage, ModelsCompleteParams
from witsd_client.langchain import WitsChatModel

from witsd.adapters.langchain.loading import load, wrong
from witsd.adapters.langchain.options import Options

_FINISH = {"length": "length", "max_tokens": "length", "content_filter": "content_filter", "refusal": "content_filter"}


def serve_model(agent: Agent, options: Options) -> None:
    """Have ``agent`` answer model calls by what ``options`` name. Raises ``AgentFailed`` that says what is wrong."""
    model = load(options.chat_model, "chat_model")
    if isinstance(model, type):
        try:
            model = model(**options.chat_model_options)
        except Exception as error:
            raise wrong("chat_model_options", f"{type(error).__name__}: {error}") from error
    if not isinstance(model, BaseChatModel):
        raise wrong("chat_model", f"{options.chat_model} is a {type(model).__name__}, and no chat model")
    if isinstance(model, WitsChatModel):
        raise wrong("chat_model", f"{options.chat_model} asks the daemon, which would ask it again")
    chat = model

    @agent.complete
    async def complete(request: ModelsCompleteParams) -> dict[str, Any]:
        more: dict[str, Any] = dict(request.options or {})
        for name in ("temperature", "max_tokens", "response_format"):
            value = getattr(request, name)
            if value is not None:
                more[name] = value
        if request.model:
            more["model"] = request.model
        runnable: Any = chat
        if request.tools:
            functions = [
                {"type": "function", "function": {
                    "name": tool.name, "description": tool.description, "parameters": tool.input_schema or _NOTHING,
                }}
                for tool in request.tools
            ]  # fmt: skip
            if request.tool_choice is not None:
                more["tool_choice"] = request.tool_choice
            runnable = chat.bind_tools(functions)
        try:
            answer = await runnable.ainvoke([_from_wire(message) for message in request.messages], **more)
        except Exception as error:
            status = getattr(error, "status_code", None)
            text = f"{type(chat).__name__}: {type(error).__name__}: {error}"
            raise ModelError(text, {"provider": agent.name, "status": status}) from error
        return _to_wire(answer, getattr(chat, "model_name", None) or getattr(chat, "model", None) or options.chat_model)


_NOTHING: dict[str, Any] = {"type": "object", "properties": {}}


def _from_wire(message: ChatMessage) -> BaseMessage:
    match message.role:
        case "system":
            return SystemMessage(message.content)
        case "tool":
            return ToolMessage(message.content, tool_call_id=message.tool_call_id or "")
        case "assistant":
            calls = []
            for call in message.tool_calls or ():
                try:
                    args = json.loads(call.arguments or "{}")
                except ValueError:
                    args = None
                args = args if isinstance(args, dict) else {"malformed": call.arguments}
                calls.append(ToolCall(name=call.name, args=args, id=call.id, type="tool_call"))
            return AIMessage(message.content, tool_calls=calls)
    return HumanMessage(message.content)


def _to_wire(answer: AIMessage, name: str) -> dict[str, Any]:
    calls = [
        {"id": call["id"] or f"call_{index}", "name": call["name"], "arguments": json.dumps(call["args"])}
        for index, call in enumerate(answer.tool_calls)
    ] + [
        {"id": call["id"] or "call", "name": call["name"] or "", "arguments": call["args"] or ""}
        for call in answer.invalid_tool_calls
    ]
    said = answer.response_metadata.get("finish_reason") or answer.response_metadata.get("stop_reason")
    usage = answer.usage_metadata
    message: dict[str, Any] = {"role": "assistant", "content": str(answer.text)}
    if calls:
        message["tool_calls"] = calls
    reasoning = answer.additional_kwargs.get("reasoning_content")
    if isinstance(reasoning, str) and reasoning:
        message["thoughts"] = [{"text": reasoning}]
    return {
        "message": message,
        "usage": {
            "input_tokens": 0 if usage is None else usage["input_tokens"],
            "output_tokens": 0 if usage is None else usage["output_tokens"],
            "calls": 1,
        },
        "finish_reason": _FINISH.get(str(said), "tool_calls" if calls else "stop"),
        "model": str(answer.response_metadata.get("model_name") or name),
        "provider": "langchain",
    }
