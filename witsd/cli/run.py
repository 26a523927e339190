"""``witsd run``: the pieces of work agents were given."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from witsd.cli.base import Noun, complete_agents, limit_option
from witsd.cli.connect import call, pages
from witsd.cli.output import emit_json, fields, say, table
from witsd.cli.stream import as_text, outcome_error
from witsd.cli.text import duration, neutral, one_line, spent, to_json, when

STATUSES = ("queued", "running", "waiting", "completed", "failed", "cancelled", "interrupted")


@click.group(cls=Noun)
def run() -> None:
    """The pieces of work agents were given."""


@run.command(name="list")
@click.option("--agent", shell_complete=complete_agents, help="Only this agent's.")
@click.option("--session", "session_id", help="Only this session's.")
@click.option("--status", type=click.Choice(STATUSES), help="Only those in this status.")
@limit_option(20)
def run_list(
    agent: str | None, session_id: str | None, status: str | None, limit: int, as_json: bool
) -> None:
    """Runs, latest first."""
    params = {"agent": agent, "session_id": session_id, "status": status}
    found = pages("runs/list", params, limit)
    if as_json:
        emit_json(found)
        return
    table(
        ("run", "agent", "status", "asked", "took", "input"),
        [
            (r["run_id"], r["agent"], r["status"], when(r["created_at"]), _took(r),
             one_line(r["input"].get("text", ""), 50))
            for r in found["items"]
        ],
        empty="no runs",
    )


@run.command(name="show")
@click.argument("run_id", metavar="RUN")
def run_show(run_id: str, as_json: bool) -> None:
    """One run: what was asked, what it did, what came out."""
    found = call("runs/get", {"run_id": run_id})
    if as_json:
        emit_json(found)
    else:
        _show(found)


@run.command(name="wait")
@click.argument("run_id", metavar="RUN")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0, min_open=True), metavar="SECONDS",
              help="Give up after this long; without it, never.")
def run_wait(run_id: str, timeout_s: float | None, as_json: bool) -> None:
    """Wait until a run is over and print its output; exit status 1 unless it completed."""
    params: dict[str, Any] = {"run_id": run_id}
    if timeout_s is not None:
        params["timeout_s"] = timeout_s
    ended = call("runs/wait", params)
    if as_json:
        emit_json(ended)
    elif ended.get("output") is not None:
        say(neutral(as_text(ended["output"])))
    failure = outcome_error(ended["status"], ended)
    if failure is not None:
        raise failure


@run.command(name="cancel")
@click.argument("run_id", metavar="RUN")
@click.option("--reason", default="", help="Kept with the run.")
def run_cancel(run_id: str, reason: str, as_json: bool) -> None:
    """End a run; over already is no error."""
    result = call("runs/cancel", {"run_id": run_id, "reason": reason})
    if as_json:
        emit_json(result)
    else:
        say(one_line(f"{result['run_id']} is {result['status']}"))


def _took(run: dict[str, Any]) -> str:
    try:
        began = datetime.fromisoformat(run["started_at"])
        return duration((datetime.fromisoformat(run["ended_at"]) - began).total_seconds())
    except (KeyError, ValueError):
        return "-"


def _show(run: dict[str, Any]) -> None:
    usage = run["usage"]
    tokens = f"{usage.get('input_tokens', 0)} in, {usage.get('output_tokens', 0)} out"
    error = run.get("error")
    fields([
        ("run", run["run_id"]),
        ("agent", run["agent"]),
        ("status", run["status"]),
        ("reason", run.get("reason")),
        ("error", f"{error['message']} ({error['code']})" if error else None),
        ("session", run.get("session_id")),
        ("asked", when(run["created_at"])),
        ("took", _took(run)),
        ("tokens", tokens if usage.get("calls") else None),
        ("asked by", run.get("parent_run_id")),
        ("spent", spent(run.get("budget", {}).get("spent"))),
        ("left", spent(run.get("budget", {}).get("left"))),
        ("input", run["input"].get("text", "")),
        ("folder", run["input"].get("cwd")),
    ])
    for item in run["items"]:
        say()
        head = f"{item['type']} · {item.get('status', 'in_progress')}"
        say(one_line(f"[{head}] {item.get('tool') or item.get('name') or ''}".rstrip()))
        text = _item_text(item)
        if text:
            say(neutral(text))
    said = {item.get("text") for item in run["items"]}
    if run.get("output") is not None and run["output"] not in said:
        say()
        say("[output]")
        say(neutral(as_text(run["output"])))


def _item_text(item: dict[str, Any]) -> str:
    """What of an item is worth a line: its words, or its fields as JSON."""
    if item["type"] in ("message", "thought", "log"):
        return str(item.get("text", ""))
    hidden = ("item_id", "type", "status", "tool", "name")
    rest = {key: value for key, value in item.items() if key not in hidden}
    return to_json(rest) if rest else ""
