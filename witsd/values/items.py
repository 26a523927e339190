"""Items: the parts of a run, upserted by ``item_id``. Members of a tagged union, so structs."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from witsd.values.ids import ItemId

ItemStatus = Literal["in_progress", "completed", "failed", "cancelled"]


class _Item(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    item_id: ItemId
    status: ItemStatus = "in_progress"


class MessageItem(_Item, frozen=True, kw_only=True, tag="message"):
    """What was said. ``role`` is ``assistant`` for the agent's own words."""

    role: Literal["user", "assistant", "system"] = "assistant"
    text: str = ""


class ThoughtItem(_Item, frozen=True, kw_only=True, tag="thought"):
    """Reasoning a model showed on the way to its answer."""

    text: str = ""


class ToolCallItem(_Item, frozen=True, kw_only=True, tag="tool_call"):
    """A tool asked for by name; ``result`` once it has answered."""

    tool: str
    arguments: dict[str, Any] = {}
    result: Any = UNSET
    is_error: bool = False


class ApprovalItem(_Item, frozen=True, kw_only=True, tag="approval"):
    """A decision a person is asked for."""

    approval_id: str
    tool: str = ""
    arguments: dict[str, Any] = {}
    decision: str = ""


class InputRequestItem(_Item, frozen=True, kw_only=True, tag="input_request"):
    """A question to a person; ``response`` once ``runs/respond`` has answered it."""

    request_id: str
    message: str
    schema: dict[str, Any] | None | UnsetType = UNSET
    response: Any = UNSET


class ArtifactItem(_Item, frozen=True, kw_only=True, tag="artifact"):
    """A file or text the run produced."""

    name: str
    media_type: str
    path: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    #: What ``artifacts/get`` takes, where the daemon keeps it.
    artifact_id: str | UnsetType = UNSET


class UsageItem(_Item, frozen=True, kw_only=True, tag="usage"):
    """What a model call used. Counts are tokens as the provider reports them."""

    model: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    calls: int = 1
    cost_usd: float = 0


class LogItem(_Item, frozen=True, kw_only=True, tag="log"):
    """A line the agent wants kept with the run."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    text: str = ""


class CustomItem(_Item, frozen=True, kw_only=True, tag="custom"):
    """Anything else, for clients that know the ``name``."""

    name: str
    data: Any = None


Item = (
    MessageItem
    | ThoughtItem
    | ToolCallItem
    | ApprovalItem
    | InputRequestItem
    | ArtifactItem
    | UsageItem
    | LogItem
    | CustomItem
)

#: The items whose ``text`` grows by ``notifications/delta``.
TEXT_ITEMS = (MessageItem, ThoughtItem, LogItem)
