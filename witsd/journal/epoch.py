"""The epoch names one history: a cursor is good only with the epoch it was made in.

A new database gets one. So does a database that may have lost committed events: with
``synchronous`` below FULL a power cut can take back what was published, which shows as a boot id that
has changed without a clean stop in between.
"""

from __future__ import annotations

import apsw

from witsd.journal.journal import Tx


def _get(tx: Tx, key: str) -> str:
    rows = tx.execute("SELECT value FROM meta WHERE key = ?", (key,))
    return str(rows[0][0]) if rows else ""


def _put(tx: Tx, key: str, value: str) -> None:
    tx.execute(
        "INSERT INTO meta(key, value) VALUES (?, ?) ON CONFLICT(key) DO UPDATE SET value = excluded.value",
        (key, value),
    )


def begin(db: apsw.Connection, boot_id: str, synchronous: str, fresh: str) -> str:
    """Open the history for writing and return its epoch; ``fresh`` is the one to take if a new one is due."""
    db.execute("BEGIN IMMEDIATE")
    tx = Tx(db, 0)
    epoch = _get(tx, "epoch")
    durable = _get(tx, "synchronous") in ("FULL", "EXTRA", "")
    lost = _get(tx, "boot_id") != boot_id and not _get(tx, "clean_stop") and not durable
    if not epoch or lost:
        epoch = fresh
        _put(tx, "epoch", epoch)
    _put(tx, "boot_id", boot_id)
    _put(tx, "synchronous", synchronous)
    _put(tx, "clean_stop", "")
    db.execute("COMMIT")
    return epoch


def end_cleanly(tx: Tx) -> None:
    """Note that everything is written and the daemon is stopping of its own will."""
    _put(tx, "clean_stop", "1")
