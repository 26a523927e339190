"""``runs/*`` and ``inputs/request``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from witsd.values.items import Item
from witsd.values.spec import Budget
from witsd.values.wire.budgets import BudgetState
from witsd.values.wire.common import UNSET, Limit, Timestamp, UnsetType

RunStatus = Literal["queued", "running", "waiting", "completed", "failed", "cancelled", "interrupted"]
#: The four ways a run can be over.
RUN_ENDED: frozenset[str] = frozenset({"completed", "failed", "cancelled", "interrupted"})
Timeout = Annotated[float, Meta(gt=0, le=31_536_000)]


class RunInput(Struct, frozen=True, kw_only=True):
    """``text`` is what was asked; ``cwd`` is where relative paths in it are meant to start."""

    text: str = ""
    cwd: str | UnsetType = UNSET
    files: tuple[str, ...] | UnsetType = UNSET
    data: Any = UNSET


class Usage(Struct, frozen=True, kw_only=True):
    input_tokens: int = 0
    output_tokens: int = 0
    calls: int = 0
    cost_usd: float = 0


class ErrorInfo(Struct, frozen=True, kw_only=True):
    """An error as JSON-RPC shapes it."""

    code: int
    message: str
    data: dict[str, Any] = field(default_factory=dict)


class Run(Struct, frozen=True, kw_only=True):
    run_id: str
    agent: str
    status: RunStatus
    input: RunInput
    items: tuple[Item, ...]
    usage: Usage
    created_at: Timestamp
    session_id: str | UnsetType = UNSET
    output: Any = UNSET
    error: ErrorInfo | UnsetType = UNSET
    #: Why it was cancelled or interrupted.
    reason: str | UnsetType = UNSET
    #: The run that has delegated it.
    parent_run_id: str | UnsetType = UNSET
    budget: BudgetState | UnsetType = UNSET
    started_at: Timestamp | UnsetType = UNSET
    ended_at: Timestamp | UnsetType = UNSET


class RunPage(Struct, frozen=True, kw_only=True):
    """``items`` of the runs in a list are left empty: ``runs/get`` has them."""

    items: tuple[Run, ...]
    next_cursor: str | UnsetType = UNSET


class RunsStartParams(Struct, frozen=True, kw_only=True):
    """``parent_run_id``: from an agent, its run that delegates this one; where it is on one alone, that is meant.

    A delegated run spends the budgets of the other, too. ``budget`` bounds this run, within them.
    """

    agent: str
    input: str | RunInput
    session_id: str | None = None
    stream: bool | None = None
    idempotency_key: str | None = None
    timeout_s: Timeout | None = None
    parent_run_id: str | None = None
    budget: Budget | None = None


class RunStarted(Struct, frozen=True, kw_only=True):
    run_id: str


class RunIdParams(Struct, frozen=True, kw_only=True):
    run_id: str


class RunsListParams(Struct, frozen=True, kw_only=True):
    cursor: str | None = None
    limit: Limit = 100
    agent: str | None = None
    session_id: str | None = None
    status: RunStatus | None = None


class RunsWaitParams(Struct, frozen=True, kw_only=True):
    """Answers when the run is over; -32006 when it is not over after ``timeout_s``."""

    run_id: str
    timeout_s: Timeout | None = None


class RunsCancelParams(Struct, frozen=True, kw_only=True):
    run_id: str
    reason: str = ""


class RunsRespondParams(Struct, frozen=True, kw_only=True):
    run_id: str
    request_id: str
    response: Any


class InputsRequestParams(Struct, frozen=True, kw_only=True):
    """From an agent: ask a person. The result carries what ``runs/respond`` gave."""

    run_id: str
    message: str
    schema: dict[str, Any] | None = None
    timeout_s: Timeout | None = None


class InputsRequestResult(Struct, frozen=True, kw_only=True):
    response: Any
