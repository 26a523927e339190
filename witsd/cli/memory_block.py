"""``witsd memory block``: the texts that are always in an agent's prompt."""

from __future__ import annotations

import sys
from typing import Any

import click

from witsd.cli.base import Noun, agent_argument
from witsd.cli.connect import call
from witsd.cli.output import emit_json, note, say, table
from witsd.cli.text import neutral, one_line, when


@click.group(cls=Noun)
def block() -> None:
    """The texts that are always in an agent's prompt."""


@block.command(name="list")
@agent_argument("agent")
def block_list(agent: str, as_json: bool) -> None:
    """The blocks of AGENT."""
    found = call("blocks/list", {"agent": agent})
    if as_json:
        emit_json(found)
        return
    table(
        ("block", "version", "by", "when", "text"),
        [
            (b["name"], b["version"], b["author"], when(b["updated_at"]), one_line(b["text"], 80))
            for b in found["items"]
        ],
        empty=f"{agent} has no blocks: witsd memory block set {agent} human 'Ada, an engineer in Oslo'",
    )


@block.command(name="get")
@agent_argument("agent")
@click.argument("name")
@click.option("--version", type=click.IntRange(min=1), help="An earlier one.")
def block_get(agent: str, name: str, version: int | None, as_json: bool) -> None:
    """The text of the block NAME of AGENT."""
    params: dict[str, Any] = {"agent": agent, "name": name}
    found = call("blocks/get", params if version is None else {**params, "version": version})
    if as_json:
        emit_json(found)
        return
    note(f"version {found['version']}, by {found['author']}, {when(found['updated_at'])}")
    say(neutral(found["text"]))


@block.command(name="set")
@agent_argument("agent")
@click.argument("name")
@click.argument("text", nargs=-1)
@click.option("--version", type=click.IntRange(min=0), help="Only if this is the present one (0: there is none).")
def block_set(agent: str, name: str, text: tuple[str, ...], version: int | None, as_json: bool) -> None:
    """Put TEXT, or what comes on standard input, into the block NAME of AGENT. '' takes it out of the prompt.

    Earlier versions are kept: `witsd memory block get AGENT NAME --version 1`.
    """
    params: dict[str, Any] = {"agent": agent, "name": name, "text": " ".join(text) if text else sys.stdin.read()}
    made = call("blocks/set", params if version is None else {**params, "version": version})
    if as_json:
        emit_json(made)
        return
    say(one_line(f"{made['agent']} has the block {made['name']}, version {made['version']}"))
