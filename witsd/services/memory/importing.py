"""Records that come from elsewhere: each is written once, and takes the place of the one it was before.

What it comes from is named by ``key`` and ``part``. Under one name the same text is known, so an import that was broken
off is simply run again; another text closes the record that was.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Sequence

import attrs

from witsd.journal.journal import Tx
from witsd.services.memory import access, hygiene, records, store, vectors
from witsd.services.memory.recall import without_recalled
from witsd.values.actor import Actor
from witsd.values.errors import InvalidParams
from witsd.values.wire import memory as wire
from witsd.values.wire.common import UNSET, UnsetType

_ID = re.compile("mem_[0-9A-Za-z_-]{1,100}")


@attrs.frozen(kw_only=True)
class Coming:
    """An item, checked. ``new`` has an id of its own, to be taken where the item's is not free."""

    item: wire.MemoryItem
    new: store.New
    key: str
    hash: bytes
    created_us: int | None
    vectors: tuple[bytes, ...]


def checked(item: wire.MemoryItem, fresh: str, actor: Actor, path: str) -> Coming:
    """Raises ``InvalidParams``, ``PermissionDenied`` and ``LimitExceeded``, naming the field."""
    access.require(actor, item.namespace, lambda _: None)
    text = without_recalled(records.checked_text(item.text, f"{path}.text"))
    source = item.source if isinstance(item.source, wire.MemorySource) else None
    trust = item.trust if isinstance(item.trust, str) else None
    new = store.New(
        memory_id=fresh,
        namespace=item.namespace,
        kind=item.kind,
        text=text,
        author=item.author if isinstance(item.author, str) else actor.label,
        trust=access.trust_for(actor, trust, source, 9),
        metadata=records.encoded_metadata(item.metadata or None, f"{path}.metadata"),
        speaker=item.speaker,
        session_id=item.session_id or None,
        message_id=item.message_id or None,
        run_id=item.run_id or None,
        source=source,
        time_us=_micros(item.time, f"{path}.time"),
        valid_from_us=_micros(item.valid_from, f"{path}.valid_from"),
        valid_to_us=_micros(item.valid_to, f"{path}.valid_to"),
        expires_us=_micros(item.expires_at, f"{path}.expires_at"),
        dedupe=item.kind != "turn",
    )
    key = item.key or (f"memory:{item.memory_id}" if item.memory_id else "")
    if not key:
        raise InvalidParams(f"{path}: give a key or a memory_id, by which it is known again", path=f"{path}.key")
    if isinstance(item.memory_id, str) and not _ID.fullmatch(item.memory_id):
        raise InvalidParams(f"{path}.memory_id: {item.memory_id[:40]!r} is no id of a memory", path=f"{path}.memory_id")
    try:
        packed = tuple(base64.b64decode(one, validate=True) for one in item.vectors)
    except binascii.Error:
        raise InvalidParams(f"{path}.vectors: this is no base64", path=f"{path}.vectors") from None
    digest = hashlib.sha256("\0".join((item.kind, item.speaker, text)).encode("utf-8", "surrogatepass")).digest()
    return Coming(
        item=item, new=new, key=key, hash=digest, created_us=_micros(item.created_at, f"{path}.created_at"),
        vectors=packed,
    )  # fmt: skip


def _micros(moment: str | UnsetType, path: str) -> int | None:
    return records.micros(moment, path) if isinstance(moment, str) else None


def bring_in(
    tx: Tx,
    coming: Iterable[Coming],
    whole: Iterable[wire.MemoryWhole],
    packed: tuple[str | None, str | None],
    actor: Actor,
) -> wire.MemoryImportResult:
    """Write what is not there yet. ``packed``: model and digest of the vectors that come along."""
    among = vectors.current(vectors.generations_tx(tx))
    if among is not None and (among.model, among.digest) != packed:
        among = None
    added = known = closed = 0
    for one in coming:
        if not one.new.text.strip():
            known += 1  # all of it was recalled from memory, where it is
            continue
        space = records.namespace_id(tx, one.new.namespace)
        earlier = tx.execute(
            "SELECT hash, memory FROM memory_imports WHERE namespace_id = ? AND key = ? AND part = ?",
            (space, one.key, one.item.part),
        )
        if earlier and earlier[0][0] == one.hash:
            known += 1
            continue
        new = _with_id(tx, one)
        if new is None:
            known += 1
            continue
        rowid, by = _write(tx, one, new, among)
        added += 1
        if earlier:
            closed += _close(tx, int(earlier[0][1]), by, actor)
        tx.execute(
            "INSERT OR REPLACE INTO memory_imports VALUES (?,?,?,?,?)",
            (space, one.key, one.item.part, one.hash, rowid),
        )
    for document in whole:
        space = records.namespace_id(tx, document.namespace)
        beyond = tx.execute(
            "DELETE FROM memory_imports WHERE namespace_id = ? AND key = ? AND part >= ? RETURNING memory",
            (space, document.key, document.parts),
        )
        closed += sum(_close(tx, int(rowid), None, actor) for (rowid,) in beyond)
    return wire.MemoryImportResult(added=added, known=known, closed=closed)


