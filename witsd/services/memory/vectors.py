"""Vectors: one table for each generation of one embedding model, so that two models are never mixed.

A vector has length 1 and is stored as int8, each number times 127; the L2 distance ``d`` of two of them makes their
cosine, ``1 - d² / (2 * 127²)``.

A search among thousands of vectors looks at their signs first, one bit for each number in a table of its own, and then
at the vectors of the best.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import apsw
import attrs
import msgspec

from witsd.journal.journal import Tx
from witsd.values.errors import InvalidParams

_SCALE = 127
#: What is shorter is no vector: dividing by its length would give no number.
_LEAST = 1e-300
_ABOVE = bytes(49 if 0 < value < 128 else 48 for value in range(256))  # "1" and "0"
#: Rows of a chunk of vec0: its default of 1024 wastes ten times as much with small namespaces.
_CHUNK_ROWS = 128
#: One in so many is in a part of its own, which tells how near the nearest by signs are before all are read.
_SAMPLED = 16
#: Where that part has fewer than so many, every vector is looked at.
_SAMPLE = 200
#: Else about ``_SAMPLED`` times as many are taken by their signs, at most so many.
_SAMPLE_K = 20
_COARSE_K = 2048
_decode_pairs = msgspec.json.Decoder(list[tuple[int, float]]).decode
#: vec0 takes no larger k.
MAX_K = 4096


@attrs.frozen
class Generation:
    """One embedding model with one digest. ``embedder`` finds it again."""

    number: int
    embedder: str
    model: str
    digest: str
    dimensions: int
    state: str

    @property
    def table(self) -> str:
        return f"memory_vectors_{self.number}"

    @property
    def coarse(self) -> str:
        return f"memory_signs_{self.number}"

    @property
    def bits(self) -> int:
        """Signs are stored in whole bytes."""
        return self.dimensions // 8 * 8


def generations(db: apsw.Connection) -> list[Generation]:
    """Those with vectors: the one that is searched, and the one being filled to take over."""
    return [
        Generation(*values)
        for values in db.execute(
            "SELECT generation, embedder, model, digest, dimensions, state FROM memory_generations "
            "WHERE state <> 'retired' ORDER BY generation"
        )
    ]


def generations_tx(tx: Tx) -> list[Generation]:
    return [
        Generation(*values)
        for values in tx.execute(
            "SELECT generation, embedder, model, digest, dimensions, state FROM memory_generations "
            "WHERE state <> 'retired' ORDER BY generation"
        )
    ]


def current(found: Iterable[Generation]) -> Generation | None:
    return next((g for g in found if g.state == "current"), None)


def same_model(one: Generation, other: Generation) -> bool:
    """Whether vectors of the one can be compared with those of the other."""
    return (one.model, one.digest, one.dimensions) == (other.model, other.digest, other.dimensions)


def begin(tx: Tx, embedder: str, model: str, digest: str, dimensions: int) -> Generation:
    """The generation of this model, made where it is not there yet.

    The first is searched at once. A later one is filled first (``finish``); one that was being filled for yet another
    model is given up.
    """
    found = generations_tx(tx)
    newest = found[-1] if found else None
    if newest is not None and (newest.model, newest.digest, newest.dimensions) == (model, digest, dimensions):
        if newest.embedder != embedder:
            tx.execute(
                "UPDATE memory_generations SET embedder = ? WHERE generation = ?", (embedder, newest.number)
            )
        return attrs.evolve(newest, embedder=embedder)
    return _make(tx, found, embedder, model, digest, dimensions)


def begin_anew(tx: Tx) -> None:
    """Fill another table with vectors of the model that was begun last, to take over; nothing where there is none."""
    found = generations_tx(tx)
    if found:
        newest = found[-1]
        _make(tx, found, newest.embedder, newest.model, newest.digest, newest.dimensions)


def _make(
    tx: Tx, found: Sequence[Generation], embedder: str, model: str, digest: str, dimensions: int
) -> Generation:
    for unfinished in found:
        if unfinished.state == "building":
            _retire(tx, unfinished)
    state = "building" if current(found) else "current"
    number = int(tx.execute("SELECT COALESCE(max(generation), 0) + 1 FROM memory_generations")[0][0])
    made = Generation(number, embedder, model, digest, dimensions, state)
    tx.execute(
        "INSERT INTO memory_generations VALUES (?,?,?,?,?,?,?)",
        (number, embedder, model, digest, dimensions, state, tx.now_us),
    )
    tx.execute(
        f"CREATE VIRTUAL TABLE {made.table} USING vec0("
        f"namespace INTEGER PARTITION KEY, embedding int8[{dimensions}], chunk_size={_CHUNK_ROWS})"
    )
    if made.bits:
        tx.execute(
            f"CREATE VIRTUAL TABLE {made.coarse} USING vec0("
            f"namespace INTEGER PARTITION KEY, sampled INTEGER PARTITION KEY, signs bit[{made.bits}], "
            f"chunk_size={_CHUNK_ROWS})"
        )
    return made


def wanted(tx: Tx, generation: Generation) -> bool:
    """Whether it has not been given up since it was looked at."""
    return any(g.number == generation.number for g in generations_tx(tx))


def finish(tx: Tx, building: Generation) -> None:
    """Search this one from now on; what the earlier one had goes."""
    for old in generations_tx(tx):
        if old.state == "current":
            _retire(tx, old)
    tx.execute("UPDATE memory_generations SET state = 'current' WHERE generation = ?", (building.number,))


def _retire(tx: Tx, old: Generation) -> None:
    tx.execute("UPDATE memory_generations SET state = 'retired' WHERE generation = ?", (old.number,))
    tx.execute(f"DROP TABLE {old.table}")
    tx.execute(f"DROP TABLE IF EXISTS {old.coarse}")


def put(tx: Tx, into: Generation, rowid: int, namespace_id: int, packed: bytes) -> None:
    """Store a record's vector in place of the one it had: vec0 knows no REPLACE."""
    # To look in vec0 for what is not there takes as long as to write it.
    if tx.execute("SELECT 1 FROM memories WHERE id = ? AND embedded >= ?", (rowid, into.number)):
        _delete(tx, into, rowid)
    tx.execute(
        f"INSERT INTO {into.table}(rowid, namespace, embedding) VALUES (?, ?, vec_int8(?))",
        (rowid, namespace_id, packed),
    )
    if into.bits:
        tx.execute(
            f"INSERT INTO {into.coarse}(rowid, namespace, sampled, signs) VALUES (?, ?, ?, vec_bit(?))",
            (rowid, namespace_id, int(rowid % _SAMPLED == 0), signs(packed, into.bits)),
        )
    tx.execute("UPDATE memories SET embedded = ? WHERE id = ?", (into.number, rowid))


