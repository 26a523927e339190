"""The built-in assistant: an agent that answers with a model of the daemon's gateway.

``[options]`` of its definition, all optional::

    model = "auto"            # what models/complete takes: auto, PROVIDER, PROVIDER/MODEL or MODEL
    system = "..."            # the system message
    temperature = 0.7
    max_tokens = 1000
    memory_tokens = 1000      # how much of a prompt may be what was recalled; 0 recalls nothing

A session's settings ``model``, ``system``, ``stream`` and ``memory`` go before them and before the definition.
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
from witsd_client.generated import ChatMessage, HistoryTurn, ModelsCompleteResult

from witsd.adapters.assistant_memory import known

#: One file may be this long, and a request's messages together: a message to the daemon ends at 4 MiB.
MAX_FILE_BYTES = 512 * 1024
MAX_SENT_CHARS = 900_000

agent = Agent("assistant")


class Options(msgspec.Struct, frozen=True):
    """``[options]``."""

    model: str = "auto"
    system: str = ""
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    memory_tokens: Annotated[int, Meta(ge=0, le=100_000)] = 1000


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
        async with message:
            options = read_options(message)
            conversation.append(await asked(message))
            message.finish(await answer(message, conversation, options))
        # Also what a cancelled or broken answer had said: the person has seen it.
        if message.said:
            conversation.append(ChatMessage(role="assistant", content=message.said))
        conversation = window(conversation, agent.history_messages + 1)


async def answer(run: Run, conversation: Sequence[ChatMessage], options: Options) -> str | None:
    """Have the model answer the conversation.

    The text is said as it comes; where it comes in one piece it is returned instead, and no delta is
    sent. A model's error passes as it is and ends the run with its code.
    """
    settings = run.settings
    stream = run.stream and settings.stream is not False
    messages = window(conversation, agent.history_messages + 1)
    system = settings.system if isinstance(settings.system, str) else options.system
    sections = [system, *await known(run, options.memory_tokens)]
    if any(sections):
        messages.insert(0, ChatMessage(role="system", content="\n\n".join(filter(None, sections))))
    params: dict[str, Any] = {
        "messages": messages,
        "model": settings.model if isinstance(settings.model, str) else options.model,
        "stream": stream,
        "run_id": run.run_id,
    }
    if options.temperature is not None:
        params["temperature"] = options.temperature
    if options.max_tokens is not None:
        params["max_tokens"] = options.max_tokens

    async def relay(news: Progress) -> None:
        if news.thought:
            await run.think(news.thought)
        if news.delta:
            await run.say(news.delta)

    result = await run.client.call(
        "models/complete", params, ModelsCompleteResult, progress=relay if stream else None
    )
    if result.finish_reason == "length":
        await run.log("warning", "the answer was cut off: it reached max_tokens or the model's own limit")
    elif result.finish_reason == "content_filter":
        await run.log("warning", "the provider withheld the answer, or a part of it")
    return None if run.said else result.message.content


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


def window(conversation: Sequence[ChatMessage], limit: int) -> list[ChatMessage]:
    """The end of the conversation: ``limit`` messages at most, and no more text than a request can carry.

    It begins with a person's message where it can, and never with the answer of a tool whose call was
    cut off. The last message is always there.
    """
    start, size = len(conversation), 0
    while start > max(0, len(conversation) - limit):
        size += len(conversation[start - 1].content)
        if size > MAX_SENT_CHARS and start < len(conversation):
            break
        start -= 1
    kept = list(conversation[start:])
    if start > 0:
        for wanted in (("user",), ("user", "assistant", "system")):
            at = next((i for i, message in enumerate(kept) if message.role in wanted), None)
            if at is not None:
                return kept[at:]
    return kept


if __name__ == "__main__":
    agent.serve()