def _with_id(tx: Tx, one: Coming) -> store.New | None:
    """The record with its own id, or where that is another namespace's with a fresh one; None: it is here already."""
    if not isinstance(one.item.memory_id, str):
        return one.new
    there = tx.execute(
        f"SELECT n.name FROM {records.FROM} WHERE m.memory_id = ?", (one.item.memory_id,)
    )
    if not there:
        return attrs.evolve(one.new, memory_id=one.item.memory_id)
    if there[0][0] == one.new.namespace and one.item.key is UNSET:
        return None
    return one.new


def _write(tx: Tx, one: Coming, new: store.New, among: vectors.Generation | None) -> tuple[int, int]:
    """The number of the new row, and of the record that stands for it."""
    by, _ = store.add(tx, new)
    rowid = int(tx.execute("SELECT id FROM memories WHERE memory_id = ?", (new.memory_id,))[0][0])
    created = tx.now_us if one.created_us is None else one.created_us
    tx.execute(
        "UPDATE memories SET created_us = ?, updated_us = ?, uses = ? WHERE id = ?",
        (created, created, one.item.uses, rowid),
    )
    for other in one.item.derived_from:
        tx.execute(
            "INSERT OR IGNORE INTO memory_links SELECT id, ? FROM memories WHERE memory_id = ?", (rowid, other)
        )
    # Which of the two comes first is not known: whoever comes second links them.
    if isinstance(one.item.superseded_by, str):
        _link(tx, new.memory_id, one.item.superseded_by)
    for other in one.item.supersedes:
        _link(tx, other, new.memory_id)
    if among is not None and by == rowid:
        _place(tx, among, rowid, one.vectors)
    return rowid, by


def _link(tx: Tx, old: str, successor: str) -> None:
    """``old`` was closed by ``successor``, where both are there; its validity came with it."""
    tx.execute(
        "UPDATE memories SET superseded_by = s.id FROM (SELECT id FROM memories WHERE memory_id = ?1) AS s "
        "WHERE memory_id = ?2 OR part_of = (SELECT id FROM memories WHERE memory_id = ?2)",
        (successor, old),
    )


def _place(tx: Tx, among: vectors.Generation, rowid: int, packed: Sequence[bytes]) -> None:
    """The vectors that came along, one for each passage; where they do not fit, the queue makes new ones."""
    passages = tx.execute(
        "SELECT id, namespace_id FROM memories WHERE (id = ?1 OR part_of = ?1) AND indexed = 1 ORDER BY place",
        (rowid,),
    )
    if len(packed) != len(passages) or any(len(one) != among.dimensions for one in packed):
        return
    for (passage, space), vector in zip(passages, packed, strict=True):
        vectors.put(tx, among, int(passage), int(space), vector)


def _close(tx: Tx, rowid: int, by: int | None, actor: Actor) -> int:
    """It no longer holds: ``by`` has taken its place, or nothing has. Returns how many were closed."""
    rows = records.by_ids_tx(tx, [rowid])
    if not rows or rows[0].superseded_by is not None or rowid == by:
        return 0
    row = rows[0]
    store.step_down(tx, row)
    if by is not None:
        hygiene.close(tx, row, by, actor.label, None)
    elif row.duplicate_of is None:
        store.update(tx, row, {"valid_to_us": tx.now_us}, actor.label, None, None)
    else:  # a duplicate is not found anyway
        tx.execute("UPDATE memories SET valid_to_us = ? WHERE id = ?", (tx.now_us, rowid))
    return 1
