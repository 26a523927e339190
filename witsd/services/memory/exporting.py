"""All records, oldest first, a piece at a time: JSON Lines that can be imported again, or Markdown to read."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import apsw
import msgspec

from witsd.services.memory import records, vectors
from witsd.values.clock import rfc3339
from witsd.values.wire import memory as wire
from witsd.values.wire.common import UNSET

_encode = msgspec.json.Encoder().encode

#: Records, and characters of text, in one piece.
_PIECE_RECORDS = 500
_PIECE_CHARACTERS = 1 << 19
#: What is left out of a line where it says nothing: JSON would otherwise be mostly that.
_EMPTY = ((), "", 0, None)


def piece(
    db: apsw.Connection, params: wire.MemoryExportParams, after: int, spaces: Sequence[int] | None
) -> wire.MemoryExportResult:
    """The piece that follows record number ``after``; the first one begins with what the export is."""
    among = vectors.current(vectors.generations(db)) if params.vectors else None
    markdown = params.format == "markdown"
    parts: list[str] = []
    if after == 0:
        parts.append(_title(params.namespace) if markdown else _line(_about(among)))
    count = size = 0
    last = after
    where = "m.part_of IS NULL AND m.id > ?" + ("" if spaces is None else " AND m.namespace_id = ?")
    if spaces is not None and not spaces:
        return wire.MemoryExportResult(text="".join(parts), records=0)
    values = (after,) if spaces is None else (after, spaces[0])
    for found in db.execute(f"SELECT {records.COLUMNS} FROM {records.FROM} WHERE {where} ORDER BY m.id", values):
        if count == _PIECE_RECORDS or size > _PIECE_CHARACTERS:
            return wire.MemoryExportResult(text="".join(parts), records=count, next_cursor=str(last))
        row = records.row(found)
        parts.append(_section(row) if markdown else _line(_short(_item(db, row, among))))
        size += len(parts[-1])
        count += 1
        last = row.id
    return wire.MemoryExportResult(text="".join(parts), records=count)


def _about(among: vectors.Generation | None) -> dict[str, Any]:
    about: dict[str, Any] = {"witsd_memory": 1}
    if among is not None:
        about |= {"model": among.model, "digest": among.digest, "dimensions": among.dimensions}
    return about


def _item(db: apsw.Connection, row: records.Row, among: vectors.Generation | None) -> wire.MemoryItem:
    view = records.view(row)
    return wire.MemoryItem(
        namespace=row.namespace,
        text=row.text,
        kind=row.kind,
        memory_id=view.memory_id,
        metadata=view.metadata or UNSET,
        speaker=row.speaker,
        time=view.time,
        created_at=view.created_at,
        author=row.author,
        trust=view.trust,
        session_id=view.session_id,
        message_id=view.message_id,
        run_id=view.run_id,
        source=view.source,
        valid_from=view.valid_from,
        valid_to=view.valid_to,
        expires_at=view.expires_at,
        superseded_by=view.superseded_by,
        supersedes=_ids(db, "SELECT memory_id FROM memories WHERE superseded_by = ? AND part_of IS NULL", row.id),
        derived_from=_ids(
            db, "SELECT m.memory_id FROM memory_links k JOIN memories m ON m.id = k.source WHERE k.derived = ?", row.id
        ),
        uses=row.uses,
        vectors=() if among is None else _vectors(db, among, row.id),
    )


def _ids(db: apsw.Connection, sql: str, rowid: int) -> tuple[str, ...]:
    return tuple(memory_id for (memory_id,) in db.execute(sql, (rowid,)) if memory_id is not None)


def _vectors(db: apsw.Connection, among: vectors.Generation, rowid: int) -> tuple[str, ...]:
    """Of the record or of each of its passages; none where one is missing so far."""
    passages = db.execute(
        "SELECT id FROM memories WHERE (id = ?1 OR part_of = ?1) AND indexed = 1 ORDER BY place", (rowid,)
    ).fetchall()
    packed = [
        db.execute(f"SELECT embedding FROM {among.table} WHERE rowid = ?", (passage,)).get for (passage,) in passages
    ]
    return () if None in packed else tuple(base64.b64encode(one).decode() for one in packed)


def _short(item: wire.MemoryItem) -> dict[str, Any]:
    given: dict[str, Any] = msgspec.to_builtins(item)
    return {name: value for name, value in given.items() if value not in _EMPTY and value != []}


def _line(value: Any) -> str:
    return _encode(value).decode() + "\n"


def _title(namespace: str | None) -> str:
    return f"# Memory{'' if namespace is None else f' of {namespace}'}\n"


def _section(row: records.Row) -> str:
    """A record under a line that says what it is, who said it, when, and where it comes from."""
    marks = [row.kind, row.namespace, rfc3339(row.time_us), row.speaker or row.author]
    source = records.source_of(row)
    if isinstance(source, wire.MemorySource):
        marks += [one for one in (source.file, source.url, source.tool) if isinstance(one, str)]
    if row.valid_to_us is not None:
        marks.append(f"held until {rfc3339(row.valid_to_us)}")
    heading = " · ".join(" ".join(mark.split()) for mark in marks)
    return f"\n## {heading}\n\n`{row.memory_id}`\n\n{row.text}\n"
