"""The built-in assistant: an agent that answers with a model of the daemon's gateway.

``[options]`` of its definition, all optional::

    model = "auto"            # what models/complete takes: auto, PROVIDER, PROVIDER/MODEL or MODEL
    system = "..."            # the system message
    temperature = 0.7
    max_tokens = 1000
    memory_tokens = 1000      # how much of a prompt may be what was recalled; 0 recalls nothing
    tools = ["*"]             # which of the tools that [grants] allows the model is offered
    max_steps = 16            # how often the model is asked again with what its tools have answered
    context_tokens = 0        # what the model can read; what does not fit is summarised. 0: no bound is known

A session's settings ``model``, ``system``, ``stream``, ``memory`` and ``tools`` go before them and before the
definition.
``history_messages`` of the definition is how much of the conversation is sent with a message; what fits of
everything before is recalled from memory, and the blocks of the agent are always there
(see ``assistant_memory``). Text files that come with a message (``input.files``, ``data.attachments``)
are appended to it, each in a fence with its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import anyio
import msgspec
from msgspec import UNSET, Meta
from witsd_client import Agent, AgentFailed, InvalidParams, Progress, Run, Session
from witsd_client.connection import OnProgress
from witsd_client.generated import ChatMessage, HistoryTurn, ModelsCompleteResult, ToolDefinition

from witsd.adapters.assistant_memory import known
from witsd.adapters.assistant_tools import called, definitions, offered
from witsd.adapters.assistant_window import fitted, window

#: One file may be this long: a message to the daemon ends at 4 MiB.
MAX_FILE_BYTES = 512 * 1024
#: What the model is told when it has had all its steps.
NO_MORE = "You have used all the tool calls there are for this message. Answer now, with what you have found."

agent = Agent("assistant")


class Options(msgspec.Struct, frozen=True):
    """``[options]``."""

    model: str = "auto"
    system: str = ""
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    memory_tokens: Annotated[int, Meta(ge=0, le=100_000)] = 1000
    tools: tuple[str, ...] = ("*",)
    max_steps: Annotated[int, Meta(ge=1, le=1000)] = 16
    context_tokens: Annotated[int, Meta(ge=0, le=100_000_000)] = 0


class Attachment(msgspec.Struct, frozen=True):
    """A text that came with a message."""

    name: str
    text: str
    media_type: str = "text/plain"


@agent.run
async def answer_once(run: Run) -> str | None:
    """A run of its own: one question, one answer."""
    conversation = [said(turn) for turn in run.history]
    conversation.append(await asked(run))
    return await answer(run, conversation, read_options(run))


@agent.session
async def converse(session: Session) -> None:
    """One conversation, for as long as it lasts."""
    conversation = [said(turn) for turn in session.history]
    async for message in session:
        before = len(conversation)
        async with message:
            options = read_options(message)
            conversation.append(await asked(message))
            message.finish(await answer(message, conversation, options))
        # Also what a cancelled or broken answer had said: the person has seen it.
        if message.said and not any(m.role == "assistant" and m.content for m in conversation[before:]):
            conversation.append(ChatMessage(role="assistant", content=message.said))
        conversation = window(_whole(conversation), agent.history_messages + 1)


def _whole(conversation: list[ChatMessage]) -> list[ChatMessage]:
    """Without calls at its end that were never answered, as when a run is cancelled in the middle of one."""
    while conversation and conversation[-1].role == "assistant" and conversation[-1].tool_calls is not UNSET:
        conversation.pop()
    return conversation


async def answer(run: Run, conversation: list[ChatMessage], options: Options) -> str | None:
    """Have the model answer the conversation, with its tools; what is said and called is added to it.

    The text is said as it comes; where it comes in one piece it is returned instead, and no delta is
    sent. A model's error passes as it is and ends the run with its code.
    """
    settings = run.settings
    patterns = settings.tools if isinstance(settings.tools, tuple) else options.tools
    tools = await offered(run, patterns)
    system = settings.system if isinstance(settings.system, str) else options.system
    head = "\n\n".join(filter(None, [system, *await known(run, options.memory_tokens)]))
    model = _Model(run, options)
    before = window(conversation, agent.history_messages + 1)
    begun = len(conversation)
    for step in range(options.max_steps + 1):
        messages = [*before, *conversation[begun:]]
        last = step == options.max_steps
        if sections := [*filter(None, [head, NO_MORE if last and tools else ""])]:
            messages.insert(0, ChatMessage(role="system", content="\n\n".join(sections)))
        messages = await fitted(messages, options.context_tokens, model.summarise)
        message = await model.complete(messages, () if last else definitions(tools))
        conversation.append(message)
        if message.tool_calls is UNSET or not message.tool_calls:
            break
        conversation += await called(run, message.tool_calls, tools)
    return None if run.said else "\n\n".join(model.texts)


class _Model:
    """The model of one run: what is sent with each call, and what is said of it."""

    def __init__(self, run: Run, options: Options) -> None:
        self._run = run
        chosen = run.settings.model if isinstance(run.settings.model, str) else options.model
        self._params: dict[str, Any] = {"model": chosen, "run_id": run.run_id}
        if options.max_tokens is not None:
            self._params["max_tokens"] = options.max_tokens
        self._temperature = {} if options.temperature is None else {"temperature": options.temperature}
        self._stream = run.stream and run.settings.stream is not False
        #: What it has said, one text a call.
        self.texts: list[str] = []

    async def complete(self, messages: list[ChatMessage], tools: tuple[ToolDefinition, ...]) -> ChatMessage:
        """One call, whose text is said as it comes."""
        run, begun = self._run, False

        async def relay(news: Progress) -> None:
            nonlocal begun
            if news.thought:
                await run.think(news.thought)
            if news.delta:
                if run.said and not begun:
                    await run.say("\n\n")
                begun = True
                await run.say(news.delta)

        params = {**self._params, **self._temperature, "messages": messages, "tools": tools, "stream": self._stream}
        result = await self._call(params, relay if self._stream else None)
        text = result.message.content
        if text:
            self.texts.append(text)
            if run.said and not begun:  # it came in one piece, behind what was said before
                await run.say(f"\n\n{text}")
        if result.finish_reason == "length":
            await run.log("warning", "the answer was cut off: it reached max_tokens or the model's own limit")
        elif result.finish_reason == "content_filter":
            await run.log("warning", "the provider withheld the answer, or a part of it")
        return result.message

    async def summarise(self, messages: Sequence[ChatMessage]) -> str:
        """What the model makes of a conversation that is too long for it."""
        await self._run.log("info", f"{len(messages)} messages were summarised to fit the model's window")
        return (await self._call({**self._params, "messages": messages, "stream": False}, None)).message.content

    async def _call(self, params: dict[str, Any], relay: OnProgress | None) -> ModelsCompleteResult:
        return await self._run.client.call("models/complete", params, ModelsCompleteResult, progress=relay)


async def asked(run: Run) -> ChatMessage:
    """What the person sent: the text with every attached file behind it."""
    files = [await anyio.to_thread.run_sync(read_file, name, run.cwd) for name in run.files]
    return ChatMessage(role="user", content=with_attachments(run.text, [*attachments(run.data), *files]))


def said(turn: HistoryTurn) -> ChatMessage:
    """A turn of the past as a model is told of it."""
    if turn.role == "user":
        return ChatMessage(role="user", content=with_attachments(turn.text, attachments(turn.data)))
    return ChatMessage(role="assistant" if turn.role == "assistant" else "system", content=turn.text)


def read_options(run: Run) -> Options:
    """Raises ``AgentFailed`` naming the option that is wrong."""
    try:
        return msgspec.convert(dict(run.options), Options)
    except msgspec.ValidationError as error:
        raise AgentFailed(f"[options] of the agent's definition: {error}", {"reason": "options"}) from None


def attachments(data: Any) -> list[Attachment]:
    """``data.attachments``, if any. Raises ``InvalidParams``."""
    found = data.get("attachments") if isinstance(data, dict) else None
    if found is None or found is UNSET:
        return []
    try:
        return msgspec.convert(found, list[Attachment])
    except msgspec.ValidationError as error:
        raise InvalidParams(f"input.data.attachments: {error}", {"path": "input.data.attachments"}) from None


def read_file(name: str, cwd: str | None) -> Attachment:
    """A text file named in ``input.files``. Blocking. Raises ``InvalidParams`` naming the file."""
    path = Path(cwd or ".", name).expanduser()
    wrong = None
    raw = b""
    try:
        if not path.is_file():
            wrong = "is no file" if path.exists() else "does not exist"
        else:
            with path.open("rb") as file:
                raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        wrong = error.strerror or "cannot be read"
    if len(raw) > MAX_FILE_BYTES:
        wrong = f"is larger than {MAX_FILE_BYTES} bytes"
    if wrong is None:
        try:
            return Attachment(name=name, text=raw.decode("utf-8-sig"))
        except UnicodeDecodeError:
            wrong = "is no UTF-8 text"
    raise InvalidParams(f"input.files: {path} {wrong}", {"path": "input.files"})


def with_attachments(text: str, files: Iterable[Attachment]) -> str:
    """``text``, and behind it each file in a fence that nothing inside it can close."""
    parts = [text] if text else []
    for file in files:
        longest = max((len(run) for run in re.findall(r"`{3,}", file.text)), default=2)
        fence = "`" * (longest + 1)
        name = " ".join(file.name.split())
        parts.append(f"Attached: {name}\n{fence}\n{file.text.rstrip()}\n{fence}")
    return "\n\n".join(parts)


if __name__ == "__main__":
    agent.serve()
