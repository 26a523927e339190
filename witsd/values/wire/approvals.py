"""``approvals/*``: what a person is asked before a tool acts, and the rules that answers have become."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from witsd.values.wire.common import UNSET, Limit, Timestamp, UnsetType

ApprovalStatus = Literal["pending", "allowed", "denied", "expired", "cancelled"]
Decision = Literal["allow", "deny"]
#: ``call``: the agent's calls with exactly these arguments; ``tool``: all its calls of the tool.
Remember = Literal["call", "tool"]


class Approval(Struct, frozen=True, kw_only=True):
    """One request. ``hash`` is of tool, arguments, working folder and agent: the answer is for these and no others.

    ``cancelled``: whoever wanted to call is gone. ``executed``: what has become of the call; ``may_have_executed``
    where the daemon ended, or the call was given up, in the middle of it.
    """

    approval_id: str
    status: ApprovalStatus
    tool: str
    arguments: dict[str, Any]
    actor: str
    hash: str
    created_at: Timestamp
    expires_at: Timestamp
    executed: Literal["no", "running", "done", "may_have_executed"] = "no"
    cwd: str | UnsetType = UNSET
    run_id: str | UnsetType = UNSET
    session_id: str | UnsetType = UNSET
    resolved_at: Timestamp | UnsetType = UNSET
    resolved_by: str | UnsetType = UNSET


class ApprovalPage(Struct, frozen=True, kw_only=True):
    items: tuple[Approval, ...]
    next_cursor: str | UnsetType = UNSET


class ApprovalsListParams(Struct, frozen=True, kw_only=True):
    """Latest first; ``status`` absent: all."""

    cursor: str | None = None
    limit: Limit = 100
    status: ApprovalStatus | None = None


class ApprovalsResolveParams(Struct, frozen=True, kw_only=True):
    """``remember`` makes a rule of the answer, which ``approvals/rules`` lists; ``patterns``
    makes one for calls whose arguments fit any of them.
    """

    approval_id: str
    decision: Decision
    remember: Remember | None = None
    patterns: tuple[Annotated[str, Meta(min_length=1, max_length=1000)], ...] = ()


class ToolRule(Struct, frozen=True, kw_only=True):
    """An answer that holds for calls to come: of ``agent``, of ``tool``, with arguments that fit any of ``patterns``
    (none: whatever they are), or are exactly ``arguments``.
    """

    rule_id: str
    agent: str
    tool: str
    policy: Decision
    author: str
    created_at: Timestamp
    patterns: tuple[str, ...] = ()
    arguments: dict[str, Any] | UnsetType = UNSET


class ToolRulePage(Struct, frozen=True, kw_only=True):
    items: tuple[ToolRule, ...]
    next_cursor: str | UnsetType = UNSET


class ApprovalsRulesParams(Struct, frozen=True, kw_only=True):
    cursor: str | None = None
    limit: Limit = 100


class RuleIdParams(Struct, frozen=True, kw_only=True):
    rule_id: str


class ApprovalData(Struct, frozen=True, kw_only=True):
    """``approval.requested`` and ``approval.resolved``, in the stream of the run, else in ``approvals``."""

    approval: Approval


class ToolInterruptedData(Struct, frozen=True, kw_only=True):
    """A tool that acts was in the middle of a call when the daemon ended: it may have done it, and is not rerun."""

    call_id: str
    tool: str
    actor: str
    may_have_executed: bool = True
    run_id: str | UnsetType = UNSET
