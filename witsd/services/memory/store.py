"""Records coming, changing and going, with all that hangs on them, inside one write transaction."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs
import msgspec

from witsd.journal.event import entry
from witsd.journal.journal import Tx
from witsd.services.memory import hygiene, index, records, vectors
from witsd.services.memory.chunks import WHOLE, chunks
from witsd.values.errors import InvalidState
from witsd.values.wire import memory as wire
from witsd.values.wire.common import UNSET
from witsd.values.wire.event_types import MemoryAddedData, MemoryDeletedData

_encode = msgspec.json.Encoder().encode


@attrs.frozen(kw_only=True)
class New:
    """A record to be. Times in microseconds since 1970, UTC; ``vector`` is packed for the generation in use."""

    memory_id: str
    namespace: str
    kind: wire.MemoryKind
    text: str
    author: str
    trust: int
    metadata: str | None = None
    speaker: str = ""
    session_id: str | None = None
    message_id: str | None = None
    run_id: str | None = None
    source: wire.MemorySource | None = None
    time_us: int | None = None
    valid_from_us: int | None = None
    valid_to_us: int | None = None
    expires_us: int | None = None
    vector: bytes | None = None
    dedupe: bool = True


_INSERT = (
    "INSERT INTO memories(memory_id, namespace_id, kind, text, metadata, speaker, session_id, message_id, run_id, "
    "author, source, trust, hash, time_us, created_us, updated_us, valid_from_us, valid_to_us, expires_us, "
    "duplicate_of, part_of, place, starts, heading, indexed) "
    "VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
)


def add(tx: Tx, new: New) -> tuple[int, wire.MemoryAdded]:
    """Write a record and index it; returns the number of the record that stands for it, and the answer.

    What is there already is written down as its duplicate, which is counted and not indexed.
    """
    space = records.namespace_id(tx, new.namespace)
    # Turns are never duplicates of one another, and of a conversation that is most of what there is.
    digest = None if new.kind == "turn" else records.fingerprint(new.namespace, new.kind, new.speaker, new.text)
    same = hygiene.same(tx, digest) if digest is not None and new.dedupe else None
    long = len(new.text) > WHOLE and new.vector is None
    rowid = _insert(tx, new, space, digest, duplicate_of=same, indexed=same is None and not long)
    if same is not None:
        found = tx.execute(
            "UPDATE memories SET duplicates = duplicates + 1 WHERE id = ? RETURNING memory_id", (same,)
        )
        return same, wire.MemoryAdded(memory_id=found[0][0], deduplicated=True)
    if long:
        _cut(tx, rowid, new, space)
    else:
        index.put(tx, rowid)
        if new.vector is not None:
            give_vector(tx, rowid, space, new.vector)
    _count(tx, space, 1, len(new.text.encode("utf-8", "surrogatepass")))
    added = MemoryAddedData(
        memory_id=new.memory_id, namespace=new.namespace, kind=new.kind, session_id=new.session_id or UNSET
    )
    tx.emit(entry(f"memory:{new.namespace}", "memory.added", added))
    return rowid, wire.MemoryAdded(memory_id=new.memory_id, deduplicated=False)


def _insert(
    tx: Tx, new: New, space: int, digest: bytes | None, *, duplicate_of: int | None, indexed: bool
) -> int:
    time_us = tx.now_us if new.time_us is None else new.time_us
    source = None if new.source is None else _encode(new.source).decode()
    values = (
        new.memory_id, space, new.kind, new.text, new.metadata, new.speaker, new.session_id, new.message_id,
        new.run_id, new.author, source, new.trust, digest, time_us, tx.now_us, tx.now_us, new.valid_from_us,
        new.valid_to_us, new.expires_us, duplicate_of, None, None, None, None, int(indexed),
    )  # fmt: skip
    return tx.insert(_INSERT, values)


def _cut(tx: Tx, whole: int, new: New, space: int) -> None:
    """The passages of a long text, as rows of their own that are indexed in its place."""
    time_us = tx.now_us if new.time_us is None else new.time_us
    source = None if new.source is None else _encode(new.source).decode()
    made = []
    for place, chunk in enumerate(chunks(new.text)):
        values = (
            None, space, new.kind, chunk.text, new.metadata, new.speaker, new.session_id, None, new.run_id,
            new.author, source, new.trust, None, time_us, tx.now_us, tx.now_us, new.valid_from_us,
            new.valid_to_us, new.expires_us, None, whole, place, chunk.start, chunk.heading, 1,
        )  # fmt: skip
        made.append(tx.insert(_INSERT, values))
    for rowid in made:
        index.put(tx, rowid)


def give_vector(tx: Tx, rowid: int, space: int, packed: bytes) -> None:
    """The caller's own vector, where it fits the generation in use by now; else the queue sees to it."""
    among = vectors.current(vectors.generations_tx(tx))
    if among is not None and among.dimensions == len(packed):
        vectors.put(tx, among, rowid, space, packed)


