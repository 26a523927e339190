"""One agent's Runnable: made as its options say, asked, followed, and asked on where it waits for a person."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from witsd_client import Agent, Run

from witsd.adapters.langchain.asking import Form, plain
from witsd.adapters.langchain.built import build, load_tools
from witsd.adapters.langchain.following import Follower
from witsd.adapters.langchain.loading import load, made, wrong
from witsd.adapters.langchain.options import Options, read_options
from witsd.adapters.langchain.serving import serve_model


class Host:
    """Made by ``open_host``."""

    def __init__(self, options: Options, runnable: Runnable[Any, Any], form: Form) -> None:
        self._options = options
        self._runnable = runnable
        self._form = form
        self._built = not options.runnable

    async def answer(self, run: Run, messages: Sequence[BaseMessage]) -> Any:
        """Have the last of ``messages`` answered; the output, or None where it has been said."""
        config = self._config(run)
        follower = Follower(run)
        question = self._form.question(await self._new(messages, config), run.data)
        while True:
            output = await follower.follow(self._runnable, question, config)
            waiting = await self._interrupts(config)
            if not waiting:
                break
            question = await _ask(run, waiting)
        answer = self._form.answer(output)
        if not isinstance(answer, str):
            return answer
        if not run.said:
            return answer
        if answer.strip() and answer.strip() not in run.said:
            await run.say("\n\n" + answer)
        return None

    def _config(self, run: Run) -> RunnableConfig:
        configurable = {**self._options.config, "thread_id": run.session_id or run.run_id}
        if self._built:
            for name in ("model", "system"):
                value = getattr(run.settings, name)
                if isinstance(value, str):
                    configurable[name] = value
        return RunnableConfig(
            configurable=configurable, recursion_limit=2 * self._options.max_steps + 1, run_name=run.agent.name
        )

    async def _new(self, messages: Sequence[BaseMessage], config: RunnableConfig) -> Sequence[BaseMessage]:
        """What it does not know yet: a graph with a checkpointer keeps the conversation itself."""
        if not _keeps(self._runnable):
            return messages
        state = await self._runnable.aget_state(config)  # type: ignore[attr-defined]
        return messages[-1:] if state.values else messages

    async def _interrupts(self, config: RunnableConfig) -> list[Any]:
        """Where a graph of LangGraph's waits for a person (``interrupt``)."""
        if not _keeps(self._runnable):
            return []
        state = await self._runnable.aget_state(config)  # type: ignore[attr-defined]
        return list(getattr(state, "interrupts", ()))


async def open_host(agent: Agent) -> Host:
    """Make what the options of ``agent`` name, and bring its tools. Raises ``AgentFailed`` that says what is wrong."""
    options = read_options(agent.options)
    for tool in await load_tools(options.offer, "offer"):
        offer(agent, tool)
    if options.chat_model:
        serve_model(agent, options)
    if not options.runnable:
        runnable = build(options)
    else:
        value = await made(load(options.runnable, "runnable"))
        if not isinstance(value, Runnable) and hasattr(value, "compile"):
            value = value.compile()  # a graph as it was drawn
        if not isinstance(value, Runnable):
            text = f"{options.runnable} is a {type(value).__name__}, and no Runnable, graph or function that makes one"
            raise wrong("runnable", text)
        runnable = value
    form = Form(runnable, options) if options.runnable else Form(runnable, Options(input="messages"))
    return Host(options, runnable, form)


def offer(agent: Agent, tool: BaseTool) -> None:
    """Bring a tool of LangChain's to all who may use this agent's, under its own schema."""
    function = convert_to_openai_tool(tool)["function"]

    async def call(arguments: dict[str, Any]) -> dict[str, Any]:
        wanted = {"name": tool.name, "args": arguments, "id": uuid.uuid4().hex, "type": "tool_call"}
        return _result(await tool.ainvoke(wanted))

    schema = function.get("parameters") or {"type": "object", "properties": {}}
    metadata = tool.metadata or {}
    agent.add_tool(
        tool.name,
        tool.description,
        schema,
        call,
        read_only=bool(metadata.get("read_only")),
        parallel=bool(metadata.get("parallel")),
    )


def _result(value: Any) -> dict[str, Any]:
    """As ``tools/call`` answers."""
    failed = False
    artifact = None
    if isinstance(value, ToolMessage):
        failed, artifact, value = value.status == "error", value.artifact, value.content
    blocks = [_block(part) for part in (value if isinstance(value, list) else [value])]
    result: dict[str, Any] = {"content": blocks, "is_error": failed}
    if artifact is not None:
        shown = plain(artifact)
        result["structured_content"] = shown if isinstance(shown, dict) else {"result": shown}
    return result


def _block(part: Any) -> dict[str, Any]:
    if isinstance(part, dict) and part.get("type") == "text":
        return {"type": "text", "text": str(part.get("text", ""))}
    if isinstance(part, dict) and part.get("type") == "image" and part.get("base64"):
        return {"type": "image", "data": part["base64"], "mime_type": part.get("mime_type") or "image/png"}
    return {"type": "text", "text": part if isinstance(part, str) else str(plain(part))}


def _keeps(runnable: Runnable[Any, Any]) -> bool:
    return getattr(runnable, "checkpointer", None) not in (None, False) and hasattr(runnable, "aget_state")


async def _ask(run: Run, waiting: list[Any]) -> Any:
    """Ask a person what the graph waits for; the command by which it goes on."""
    from langgraph.types import Command  # there, since the graph is LangGraph's

    answers: dict[str, Any] = {}
    for interrupt in waiting:
        value = plain(interrupt.value)
        asked = value if isinstance(value, str) else None
        if isinstance(value, dict):
            texts = (value.get(key) for key in ("question", "message", "text"))
            asked = next((text for text in texts if isinstance(text, str)), None)
        answers[interrupt.id] = await run.ask_user(asked or str(value))
    return Command(resume=answers if len(answers) > 1 else next(iter(answers.values())))


def remembered(role: str, text: str) -> BaseMessage:
    """A turn of the past as LangChain has it."""
    if role == "user":
        return HumanMessage(text)
    return AIMessage(text) if role == "assistant" else SystemMessage(text)
