"""What a prompt should carry: the best that was found, with its neighbours, under a budget of tokens, in order.

Tokens are estimated, for each model counts in its own way: four bytes of ASCII are one, and each other character is one
(which for most scripts is a little too many, and so on the safe side).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import apsw
import attrs
import msgspec

from witsd.services.memory.records import Row, by_ids
from witsd.values.clock import rfc3339
from witsd.values.wire import memory as wire

_encode = msgspec.json.Encoder().encode
#: Hits that are looked at; what lies beyond does not belong into a prompt.
HITS = 40
#: A neighbour may be so long, in tokens; a longer one is left out.
_NEIGHBOUR_TOKENS = 120
#: What the marks and the headline take.
_FRAME_TOKENS = 40


def tokens(text: str) -> int:
    """An estimate, on the high side."""
    ascii_only = len(text.encode("ascii", "ignore"))
    return -(-ascii_only // 4) + len(text) - ascii_only


@attrs.frozen
class Line:
    """A passage as it stands in the prompt, and the order it has there."""

    rowid: int
    place: tuple[str, int, int]
    text: str


@attrs.frozen
class Packed:
    """``hits`` are those that found room, in the order of ``text``; ``used`` their rows."""

    text: str
    hits: tuple[wire.MemoryHit, ...]
    used: tuple[int, ...]


def pack(
    db: apsw.Connection, found: Sequence[tuple[int, wire.MemoryHit]], max_tokens: int, least_trust: int
) -> Packed:
    """The best of ``found`` (best first) that fit, each once and no text twice; then their neighbours.

    ``found`` has the number of each passage's row.
    """
    left = max_tokens - _FRAME_TOKENS
    rows = by_ids(db, [rowid for rowid, _ in found])
    lines: dict[int, Line] = {}
    kept: list[tuple[int, wire.MemoryHit]] = []
    anchors: list[Row] = []
    said: set[str] = set()
    for rowid, hit in found:
        row = rows.get(rowid)
        if row is None:
            continue
        if row.text in said:
            anchors.append(row)  # asked twice, and maybe answered only once
            continue
        line = _line(row)
        cost = tokens(line.text) + 1
        if cost > left:
            continue
        left -= cost
        lines[rowid] = line
        said.add(row.text)
        kept.append((rowid, hit))
        anchors.append(row)
    for anchor in anchors:
        for row in _beside(db, anchor):
            if row.id in lines or row.text in said or row.trust < least_trust:
                continue
            line = _line(row)
            cost = tokens(line.text) + 1
            if cost <= min(left, _NEIGHBOUR_TOKENS):
                left -= cost
                lines[row.id] = line
                said.add(row.text)
    order = {line.rowid: n for n, line in enumerate(sorted(lines.values(), key=lambda line: line.place))}
    kept.sort(key=lambda one: order[one[0]])
    return Packed(
        text="\n".join(_grouped(sorted(lines.values(), key=lambda line: line.place))),
        hits=tuple(hit for _, hit in kept),
        used=tuple(rowid for rowid, _ in kept),
    )


def _line(row: Row) -> Line:
    """``[2026-01-31] owner: text``; a document's passage under its heading."""
    said = f"[{rfc3339(row.time_us)[:10]}] "
    if row.speaker:
        said += f"{row.speaker}: "
    if row.heading:
        said += f"({row.heading}) "
    # Conversations stay together, and in the order in which they were held.
    group = row.session_id or (f"~{row.part_of}" if row.part_of is not None else "")
    return Line(row.id, (group, row.time_us, row.id), said + row.text)


def _grouped(lines: Iterable[Line]) -> Iterable[str]:
    last = None
    for line in lines:
        if last is not None and line.place[0] != last:
            yield ""
        last = line.place[0]
        yield line.text


def _beside(db: apsw.Connection, row: Row) -> list[Row]:
    """The passage before and the one after: the question of an answer, the answer to a question."""
    if row.part_of is not None:
        sql = "SELECT id FROM memories WHERE part_of = ?1 AND place IN (?2 - 1, ?2 + 1)"
        ids = [i for (i,) in db.execute(sql, (row.part_of, row.place))]
    elif row.session_id is not None:
        space = "namespace_id = (SELECT namespace_id FROM memories WHERE id = ?2)"
        where = f"session_id = ?1 AND {space} AND indexed = 1 AND part_of IS NULL AND superseded_by IS NULL"
        ids = [
            i
            for (i,) in db.execute(
                f"SELECT * FROM (SELECT id FROM memories WHERE {where} AND id < ?2 ORDER BY id DESC LIMIT 1) UNION ALL "
                f"SELECT * FROM (SELECT id FROM memories WHERE {where} AND id > ?2 ORDER BY id LIMIT 1)",
                (row.session_id, row.id),
            )
        ]
    else:
        return []
    return list(by_ids(db, ids).values())
