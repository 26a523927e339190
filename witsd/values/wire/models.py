"""``models/*``. Messages have the shape of OpenAI's chat API, the one every provider understands."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from witsd.values.wire.common import UNSET, Limit, UnsetType
from witsd.values.wire.runs import Usage

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class Model(Struct, frozen=True, kw_only=True):
    """``available`` is false with a ``reason`` a person can act on."""

    name: str
    provider: str
    kind: Literal["chat", "embedding"]
    default: bool
    available: bool
    streams: bool = True
    reason: str | UnsetType = UNSET


class ModelPage(Struct, frozen=True, kw_only=True):
    items: tuple[Model, ...]
    next_cursor: str | UnsetType = UNSET


class ModelsListParams(Struct, frozen=True, kw_only=True):
    cursor: str | None = None
    limit: Limit = 100


class ToolCall(Struct, frozen=True, kw_only=True):
    """``arguments`` is JSON text as the model wrote it: it may be malformed."""

    id: str
    name: str
    arguments: str


class Thought(Struct, frozen=True, kw_only=True):
    """A piece of a model's reasoning. One with a ``signature`` is wanted back, as it is, with the next request.

    ``redacted``: the provider shows no text; ``signature`` holds it in a form only it can read.
    """

    text: str = ""
    signature: str = ""
    redacted: bool = False


class ChatMessage(Struct, frozen=True, kw_only=True):
    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    tool_calls: tuple[ToolCall, ...] | UnsetType = UNSET
    #: On a ``tool`` message: the call it answers.
    tool_call_id: str | UnsetType = UNSET
    #: On an ``assistant`` message: what the model thought before it.
    thoughts: tuple[Thought, ...] | UnsetType = UNSET


class ToolDefinition(Struct, frozen=True, kw_only=True):
    """A tool as a model is told of it; ``read_only`` and ``parallel`` are what an agent says of its own."""

    name: str
    description: str = ""
    input_schema: dict[str, Any] = field(default_factory=dict)
    read_only: bool = False
    parallel: bool = False


class ModelsCompleteParams(Struct, frozen=True, kw_only=True):
    """``model`` absent or ``auto``: the first that is available, else ``offline``; the name of a route: its first
    that answers. ``run_id``: the run that it is for, and whose budget it spends; an agent that is on one run alone
    need not say.

    ``options``: further fields for the provider, named as its API names them (``stop``, ``seed``, ``top_p`` ...).
    """

    messages: tuple[ChatMessage, ...]
    model: str | None = None
    tools: tuple[ToolDefinition, ...] = ()
    stream: bool = False
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    #: As OpenAI's API has them; a provider of another kind does with them what it can.
    response_format: dict[str, Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    run_id: str | None = None
    timeout_s: Annotated[float, Meta(gt=0, le=3600)] | None = None


class ModelsCompleteResult(Struct, frozen=True, kw_only=True):
    """``model`` is the one that answered."""

    message: ChatMessage
    usage: Usage
    finish_reason: FinishReason
    model: str
    provider: str


class ModelsEmbedParams(Struct, frozen=True, kw_only=True):
    """``model`` absent: the one that memory uses. ``query``: the texts are questions, which some models treat
    in a way of their own. An agent that embeds gets the same params, without ``model``.
    """

    texts: Annotated[tuple[str, ...], Meta(min_length=1, max_length=256)]
    model: str | None = None
    query: bool = False
    run_id: str | None = None


class ModelsEmbedResult(Struct, frozen=True, kw_only=True):
    """One vector of ``dimensions`` numbers and of length 1 for each text, in their order.

    ``digest`` tells one set of weights from another under the same name; empty where nothing is known of them.
    """

    vectors: tuple[tuple[float, ...], ...]
    dimensions: int
    model: str
    digest: str = ""
