"""What the daemon and a native agent say to each other over its stdin and stdout."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct, field

from witsd.values.items import Item
from witsd.values.spec import Grants, Skill
from witsd.values.wire.common import UNSET, Timestamp, UnsetType
from witsd.values.wire.models import ToolDefinition
from witsd.values.wire.runs import RunInput
from witsd.values.wire.sessions import HistoryTurn, SessionSettings
from witsd.values.wire.system import PROTOCOL_VERSION, ClientInfo


class AgentIdentity(Struct, frozen=True, kw_only=True):
    """Who the agent is to the daemon; ``options`` is ``[options]`` of its definition.

    ``memory`` and ``history_messages`` are the definition's, too: what a session's settings do not change.
    """

    name: str
    kind: str
    description: str
    options: dict[str, Any]
    stream: bool
    memory: Literal["on", "off"] = "on"
    history_messages: int = 200


class AgentInitializeParams(Struct, frozen=True, kw_only=True):
    protocol_version: str
    agent: AgentIdentity
    #: A private folder for this agent's process, emptied when it ends.
    run_dir: str
    grants: Grants


class AgentInitializeResult(Struct, frozen=True, kw_only=True):
    protocol_version: str = PROTOCOL_VERSION
    agent_info: ClientInfo = ClientInfo(name="unknown")
    capabilities: dict[str, Any] = field(default_factory=dict)
    tools: tuple[ToolDefinition, ...] = ()
    skills: tuple[Skill, ...] = ()


class ModelAccess(Struct, frozen=True, kw_only=True):
    """Where a run finds models as OpenAI's API has them, and its key, which is good while it is on."""

    base_url: str
    api_key: str


class RunsExecuteParams(Struct, frozen=True, kw_only=True):
    """``history`` is given when the agent must (re)build its session; then it ends the one it had."""

    run_id: str
    input: RunInput
    session_id: str | UnsetType = UNSET
    history: tuple[HistoryTurn, ...] | UnsetType = UNSET
    settings: SessionSettings | UnsetType = UNSET
    stream: bool = True
    deadline: Timestamp | UnsetType = UNSET
    model_access: ModelAccess | UnsetType = UNSET


class RunsExecuteResult(Struct, frozen=True, kw_only=True):
    output: Any = None


class PingParams(Struct, frozen=True, kw_only=True):
    nonce: str


class PingResult(Struct, frozen=True, kw_only=True):
    nonce: str


class ItemNotification(Struct, frozen=True, kw_only=True):
    """Params of ``notifications/item``: insert or replace by ``item.item_id``."""

    run_id: str
    item: Item


class DeltaNotification(Struct, frozen=True, kw_only=True):
    """Params of ``notifications/delta``: append to the item's ``text``."""

    run_id: str
    item_id: str
    text: str


class SessionClosedNotification(Struct, frozen=True, kw_only=True):
    """Params of ``notifications/session_closed``: that conversation is over, let its task end."""

    session_id: str
