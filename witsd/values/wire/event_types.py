"""Every type of event and the shape of its ``data``: the one table, also generated into ``protocol/``."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from witsd.values.items import Item
from witsd.values.wire.agents import AgentHealth, AgentState, LogLevel
from witsd.values.wire.approvals import ApprovalData, ToolInterruptedData
from witsd.values.wire.common import UNSET, UnsetType
from witsd.values.wire.metrics import AgentAlertData
from witsd.values.wire.runs import ErrorInfo, RunInput, Usage
from witsd.values.wire.sessions import Message, Session, SessionStatus


class AgentStateData(Struct, frozen=True, kw_only=True):
    name: str
    state: AgentState
    restarts: int
    pid: int | UnsetType = UNSET
    reason: str | UnsetType = UNSET


class AgentHealthData(Struct, frozen=True, kw_only=True):
    name: str
    health: AgentHealth


class AgentLogData(Struct, frozen=True, kw_only=True):
    """A warning from the daemon about this agent's output, ``count`` lines concerned."""

    name: str
    level: str
    text: str
    count: int = 1


class LogLineData(Struct, frozen=True, kw_only=True):
    """On ``log:<agent>`` only, which is a file and not in the journal."""

    source: str
    text: str
    level: LogLevel | UnsetType = UNSET


class RunQueuedData(Struct, frozen=True, kw_only=True):
    run_id: str
    agent: str
    input: RunInput
    session_id: str | UnsetType = UNSET


class RunStartedData(Struct, frozen=True, kw_only=True):
    run_id: str
    agent: str
    session_id: str | UnsetType = UNSET


class RunCompletedData(Struct, frozen=True, kw_only=True):
    run_id: str
    output: Any
    usage: Usage


class RunFailedData(Struct, frozen=True, kw_only=True):
    run_id: str
    error: ErrorInfo
    usage: Usage


class RunStoppedData(Struct, frozen=True, kw_only=True):
    """``run.cancelled`` and ``run.interrupted``."""

    run_id: str
    reason: str
    usage: Usage


class ItemData(Struct, frozen=True, kw_only=True):
    run_id: str
    item: Item


class ItemDeltaData(Struct, frozen=True, kw_only=True):
    run_id: str
    item_id: str
    text: str


class InputRequestedData(Struct, frozen=True, kw_only=True):
    run_id: str
    request_id: str
    message: str
    schema: dict[str, Any] | None = None


class InputResolvedData(Struct, frozen=True, kw_only=True):
    run_id: str
    request_id: str


class SessionData(Struct, frozen=True, kw_only=True):
    session: Session


class SessionDeletedData(Struct, frozen=True, kw_only=True):
    session_id: str


class SessionMessageData(Struct, frozen=True, kw_only=True):
    message: Message


class SessionStatusData(Struct, frozen=True, kw_only=True):
    session_id: str
    status: SessionStatus
    run_id: str | UnsetType = UNSET


class SessionTypingData(Struct, frozen=True, kw_only=True):
    """Of the moment: not in the journal, no ``seq``."""

    session_id: str
    author: str
    typing: bool


class MemoryAddedData(Struct, frozen=True, kw_only=True):
    """Also when a record has changed: ``version`` says so. The text is not here: what is deleted must be gone."""

    memory_id: str
    namespace: str
    kind: str
    version: int = 1
    session_id: str | UnsetType = UNSET


class MemoryDeletedData(Struct, frozen=True, kw_only=True):
    memory_id: str
    namespace: str
    reason: str


class AuditData(Struct, frozen=True, kw_only=True):
    """Who did what to what. ``code`` is the error's where the call was refused."""

    actor: str
    method: str
    target: str
    code: int | UnsetType = UNSET


class ModelCallData(Struct, frozen=True, kw_only=True):
    """A model was called outside a run; a run's calls are its usage items. ``error``: the name of what went wrong."""

    actor: str
    provider: str
    model: str
    usage: Usage
    duration_ms: float
    error: str | UnsetType = UNSET


class SystemData(Struct, frozen=True, kw_only=True):
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
    "approval.requested": ApprovalData,
    "approval.resolved": ApprovalData,
    "tool.interrupted": ToolInterruptedData,
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
    "model.called": ModelCallData,
    "system.started": SystemData,
    "system.stopped": SystemData,
}
