"""``tools/*``. A result has MCP's shape, in this protocol's spelling."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from witsd.values.wire.common import UNSET, Limit, UnsetType

#: What every model provider takes as a function's name.
TOOL_NAME_PATTERN = r"^[A-Za-z0-9_-]{1,64}$"
ToolName = Annotated[str, Meta(pattern=TOOL_NAME_PATTERN)]
#: What becomes of a call: it runs, a person is asked first, or it is refused.
Policy = Literal["allow", "ask", "deny"]
CallTimeout = Annotated[float, Meta(gt=0, le=86_400)]


class TextContent(Struct, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """Text, as a model reads it."""

    text: str


class ImageContent(Struct, frozen=True, kw_only=True, tag_field="type", tag="image"):
    """An image: ``data`` is base64."""

    data: str
    mime_type: str


class ResourceLink(Struct, frozen=True, kw_only=True, tag_field="type", tag="resource_link"):
    """Something to be fetched: an artifact of the run has ``artifact:ID``, which ``artifacts/get`` takes."""

    uri: str
    name: str
    mime_type: str = "application/octet-stream"


Content = TextContent | ImageContent | ResourceLink


class ToolAnnotations(Struct, frozen=True, kw_only=True):
    """``read_only``: it changes nothing and reaches nobody. ``parallel``: calls of one turn may run side by side."""

    read_only: bool = False
    parallel: bool = False


class Tool(Struct, frozen=True, kw_only=True):
    """``source``: ``built in``, ``package:NAME``, ``agent:NAME`` or ``defined``. ``policy``: what a call of the asking
    actor comes to where no argument pattern says otherwise. One that is not ``available`` says why in ``reason``.
    """

    name: str
    description: str
    input_schema: dict[str, Any]
    source: str
    policy: Policy
    annotations: ToolAnnotations = ToolAnnotations()
    available: bool = True
    output_schema: dict[str, Any] | UnsetType = UNSET
    reason: str | UnsetType = UNSET


class ToolPage(Struct, frozen=True, kw_only=True):
    items: tuple[Tool, ...]
    next_cursor: str | UnsetType = UNSET


class ToolsListParams(Struct, frozen=True, kw_only=True):
    """``available``: those alone that can be called now."""

    cursor: str | None = None
    limit: Limit = 100
    available: bool = False


class ToolsCallParams(Struct, frozen=True, kw_only=True):
    """``run_id``, for an agent: the run of its own that the call is an item of. ``cwd``: where relative paths start
    for a caller without a run. ``timeout_s`` bounds the whole call with a person's approval in it.
    """

    name: str
    arguments: dict[str, Any] = {}
    run_id: str | None = None
    cwd: str | None = None
    timeout_s: CallTimeout | None = None
    idempotency_key: str | None = None


class ToolsCallResult(Struct, frozen=True, kw_only=True):
    """``is_error``: the tool has failed or refused its input, and ``content`` says why."""

    content: tuple[Content, ...] = ()
    structured_content: Any = UNSET
    is_error: bool = False


class ToolsDefineParams(Struct, frozen=True, kw_only=True):
    """``code`` is Python: it finds its arguments in the dict ``arguments``, and its last expression is the answer,
    beside what it prints. ``timeout_s``, for an agent: how long it waits for its approval.
    """

    name: ToolName
    description: Annotated[str, Meta(max_length=10_000)]
    code: Annotated[str, Meta(min_length=1, max_length=200_000)]
    input_schema: dict[str, Any] = {}
    timeout_s: CallTimeout | None = None


class ToolDefined(Struct, frozen=True, kw_only=True):
    """What it is called: an agent's is ``AGENT__NAME``."""

    name: str


class ToolsRemoveParams(Struct, frozen=True, kw_only=True):
    name: str


class AgentToolCallParams(Struct, frozen=True, kw_only=True):
    """From the daemon to the agent that offers the tool, as ``tools/call``; the answer is a ``ToolsCallResult``."""

    name: str
    arguments: dict[str, Any]
    call_id: str
    #: Who calls: ``owner``, ``agent:NAME`` ...
    actor: str
