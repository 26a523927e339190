"""Looking through memory without a question: lists, histories, namespaces and figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import apsw
import msgspec

from witsd.services.memory import records, vectors
from witsd.services.memory.filters import Condition
from witsd.values.clock import rfc3339
from witsd.values.wire import memory as wire
from witsd.values.wire.common import UNSET

_encode = msgspec.json.Encoder().encode


def page(
    db: apsw.Connection,
    params: wire.MemoryListParams,
    before: int | None,
    spaces: Sequence[int] | None,
    live: Condition,
    condition: Condition | None,
) -> wire.MemoryPage:
    """Latest first; the cursor is the number of the last one given."""
    where = ["m.part_of IS NULL", live.sql]
    values: list[Any] = list(live.values)
    if "duplicates" not in params.include:
        where.append("m.duplicate_of IS NULL")
    for clause, value in (
        ("m.id < ?", before),
        ("m.kind = ?", params.kind),
        ("m.session_id = ?", params.session_id),
        ("m.namespace_id IN (SELECT value FROM json_each(?))", None if spaces is None else _encode(spaces).decode()),
    ):
        if value is not None:
            where.append(clause)
            values.append(value)
    if condition is not None:
        where.append(condition.sql)
        values += condition.values
    sql = f"SELECT {records.COLUMNS} FROM {records.FROM} WHERE {' AND '.join(where)} ORDER BY m.id DESC LIMIT ?"
    rows = [records.row(row) for row in db.execute(sql, (*values, params.limit))]
    items: list[wire.Memory] = []
    size = 0
    for row in rows:
        items.append(records.view(row))
        size += len(row.text)
        if size > _PAGE_CHARACTERS:  # a page fits into a message, whatever its texts
            break
    more = len(items) == params.limit or len(items) < len(rows)
    return wire.MemoryPage(
        items=tuple(items), next_cursor=str(rows[len(items) - 1].id) if more and items else UNSET
    )


#: Characters of text in one page, counted until it is reached.
_PAGE_CHARACTERS = 1 << 19

_SHOWN = {
    "metadata": ("metadata", lambda value: msgspec.json.decode(value) if value else {}),
    "expires_us": ("expires_at", lambda value: None if value is None else rfc3339(value)),
    "valid_to_us": ("valid_to", lambda value: None if value is None else rfc3339(value)),
    "trust": ("trust", lambda value: list(records.TRUST)[value]),
}


def history(db: apsw.Connection, row: records.Row) -> wire.MemoryHistoryResult:
    """Every change of a record, oldest first, beginning with its own beginning."""
    items = [
        wire.MemoryChange(
            version=1, change="added", actor=row.author, time=rfc3339(row.created_us), run_id=row.run_id or UNSET
        )
    ]
    for version, change, actor, run_id, before, time_us in db.execute(
        "SELECT version, change, actor, run_id, before, time_us FROM memory_history WHERE memory = ? ORDER BY id",
        (row.id,),
    ):
        shown = {}
        for name, value in msgspec.json.decode(before).items():
            label, show = _SHOWN.get(name, (name, lambda value: value))
            shown[label] = show(value)
        items.append(
            wire.MemoryChange(
                version=version,
                change=change,
                actor=actor,
                time=rfc3339(time_us),
                run_id=run_id or UNSET,
                before=shown,
            )
        )
    return wire.MemoryHistoryResult(items=tuple(items))


def namespaces(
    db: apsw.Connection,
    params: wire.MemoryNamespacesParams,
    may_use: Callable[[str], bool],
    retention_of: Callable[[str], wire.MemoryRetention],
) -> wire.MemoryNamespacePage:
    items: list[wire.MemoryNamespace] = []
    for name, count, size, created_us in db.execute(
        "SELECT name, records, bytes, created_us FROM memory_namespaces WHERE name > ? ORDER BY name",
        (params.cursor or "",),
    ):
        if not may_use(name):
            continue
        if len(items) == params.limit:
            return wire.MemoryNamespacePage(items=tuple(items), next_cursor=items[-1].name)
        items.append(
            wire.MemoryNamespace(
                name=name, records=count, bytes=size, created_at=rfc3339(created_us), retention=retention_of(name)
            )
        )
    return wire.MemoryNamespacePage(items=tuple(items))


def stats(
    db: apsw.Connection, spaces: Sequence[int] | None, now_us: int, embedder: str, trouble: str
) -> wire.MemoryStats:
    """Counted now: of a million records this takes a second or two."""
    where, values = "1", ()
    if spaces is not None:
        where, values = "namespace_id IN (SELECT value FROM json_each(?))", (_encode(list(spaces)).decode(),)  # type: ignore[assignment]
    count, size, used = db.execute(
        f"SELECT COALESCE(sum(records), 0), COALESCE(sum(bytes), 0), count(*) FROM memory_namespaces WHERE {where}",
        values,
    ).fetchone() or (0, 0, 0)
    kinds = dict(
        db.execute(
            f"SELECT kind, count(*) FROM memories WHERE part_of IS NULL AND duplicate_of IS NULL AND {where} "
            "GROUP BY kind",
            values,
        )
    )
    found = vectors.generations(db)
    newest = found[-1].number if found else 1
    totals = db.execute(
        "SELECT COALESCE(sum(duplicate_of IS NOT NULL), 0), COALESCE(sum(near_of IS NOT NULL AND part_of IS NULL), 0), "
        "COALESCE(sum(part_of IS NULL AND (superseded_by IS NOT NULL OR valid_to_us <= ?1)), 0), "
        "COALESCE(sum(part_of IS NULL AND expires_us <= ?1), 0), COALESCE(sum(part_of IS NOT NULL), 0), "
        f"COALESCE(sum(indexed = 1 AND embedded < ?2), 0) FROM memories WHERE {where.replace('?', '?3')}",
        (now_us, newest, *values),
    ).fetchone()
    assert totals is not None
    duplicates, near, superseded, expired, chunks, due = totals
    models = tuple(
        wire.MemoryModel(
            model=g.model,
            digest=g.digest,
            dimensions=g.dimensions,
            state="current" if g.state == "current" else "building",
            embedded=db.execute(f"SELECT count(*) FROM {g.table}_rowids").get,
        )
        for g in found
    )
    return wire.MemoryStats(
        records=count,
        bytes=size,
        namespaces=used,
        kinds=kinds,
        duplicates=duplicates,
        near_duplicates=near,
        superseded=superseded,
        expired=expired,
        chunks=chunks,
        to_embed=due,
        embedder=embedder,
        models=models,
        trouble=trouble or UNSET,
    )
