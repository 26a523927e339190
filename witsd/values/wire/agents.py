"""``agents/*``."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from witsd.values.spec import AgentSpec
from witsd.values.wire.budgets import BudgetState
from witsd.values.wire.common import UNSET, Limit, Timestamp, UnsetType
from witsd.values.wire.metrics import RaisedAlert, RequestStats, VitalsSample

AgentState = Literal["inactive", "starting", "active", "stopping", "backoff", "failed"]
AgentHealth = Literal["ok", "hung", "unknown"]
#: From the least to the gravest.
LogLevel = Literal["debug", "info", "warning", "error", "critical"]
AgentContainer = Literal["cgroup-v2", "cgroup-v1", "process-group"]


class Agent(Struct, frozen=True, kw_only=True):
    """One agent as it is now.

    ``reason`` says why it is in ``backoff`` or ``failed``, or for whom it waits while ``starting`` or ``stopping``;
    ``container`` what holds its whole process tree, while it has one. ``agents/get`` and ``agents/list`` also tell
    ``vitals`` (while it has a process that was sampled), ``budget`` (where there is one, or it has spent anything on
    models), ``requests`` (of the last five minutes, where there were any) and ``alerts`` (where any is up); others
    leave them out.
    """

    name: str
    kind: str
    state: AgentState
    health: AgentHealth
    since: Timestamp
    restarts: int
    spec: AgentSpec
    pid: int | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    vitals: VitalsSample | UnsetType = UNSET
    requests: RequestStats | UnsetType = UNSET
    alerts: tuple[RaisedAlert, ...] | UnsetType = UNSET
    container: AgentContainer | UnsetType = UNSET
    budget: BudgetState | UnsetType = UNSET


class AgentPage(Struct, frozen=True, kw_only=True):
    items: tuple[Agent, ...]
    next_cursor: str | UnsetType = UNSET


class AgentsListParams(Struct, frozen=True, kw_only=True):
    cursor: str | None = None
    limit: Limit = 100
    skill: str | None = None


class AgentNameParams(Struct, frozen=True, kw_only=True):
    name: str


class AgentsDefineParams(Struct, frozen=True, kw_only=True):
    spec: AgentSpec


class AgentsControlParams(Struct, frozen=True, kw_only=True):
    """``wait``: answer when the agent has got there, not when it has been told."""

    name: str
    wait: bool = True
    timeout_s: Annotated[float, Meta(gt=0, le=3600)] = 60


class AgentsLogsParams(Struct, frozen=True, kw_only=True):
    """The last ``tail`` lines, or those after ``after_seq``; with ``level`` only those at least so grave."""

    name: str
    tail: Annotated[int, Meta(ge=0, le=10_000)] = 100
    after_seq: Annotated[int, Meta(ge=0)] | None = None
    level: LogLevel | None = None


class LogLine(Struct, frozen=True, kw_only=True):
    seq: int
    time: Timestamp
    #: ``stderr``, ``stdout`` or ``witsd`` for what the daemon itself has to say.
    source: str
    text: str
    #: What a line of JSON says of itself (``level``, ``levelname``, ``severity`` or ``lvl``); other lines have none.
    level: LogLevel | UnsetType = UNSET


class AgentsLogsResult(Struct, frozen=True, kw_only=True):
    lines: tuple[LogLine, ...]
