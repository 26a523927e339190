"""A provider that plays a file of turns, for tests and demos.

The file is TOML, or JSON Lines (``.jsonl``) with one turn a line and, if wanted, ``{"loop": true}`` as
the first. All keys of a turn are optional, but it needs ``text``, ``deltas``, ``tool_calls`` or ``error``::

    loop = false                  # true: after the last turn the first comes again

    [[turns]]
    text = "Hello, I am a script."

    [[turns]]
    deltas = ["I stream ", "slowly."]   # the pieces; without them a text streams word by word
    delay_s = 0.2                       # between two pieces, 0 to 60
    repeat = 2                          # this turn answers two times running

    [[turns]]
    text = "Let me calculate."
    tool_calls = [{ name = "calculator", arguments = { expression = "6*7" } }]

    [[turns]]
    match = "(?i)weather"         # a rule: answers whenever the last user message matches (re.search)
    text = "I only know my script."

    [[turns]]
    match = "(?i)weather"         # a rule for what follows the result of a tool, or (after = "user") does not
    after = "tool"
    text = "The tool says: {result}"    # in the text of a rule: what the latest tool gave

    [[turns]]
    text = "I was about to"       # streamed first, then
    error = { status = 503, message = "the script breaks here", retryable = true }

Turns without ``match`` are played in order: the one that answers is found by counting the assistant
messages in the request, so the script has no state, survives a restart, and many sessions may play it
at once. (A caller that sends only the end of a long conversation is answered from the turn that fits that
end: the assistant sends 200 messages.) A rule goes before them. ``retryable`` is by default that of the
status (429 and 5xx). A tool call named ``*`` is one of the first tool that is offered.
The file is read for each call, so an edit is played at once. Usage counts words as tokens.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import attrs
import msgspec
import trio
from msgspec import Meta

from witsd.services.models.provider import OnDelta, offered
from witsd.values.config_models import ProviderConfig
from witsd.values.errors import ModelError
from witsd.values.wire.common import UNSET
from witsd.values.wire.models import (
    ChatMessage,
    Model,
    ModelsCompleteParams,
    ModelsCompleteResult,
    ToolCall,
)
from witsd.values.wire.runs import Usage

_MAX_BYTES = 4 * 1024 * 1024


class _Call(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    arguments: dict[str, Any] | str = {}
    id: str = ""


class _Error(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    message: str
    status: Annotated[int, Meta(ge=100, le=599)] | None = None
    retryable: bool | None = None


class _Turn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    text: str = ""
    deltas: tuple[str, ...] = ()
    delay_s: Annotated[float, Meta(ge=0, le=60)] = 0
    tool_calls: tuple[_Call, ...] = ()
    error: _Error | None = None
    match: str | None = None
    after: Literal["user", "tool"] | None = None
    repeat: Annotated[int, Meta(ge=1, le=1_000_000)] = 1

    def __post_init__(self) -> None:
        if not (self.text or self.deltas or self.tool_calls or self.error):
            raise ValueError("a turn needs `text`, `deltas`, `tool_calls` or `error`")
        if self.text and self.deltas and self.text != "".join(self.deltas):
            raise ValueError("`text` and `deltas` say different things: give one of them")
        if self.after is not None and self.match is None:
            raise ValueError("`after` is for a rule: give it a `match`")
        if self.match is not None:
            try:
                re.compile(self.match)
            except re.error as error:
                raise ValueError(f"`match` is no regular expression: {error}") from None

    def pieces(self) -> tuple[str, ...]:
        return self.deltas or tuple(re.findall(r"\s*\S+\s*", self.text) or filter(None, [self.text]))


class _Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    turns: tuple[_Turn, ...] = ()
    loop: bool = False


class ScriptError(Exception):
    """The script cannot be played; the text names the file and, where there is one, the turn."""


def load_script(path: Path) -> _Script:
    """Read and check a script. Blocking. Raises ``ScriptError``."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ScriptError(f"script {path}: {error.strerror or 'cannot be read'}") from None
    if len(raw) > _MAX_BYTES:
        raise ScriptError(f"script {path}: larger than {_MAX_BYTES} bytes")
    try:
        if path.suffix == ".jsonl":
            return _from_lines(raw)
        return msgspec.convert(tomllib.loads(raw.decode()), _Script)
    except (ValueError, RecursionError) as error:  # TOML, UTF-8 and msgspec errors are all ValueErrors
        raise ScriptError(f"script {path}: {error}") from None


