"""Keeping it clean: the same said twice is linked and counted, what is no longer true is closed, what is old goes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from witsd.journal.journal import Tx
from witsd.services.memory import records, vectors

#: From this cosine on, two texts say nearly the same.
NEAR = 0.95
_NUMBER = re.compile(r"\d+")
_encode = msgspec.json.Encoder().encode


def same(tx: Tx, fingerprint: bytes) -> int | None:
    """The record that says exactly this already, and still holds."""
    found = tx.execute(
        "SELECT id FROM memories WHERE hash = ? AND duplicate_of IS NULL AND superseded_by IS NULL "
        "AND COALESCE(valid_to_us > ?, 1) AND COALESCE(expires_us > ?, 1) ORDER BY id LIMIT 1",
        (fingerprint, tx.now_us, tx.now_us),
    )
    return int(found[0][0]) if found else None


def link_near(
    tx: Tx, among: vectors.Generation, rowid: int, namespace_id: int, packed: bytes, text: str
) -> None:
    """Link a record to the earlier one of its namespace that says nearly the same. Both stay and are found.

    What differs in its numbers says something else, however alike it looks.
    """
    near = tx.execute(
        f"SELECT v.rowid, v.distance FROM {among.table} v "
        "WHERE v.embedding MATCH vec_int8(?) AND v.k = 5 AND v.namespace = ?",
        (packed, namespace_id),
    )
    for other, distance in sorted(near, key=lambda one: one[1]):
        if 1 - distance * distance / (2 * 127 * 127) < NEAR:
            return
        if other >= rowid:
            continue
        found = tx.execute("SELECT text FROM memories WHERE id = ? AND part_of IS NULL AND kind <> 'turn'", (other,))
        if found and _NUMBER.findall(found[0][0]) == _NUMBER.findall(text):
            tx.execute("UPDATE memories SET near_of = ? WHERE id = ?", (other, rowid))
            return


def note_change(
    tx: Tx, row: records.Row, change: str, actor: str, run_id: str | None, before: dict[str, Any]
) -> int:
    """Append to a record's history what it was; returns its new version."""
    tx.execute(
        "INSERT INTO memory_history(memory, version, change, actor, run_id, before, time_us) VALUES (?,?,?,?,?,?,?)",
        (row.id, row.version + 1, change, actor, run_id, _encode(before).decode(), tx.now_us),
    )
    return row.version + 1


def close(tx: Tx, row: records.Row, by: int, actor: str, run_id: str | None) -> None:
    """It is no longer true, because of the record ``by``. It stays, and is left out of what is found."""
    before = {"valid_to_us": row.valid_to_us, "superseded_by": None}
    version = note_change(tx, row, "superseded", actor, run_id, before)
    tx.execute(
        "UPDATE memories SET superseded_by = ?, valid_to_us = COALESCE(valid_to_us, ?), version = ?, updated_us = ? "
        "WHERE id = ?",
        (by, tx.now_us, version, tx.now_us, row.id),
    )
    tx.execute("UPDATE memories SET superseded_by = ?, valid_to_us = COALESCE(valid_to_us, ?) WHERE part_of = ?",
               (by, tx.now_us, row.id))


def over(tx: Tx, namespace_id: int, max_age_us: int, max_records: int, max_bytes: int, most: int) -> Sequence[int]:
    """Up to ``most`` records of a namespace that retention lets go, oldest first; 0 is no bound."""
    old = tx.execute(
        "SELECT id FROM memories WHERE namespace_id = ? AND part_of IS NULL AND time_us < ? ORDER BY time_us LIMIT ?",
        (namespace_id, tx.now_us - max_age_us, most),
    ) if max_age_us else []
    if old:
        return [int(i) for (i,) in old]
    count, size = tx.execute(
        "SELECT records, bytes FROM memory_namespaces WHERE namespace_id = ?", (namespace_id,)
    )[0]
    many = count - max_records if max_records else 0
    large = size - max_bytes if max_bytes else 0
    if many <= 0 and large <= 0:
        return []
    gone: list[int] = []
    for rowid, length in tx.execute(
        "SELECT id, length(CAST(text AS BLOB)) FROM memories WHERE namespace_id = ? AND part_of IS NULL "
        "AND duplicate_of IS NULL ORDER BY time_us, id LIMIT ?",
        (namespace_id, most),
    ):
        if many <= 0 and large <= 0:
            break
        gone.append(int(rowid))
        many -= 1
        large -= length
    return gone