def _count(tx: Tx, space: int, count: int, size: int) -> None:
    tx.execute(
        "UPDATE memory_namespaces SET records = records + ?, bytes = bytes + ? WHERE namespace_id = ?",
        (count, size, space),
    )


# ---- changing --------------------------------------------------------------------------------------------


def update(
    tx: Tx, row: records.Row, changes: dict[str, Any], actor: str, run_id: str | None, vector: bytes | None,
    change: str = "updated",
) -> None:
    """Change columns of a record; what they were goes into its history. Raises ``InvalidState`` for a duplicate."""
    if row.duplicate_of is not None:
        raise InvalidState(f"this is a duplicate of {row.duplicate_of}: change that one", state="duplicate")
    # What is taken back is not kept, not as the past either.
    before = {} if change == "restored" else {name: getattr(row, name) for name in changes}
    version = hygiene.note_change(tx, row, change, actor, run_id, before)
    text = changes.get("text", row.text)
    anew = {"text", "kind"} & set(changes)
    beside = index.neighbours(tx, row.id) if "text" in changes else []
    if anew:
        _unindex(tx, row.id)
    sets = ", ".join(f"{name} = ?" for name in changes)
    tx.execute(
        f"UPDATE memories SET {sets}, version = ?, updated_us = ? WHERE id = ?",
        (*changes.values(), version, tx.now_us, row.id),
    )
    if anew:
        _index_anew(tx, row.id, vector)
        size = len(text.encode("utf-8", "surrogatepass")) - len(row.text.encode("utf-8", "surrogatepass"))
        space = tx.execute("SELECT namespace_id FROM memories WHERE id = ?", (row.id,))[0][0]
        _count(tx, space, 0, size)
    else:
        rest = {name: value for name, value in changes.items() if name not in ("text", "kind")}
        sets = ", ".join(f"{name} = ?" for name in rest)
        tx.execute(f"UPDATE memories SET {sets} WHERE part_of = ?", (*rest.values(), row.id))
    for other in beside:
        index.refresh(tx, other)
    assert row.memory_id is not None
    data = MemoryAddedData(
        memory_id=row.memory_id,
        namespace=row.namespace,
        kind=changes.get("kind", row.kind),
        version=version,
        session_id=row.session_id or UNSET,
    )
    tx.emit(entry(f"memory:{row.namespace}", "memory.added", data))


def _index_anew(tx: Tx, rowid: int, vector: bytes | None) -> None:
    """Index a record by what its row says now."""
    row = records.by_ids_tx(tx, [rowid])[0]
    space = int(tx.execute("SELECT namespace_id FROM memories WHERE id = ?", (rowid,))[0][0])
    digest = None if row.kind == "turn" else records.fingerprint(row.namespace, row.kind, row.speaker, row.text)
    long = len(row.text) > WHOLE and vector is None
    tx.execute(
        "UPDATE memories SET hash = ?, indexed = ?, embedded = 0, near_of = NULL WHERE id = ?",
        (digest, int(not long), rowid),
    )
    if long:
        source = records.source_of(row)
        new = New(
            memory_id="", namespace=row.namespace, kind=row.kind, text=row.text, author=row.author, trust=row.trust,
            metadata=row.metadata, speaker=row.speaker, session_id=row.session_id, run_id=row.run_id,
            source=source if isinstance(source, wire.MemorySource) else None, time_us=row.time_us,
            valid_from_us=row.valid_from_us, valid_to_us=row.valid_to_us, expires_us=row.expires_us,
        )  # fmt: skip
        _cut(tx, rowid, new, space)
        return
    index.put(tx, rowid)
    if vector is not None:
        give_vector(tx, rowid, space, vector)


