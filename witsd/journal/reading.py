"""Reading the journal back: pages of a stream, pages of everything, and whether a cursor can go on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import apsw
import attrs
import msgspec

from witsd.journal.event import Event
from witsd.values.errors import ResyncRequired

_COLUMNS = "s.name, e.type, e.data, e.time_us, e.seq, e.pos, e.first_seq"


def is_exact(pattern: str) -> bool:
    """Whether a stream pattern names one stream."""
    return not any(character in pattern for character in "*?[")


def matches_any(name: str, patterns: Sequence[str]) -> bool:
    """Whether ``name`` fits one of the patterns (``*`` matches any run of characters)."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


class Bounds(msgspec.Struct, frozen=True):
    """What of a stream is kept: ``first_seq`` to ``last_seq``; ``1`` to ``0`` for one never written."""

    first_seq: int
    last_seq: int


def bounds(db: apsw.Connection, stream: str) -> Bounds:
    row = db.execute("SELECT first_seq, last_seq FROM streams WHERE name = ?", (stream,)).fetchone()
    return Bounds(row[0], row[1]) if row else Bounds(1, 0)


def position(db: apsw.Connection) -> tuple[int, int]:
    """``(last_pos, trimmed_pos)`` as of this read transaction."""
    row = db.execute("SELECT last_pos, trimmed_pos FROM journal").fetchone()
    assert row is not None
    return row[0], row[1]


def read_stream(
    db: apsw.Connection, stream: str, after_seq: int, up_to_pos: int, limit: int, max_bytes: int = 1 << 62
) -> list[Event]:
    """Up to ``limit`` events of one stream after ``after_seq``, none beyond ``up_to_pos``.

    Ends early, with the event that reaches ``max_bytes``: one may have megabytes.
    """
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM streams s JOIN events e ON e.stream_id = s.stream_id "
        "WHERE s.name = ? AND e.seq > ? AND e.pos <= ? ORDER BY e.seq LIMIT ?",
        (stream, after_seq, up_to_pos, limit),
    )
    return _page(rows, max_bytes)


def read_all(db: apsw.Connection, after_pos: int, limit: int, max_bytes: int = 1 << 62) -> list[Event]:
    """Up to ``limit`` events of all streams after ``after_pos``, by position; ends early as ``read_stream`` does."""
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM events e JOIN streams s ON s.stream_id = e.stream_id "
        "WHERE e.pos > ? ORDER BY e.pos LIMIT ?",
        (after_pos, limit),
    )
    return _page(rows, max_bytes)


def _page(rows: Iterable[tuple[Any, ...]], max_bytes: int) -> list[Event]:
    page = []
    size = 0
    for row in rows:
        event = Event(*row)
        page.append(event)
        size += len(event.data)
        if size >= max_bytes:
            break
    return page


def seq_at(db: apsw.Connection, stream: str, pos: int) -> int:
    """The seq of the last event of ``stream`` at or before ``pos``; 0 when there was none yet."""
    row = db.execute(
        "SELECT e.seq FROM streams s JOIN events e ON e.stream_id = s.stream_id "
        "WHERE s.name = ? AND e.pos <= ? ORDER BY e.seq DESC LIMIT 1",
        (stream, pos),
    ).fetchone()
    return row[0] if row else bounds(db, stream).first_seq - 1


@attrs.define(eq=False)
class Backlog:
    """What a subscriber has missed, to be read page by page before it goes live.

    Either by stream (``cursors``: stream -> last seq applied) or by position (``after_pos``).
    """

    cursors: dict[str, int]
    after_pos: int | None

    @property
    def empty(self) -> bool:
        return not self.cursors and self.after_pos is None


def plan(
    db: apsw.Connection,
    patterns: Sequence[str],
    since: Mapping[str, int] | None,
    since_pos: int | None,
) -> tuple[Backlog, bool]:
    """What to replay for this cursor, and whether part of it is gone (``resync``).

    Raises ``ResyncRequired`` for a cursor that lies beyond what was ever written here.
    """
    last_pos, trimmed_pos = position(db)
    if since_pos is not None:
        if since_pos > last_pos:
            raise ResyncRequired(
                f"position {since_pos} was never reached here: subscribe without 'since'",
                first_seq=1,
            )
        if not all(is_exact(pattern) for pattern in patterns):
            return Backlog({}, since_pos), since_pos < trimmed_pos
        found = {stream: seq_at(db, stream, since_pos) for stream in patterns}
        # Where nothing up to that position is left of a trimmed stream, it cannot be told how much went after it.
        gone = since_pos < trimmed_pos and any(
            seq < kept.first_seq and kept.first_seq > 1 for seq, kept in ((q, bounds(db, s)) for s, q in found.items())
        )
        return Backlog(found, None), gone
    cursors: dict[str, int] = {}
    gone = False
    for stream, seq in (since or {}).items():
        if not matches_any(stream, patterns):
            continue
        kept = bounds(db, stream)
        if seq > kept.last_seq:
            raise ResyncRequired(
                f"{stream} has no event {seq} (its last is {kept.last_seq}): subscribe without 'since'",
                stream=stream,
                first_seq=kept.first_seq,
            )
        gone = gone or seq + 1 < kept.first_seq
        cursors[stream] = seq
    return Backlog(cursors, None), gone
