"""``models/*``. Messages have the shape of OpenAI's chat API, the one every provider understands."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import attrs
from msgspec import Meta

from witsd.values.wire.common import UNSET, Limit, UnsetType
from witsd.values.wire.runs import Usage

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


@attrs.frozen(kw_only=True)
class Model:
    """``available`` is false with a ``reason`` a person can act on."""

    name: str
    provider: str
    kind: Literal["chat", "embedding"]
    default: bool
    available: bool
    streams: bool = True
    reason: str | UnsetType = UNSET


@attrs.frozen(kw_only=True)
class ModelPage:
    items: tuple[Model, ...]
    next_cursor: str | UnsetType = UNSET


@attrs.frozen(kw_only=True)
class ModelsListParams:
    cursor: str | None = None
    limit: Limit = 100


@attrs.frozen(kw_only=True)
class ToolCall:
    """``arguments`` is JSON text as the model wrote it: it may be malformed."""

    id: str
    name: str
    arguments: str


@attrs.frozen(kw_only=True)
class ChatMessage:
    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    tool_calls: tuple[ToolCall, ...] | UnsetType = UNSET
    #: On a ``tool`` message: the call it answers.
    tool_call_id: str | UnsetType = UNSET


@attrs.frozen(kw_only=True)
class ToolDefinition:
    name: str
    description: str = ""
    input_schema: dict[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class ModelsCompleteParams:
    """``model`` absent or ``auto``: the first that is available, else ``offline``."""

    messages: tuple[ChatMessage, ...]
    model: str | None = None
    tools: tuple[ToolDefinition, ...] = ()
    stream: bool = False
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    run_id: str | None = None
    timeout_s: Annotated[float, Meta(gt=0, le=3600)] | None = None


@attrs.frozen(kw_only=True)
class ModelsCompleteResult:
    """``model`` is the one that answered."""

    message: ChatMessage
    usage: Usage
    finish_reason: FinishReason
    model: str
    provider: str


@attrs.frozen(kw_only=True)
class ModelsEmbedParams:
    """``model`` absent: the one that memory uses. ``query``: the texts are questions, which some models treat
    in a way of their own. An agent that embeds gets the same params, without ``model``.
    """

    texts: Annotated[tuple[str, ...], Meta(min_length=1, max_length=256)]
    model: str | None = None
    query: bool = False


@attrs.frozen(kw_only=True)
class ModelsEmbedResult:
    """One vector of ``dimensions`` numbers and of length 1 for each text, in their order.

    ``digest`` tells one set of weights from another under the same name; empty where nothing is known of them.
    """

    vectors: tuple[tuple[float, ...], ...]
    dimensions: int
    model: str
    digest: str = ""