def remove(tx: Tx, rowid: int) -> None:
    """Delete a record's vectors."""
    for generation in generations_tx(tx):
        _delete(tx, generation, rowid)


def _delete(tx: Tx, generation: Generation, rowid: int) -> None:
    tx.execute(f"DELETE FROM {generation.table} WHERE rowid = ?", (rowid,))
    if generation.bits:
        tx.execute(f"DELETE FROM {generation.coarse} WHERE rowid = ?", (rowid,))


def signs(packed: bytes, bits: int) -> bytes:
    """One bit for each of the first ``bits`` numbers: whether it is above 0."""
    # Bytes 1 to 127 are above 0, 0 and 128 to 255 are not.
    return int(packed[:bits].translate(_ABOVE), 2).to_bytes(bits // 8, "big")


def pack(vector: Sequence[float], path: str = "params.vector") -> bytes:
    """A vector of any length as stored. Raises ``InvalidParams`` for one with what is no number."""
    length = math.hypot(*vector)
    if not _LEAST < length < math.inf:
        raise InvalidParams(f"{path} holds what is no number, or is nothing but zeros", path=path)
    factor = _SCALE / length
    return array("b", [round(value * factor) for value in vector]).tobytes()


def check(packed: bytes, among: Generation, path: str = "params.vector") -> bytes:
    """Raises ``InvalidParams`` for a vector of another size than those it is to be compared with."""
    if len(packed) != among.dimensions:
        raise InvalidParams(
            f"{path} has {len(packed)} numbers, and the model in use has {among.dimensions}: see memory/stats",
            path=path,
        )
    return packed


def nearest(
    db: apsw.Connection,
    among: Generation,
    packed: bytes,
    k: int,
    *,
    namespace_ids: Sequence[int] | None,
    only: str | None = None,
) -> list[tuple[int, float]]:
    """``(rowid, cosine)`` of the nearest, best first. ``only``: a JSON array of the rowids that count.

    ``namespace_ids`` None is all of them.
    """
    k = min(k, MAX_K)
    where, values = "embedding MATCH vec_int8(?) AND k = ?", [packed, k]
    if only is not None:
        where += " AND rowid IN (SELECT value FROM json_each(?))"
        values.append(only)
    found: list[tuple[int, float]] = []
    sql = f"SELECT rowid, distance FROM {among.table} WHERE {where}"
    # Joined from the left, row by row: asked with IN, vec0 reads everything.
    exact = (
        f"SELECT v.rowid, vec_distance_l2(v.embedding, vec_int8(?)) FROM json_each(?) AS j "
        f"CROSS JOIN {among.table} AS v WHERE v.rowid = j.value"
    )
    for namespace_id in (None,) if namespace_ids is None else namespace_ids:
        inside, space = ("", ()) if namespace_id is None else (" AND namespace = ?", (namespace_id,))
        likely = None if only is not None else _by_signs(db, among, packed, k, inside, space)
        if likely is None:
            found += pairs(db, sql + inside, (*values, *space))
        else:
            found += pairs(db, exact, (packed, str(likely)))
    found.sort(key=lambda one: one[1])
    return [(rowid, 1 - distance * distance / (2 * _SCALE * _SCALE)) for rowid, distance in found[:k]]


def pairs(db: apsw.Connection, sql: str, values: Sequence[Any]) -> list[tuple[int, float]]:
    """The two columns of a query that begins with ``SELECT first, second FROM``.

    In one piece: for every row that SQLite hands over by itself, the thread may have to wait for Python's lock again.
    """
    columns, _, rest = sql.removeprefix("SELECT ").partition(" FROM ")
    return _decode_pairs(db.execute(f"SELECT json_group_array(json_array({columns})) FROM {rest}", values).get)


def _by_signs(
    db: apsw.Connection, among: Generation, packed: bytes, k: int, inside: str, space: Sequence[Any]
) -> list[int] | None:
    """The rowids of some hundreds that are likely to be the nearest; None where so few are ``inside`` that all may be
    looked at.

    vec0's time grows with the number of rows times k, unless it is told a distance beyond which nothing counts.
    """
    if not among.bits:
        return None
    asked = signs(packed, among.bits)
    sql = f"SELECT rowid, distance FROM {among.coarse} WHERE signs MATCH vec_bit(?) AND k = ?{inside}"
    sample = pairs(db, f"{sql} AND sampled = 1", (asked, _SAMPLE, *space))
    if len(sample) < _SAMPLE:
        return None
    within = sorted(distance for _, distance in sample)[min(max(_SAMPLE_K, k // 10), _SAMPLE) - 1]
    return [rowid for rowid, _ in pairs(db, f"{sql} AND distance <= ?", (asked, _COARSE_K, *space, within))]
