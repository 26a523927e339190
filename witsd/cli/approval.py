"""``witsd approval``: what a person is asked before a tool acts."""

from __future__ import annotations

from typing import Any

import click

from witsd.cli.base import Noun, limit_option
from witsd.cli.calls import arguments_line
from witsd.cli.connect import call, pages
from witsd.cli.output import emit_json, note, table
from witsd.cli.text import when

_STATUSES = ("pending", "allowed", "denied", "expired", "cancelled")


@click.group(cls=Noun)
def approval() -> None:
    """What a person is asked before a tool acts."""


@approval.command(name="list")
@click.option("--all", "everything", is_flag=True, help="Also those that are answered or over.")
@click.option("--status", type=click.Choice(_STATUSES), help="Those alone.")
@limit_option(50)
def approval_list(everything: bool, status: str | None, limit: int, as_json: bool) -> None:
    """The calls that wait for an answer."""
    wanted = status or (None if everything else "pending")
    found = pages("approvals/list", {"status": wanted}, limit)
    if as_json:
        emit_json(found)
        return
    table(
        ("approval", "status", "who", "call", "asked"),
        [
            (one["approval_id"], _status(one), one["actor"], f"{one['tool']}({arguments_line(one['arguments'])})",
             when(one["created_at"]))
            for one in found["items"]
        ],
        empty="nothing waits for an answer",
    )  # fmt: skip


def _status(one: dict[str, Any]) -> str:
    executed = one.get("executed", "no")
    return one["status"] if executed in ("no", "done") else f"{one['status']}, {executed.replace('_', ' ')}"


def _remember(function: Any) -> Any:
    for option in (
        click.option("--always", is_flag=True, help="Also for all calls of this tool by this agent to come."),
        click.option("--same", is_flag=True, help="Also for its calls to come with exactly these arguments."),
        click.option("--pattern", "patterns", multiple=True, metavar="ARGUMENT=GLOB",
                     help="Also for its calls to come whose argument fits; may be repeated."),
    ):  # fmt: skip
        function = option(function)
    return function


@approval.command(name="allow")
@click.argument("approval_id")
@_remember
def approval_allow(approval_id: str, always: bool, same: bool, patterns: tuple[str, ...], as_json: bool) -> None:
    """Let the call be made, once.

    \b
    witsd approval allow ID --pattern 'command=git status*'
    """
    _resolve(approval_id, "allow", always, same, patterns, as_json)


@approval.command(name="deny")
@click.argument("approval_id")
@_remember
def approval_deny(approval_id: str, always: bool, same: bool, patterns: tuple[str, ...], as_json: bool) -> None:
    """Refuse the call; its agent is told."""
    _resolve(approval_id, "deny", always, same, patterns, as_json)


def _resolve(
    approval_id: str, decision: str, always: bool, same: bool, patterns: tuple[str, ...], as_json: bool
) -> None:
    if always + same + bool(patterns) > 1:
        raise click.UsageError("--always, --same and --pattern exclude each other")
    params: dict[str, Any] = {"approval_id": approval_id, "decision": decision, "patterns": patterns}
    if always or same:
        params["remember"] = "tool" if always else "call"
    done = call("approvals/resolve", params)
    if as_json:
        emit_json(done)
        return
    note(f"{done['tool']}({arguments_line(done['arguments'])}) is {done['status']}")
    if always or same or patterns:
        note("the answer is remembered: `witsd approval rules` lists them, `witsd approval revoke RULE` forgets one")


@approval.command(name="rules")
def approval_rules(as_json: bool) -> None:
    """The answers that are remembered."""
    found = pages("approvals/rules", {}, None)
    if as_json:
        emit_json(found)
        return
    table(
        ("rule", "agent", "tool", "answer", "for", "made"),
        [
            (one["rule_id"], one["agent"], one["tool"], one["policy"], _scope(one), when(one["created_at"]))
            for one in found["items"]
        ],
        empty="no answer is remembered",
    )


def _scope(one: dict[str, Any]) -> str:
    if one.get("patterns"):
        return ", ".join(one["patterns"])
    return arguments_line(one["arguments"]) if "arguments" in one else "all its calls"


@approval.command(name="revoke")
@click.argument("rule_id", metavar="RULE")
def approval_revoke(rule_id: str, as_json: bool) -> None:
    """Forget a remembered answer."""
    done = call("approvals/revoke", {"rule_id": rule_id})
    if as_json:
        emit_json(done)
    else:
        note(f"{rule_id} holds no more")
