"""What the daemon and a native agent say to each other over its stdin and stdout."""

from __future__ import annotations

from typing import Any, Literal

import attrs

from witsd.values.items import Item
from witsd.values.spec import Grants, Skill
from witsd.values.wire.common import UNSET, Timestamp, UnsetType
from witsd.values.wire.models import ToolDefinition
from witsd.values.wire.runs import RunInput
from witsd.values.wire.sessions import HistoryTurn, SessionSettings
from witsd.values.wire.system import PROTOCOL_VERSION, ClientInfo


@attrs.frozen(kw_only=True)
class AgentIdentity:
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


@attrs.frozen(kw_only=True)
class AgentInitializeParams:
    protocol_version: str
    agent: AgentIdentity
    #: A private folder for this agent's process, emptied when it ends.
    run_dir: str
    grants: Grants


@attrs.frozen(kw_only=True)
class AgentInitializeResult:
    protocol_version: str = PROTOCOL_VERSION
    agent_info: ClientInfo = ClientInfo(name="unknown")
    capabilities: dict[str, Any] = attrs.field(factory=dict)
    tools: tuple[ToolDefinition, ...] = ()
    skills: tuple[Skill, ...] = ()


@attrs.frozen(kw_only=True)
class RunsExecuteParams:
    """``history`` is given when the agent must (re)build its session; then it ends the one it had."""

    run_id: str
    input: RunInput
    session_id: str | UnsetType = UNSET
    history: tuple[HistoryTurn, ...] | UnsetType = UNSET
    settings: SessionSettings | UnsetType = UNSET
    stream: bool = True
    deadline: Timestamp | UnsetType = UNSET


@attrs.frozen(kw_only=True)
class RunsExecuteResult:
    output: Any = None


@attrs.frozen(kw_only=True)
class PingParams:
    nonce: str


@attrs.frozen(kw_only=True)
class PingResult:
    nonce: str


@attrs.frozen(kw_only=True)
class ItemNotification:
    """Params of ``notifications/item``: insert or replace by ``item.item_id``."""

    run_id: str
    item: Item


@attrs.frozen(kw_only=True)
class DeltaNotification:
    """Params of ``notifications/delta``: append to the item's ``text``."""

    run_id: str
    item_id: str
    text: str


@attrs.frozen(kw_only=True)
class SessionClosedNotification:
    """Params of ``notifications/session_closed``: that conversation is over, let its task end."""

    session_id: str
