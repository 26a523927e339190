"""Every type of event and the shape of its ``data``: the one table, also generated into ``protocol/``."""

from __future__ import annotations

from typing import Any

import attrs

from witsd.values.items import Item
from witsd.values.wire.agents import AgentHealth, AgentState, LogLevel
from witsd.values.wire.common import UNSET, UnsetType
from witsd.values.wire.metrics import AgentAlertData
from witsd.values.wire.runs import ErrorInfo, RunInput, Usage
from witsd.values.wire.sessions import Message, Session, SessionStatus


@attrs.frozen(kw_only=True)
class AgentStateData:
    name: str
    state: AgentState
    restarts: int
    pid: int | UnsetType = UNSET
    reason: str | UnsetType = UNSET


@attrs.frozen(kw_only=True)
class AgentHealthData:
    name: str
    health: AgentHealth


@attrs.frozen(kw_only=True)
class AgentLogData:
    """A warning from the daemon about this agent's output, ``count`` lines concerned."""

    name: str
    level: str
    text: str
    count: int = 1


@attrs.frozen(kw_only=True)
class LogLineData:
    """On ``log:<agent>`` only, which is a file and not in the journal."""

    source: str
    text: str
    level: LogLevel | UnsetType = UNSET


@attrs.frozen(kw_only=True)
class RunQueuedData:
    run_id: str
    agent: str
    input: RunInput
    session_id: str | UnsetType = UNSET


@attrs.frozen(kw_only=True)
class RunStartedData:
    run_id: str
    agent: str
    session_id: str | UnsetType = UNSET


@attrs.frozen(kw_only=True)
class RunCompletedData:
    run_id: str
    output: Any
    usage: Usage


@attrs.frozen(kw_only=True)
class RunFailedData:
    run_id: str
    error: ErrorInfo
    usage: Usage


@attrs.frozen(kw_only=True)
class RunStoppedData:
    """``run.cancelled`` and ``run.interrupted``."""

    run_id: str
    reason: str
    usage: Usage


@attrs.frozen(kw_only=True)
class ItemData:
    run_id: str
    item: Item


@attrs.frozen(kw_only=True)
class ItemDeltaData:
    run_id: str
    item_id: str
    text: str


@attrs.frozen(kw_only=True)
class InputRequestedData:
    run_id: str
    request_id: str
    message: str
    schema: dict[str, Any] | None = None


@attrs.frozen(kw_only=True)
class InputResolvedData:
    run_id: str
    request_id: str


@attrs.frozen(kw_only=True)
class SessionData:
    session: Session


@attrs.frozen(kw_only=True)
class SessionDeletedData:
    session_id: str


@attrs.frozen(kw_only=True)
class SessionMessageData:
    message: Message


@attrs.frozen(kw_only=True)
class SessionStatusData:
    session_id: str
    status: SessionStatus
    run_id: str | UnsetType = UNSET


@attrs.frozen(kw_only=True)
class SessionTypingData:
    """Of the moment: not in the journal, no ``seq``."""

    session_id: str
    author: str
    typing: bool


@attrs.frozen(kw_only=True)
class MemoryAddedData:
    """Also when a record has changed: ``version`` says so. The text is not here: what is deleted must be gone."""

    memory_id: str
    namespace: str
    kind: str
    version: int = 1
    session_id: str | UnsetType = UNSET


@attrs.frozen(kw_only=True)
class MemoryDeletedData:
    memory_id: str
    namespace: str
    reason: str


@attrs.frozen(kw_only=True)
class AuditData:
    """Who did what to what. ``code`` is the error's where the call was refused."""

    actor: str
    method: str
    target: str
    code: int | UnsetType = UNSET


@attrs.frozen(kw_only=True)
class SystemData:
    version: str
    pid: int
    reason: str | UnsetType = UNSET


EVENT_TYPES: dict[str, type] = {
    "agent.state": AgentStateData,
    "agent.health": AgentHealthData,
    "agent.log": AgentLogData,
    "agent.alert": AgentAlertData,
    "log.line": LogLineData,
    "run.queued": RunQueuedData,
    "run.started": RunStartedData,
    "run.completed": RunCompletedData,
    "run.failed": RunFailedData,
    "run.cancelled": RunStoppedData,
    "run.interrupted": RunStoppedData,
    "item.started": ItemData,
    "item.updated": ItemData,
    "item.delta": ItemDeltaData,
    "item.completed": ItemData,
    "input.requested": InputRequestedData,
    "input.resolved": InputResolvedData,
    "session.created": SessionData,
    "session.updated": SessionData,
    "session.deleted": SessionDeletedData,
    "session.message": SessionMessageData,
    "session.status": SessionStatusData,
    "session.typing": SessionTypingData,
    "memory.added": MemoryAddedData,
    "memory.deleted": MemoryDeletedData,
    "audit.call": AuditData,
    "audit.refused": AuditData,
    "system.started": SystemData,
    "system.stopped": SystemData,
}
