"""``runs/*`` and ``inputs/request``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import attrs
from msgspec import Meta

from witsd.values.items import Item
from witsd.values.wire.common import UNSET, Limit, Timestamp, UnsetType

RunStatus = Literal["queued", "running", "waiting", "completed", "failed", "cancelled", "interrupted"]
#: The four ways a run can be over.
RUN_ENDED: frozenset[str] = frozenset({"completed", "failed", "cancelled", "interrupted"})
Timeout = Annotated[float, Meta(gt=0, le=31_536_000)]


@attrs.frozen(kw_only=True)
class RunInput:
    """``text`` is what was asked; ``cwd`` is where relative paths in it are meant to start."""

    text: str = ""
    cwd: str | UnsetType = UNSET
    files: tuple[str, ...] | UnsetType = UNSET
    data: Any = UNSET


@attrs.frozen(kw_only=True)
class Usage:
    input_tokens: int = 0
    output_tokens: int = 0
    calls: int = 0
    cost_usd: float = 0


@attrs.frozen(kw_only=True)
class ErrorInfo:
    """An error as JSON-RPC shapes it."""

    code: int
    message: str
    data: dict[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Run:
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
    started_at: Timestamp | UnsetType = UNSET
    ended_at: Timestamp | UnsetType = UNSET


@attrs.frozen(kw_only=True)
class RunPage:
    """``items`` of the runs in a list are left empty: ``runs/get`` has them."""

    items: tuple[Run, ...]
    next_cursor: str | UnsetType = UNSET


@attrs.frozen(kw_only=True)
class RunsStartParams:
    agent: str
    input: str | RunInput
    session_id: str | None = None
    stream: bool | None = None
    idempotency_key: str | None = None
    timeout_s: Timeout | None = None


@attrs.frozen(kw_only=True)
class RunStarted:
    run_id: str


@attrs.frozen(kw_only=True)
class RunIdParams:
    run_id: str


@attrs.frozen(kw_only=True)
class RunsListParams:
    cursor: str | None = None
    limit: Limit = 100
    agent: str | None = None
    session_id: str | None = None
    status: RunStatus | None = None


@attrs.frozen(kw_only=True)
class RunsWaitParams:
    """Answers when the run is over; -32006 when it is not over after ``timeout_s``."""

    run_id: str
    timeout_s: Timeout | None = None


@attrs.frozen(kw_only=True)
class RunsCancelParams:
    run_id: str
    reason: str = ""


@attrs.frozen(kw_only=True)
class RunsRespondParams:
    run_id: str
    request_id: str
    response: Any


@attrs.frozen(kw_only=True)
class InputsRequestParams:
    """From an agent: ask a person. The result carries what ``runs/respond`` gave."""

    run_id: str
    message: str
    schema: dict[str, Any] | None = None
    timeout_s: Timeout | None = None


@attrs.frozen(kw_only=True)
class InputsRequestResult:
    response: Any
