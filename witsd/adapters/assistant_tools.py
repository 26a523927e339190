"""How the assistant uses tools: which the model is offered, and what becomes of the calls it makes.

A call that cannot be made (no JSON, arguments that do not fit, a tool that is not there, a person's no, a time-out) is
answered to the model with the error, so that it can do better; each shows in the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import groupby
from typing import Any

import anyio
import msgspec
from msgspec import UNSET
from witsd_client import (
    InvalidParams,
    InvalidState,
    NotFound,
    PermissionDenied,
    ProtocolError,
    Run,
    Timeout,
)
from witsd_client.generated import ChatMessage, TextContent, Tool, ToolCall, ToolDefinition, ToolsCallResult

#: What a model is told of an answer; the item of the run has it all.
MAX_RESULT_CHARS = 24_000
#: Calls that one answer of the model may make, and that run side by side.
MAX_CALLS = 64
MAX_PARALLEL = 8
#: What is answered to the model instead of ending the run.
_TOLD = (InvalidParams, InvalidState, NotFound, PermissionDenied, Timeout, ProtocolError)


async def offered(run: Run, patterns: Sequence[str]) -> tuple[Tool, ...]:
    """The tools that can be called now, within grants and ``patterns``."""
    if not run.agent.grants.tools or not patterns:
        return ()
    tools: list[Tool] = []
    cursor: str | None = None
    while True:
        page = await run.client.tools.list(available=True, limit=1000, cursor=cursor)
        tools += page.items
        if page.next_cursor is UNSET:
            break
        cursor = page.next_cursor
    tools = [tool for tool in tools if any(fnmatchcase(tool.name, pattern) for pattern in patterns)]
    # What would be refused in any case only misleads.
    return tuple(tool for tool in tools if tool.policy != "deny" and tool.source != f"agent:{run.agent.name}")


def definitions(tools: Sequence[Tool]) -> tuple[ToolDefinition, ...]:
    return tuple(
        ToolDefinition(name=tool.name, description=tool.description, input_schema=tool.input_schema) for tool in tools
    )


async def called(run: Run, calls: Sequence[ToolCall], tools: Sequence[Tool]) -> list[ChatMessage]:
    """Make the calls of one answer: those next to each other that allow it side by side. Answers in their order."""
    parallel = {tool.name for tool in tools if tool.annotations.parallel}
    answers: dict[int, str] = {}
    limiter = anyio.CapacityLimiter(MAX_PARALLEL)

    async def one(place: int, call: ToolCall) -> None:
        async with limiter:
            answers[place] = await _call(run, call)

    for side_by_side, group in groupby(enumerate(calls[:MAX_CALLS]), lambda pair: pair[1].name in parallel):
        if side_by_side:
            async with anyio.create_task_group() as tasks:
                for place, call in group:
                    tasks.start_soon(one, place, call)
        else:
            for place, call in group:
                await one(place, call)
    too_many = f"not called: one answer may make {MAX_CALLS} calls"
    return [
        ChatMessage(role="tool", tool_call_id=call.id, content=answers.get(place, too_many))
        for place, call in enumerate(calls)
    ]


async def _call(run: Run, call: ToolCall) -> str:
    """What the model is answered. Raises what ends the run: a cancellation, a budget that is spent."""
    try:
        arguments = msgspec.json.decode(call.arguments or "{}", type=dict[str, Any])
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        told = f"error: the arguments of this call are no JSON object ({error}): call again with one"
        await _failed(run, call, {}, told)
        return told
    try:
        result = await run.client.tools.call(name=call.name, arguments=arguments, run_id=run.run_id)
    except _TOLD as error:
        told = f"error: {error}"
        if isinstance(error, (InvalidParams, NotFound, PermissionDenied, InvalidState)):  # no call came of it
            await _failed(run, call, arguments, told)
        return told
    return text_of(result)


async def _failed(run: Run, call: ToolCall, arguments: dict[str, Any], told: str) -> None:
    await run.item(
        "tool_call", status="failed", tool=call.name, arguments=arguments, result=told, is_error=True
    )


def text_of(result: ToolsCallResult) -> str:
    """A result as a model reads it, no longer than it may be."""
    parts = []
    for part in result.content:
        if isinstance(part, TextContent):
            parts.append(part.text)
        else:
            parts.append(f"[{getattr(part, 'name', 'an image')}, which is kept with the run]")
    text = "\n".join(parts) or "(it answered nothing)"
    if len(text) > MAX_RESULT_CHARS:
        half = MAX_RESULT_CHARS // 2
        text = f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"
    return f"error: {text}" if result.is_error else text


