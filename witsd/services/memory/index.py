"""The text index: a record's words and those around it, written in the transaction of the record, at its end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from witsd.journal.journal import Tx
from witsd.services.memory.words import NEIGHBOURS, indexed

#: So much of a neighbour counts, in characters.
_NEIGHBOUR_CHARS = 1000

_INSERT = "INSERT INTO memory_fts(rowid, ns, own, around) VALUES (?, ?, ?, ?)"
_AROUND = "UPDATE memory_fts SET around = ? WHERE rowid = ?"
_OWN = f"substr(text, 1, {_NEIGHBOUR_CHARS})"


def word_of(namespace_id: int) -> str:
    """A namespace as a word of the index."""
    return f"n{namespace_id}"


def put(tx: Tx, rowid: int) -> None:
    """Index a record that is in the table already, and tell its neighbours, before the batch is committed."""
    tx.later(_write, (rowid, True))


def refresh(tx: Tx, rowid: int) -> None:
    """Write anew what stands around a record whose neighbours have changed."""
    tx.later(_write, (rowid, False))


def remove(tx: Tx, rowid: int) -> None:
    """Take a record out of the index, before it goes from the table or changes there."""
    tx.execute("DELETE FROM memory_fts WHERE rowid = ?", (rowid,))


def neighbours(tx: Tx, rowid: int) -> list[int]:
    """The records whose words around them include this one's, by id."""
    found = []
    for place in _places(tx, (rowid,)):
        before = _beside(tx, place, after=False, limit=NEIGHBOURS)
        after = _beside(tx, place, after=True, limit=NEIGHBOURS + 1)
        found += [other for other, _ in (*before, *after) if other != rowid]
    return found


# ---- at the end of a batch -------------------------------------------------------------------------------


def _write(tx: Tx, keys: Sequence[tuple[int, bool]]) -> None:
    """Index these records, of which those marked True are not in the index yet, and tell the neighbours of those.

    In the order of their numbers: FTS5 writes out what it has gathered whenever a smaller one comes.
    """
    new = {rowid for rowid, is_new in keys if is_new}
    places = _places(tx, {rowid for rowid, _ in keys})
    around: dict[int, _Around] = {}
    rows: dict[tuple[Any, ...], list[_Place]] = {}
    for place in places:
        if place.row is None:
            around[place.rowid] = _Around()
        elif place.rowid in new:
            rows.setdefault(place.row, []).append(place)
    for neighbours_of in rows.values():
        _look_around(tx, neighbours_of, around)
    for place in places:
        if place.rowid not in around:
            _look_around(tx, [place], around, only=place.rowid)
    texts = _texts(tx, new)
    for rowid in sorted(around):
        near = around[rowid]
        if rowid in texts:
            namespace_id, own, speaker, time_us = texts[rowid]
            words = indexed(own, speaker=speaker, time_us=time_us, before=near.before, after=near.after)
            tx.execute(_INSERT, (rowid, word_of(namespace_id), words.text, words.around))
        else:
            tx.execute(_AROUND, (indexed("", before=near.before, after=near.after).around, rowid))


@attrs.frozen
class _Place:
    """Where a record stands: ``row`` is what its neighbours have in common with it (None: it has none), ``at`` its
    place among them."""

    rowid: int
    row: tuple[Any, ...] | None
    at: int


@attrs.frozen
class _Around:
    before: Sequence[str] = ()
    after: Sequence[str] = ()


def _places(tx: Tx, rowids: Iterable[int]) -> list[_Place]:
    """Of those that are there and indexed, in their order."""
    found = tx.execute(
        "SELECT id, namespace_id, session_id, part_of, place FROM memories "
        "WHERE id IN (SELECT value FROM json_each(?)) AND indexed = 1 ORDER BY id",
        (str(list(rowids)),),
    )
    places = []
    for rowid, namespace_id, session_id, part_of, place in found:
        if part_of is not None:
            places.append(_Place(rowid, (part_of,), place))
        else:
            places.append(_Place(rowid, None if session_id is None else (session_id, namespace_id), rowid))
    return places


def _texts(tx: Tx, rowids: Iterable[int]) -> dict[int, tuple[int, str, str, int]]:
    """rowid -> (namespace, what it says, speaker, time)."""
    found = tx.execute(
        "SELECT id, namespace_id, text, heading, speaker, time_us FROM memories "
        "WHERE id IN (SELECT value FROM json_each(?)) AND indexed = 1",
        (str(list(rowids)),),
    )
    return {
        rowid: (namespace_id, f"{heading}\n{text}" if heading else text, speaker, time_us)
        for rowid, namespace_id, text, heading, speaker, time_us in found
    }


def _look_around(tx: Tx, places: Sequence[_Place], around: dict[int, _Around], only: int | None = None) -> None:
    """Fill ``around`` for these places of one row, in their order, and for their neighbours (or for ``only``)."""
    left = list(places)
    while left:
        before = _beside(tx, left[0], after=False, limit=2 * NEIGHBOURS)
        most = len(left) + 2 * NEIGHBOURS
        following = _beside(tx, left[0], after=True, limit=most)
        # Whoever is near the end of what was read may have more beside it: that one is looked at by itself.
        whole = following if len(following) < most else following[: -2 * NEIGHBOURS]
        seen = {rowid for rowid, _ in whole}
        here = [*before, *following]
        wanted = {place.rowid for place in left if place.rowid in seen}
        for centre, (rowid, _) in enumerate(here):
            if rowid in wanted:
                for n in range(max(0, centre - NEIGHBOURS), min(len(here), centre + NEIGHBOURS + 1)):
                    if only is None or here[n][0] == only:
                        around[here[n][0]] = _Around(
                            [text for _, text in here[max(0, n - NEIGHBOURS) : n]],
                            [text for _, text in here[n + 1 : n + 1 + NEIGHBOURS]],
                        )
        left = [place for place in left if place.rowid not in seen]


def _beside(tx: Tx, place: _Place, *, after: bool, limit: int) -> list[tuple[int, str]]:
    """What stands before a place, or from it on, in its order: passages of one text, or turns of one session in one
    namespace."""
    if place.row is None:
        return []
    compare, order = (">=", "ASC") if after else ("<", "DESC")
    if len(place.row) == 1:
        sql = f"SELECT id, {_OWN} FROM memories WHERE part_of = ? AND place {compare} ? ORDER BY place {order} LIMIT ?"
    else:
        sql = (
            f"SELECT id, {_OWN} FROM memories WHERE session_id = ? AND namespace_id = ? AND id {compare} ? "
            f"AND indexed = 1 AND part_of IS NULL ORDER BY id {order} LIMIT ?"
        )
    found = [(int(i), str(t)) for i, t in tx.execute(sql, (*place.row, place.at, limit))]
    return found if after else found[::-1]
