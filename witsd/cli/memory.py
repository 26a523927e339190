"""``witsd memory``: what is remembered."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import click

from witsd.cli import memory_io
from witsd.cli.base import Noun, limit_option
from witsd.cli.connect import call, pages
from witsd.cli.memory_block import block
from witsd.cli.output import coloured, emit_json, fields, note, say, table
from witsd.cli.text import neutral, one_line, size, when

_KINDS = ["turn", "fact", "preference", "summary", "document"]


@click.group(cls=Noun)
def memory() -> None:
    """What is remembered: add, search, list, delete, import, export."""


memory.add_command(block)


def namespace_option(default: str | None, text: str) -> Callable[[Any], Any]:
    return click.option("-N", "--namespace", metavar="NAME", default=default, show_default=bool(default), help=text)


filter_option = click.option(
    "--filter", "condition", metavar="JSON", help='As in \'{"kind": "fact", "metadata.topic": {"in": ["a", "b"]}}\'.'
)


def _filter(condition: str | None) -> dict[str, Any] | None:
    if condition is None:
        return None
    try:
        found = json.loads(condition)
    except ValueError as error:
        raise click.UsageError(f"--filter is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise click.UsageError("--filter is a JSON object")
    return found


@memory.command(name="add")
@click.argument("text", nargs=-1)
@namespace_option("shared", "Where to put it.")
@click.option("--kind", type=click.Choice(_KINDS), help="What it is; a fact unless a speaker is given.")
@click.option("--speaker", default="", help="Who said it.")
@click.option("--time", metavar="TIME", help="When it was said, as 2026-01-31T09:05:07Z.")
@click.option("--metadata", metavar="JSON", help="Anything that is to be filtered by.")
@click.option("--ttl", "ttl_s", type=float, metavar="SECONDS", help="Forget it after this long.")
@click.option("--supersedes", multiple=True, metavar="ID", help="A record that this makes untrue.")
def memory_add(
    text: tuple[str, ...],
    namespace: str,
    kind: str | None,
    speaker: str,
    time: str | None,
    metadata: str | None,
    ttl_s: float | None,
    supersedes: tuple[str, ...],
    as_json: bool,
) -> None:
    """Remember TEXT, or what comes on standard input."""
    params: dict[str, Any] = {"namespace": namespace, "text": " ".join(text) if text else sys.stdin.read()}
    given = {"kind": kind, "speaker": speaker, "time": time, "ttl_s": ttl_s, "supersedes": list(supersedes)}
    params |= {name: value for name, value in given.items() if value}
    if metadata is not None:
        params["metadata"] = _filter(metadata)
    added = call("memory/add", params)
    if as_json:
        emit_json(added)
        return
    say(one_line(added["memory_id"]))
    if added["deduplicated"]:
        note("this was remembered already: it was counted")


@memory.command(name="search")
@click.argument("query", nargs=-1, required=True)
@namespace_option(None, "Only here; everywhere when it is not given.")
@click.option("--mode", type=click.Choice(["hybrid", "semantic", "keyword"]), default="hybrid", show_default=True)
@filter_option
@limit_option(10)
def memory_search(
    query: tuple[str, ...], namespace: str | None, mode: str, condition: str | None, limit: int, as_json: bool
) -> None:
    """Find by words and by meaning, best first."""
    params = {
        "query": " ".join(query), "namespace": namespace, "mode": mode, "filter": _filter(condition),
        "limit": min(limit, 200),
    }  # fmt: skip
    found = call("memory/search", {name: value for name, value in params.items() if value is not None})
    if as_json:
        emit_json(found)
        return
    if found.get("degraded"):
        note(f"by words only: {found['degraded']}")
    if not found["items"]:
        note("nothing found")
    for number, hit in enumerate(found["items"], 1):
        _show_hit(number, hit)


def _show_hit(number: int, hit: dict[str, Any]) -> None:
    """Score and text; under it where it is from, and why it was found."""
    bold, dim, end = ("\x1b[1m", "\x1b[2m", "\x1b[0m") if coloured() else ("", "", "")
    say(f"{number:>2}  {bold}{hit['score']:.2f}  {one_line(hit['text'], 300)}{end}")
    passage = hit.get("passage")
    source = hit.get("source") or {}
    where = [
        hit.get("speaker") or hit["author"], when(hit["time"]), hit["namespace"], hit.get("session_id"),
        source.get("file") or source.get("url") or source.get("tool"),
        f"part {passage['n']}{': ' if passage['heading'] else ''}{passage['heading']}" if passage else None,
        "no longer true" if hit.get("superseded_by") else None, hit["memory_id"],
    ]  # fmt: skip
    say(f"          {dim}{one_line(' · '.join(filter(None, where)))}{end}")
    say(f"          {dim}{one_line(_why(hit))}{end}")


#: What the parts of a score are called; others by their own name.
_PARTS = {"around": "what is beside it", "session": "its session", "speaker": "its speaker", "asks": "only asks"}


def _why(hit: dict[str, Any]) -> str:
    """``words 0.82 (spare, key) + what is beside it 0.10``."""
    shown: list[str] = []
    for name, part in sorted(hit["parts"].items(), key=lambda one: -one[1]):
        # Words of the turns beside it are marked, and count there.
        words = [w.lstrip("~") for w in hit["matched"] if w.startswith("~") == (name == "around")]
        named = f" ({', '.join(words[:6])})" if words and name in ("words", "around") else ""
        sign = "- " if part < 0 else "+ " if shown else ""
        shown.append(f"{sign}{_PARTS.get(name, name)} {abs(part):.2f}{named}")
    return " ".join(shown)


@memory.command(name="list")
@namespace_option(None, "Only this one; without it, the namespaces are listed with `--namespaces`.")
@click.option("--namespaces", is_flag=True, help="The namespaces, and how much is in each.")
@click.option("--kind", type=click.Choice(_KINDS), help="Only these.")
@click.option("--session", "session_id", metavar="ID", help="Only of this session.")
@filter_option
@limit_option(20)
def memory_list(
    namespace: str | None,
    namespaces: bool,
    kind: str | None,
    session_id: str | None,
    condition: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """Records, latest first."""
    if namespaces:
        found = pages("memory/namespaces", {}, limit)
        if as_json:
            emit_json(found)
            return
        table(
            ("namespace", "records", "text", "since"),
            [(n["name"], n["records"], size(n["bytes"]), when(n["created_at"])) for n in found["items"]],
            empty="nothing is remembered yet: `witsd memory add` or `witsd chat`",
        )
        return
    params = {"namespace": namespace, "kind": kind, "session_id": session_id, "filter": _filter(condition)}
    found = pages("memory/list", params, limit)
    if as_json:
        emit_json(found)
        return
    table(
        ("memory", "namespace", "kind", "when", "who", "text"),
        [
            (m["memory_id"], m["namespace"], m["kind"], when(m["time"]), m.get("speaker") or m["author"],
             one_line(m["text"], 80))
            for m in found["items"]
        ],
        empty="nothing is remembered here",
    )


@memory.command(name="show")
@click.argument("memory_id", metavar="MEMORY")
def memory_show(memory_id: str, as_json: bool) -> None:
    """One record, whole."""
    found = call("memory/get", {"memory_id": memory_id})
    if as_json:
        emit_json(found)
        return
    shown = ("memory_id", "namespace", "kind", "author", "speaker", "trust", "session_id", "run_id", "version",
             "duplicates", "duplicate_of", "near_of", "uses", "superseded_by", "chunks")  # fmt: skip
    fields([(name.replace("_", " "), found.get(name) or None) for name in shown])
    fields([(name, when(found[name])) for name in ("time", "created_at", "valid_to", "expires_at") if name in found])
    if found["metadata"]:
        fields([("metadata", json.dumps(found["metadata"], ensure_ascii=False))])
    say()
    say(neutral(found["text"]))


@memory.command(name="history")
@click.argument("memory_id", metavar="MEMORY")
def memory_history(memory_id: str, as_json: bool) -> None:
    """How a record has changed, oldest first."""
    found = call("memory/history", {"memory_id": memory_id})
    if as_json:
        emit_json(found)
        return
    table(
        ("version", "change", "when", "by", "what it was before"),
        [
            (c["version"], c["change"], when(c["time"]), c["actor"],
             one_line(json.dumps(c["before"], ensure_ascii=False), 80) if c.get("before") else "")
            for c in found["items"]
        ],
    )


@memory.command(name="rm")
@click.argument("memory_ids", metavar="MEMORY...", nargs=-1, required=True)
@click.option("--keep-elsewhere", is_flag=True, help="Leave the same text in sessions, runs and events.")
def memory_rm(memory_ids: tuple[str, ...], keep_elsewhere: bool, as_json: bool) -> None:
    """Delete records and every trace of their text, with what was derived from them."""
    done = call("memory/delete", {"memory_ids": list(memory_ids), "redact": not keep_elsewhere})
    if as_json:
        emit_json(done)
        return
    for memory_id in done["deleted"]:
        say(one_line(f"{memory_id} is deleted"))
    if done["redacted"]:
        note(f"and its text blotted out in {done['redacted']} places of sessions, runs and events")
    for backup in done["backups"]:
        note(f"not touched: the backup of {when(backup['time'])}, {backup['path']}")


@memory.command(name="stats")
@namespace_option(None, "Only this one.")
def memory_stats(namespace: str | None, as_json: bool) -> None:
    """How much is remembered, and how far its embedding is."""
    found = call("memory/stats", {"namespace": namespace} if namespace else {})
    if as_json:
        emit_json(found)
        return
    fields([
        ("records", found["records"]),
        ("text", size(found["bytes"])),
        ("namespaces", found["namespaces"]),
        ("kinds", ", ".join(f"{n} {kind}" for kind, n in sorted(found["kinds"].items())) or None),
        ("said again", found["duplicates"] or None),
        ("nearly the same", found["near_duplicates"] or None),
        ("no longer true", found["superseded"] or None),
        ("expired", found["expired"] or None),
        ("passages of long texts", found["chunks"] or None),
        ("embedder", found["embedder"]),
    ])
    for model in found["models"]:
        state = "in use" if model["state"] == "current" else "being filled, takes over when it is done"
        fields([("model", f"{model['model']}, {model['dimensions']} numbers: {model['embedded']} embedded, {state}")])
    if found["to_embed"]:
        why = f"embedding fails: {one_line(found['trouble'])}" if "trouble" in found else "they are being embedded"
        note(f"{found['to_embed']} are found by their words only, so far: {why}")


@memory.command(name="reindex")
@click.option("--embedder", metavar="NAME",
              help="Use this one from now on: hash, an agent that embeds, or PROVIDER/MODEL; else the one in use.")
def memory_reindex(embedder: str | None, as_json: bool) -> None:
    """Embed all that is stored anew, in the background; searches go on meanwhile."""
    found = call("memory/reindex", {} if embedder is None else {"embedder": embedder})
    if as_json:
        emit_json(found)
        return
    note(f"{found['embedder']} embeds from now on: `witsd memory stats` says how far it is")


memory.add_command(memory_io.memory_import)
memory.add_command(memory_io.memory_export)
