"""What somebody said of themselves closes what the same person had said of it before: the newest holds.

Only plain statements of what one has one of at a time ("my favourite colour is green") do so, and only records that say
nothing else are closed, so that nothing is lost with them. A closed record stays, and is left out of what is found.
"""

from __future__ import annotations

from witsd.journal.journal import Tx
from witsd.services.memory import hygiene, records, store
from witsd.services.memory.index import word_of
from witsd.services.memory.statements import (
    SAID_AS,
    SPELLINGS,
    Statement,
    may_state,
    only_statement,
    refers_back,
    statements,
    subject_of,
)
from witsd.values.ids import Ids

#: So many records that have the words are looked at, the newest first.
_MOST = 50


def settle(tx: Tx, rowid: int, text: str, ids: Ids) -> None:
    """Close what the record ``rowid``, just written, contradicts; where it tells of an earlier time, close it."""
    if not may_state(text):
        return
    row = _row(tx, rowid)
    if row.trust < records.TRUST["person"] or row.kind not in ("turn", "fact", "preference"):
        return
    if refers_back(row.text):
        _settle_it(tx, row, ids)
    for stated in statements(row.text):
        if stated.single:
            _settle(tx, row, stated)


def _settle_it(tx: Tx, row: records.Row, ids: Ids) -> None:
    """``Now it is green`` tells nothing on its own: what it means is written down beside it, and goes with it.

    It has no speaker: these are not the words that were said.
    """
    for stated in statements(row.text, _subject_before(tx, row)):
        if not stated.single:
            continue
        new = store.New(
            memory_id=ids.new("mem"), namespace=row.namespace, kind="fact",
            text=f"My {stated.about} is {stated.value}.", author=row.author, trust=row.trust,
            session_id=row.session_id, run_id=row.run_id, time_us=row.time_us, dedupe=False,
        )  # fmt: skip
        rowid, _ = store.add(tx, new)
        tx.execute("INSERT OR IGNORE INTO memory_links VALUES (?, ?)", (row.id, rowid))
        _settle(tx, _row(tx, rowid), stated)


def _settle(tx: Tx, row: records.Row, stated: Statement) -> None:
    words = " AND ".join(f"({_either(word)})" for word in stated.about.split())
    expression = f"ns : {_space(tx, row)} AND own : ({words})"
    tx.catch_up()  # with the text index
    found = tx.execute(
        "SELECT m.id FROM memory_fts f JOIN memories m ON m.id = f.rowid "
        "WHERE memory_fts MATCH ? AND m.id <> ? AND m.part_of IS NULL AND m.superseded_by IS NULL "
        "AND m.kind IN ('turn', 'fact', 'preference') AND m.trust = ? "
        "AND COALESCE(NULLIF(m.speaker, ''), m.author) = ? ORDER BY f.rowid DESC LIMIT ?",
        (expression, row.id, records.TRUST["person"], row.speaker or row.author, _MOST),
    )
    for other in [_row(tx, rowid) for (rowid,) in found]:
        told = only_statement(other.text)
        if told is None or told.about != stated.about or told.value.casefold() == stated.value.casefold():
            continue
        if other.time_us <= row.time_us:
            hygiene.close(tx, other, row.id, row.author, row.run_id)
        elif only_statement(row.text) == stated:  # taken in later than it was said
            hygiene.close(tx, row, other.id, row.author, row.run_id)
            return


def _either(word: str) -> str:
    """A word for the text index, in both spellings, and what may stand in its place."""
    forms = (word.replace('"', ""), SPELLINGS.get(word), *SAID_AS.get(word, ()))
    return " OR ".join(f'"{form}"' for form in filter(None, forms))


def _subject_before(tx: Tx, row: records.Row) -> str:
    """What the same person spoke of last in the same conversation; an ``it`` is followed back a few steps."""
    rows = tx.execute(
        "SELECT m.text FROM memories m JOIN memory_namespaces n ON n.namespace_id = m.namespace_id "
        "WHERE m.session_id = ? AND n.name = ? AND m.id < ? AND m.speaker = ? AND m.kind = 'turn' "
        "ORDER BY m.id DESC LIMIT 4",
        (row.session_id, row.namespace, row.id, row.speaker),
    )
    for (text,) in rows:
        if not refers_back(text):
            return subject_of(text)
    return ""


def _space(tx: Tx, row: records.Row) -> str:
    return word_of(records.namespace_id(tx, row.namespace))


def _row(tx: Tx, rowid: int) -> records.Row:
    return records.by_ids_tx(tx, (rowid,))[0]
