"""``witsd session``: the conversations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from witsd.cli.base import Noun, complete_agents, limit_option
from witsd.cli.connect import pages, run
from witsd.cli.files import writing
from witsd.cli.output import emit_json, emit_json_line, fields, is_tty, note, say, table
from witsd.cli.text import neutral, one_line, when

if TYPE_CHECKING:
    from witsd_client import Client


@click.group(cls=Noun)
def session() -> None:
    """The conversations."""


@session.command(name="list")
@click.option("--agent", shell_complete=complete_agents, help="Only those with this agent.")
@limit_option(20)
def session_list(agent: str | None, limit: int, as_json: bool) -> None:
    """Sessions, latest first."""
    found = pages("sessions/list", {"agent": agent}, limit)
    if as_json:
        emit_json(found)
    else:
        show_sessions(found["items"])


def show_sessions(items: list[dict[str, Any]], *, numbered: bool = False) -> None:
    """Sessions as a table, ``numbered`` from 1 where one is to be chosen."""
    rows: list[list[object]] = [
        [s["session_id"], s["agent"], s["status"], s["messages"], when(s["updated_at"]),
         one_line(s["title"], 50)]
        for s in items
    ]
    headers = ["session", "agent", "status", "messages", "updated", "title"]
    if numbered:
        headers.insert(0, "#")
        rows = [[n, *row] for n, row in enumerate(rows, 1)]
    table(headers, rows, empty="no sessions: `witsd chat` begins one")


@session.command(name="show")
@click.argument("session_id", metavar="SESSION")
@limit_option(20)
def session_show(session_id: str, limit: int, as_json: bool) -> None:
    """One session and what was said last."""

    async def both(client: Client) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        found = await client.call("sessions/get", {"session_id": session_id})
        params = {"session_id": session_id, "limit": min(limit, 1000)}
        return found, (await client.call("sessions/messages", params))["items"]

    found, messages = run(both)
    if as_json:
        emit_json({**found, "last_messages": messages})
        return
    settings = {k: v for k, v in found.get("settings", {}).items() if v is not None}
    fields([
        ("session", found["session_id"]),
        ("title", found["title"] or None),
        ("agent", found["agent"]),
        ("status", found["status"]),
        ("run", found.get("run_id")),
        ("settings", ", ".join(f"{k}={v}" for k, v in settings.items()) or None),
        ("messages", found["messages"]),
        ("created", when(found["created_at"])),
        ("updated", when(found["updated_at"])),
        ("forked from", found.get("parent_id")),
    ])
    for message in messages:
        say()
        say_message(message)


def say_message(message: dict[str, Any]) -> None:
    """A message under a line that says who said it and when."""
    state = message.get("status", "completed")
    marks = [message.get("model"), state if state != "completed" else None]
    about = "".join(f" · {mark}" for mark in marks if mark)
    say(one_line(f"{message['author']} · {when(message['created_at'])}{about}"))
    say(neutral(message["text"]))


@session.command(name="search")
@click.argument("query", nargs=-1, required=True)
@click.option("--agent", shell_complete=complete_agents, help="Only sessions with this agent.")
@click.option("--session", "session_id", metavar="ID", help="Only this session.")
@limit_option(20)
def session_search(
    query: tuple[str, ...], agent: str | None, session_id: str | None, limit: int, as_json: bool
) -> None:
    """Find messages by their words."""
    params = {"query": " ".join(query), "agent": agent, "session_id": session_id}
    found = pages("sessions/search", params, limit)
    if as_json:
        emit_json(found)
        return
    table(
        ("session", "n", "author", "when", "text"),
        [
            (h["session_id"], h["message"]["n"], h["message"]["author"], when(h["message"]["created_at"]),
             one_line(h["snippet"], 80))
            for h in found["items"]
        ],
        empty="nothing found",
    )


@session.command(name="export")
@click.argument("session_id", metavar="SESSION")
@click.option("--format", "form", type=click.Choice(["jsonl", "markdown"]), default="jsonl",
              show_default=True)
@click.option("-o", "--output", "path", type=click.Path(dir_okay=False, path_type=Path),
              help="Write to this file, which appears when the export is complete.")
def session_export(session_id: str, form: str, path: Path | None, as_json: bool) -> None:
    """A session as JSON Lines or Markdown."""
    if as_json and form != "jsonl":
        raise click.UsageError("--json and --format markdown exclude each other")
    count = export(session_id, form, path)
    if path is None:
        return
    if as_json:
        emit_json_line({"file": str(path), "characters": count})
    else:
        note(f"{count} characters written to {path}")


def export(session_id: str, form: str, path: Path | None) -> int:
    """Write a session to ``path``, or to standard output; the number of characters written.

    A file gets the text as it is, and so does a pipe; a terminal gets it neutralised.
    """

    async def write(client: Client) -> int:
        params: dict[str, Any] = {"session_id": session_id, "format": form}
        count = 0
        with writing(path) as out:
            while True:
                piece = await client.call("sessions/export", params)
                text = piece["text"]
                out.write(neutral(text) if path is None and is_tty() else text)
                count += len(text)
                cursor = piece.get("next_cursor")
                if cursor is None:
                    return count
                params["cursor"] = cursor

    return run(write)


@session.command(name="rm")
@click.argument("session_ids", metavar="SESSION...", nargs=-1, required=True)
def session_rm(session_ids: tuple[str, ...], as_json: bool) -> None:
    """Delete sessions and their messages."""

    async def delete(client: Client) -> None:
        for session_id in session_ids:
            await client.call("sessions/delete", {"session_id": session_id})
            if not as_json:
                say(one_line(f"{session_id} is deleted"))

    run(delete)
    if as_json:
        emit_json({})
