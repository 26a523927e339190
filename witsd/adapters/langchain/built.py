"""An agent without code: a loop over a model of the daemon's and tools."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, SystemMessage, ToolCall, ToolMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_core.tools import BaseTool
from langchain_core.tools import tool as as_tool
from witsd_client import AgentFailed
from witsd_client.langchain import WitsChatModel
from witsd_client.langchain.tools import awits_tools

from witsd.adapters.langchain.loading import load, made, wrong
from witsd.adapters.langchain.options import Options


async def load_tools(paths: Sequence[str], option: str) -> list[BaseTool]:
    """The tools at import paths: each a tool, a function, a toolkit or a list of them. Raises ``AgentFailed``."""
    found: list[BaseTool] = []
    for path in paths:
        value = await made(load(path, option)) if not _is_function(path, option) else load(path, option)
        if hasattr(value, "get_tools"):
            value = value.get_tools()
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, BaseTool):
                found.append(one)
            elif callable(one):
                found.append(_tool_of(one, path, option))
            else:
                raise wrong(option, f"{path} is a {type(one).__name__}, and no tool, function or list of them")
    return found


def _is_function(path: str, option: str) -> bool:
    """Whether it is a function to be made a tool of: one with a docstring, as tools have."""
    value = load(path, option)
    return callable(value) and not isinstance(value, BaseTool) and bool(getattr(value, "__doc__", None))


def _tool_of(function: Any, path: str, option: str) -> BaseTool:
    try:
        made_tool: BaseTool = as_tool(function)
    except ValueError as error:  # without a docstring, for one
        raise wrong(option, f"{path} can be no tool: {error}") from None
    return made_tool


def build(options: Options) -> Runnable[Any, Any]:
    """A Runnable from messages to the last answer."""
    known: list[BaseTool] | None = None

    async def tools() -> list[BaseTool]:
        nonlocal known
        if known is None:
            patterns = [name for name in options.tools if ":" not in name]
            paths = [name for name in options.tools if ":" in name]
            try:
                offered = await awits_tools(*patterns) if patterns else []
            except ValueError as error:
                raise wrong("tools", str(error)) from None
            known = [*await load_tools(paths, "tools"), *offered]
        return known

    async def loop(messages: list[BaseMessage], config: RunnableConfig) -> AIMessage:
        mine = {tool.name: tool for tool in await tools()}
        configurable = config.get("configurable", {})
        model: Any = WitsChatModel(
            model_name=configurable.get("model") or options.model,
            temperature=options.temperature,
            max_tokens=options.max_tokens,
        )
        if mine:
            model = model.bind_tools(list(mine.values()))
        system = configurable.get("system")
        system = options.system if system is None else system
        conversation = [SystemMessage(system), *messages] if system else list(messages)
        for _ in range(options.max_steps):
            answer: AIMessageChunk | None = None
            async for piece in model.astream(conversation, config):
                answer = piece if answer is None else answer + piece
            assert answer is not None
            conversation.append(answer)
            if not answer.tool_calls and not answer.invalid_tool_calls:
                return answer
            conversation += [
                ToolMessage(
                    f"This call could not be read: {call['error']}. The arguments were: {call['args']}",
                    tool_call_id=call["id"] or "",
                    status="error",
                )
                for call in answer.invalid_tool_calls
            ]
            conversation += await asyncio.gather(*(_use(mine, call, config) for call in answer.tool_calls))
        raise AgentFailed(
            f"the model asked for tools {options.max_steps} times and came to no answer: raise [options] max_steps",
            {"reason": "max_steps", "limit": "max_steps", "value": options.max_steps},
        )

    return RunnableLambda(loop, name="agent")


async def _use(tools: dict[str, BaseTool], call: ToolCall, config: RunnableConfig) -> ToolMessage:
    """The result of a call, or what went wrong with it, as the model is told."""
    tool = tools.get(call["name"])
    if tool is None:
        text = f"There is no tool {call['name']!r}. There are: {', '.join(tools) or 'none'}."
        return ToolMessage(text, tool_call_id=call["id"] or "", status="error")
    try:
        result = await tool.ainvoke(call, config)
    except Exception as error:  # noqa: BLE001  what a tool raises is the model's to deal with
        return ToolMessage(f"{type(error).__name__}: {error}", tool_call_id=call["id"] or "", status="error")
    return result if isinstance(result, ToolMessage) else ToolMessage(str(result), tool_call_id=call["id"] or "")