def _from_lines(raw: bytes) -> _Script:
    turns, loop = [], False
    for number, line in enumerate(raw.splitlines(), 1):
        if not line.strip():
            continue
        try:
            if number == 1 and b'"loop"' in line:
                loop = msgspec.json.decode(line, type=_Script).loop
            else:
                turns.append(msgspec.json.decode(line, type=_Turn))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
    return _Script(turns=tuple(turns), loop=loop)


def choose(script: _Script, messages: tuple[ChatMessage, ...]) -> tuple[int, _Turn] | None:
    """The turn that answers, with its number in the file from 1; None: the script is over."""
    asked = next((m.content for m in reversed(messages) if m.role == "user"), "")
    last = next((m for m in reversed(messages) if m.role != "system"), None)
    after = "tool" if last is not None and last.role == "tool" else "user"
    for number, turn in enumerate(script.turns, 1):
        if turn.match is not None and turn.after in (None, after) and re.search(turn.match, asked):
            if last is not None and after == "tool":
                turn = msgspec.structs.replace(turn, text=turn.text.replace("{result}", last.content))
            return number, turn
    plain = [(number, turn) for number, turn in enumerate(script.turns, 1) if turn.match is None]
    position = sum(m.role == "assistant" for m in messages)
    length = sum(turn.repeat for _, turn in plain)
    if script.loop and length:
        position %= length
    for number, turn in plain:
        if position < turn.repeat:
            return number, turn
        position -= turn.repeat
    return None


@attrs.define(eq=False)
class ScriptedProvider:
    """Plays ``path``; any model name will do, and is the name of the model that answered."""

    config: ProviderConfig
    path: Path

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def kind(self) -> str:
        return "scripted"

    async def models(self) -> tuple[Model, ...]:
        reason = None
        try:
            await trio.to_thread.run_sync(load_script, self.path)
        except ScriptError as error:
            reason = str(error)
        return tuple(
            offered(name, self.name, reason, streams=self.config.streams) for name in self.config.models or (self.name,)
        )

    async def complete(
        self, request: ModelsCompleteParams, model: str, on_delta: OnDelta | None
    ) -> ModelsCompleteResult:
        try:
            script = await trio.to_thread.run_sync(load_script, self.path)
        except ScriptError as error:
            raise ModelError(str(error), provider=self.name, status=None) from None
        chosen = choose(script, request.messages)
        if chosen is None:
            position = sum(m.role == "assistant" for m in request.messages) + 1
            raise ModelError(
                f"script {self.path} is over: there is no turn {position}",
                provider=self.name,
                status=None,
            )
        number, turn = chosen
        pieces = turn.pieces()
        for index, piece in enumerate(pieces):
            if index and turn.delay_s:
                await trio.sleep(turn.delay_s)
            if on_delta is not None and self.config.streams:
                await on_delta(piece)
        if turn.error is not None:
            status, retryable = turn.error.status, turn.error.retryable
            if retryable is None:
                retryable = status is not None and (status == 429 or status >= 500)
            raise ModelError(
                f"{turn.error.message} (turn {number} of script {self.path})",
                provider=self.name,
                status=status,
                retryable=retryable,
            )
        calls = tuple(
            ToolCall(
                id=call.id or f"call_{len(request.messages)}_{index}",
                name=request.tools[0].name if call.name == "*" and request.tools else call.name,
                arguments=call.arguments
                if isinstance(call.arguments, str)
                else msgspec.json.encode(call.arguments).decode(),
            )
            for index, call in enumerate(turn.tool_calls)
        )
        text = "".join(pieces)
        return ModelsCompleteResult(
            message=ChatMessage(role="assistant", content=text, tool_calls=calls or UNSET),
            usage=Usage(
                input_tokens=sum(len(m.content.split()) for m in request.messages),
                output_tokens=len(text.split()),
                calls=1,
            ),
            finish_reason="tool_calls" if calls else "stop",
            model=model or self.name,
            provider=self.name,
        )

    async def aclose(self) -> None:
        """Nothing is held open."""
