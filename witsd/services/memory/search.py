"""Search: candidates by words and by meaning from one moment of the database, blended, each with its reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import apsw
import attrs
import msgspec

from witsd.services.memory import records, vectors
from witsd.services.memory.filters import Condition
from witsd.services.memory.index import word_of
from witsd.services.memory.ranking import Candidate, Mode, Scored, blend, meaning_share
from witsd.services.memory.stems import stem
from witsd.services.memory.words import WEIGHTS, date_words, match, pieces, query_words
from witsd.values.wire import memory as wire
from witsd.values.wire.common import UNSET, UnsetType

#: Candidates taken from each of the two sides; more for pages further on.
CANDIDATES = 200
MOST_CANDIDATES = 2000
#: Namespaces that are asked one by one for what is near; of more, all are asked at once.
_ONE_BY_ONE = 32
#: A filter that leaves so many records is put to the vectors as a list.
_LISTED = 20_000

_BM25 = f"bm25(memory_fts, 0.0, {WEIGHTS[0]}, {WEIGHTS[1]})"
_MATCHING = f"SELECT rowid, {_BM25} AS score FROM memory_fts WHERE memory_fts MATCH ?"
#: Characters at the end of a turn by which it is judged: does it ask, is it short.
_TURN_CHARS = 200
_encode = msgspec.json.Encoder().encode
_decode_about = msgspec.json.Decoder(list[tuple[int, str, str, int, str]]).decode


@attrs.frozen(kw_only=True)
class Question:
    """What is searched for. ``namespace_ids`` None: everywhere. ``vector`` is packed as stored, None where there is
    none; ``among`` the generation it belongs to."""

    query: str
    mode: Mode
    namespace_ids: Sequence[int] | None
    live: Condition
    filter: Condition | None
    vector: bytes | None
    among: vectors.Generation | None
    offset: int
    limit: int
    min_score: float | None


@attrs.frozen
class Found:
    """A page of hits with the numbers of their rows, and whether there may be more."""

    hits: tuple[wire.MemoryHit, ...]
    rowids: tuple[int, ...]
    more: bool


def search(db: apsw.Connection, q: Question) -> Found:
    """The page of ``q``, best first."""
    ranked = rank(db, q, q.offset + q.limit + 1)
    if q.min_score is not None:
        ranked = [one for one in ranked if one.score >= q.min_score]
    page = ranked[q.offset : q.offset + q.limit]
    return Found(hits(db, q, page), tuple(one.rowid for one in page), len(ranked) > q.offset + q.limit)


def rank(db: apsw.Connection, q: Question, most: int | None = None) -> list[Scored]:
    """The best ``most`` candidates of ``q`` (None: all), best first."""
    if q.namespace_ids is not None and not q.namespace_ids:
        return []
    k = min(max(CANDIDATES, 2 * (q.offset + q.limit)), MOST_CANDIDATES)
    expression = _expression(q) if q.mode != "semantic" else None
    by_words = _by_words(db, q, expression, k) if expression else {}
    by_meaning = dict(_by_meaning(db, q, k)) if q.mode != "keyword" else {}
    candidates = _candidates(db, q, by_words, by_meaning)
    if expression and q.filter is None and len(by_words) == k and sum(c.bm25 is not None for c in candidates) < k // 2:
        # Few of the best by words may be shown: take the best of those that may.
        by_words = _by_words_shown(db, q, expression, k)
        candidates = _candidates(db, q, by_words, by_meaning)
    share = meaning_share(q.among.model) if q.among is not None else 0.0
    return blend(candidates, q.query, mode=q.mode, meaning=share, most=most)


def _expression(q: Question) -> str | None:
    """The question for the text index, within its namespaces."""
    words = match(q.query)
    if words is None:
        return None
    if q.namespace_ids is None:
        return f"{{own around}} : ({words})"
    spaces = " OR ".join(f'"{word_of(n)}"' for n in q.namespace_ids)
    return f"ns : ({spaces}) AND {{own around}} : ({words})"


def _by_words(db: apsw.Connection, q: Question, expression: str, k: int) -> dict[int, float]:
    """rowid -> bm25 of the best ``k``; without a filter they are not asked whether they may be shown."""
    if q.filter is not None:
        return _by_words_shown(db, q, expression, k)
    return dict(vectors.pairs(db, f"SELECT rowid, score FROM ({_MATCHING} ORDER BY score LIMIT ?)", (expression, k)))


def _by_words_shown(db: apsw.Connection, q: Question, expression: str, k: int) -> dict[int, float]:
    where, values = _conditions(q)
    shown = (
        f"SELECT f.rowid, f.score FROM ({_MATCHING}) f JOIN memories m ON m.id = f.rowid WHERE {where} "
        "ORDER BY f.score LIMIT ?"
    )
    return dict(vectors.pairs(db, f"SELECT rowid, score FROM ({shown})", (expression, *values, k)))


def _conditions(q: Question) -> tuple[str, tuple[Any, ...]]:
    """What makes a record one that may be shown: SQL, and its values."""
    where, values = [q.live.sql], q.live.values
    if q.filter is not None:
        where.append(q.filter.sql)
        values += q.filter.values
    if q.namespace_ids is not None:
        where.append("m.namespace_id IN (SELECT value FROM json_each(?))")
        values += (_encode(list(q.namespace_ids)).decode(),)
    return " AND ".join(where), values


def _by_meaning(db: apsw.Connection, q: Question, k: int) -> list[tuple[int, float]]:
    """``(rowid, cosine)`` of the nearest; what may not be shown is left out afterwards, by ``_candidates``."""
    if q.vector is None or q.among is None:
        return []
    spaces = q.namespace_ids
    only = None
    if q.filter is not None:
        only = _listed(db, q)
        if only == "[]":
            return []
    if spaces is not None and len(spaces) > _ONE_BY_ONE:
        only = only or _listed(db, q)
        spaces = None
    return vectors.nearest(db, q.among, q.vector, k, namespace_ids=spaces, only=only)


def _listed(db: apsw.Connection, q: Question) -> str | None:
    """The records that may be shown, as a JSON array; None where they are too many to be listed."""
    where, values = _conditions(q)
    rows = db.execute(f"SELECT m.id FROM memories m WHERE {where} LIMIT ?", (*values, _LISTED + 1))
    ids = [rowid for (rowid,) in rows]
    return None if len(ids) > _LISTED else _encode(ids).decode()


def _candidates(
    db: apsw.Connection, q: Question, by_words: Mapping[int, float], by_meaning: Mapping[int, float]
) -> list[Candidate]:
    """Those of what was found that may be shown."""
    if not by_words and not by_meaning:
        return []
    where, values = _conditions(q)
    # In one piece, as ``vectors.pairs`` does.
    told = db.execute(
        "SELECT json_group_array(json_array(m.id, COALESCE(m.session_id, ''), m.speaker, m.time_us, "
        f"CASE m.kind WHEN 'turn' THEN substr(m.text, -{_TURN_CHARS}) ELSE '' END)) FROM memories m "
        f"WHERE m.id IN (SELECT value FROM json_each(?)) AND {where}",
        (_encode([*by_words, *(by_meaning.keys() - by_words.keys())]).decode(), *values),
    ).get
    return [
        Candidate(rowid, by_words.get(rowid), by_meaning.get(rowid), session_id, speaker, time_us, text)
        for rowid, session_id, speaker, time_us, text in _decode_about(told)
    ]


# ---- what is shown of them -------------------------------------------------------------------------------


def hits(db: apsw.Connection, q: Question, page: Sequence[Scored]) -> tuple[wire.MemoryHit, ...]:
    """The records behind ``page``, in its order."""
    rows = records.by_ids(db, [one.rowid for one in page])
    wholes = records.by_ids(db, {r.part_of for r in rows.values() if r.part_of is not None})
    asked = {stem(word) for word in query_words(q.query)} if q.mode != "semantic" else set()
    around = _around(db, [one.rowid for one in page]) if asked else {}
    found = []
    for one in page:
        r = rows[one.rowid]
        whole = r if r.part_of is None else wholes[r.part_of]
        assert whole.memory_id is not None
        passage: wire.MemoryPassage | UnsetType = UNSET
        if r.part_of is not None:
            passage = wire.MemoryPassage(n=(r.place or 0) + 1, start=r.starts or 0, heading=r.heading or "")
        found.append(
            wire.MemoryHit(
                memory_id=whole.memory_id,
                namespace=r.namespace,
                kind=r.kind,
                text=r.text,
                score=one.score,
                parts=dict(one.parts),
                matched=_matched(asked, r, around.get(one.rowid, "")),
                metadata=records.metadata_of(whole),
                author=whole.author,
                trust=records.trust_of(whole),
                time=records.moment(r.time_us) or "",
                created_at=records.moment(r.created_us) or "",
                speaker=r.speaker,
                session_id=r.session_id or UNSET,
                run_id=r.run_id or UNSET,
                source=records.source_of(whole),
                duplicates=whole.duplicates,
                valid_to=records.moment(whole.valid_to_us),
                superseded_by=whole.superseded_by or UNSET,
                expires_at=records.moment(whole.expires_us),
                passage=passage,
            )
        )
    return tuple(found)


def _around(db: apsw.Connection, rowids: Sequence[int]) -> dict[int, str]:
    """What stands around each, as the text index has it."""
    sql = "SELECT rowid, around FROM memory_fts WHERE rowid IN (SELECT value FROM json_each(?))"
    return dict(db.execute(sql, (_encode(list(rowids)).decode(),)))


def _matched(asked: set[str], r: records.Row, around: str) -> tuple[str, ...]:
    """The words of a record that the question has, too, in whatever form; of its neighbours with ``~``."""
    if not asked:
        return ()
    said = f"{r.speaker} {date_words(r.time_us)} {r.heading or ''} {r.text}"
    own = _of_these(asked, said)
    rest = asked.difference(own.values())
    return (*own, *(f"~{word}" for word in _of_these(rest, around)))


def _of_these(stems: set[str], text: str) -> dict[str, str]:
    """Each word of a text whose stem is one of these, and its stem."""
    if not stems:
        return {}
    words = dict.fromkeys(pieces(text))
    return {word: its for word, its in zip(words, map(stem, words), strict=True) if its in stems}
