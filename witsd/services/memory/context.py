"""What a prompt should carry: the best that was found, with its neighbours, under a budget of tokens, in order.

Each line says where it is from, so that an answer can: the session at the head of its lines, else the record's id. What
a text has after its first line is set in, so that nothing in it passes for a line of its own.

Tokens are estimated, for each model counts in its own way: four bytes of ASCII are one, and each other character is one
(which for most scripts is a little too many, and so on the safe side).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import apsw
import attrs
import msgspec

from witsd.services.memory.filters import Condition
from witsd.services.memory.records import Row, by_ids, source_of
from witsd.values.clock import rfc3339
from witsd.values.wire import memory as wire
from witsd.values.wire.common import UNSET

_encode = msgspec.json.Encoder().encode
#: Hits that are looked at; what lies beyond does not belong into a prompt.
HITS = 40
#: What scores less is found by little more than chance: in a prompt it would only be in the way. The best have about 1.
LEAST_SCORE = 0.25
#: A neighbour may be so long, in tokens; a longer one is left out.
_NEIGHBOUR_TOKENS = 120
#: So many characters of a long passage stand in for it beside another of its text.
_NEIGHBOUR_CHARS = 280
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
    #: What stands over the lines of its group; empty for nothing.
    head: str
    text: str


@attrs.frozen
class Packed:
    """``hits`` are those that found room, in the order of ``text``; ``used`` their rows."""

    text: str
    hits: tuple[wire.MemoryHit, ...]
    used: tuple[int, ...]


def pack(
    db: apsw.Connection, found: Sequence[tuple[int, wire.MemoryHit]], max_tokens: int, live: Condition
) -> Packed:
    """The best of ``found`` (best first) that fit, each once and no text twice; then their neighbours.

    ``found`` has the number of each passage's row; ``live`` is what neighbours may be shown.
    """
    page = _Page(max_tokens - _FRAME_TOKENS)
    rows = by_ids(db, [rowid for rowid, _ in found])
    kept: list[tuple[int, wire.MemoryHit]] = []
    anchors: list[tuple[Row, str]] = []
    for rowid, hit in found:
        row = rows.get(rowid)
        if row is None:
            continue
        if row.text in page.said:
            anchors.append((row, hit.memory_id))  # asked twice, and maybe answered only once
        elif page.take(row, hit.memory_id):
            kept.append((rowid, hit))
            anchors.append((row, hit.memory_id))
    for anchor, whole in anchors:
        for row in _beside(db, anchor, live):
            if row.id not in page.lines and row.text not in page.said:
                page.take(_near_end(row, anchor), row.memory_id or whole, at_most=_NEIGHBOUR_TOKENS)
    order = [line.rowid for line in page.in_order()]
    kept.sort(key=lambda one: order.index(one[0]))
    return Packed(
        text="\n".join(_grouped(page.in_order())),
        hits=tuple(hit for _, hit in kept),
        used=tuple(rowid for rowid, _ in kept),
    )


def _near_end(row: Row, anchor: Row) -> Row:
    """Of a long passage beside another of its text the end that is next to it, from word to word."""
    if row.part_of is None or len(row.text) <= _NEIGHBOUR_CHARS:
        return row
    if (row.place or 0) < (anchor.place or 0):
        return attrs.evolve(row, text=f"… {row.text[-_NEIGHBOUR_CHARS:].partition(' ')[2]}")
    return attrs.evolve(row, text=f"{row.text[:_NEIGHBOUR_CHARS].rpartition(' ')[0]} …")


@attrs.define
class _Page:
    """What has found room. ``left`` are the tokens that are left."""

    left: int
    lines: dict[int, Line] = attrs.field(factory=dict)
    said: set[str] = attrs.field(factory=set)
    _heads: set[str] = attrs.field(factory=set)

    def take(self, row: Row, memory_id: str, at_most: int | None = None) -> bool:
        """Put a passage in, where it fits into what is left and into ``at_most`` tokens."""
        line = _line(row, memory_id)
        cost = tokens(line.text) + 1
        if at_most is not None and cost > at_most:
            return False
        if line.head not in self._heads:
            cost += tokens(line.head) + 2
        if cost > self.left:
            return False
        self.left -= cost
        self._heads.add(line.head)
        self.lines[row.id] = line
        self.said.add(row.text)
        return True

    def in_order(self) -> list[Line]:
        return sorted(self.lines.values(), key=lambda line: line.place)


def _line(row: Row, memory_id: str) -> Line:
    """``[2026-01-31 09:05] owner: text``, under its session; else with its id, a document under its file."""
    told = f"{rfc3339(row.time_us)[:16].replace('T', ' ')}"
    said = f"[{told}] " if row.session_id else f"[{told} {memory_id}] "
    if row.speaker:
        said += f"{_flat(row.speaker)}: "
    if row.heading:
        said += f"({_flat(row.heading)}) "
    source = source_of(row)
    file = source.file if source is not UNSET and isinstance(source.file, str) else ""
    # Conversations stay together, and in the order in which they were held; so do documents.
    if row.session_id:
        head, group = f"In session {_flat(row.session_id)}:", row.session_id
    else:
        head = f"From {_flat(file)}:" if file else ""
        group = f"~{file}~{row.part_of or ''}" if file or row.part_of is not None else ""
    place = row.id if row.part_of is None else row.place or 0
    return Line(row.id, (group, row.time_us, place), head, said + row.text.strip().replace("\n", "\n    "))


def _flat(text: str) -> str:
    return " ".join(text.split())


def _grouped(lines: Iterable[Line]) -> Iterable[str]:
    last = None
    for line in lines:
        if line.place[0] != last:
            if last is not None:
                yield ""
            if line.head:
                yield line.head
        last = line.place[0]
        yield line.text


def _beside(db: apsw.Connection, row: Row, live: Condition) -> list[Row]:
    """The passage before and the one after: the question of an answer, the answer to a question."""
    values: tuple[object, ...]
    if row.part_of is not None:
        wanted = "m.part_of = ? AND m.place IN (? - 1, ? + 1)"
        sql = f"SELECT m.id FROM memories m WHERE {wanted} AND {live.sql}"
        values = (row.part_of, row.place, row.place, *live.values)
    elif row.session_id is not None:
        wanted = (
            "m.session_id = ? AND m.namespace_id = (SELECT namespace_id FROM memories WHERE id = ?) AND m.indexed = 1 "
            f"AND m.part_of IS NULL AND {live.sql}"
        )
        sql = (
            f"SELECT * FROM (SELECT m.id FROM memories m WHERE {wanted} AND m.id < ? ORDER BY m.id DESC LIMIT 1) "
            f"UNION ALL SELECT * FROM (SELECT m.id FROM memories m WHERE {wanted} AND m.id > ? ORDER BY m.id LIMIT 1)"
        )
        one = (row.session_id, row.id, *live.values, row.id)
        values = (*one, *one)
    else:
        return []
    return list(by_ids(db, [rowid for (rowid,) in db.execute(sql, values)]).values())
