"""Keeping the journal small: deltas of finished streams are folded away, old events are trimmed.

Both are ordinary writes in small slices, so the writer never stalls for long. Folding loses nothing
that ``item.completed`` does not say; trimming moves ``first_seq``, which turns an older cursor into a resync.
"""

from __future__ import annotations

import logging

import apsw
import msgspec
import trio

from witsd.journal.journal import Journal, Tx
from witsd.values.clock import Clock
from witsd.values.errors import LimitExceeded

log = logging.getLogger("witsd.journal")

_SLICE_STREAMS = 50
_SLICE_EVENTS = 2000


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """``max_age_s`` and ``max_bytes`` of events, ``compact_after_s`` from the end of a stream."""

    max_age_s: float = 30 * 86_400
    max_bytes: int = 1 << 30
    compact_after_s: float = 300
    every_s: float = 60


def fold(tx: Tx, stream_id: int) -> int:
    """Replace each run of deltas by the event after it, whose ``first_seq`` then covers them.

    Returns how many events went. Deltas at the very end, with nothing after them, stay.
    """
    rows = tx.execute(
        "SELECT seq, COALESCE(first_seq, seq) FROM events WHERE stream_id = ? AND type <> 'item.delta' ORDER BY seq",
        (stream_id,),
    )
    kept = tx.execute("SELECT first_seq FROM streams WHERE stream_id = ?", (stream_id,))
    before = int(kept[0][0]) - 1
    for seq, first_seq in rows:
        if first_seq > before + 1:
            tx.execute("UPDATE events SET first_seq = ? WHERE stream_id = ? AND seq = ?", (before + 1, stream_id, seq))
        before = seq
    gone = tx.execute(
        "DELETE FROM events WHERE stream_id = ? AND type = 'item.delta' AND seq < ? RETURNING length(data)",
        (stream_id, before),
    )
    tx.execute("UPDATE streams SET compacted = 1 WHERE stream_id = ?", (stream_id,))
    _discount(tx, gone)
    return len(gone)


def compact_due(tx: Tx, sealed_before_us: int) -> tuple[int, int]:
    """Fold up to a slice of sealed streams; returns ``(streams, events)`` dealt with."""
    due = tx.execute(
        "SELECT stream_id FROM streams WHERE compacted = 0 AND sealed_us IS NOT NULL AND sealed_us <= ? "
        "ORDER BY sealed_us LIMIT ?",
        (sealed_before_us, _SLICE_STREAMS),
    )
    return len(due), sum(fold(tx, stream_id) for (stream_id,) in due)


def trim_due(tx: Tx, older_than_us: int, max_bytes: int) -> int:
    """Delete up to a slice of the oldest events that are too old or too many; returns how many.

    The newest event of all stays, for ``pos`` must never be given twice, and so do the events of
    runs that are not over: their state after a crash is read from them.
    """
    (total, last_pos) = tx.execute("SELECT bytes, last_pos FROM journal")[0]
    over = int(total) - max_bytes
    rows = tx.execute(
        "SELECT e.pos, e.stream_id, e.seq, length(e.data), e.time_us FROM events e "
        "JOIN streams s ON s.stream_id = e.stream_id "
        "WHERE e.pos < ? AND (s.sealed_us IS NOT NULL OR s.name NOT GLOB 'run:*') ORDER BY e.pos LIMIT ?",
        (last_pos, _SLICE_EVENTS),
    )
    first_kept: dict[int, int] = {}
    gone: list[tuple[int]] = []
    trimmed_pos = 0
    for pos, stream_id, seq, size, time_us in rows:
        if time_us >= older_than_us and over <= 0:
            break
        over -= size
        first_kept[stream_id] = seq + 1
        gone.append((size,))
        tx.execute("DELETE FROM events WHERE pos = ?", (pos,))
        trimmed_pos = pos
    for stream_id, first_seq in first_kept.items():
        tx.execute("UPDATE streams SET first_seq = ? WHERE stream_id = ?", (first_seq, stream_id))
    if gone:
        tx.execute("UPDATE journal SET trimmed_pos = max(trimmed_pos, ?)", (trimmed_pos,))
        _discount(tx, gone)
    return len(gone)


def _forget(tx: Tx, older_than_us: int) -> None:
    """Keys and approvals that nobody comes back for."""
    for table in ("idempotency", "tool_calls", "approvals"):
        tx.execute(f"DELETE FROM {table} WHERE created_us < ?", (older_than_us,))


def _discount(tx: Tx, sizes: list[tuple[int]] | list[tuple[object, ...]]) -> None:
    tx.execute(
        "UPDATE journal SET events = events - ?, bytes = bytes - ?",
        (len(sizes), sum(int(size) for (size,) in sizes)),  # type: ignore[call-overload]
    )


async def keep_up(journal: Journal, retention: Retention, clock: Clock) -> None:
    """Compact and trim for ever."""
    while True:
        try:
            await tidy(journal, retention, clock.wall_us())
        except (apsw.Error, LimitExceeded) as error:
            log.error("journal.upkeep_failed error=%s", error)
        await trio.sleep(retention.every_s)


async def tidy(journal: Journal, retention: Retention, now_us: int) -> tuple[int, int]:
    """Do all that is due, a slice at a time; returns how many events were folded and trimmed."""
    sealed_before = now_us - int(retention.compact_after_s * 1e6)
    older_than = now_us - int(retention.max_age_s * 1e6)
    folded = trimmed = 0
    streams = events = _SLICE_EVENTS
    while streams >= _SLICE_STREAMS:
        streams, events = await journal.write(lambda tx: compact_due(tx, sealed_before))
        folded += events
    events = _SLICE_EVENTS
    while events >= _SLICE_EVENTS:
        events = await journal.write(lambda tx: trim_due(tx, older_than, retention.max_bytes))
        trimmed += events
    await journal.write(lambda tx: _forget(tx, older_than))
    if folded or trimmed:
        log.info("journal.upkeep folded=%d trimmed=%d", folded, trimmed)
    return folded, trimmed