def _unindex(tx: Tx, rowid: int) -> None:
    """Take a record, or the passages of a long one, out of words and vectors; the passages go altogether."""
    for (part,) in tx.execute("SELECT id FROM memories WHERE part_of = ?", (rowid,)):
        index.remove(tx, part)
        vectors.remove(tx, part)
    tx.execute("DELETE FROM memories WHERE part_of = ?", (rowid,))
    index.remove(tx, rowid)
    vectors.remove(tx, rowid)


# ---- going -----------------------------------------------------------------------------------------------


def erase(tx: Tx, rowids: Iterable[int], reason: str) -> list[str]:
    """Delete records with index, vectors and history; returns their ids. Those that are not there are passed over.

    Where a duplicate stays, the oldest takes the place of the record that goes.
    """
    gone: list[str] = []
    rows = records.by_ids_tx(tx, rowids)
    going = {row.id for row in rows}
    beside: set[int] = set()
    for row in rows:
        beside.update(index.neighbours(tx, row.id))
        space = int(tx.execute("SELECT namespace_id FROM memories WHERE id = ?", (row.id,))[0][0])
        _unindex(tx, row.id)
        heirs = [
            int(i)
            for (i,) in tx.execute("SELECT id FROM memories WHERE duplicate_of = ? ORDER BY id", (row.id,))
            if i not in going
        ]
        if row.duplicate_of is None:
            _count(tx, space, -1, -len(row.text.encode("utf-8", "surrogatepass")))
        else:
            tx.execute("UPDATE memories SET duplicates = duplicates - 1 WHERE memory_id = ?", (row.duplicate_of,))
        tx.execute("DELETE FROM memory_history WHERE memory = ?", (row.id,))
        tx.execute("DELETE FROM memory_links WHERE source = ? OR derived = ?", (row.id, row.id))
        tx.execute("DELETE FROM memory_imports WHERE memory = ?", (row.id,))
        tx.execute("UPDATE memories SET near_of = NULL WHERE near_of = ?", (row.id,))
        tx.execute("UPDATE memories SET superseded_by = NULL WHERE superseded_by = ?", (row.id,))
        tx.execute("DELETE FROM memories WHERE id = ?", (row.id,))
        if heirs and row.duplicate_of is None:
            _inherit(tx, heirs, space)
        assert row.memory_id is not None
        gone.append(row.memory_id)
        data = MemoryDeletedData(memory_id=row.memory_id, namespace=row.namespace, reason=reason)
        tx.emit(entry(f"memory:{row.namespace}", "memory.deleted", data))
    for other in beside - going:
        index.refresh(tx, other)
    return gone


def step_down(tx: Tx, row: records.Row) -> None:
    """Where others say the same as this record, which is about to be closed, the oldest of them stands for it now."""
    heirs = [int(i) for (i,) in tx.execute("SELECT id FROM memories WHERE duplicate_of = ? ORDER BY id", (row.id,))]
    if heirs:
        space = int(tx.execute("SELECT namespace_id FROM memories WHERE id = ?", (row.id,))[0][0])
        tx.execute("UPDATE memories SET duplicates = 0 WHERE id = ?", (row.id,))
        _inherit(tx, heirs, space)


def _inherit(tx: Tx, heirs: list[int], space: int) -> None:
    """The first of several duplicates becomes the record that stands for them."""
    first, *rest = heirs
    tx.execute("UPDATE memories SET duplicate_of = NULL, duplicates = ? WHERE id = ?", (len(rest), first))
    for other in rest:
        tx.execute("UPDATE memories SET duplicate_of = ? WHERE id = ?", (first, other))
    _index_anew(tx, first, None)
    size = tx.execute("SELECT length(CAST(text AS BLOB)) FROM memories WHERE id = ?", (first,))[0][0]
    _count(tx, space, 1, int(size))


def with_derived(tx: Tx, rowids: Iterable[int]) -> list[int]:
    """These records and all that was made of them, and of that."""
    found = dict.fromkeys(rowids)
    ahead = list(found)
    while ahead:
        for (derived,) in tx.execute("SELECT derived FROM memory_links WHERE source = ?", (ahead.pop(),)):
            if derived not in found:
                found[int(derived)] = None
                ahead.append(int(derived))
    return list(found)
