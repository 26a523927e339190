"""``witsd memory import`` and ``export``: what is remembered, in from files and out to one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from witsd.cli.base import FAILED, Verb
from witsd.cli.connect import Failed, run
from witsd.cli.files import writing
from witsd.cli.output import emit_json, emit_json_line, is_tty, note, say
from witsd.cli.progress import Bar, OnProgress
from witsd.cli.reading.found import File, Found, OfAnotherKind, Unreadable, find
from witsd.cli.text import neutral, one_line

if TYPE_CHECKING:
    from witsd_client import Client

_FORMATS = ["auto", "markdown", "text", "html", "pdf", "jsonl", "chat"]
#: Items, and characters of them, in one request: what one transaction writes, in a tenth of a second or so.
_ITEMS, _CHARACTERS = 200, 100_000
#: What the daemon takes as one record, in bytes of UTF-8.
_LONGEST = 2 << 20
_SHOWN = 20


@attrs.define
class _Tally:
    """How it went. ``unreadable``: ``(place, why)``."""

    added: int = 0
    known: int = 0
    closed: int = 0
    unreadable: list[tuple[str, str]] = attrs.field(factory=list)


@attrs.define(eq=False)
class _Sender:
    """Gathers items into requests; one that is refused is sent again item by item, so that it costs nobody else."""

    client: Client
    tally: _Tally
    strict: bool
    _items: list[tuple[str, dict[str, Any]]] = attrs.field(factory=list)
    _whole: list[dict[str, Any]] = attrs.field(factory=list)
    _characters: int = 0
    #: Model and digest of the vectors that come along.
    _vectors: dict[str, Any] = attrs.field(factory=dict)

    def bad(self, place: str, why: str) -> None:
        if self.strict:
            raise Failed(f"{place}: {why}", hint="what came before it is in; without --strict it would be passed over")
        self.tally.unreadable.append((place, why))

    async def add(self, place: str, item: dict[str, Any]) -> None:
        if "witsd_memory" in item:
            await self.flush()
            self._vectors = {name: item[name] for name in ("model", "digest") if name in item}
            return
        size = len(item["text"].encode("utf-8", "replace"))
        if size > _LONGEST:
            self.bad(place, f"a text of {size >> 10} KB is too long for one memory ({_LONGEST >> 10} KB)")
            return
        if self._items and (len(self._items) == _ITEMS or self._characters + size > _CHARACTERS):
            await self.flush()
        self._items.append((place, item))
        self._characters += size

    async def whole(self, namespace: str, key: str, parts: int) -> None:
        self._whole.append({"namespace": namespace, "key": key, "parts": parts})
        if len(self._whole) == _ITEMS:
            await self.flush()

    async def flush(self) -> None:
        items, whole = self._items, self._whole
        self._items, self._whole, self._characters = [], [], 0
        if items or whole:
            await self._send(items, whole)

    async def _send(self, items: list[tuple[str, dict[str, Any]]], whole: list[dict[str, Any]]) -> None:
        from witsd_client.errors import WitsdError

        params = {"items": [item for _, item in items], "whole": whole, **self._vectors}
        try:
            done = await self.client.call("memory/import", params)
        except WitsdError as error:
            if error.code not in (-32602, -32008) or error.data.get("limit") in ("disk", "shutdown"):
                raise
            if len(items) == 1:
                self.bad(items[0][0], error.message.replace("params.items[0].", "").replace("params.items[0]", "it"))
                # The document is not whole then: what it was goes on to hold.
                return
            for one in items:
                await self._send([one], [])
            if whole:
                bad = {place for place, _ in self.tally.unreadable}
                await self._send([], [one for one in whole if one["key"] not in bad])
            return
        self.tally.added += done["added"]
        self.tally.known += done["known"]
        self.tally.closed += done["closed"]


@click.command(cls=Verb, name="import")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-N", "--namespace", metavar="NAME",
              help="Where to put it; shared, or of an export where each record was.")
@click.option("--format", "form", type=click.Choice(_FORMATS), default="auto", show_default=True,
              help="How to read the files; auto goes by their names.")
@click.option("--strict", is_flag=True, help="Stop at the first thing that cannot be read.")
@click.option("--prune", is_flag=True,
              help="Also close what came from a file of these folders that is there no more.")
@click.pass_context
def memory_import(
    ctx: click.Context, paths: tuple[Path, ...], namespace: str | None, form: str, strict: bool, prune: bool,
    as_json: bool,
) -> None:
    """Remember what is in files and folders: Markdown, text, HTML, PDF, JSON Lines, chats.

    Run it again as often as you like: what is known is not written twice, and of a file that has changed the
    new text takes the place of the old one. What cannot be read is named at the end and stops nothing.
    """
    found = find(paths, form)
    tally = _Tally(unreadable=list(found.unreadable))
    if strict and tally.unreadable:
        place, why = tally.unreadable[0]
        raise Failed(f"{place}: {why}")

    async def send(client: Client) -> None:
        if namespace is not None:
            await client.call("memory/stats", {"namespace": namespace})  # a wrong name is one error, not thousands
        sender = _Sender(client, tally, strict)
        with Bar(f"reading {len(found.files)} files", quiet=as_json) as progress:
            await _send_all(sender, found, namespace, progress)
        if prune:
            await _prune(sender, [path.absolute() for path in paths if path.is_dir()], namespace or "shared")

    try:
        run(send)
    except BaseException:
        if tally.added or tally.known:
            note(f"so far {tally.added} new, {tally.known} known; run it again to go on: nothing is written twice")
        raise
    _report(found, tally, as_json)
    if tally.unreadable and not (tally.added or tally.known):
        ctx.exit(FAILED)


async def _send_all(sender: _Sender, found: Found, namespace: str | None, progress: OnProgress) -> None:
    total = sum(file.size for file in found.files)
    done = 0
    for file in found.files:
        try:
            items, keys = _read(file, namespace, sender)
            parts = 0
            for place, item in items:
                await sender.add(place, item)
                parts += 1
            if keys:
                await sender.whole(namespace or "shared", str(file.path), parts)
        except OfAnotherKind as error:
            found.passed_over[str(error)] += 1
        except Unreadable as error:
            sender.bad(str(file.path), str(error))
        except OSError as error:
            sender.bad(str(file.path), error.strerror or str(error))
        done += file.size
        progress(done, total)
    await sender.flush()


async def _prune(sender: _Sender, folders: list[Path], namespace: str) -> None:
    """Close the documents of ``folders`` whose file is gone. What is only passed over by now is there."""
    gone: set[str] = set()
    params: dict[str, Any] = {
        "namespace": namespace, "kind": "document", "filter": {"source.file": {"exists": True}},
        "include": ["duplicates"], "limit": 200,
    }  # fmt: skip
    while True:
        page = await sender.client.call("memory/list", params)
        gone.update(file for item in page["items"] if _is_gone(file := item["source"]["file"], folders))
        if page.get("next_cursor") is None:
            break
        params["cursor"] = page["next_cursor"]
    for name in sorted(gone):
        await sender.whole(namespace, name, 0)
    await sender.flush()


def _is_gone(file: str, folders: list[Path]) -> bool:
    path = Path(file)
    return any(path.is_relative_to(folder) for folder in folders) and not path.exists()


def _read(file: File, namespace: str | None, sender: _Sender) -> tuple[Iterator[tuple[str, dict[str, Any]]], bool]:
    """What is in a file, each with its place, and whether it is one document with parts."""
    place = str(file.path)
    if file.form == "jsonl":
        from witsd.cli.reading import lines

        return lines.items(file, namespace, sender.bad), False
    if file.form == "chat":
        from witsd.cli.reading import chats

        talks = chats.conversations(chats.parsed(file.path.read_bytes()), place, namespace or "shared")
        if talks is None and not file.named:
            raise OfAnotherKind("JSON without a conversation")
        if talks is None:
            raise Unreadable("this JSON holds no conversation")
        return ((place, item) for item in talks), False
    from witsd.cli.reading import documents

    # All of it before any of it is sent: a document that breaks off on the way is not half remembered.
    return iter([(place, item) for item in documents.items(file, namespace or "shared")]), True


def _report(found: Found, tally: _Tally, as_json: bool) -> None:
    if as_json:
        emit_json({
            "files": len(found.files), "added": tally.added, "known": tally.known, "closed": tally.closed,
            "unreadable": [{"place": place, "reason": why} for place, why in tally.unreadable],
            "passed_over": dict(found.passed_over),
        })
        return
    files = f"{len(found.files)} file{'' if len(found.files) == 1 else 's'}"
    parts = [f"{tally.added} new", f"{tally.known} known"]
    if tally.closed:
        parts.append(f"{tally.closed} replaced")
    parts.append(f"{len(tally.unreadable)} unreadable")
    say(f"{files}: {', '.join(parts)}")
    for place, why in tally.unreadable[:_SHOWN]:
        note(f"  {one_line(place)}: {one_line(why)}")
    if len(tally.unreadable) > _SHOWN:
        note(f"  and {len(tally.unreadable) - _SHOWN} more: --json lists them all")
    if found.passed_over:
        note("passed over: " + ", ".join(f"{count} {what}" for what, count in sorted(found.passed_over.items())))


@click.command(cls=Verb, name="export")
@click.argument("path", metavar="[FILE|-]", default="-", type=click.Path(path_type=Path, dir_okay=False))
@click.option("-N", "--namespace", metavar="NAME", help="Only this one.")
@click.option("--format", "form", type=click.Choice(["jsonl", "markdown"]), default="jsonl", show_default=True,
              help="JSON Lines can be imported again, Markdown is for reading.")
@click.option("--vectors", is_flag=True, help="With the vectors, for a place with the same embedding model.")
def memory_export(path: Path, namespace: str | None, form: str, vectors: bool, as_json: bool) -> None:
    """Write all that is remembered to FILE, or to standard output, oldest first."""
    target = None if str(path) == "-" else path

    async def write(client: Client) -> int:
        params: dict[str, Any] = {"format": form, "vectors": vectors}
        if namespace is not None:
            params["namespace"] = namespace
        count = 0
        with writing(target) as out:
            while True:
                piece = await client.call("memory/export", params)
                out.write(neutral(piece["text"]) if target is None and is_tty() else piece["text"])
                count += int(piece["records"])
                if piece.get("next_cursor") is None:
                    return count
                params["cursor"] = piece["next_cursor"]

    written = run(write)
    if target is None:
        return
    if as_json:
        emit_json_line({"file": str(target), "records": written})
    else:
        note(f"{written} records written to {target}")
