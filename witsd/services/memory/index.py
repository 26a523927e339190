"""The text index: a record's words and those around it, written in the transaction of the record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


def put(tx: Tx, rowid: int, *, newest: bool = False) -> None:
    """Index a record that is in the table already, and tell its neighbours before it.

    ``newest``: it has only just come, so that nothing stands after it.
    """
    values = tx.execute(
        "SELECT namespace_id, text, heading, speaker, time_us, session_id, part_of, place FROM memories WHERE id = ?",
        (rowid,),
    )
    namespace_id, text, heading, speaker, time_us, session_id, part_of, place = values[0]
    before = _beside(tx, rowid, namespace_id, session_id, part_of, place, after=False, limit=2 * NEIGHBOURS)
    after = [] if newest else _beside(tx, rowid, namespace_id, session_id, part_of, place, after=True, limit=NEIGHBOURS)
    own = f"{heading}\n{text}" if heading else text
    words = indexed(
        own,
        speaker=speaker,
        time_us=time_us,
        before=[t for _, t in before[-NEIGHBOURS:]],
        after=[t for _, t in after],
    )
    tx.execute(_INSERT, (rowid, word_of(namespace_id), words.text, words.around))
    here = [*before, (rowid, text[:_NEIGHBOUR_CHARS]), *after]
    _retell(tx, here, range(max(0, len(before) - NEIGHBOURS), len(before)))


def remove(tx: Tx, rowid: int) -> None:
    """Take a record out of the index, before it goes from the table or changes there."""
    tx.execute("DELETE FROM memory_fts WHERE rowid = ?", (rowid,))


def neighbours(tx: Tx, rowid: int) -> list[int]:
    """The records whose words around them include this one's, by id."""
    values = tx.execute("SELECT namespace_id, session_id, part_of, place FROM memories WHERE id = ?", (rowid,))
    if not values:
        return []
    found = []
    for after in (False, True):
        found += [i for i, _ in _beside(tx, rowid, *values[0], after=after, limit=NEIGHBOURS)]
    return found


def refresh(tx: Tx, rowid: int) -> None:
    """Write anew what stands around a record whose neighbours have changed."""
    values = tx.execute("SELECT namespace_id, session_id, part_of, place FROM memories WHERE id = ?", (rowid,))
    if not values:
        return
    before = _beside(tx, rowid, *values[0], after=False, limit=NEIGHBOURS)
    after = _beside(tx, rowid, *values[0], after=True, limit=NEIGHBOURS)
    _retell(tx, [*before, (rowid, ""), *after], range(len(before), len(before) + 1))


def _retell(tx: Tx, here: Sequence[tuple[int, str]], places: range) -> None:
    for place in places:
        before = [text for _, text in here[max(0, place - NEIGHBOURS) : place]]
        after = [text for _, text in here[place + 1 : place + 1 + NEIGHBOURS]]
        tx.execute(_AROUND, (indexed("", before=before, after=after).around, here[place][0]))


def _beside(
    tx: Tx,
    rowid: int,
    namespace_id: int,
    session_id: str | None,
    part_of: int | None,
    place: int | None,
    *,
    after: bool,
    limit: int,
) -> list[tuple[int, str]]:
    """What is next to a record, in its order: passages of one text, or turns of one session in one namespace."""
    compare, order = (">", "ASC") if after else ("<", "DESC")
    values: tuple[Any, ...]
    if part_of is not None:
        sql = f"SELECT id, {_OWN} FROM memories WHERE part_of = ? AND place {compare} ? ORDER BY place {order} LIMIT ?"
        values = (part_of, place, limit)
    elif session_id is not None:
        sql = (
            f"SELECT id, {_OWN} FROM memories WHERE session_id = ? AND namespace_id = ? AND id {compare} ? "
            f"AND indexed = 1 AND part_of IS NULL ORDER BY id {order} LIMIT ?"
        )
        values = (session_id, namespace_id, rowid, limit)
    else:
        return []
    found = [(int(i), str(t)) for i, t in tx.execute(sql, values)]
    return found if after else found[::-1]
