"""Looking at memory: what a daemon tells of it, and what the file of one that was killed or stopped holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import apsw

from tests.support.daemon import PATIENCE_S, Daemon
from tests.support.wire import Wire
from witsd.journal.store import load_vectors
from witsd.services.memory.vectors import Generation, generations

#: Requests that are on their way at once.
_AT_ONCE = 100


def until(c: Wire, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """``memory/stats`` once they fit."""
    deadline = time.monotonic() + PATIENCE_S
    while not fits(stats := c.call("memory/stats")):
        assert time.monotonic() < deadline, stats
        time.sleep(0.01)
    return dict(stats)


def embedded(c: Wire) -> dict[str, Any]:
    """The figures once nothing waits for its vector and no model waits to take over."""
    return until(
        c,
        lambda stats: bool(stats["models"])
        and stats["to_embed"] == 0
        and all(model["state"] == "current" for model in stats["models"]),
    )


def all_at_once(c: Wire, method: str, params: Iterable[Mapping[str, Any]]) -> list[Any]:
    """The results of many requests, in their order, without waiting for each; an error fails the test."""
    given = list(params)
    found: dict[int, Any] = {}
    for first in range(0, len(given), _AT_ONCE):
        part = given[first : first + _AT_ONCE]
        for n, one in enumerate(part, first):
            c.send({"jsonrpc": "2.0", "id": n, "method": method, "params": one})
        while len(found) < first + len(part):
            answer = c.receive()
            assert "result" in answer, answer
            found[answer["id"]] = answer["result"]
    return [found[n] for n in range(len(given))]


def check(daemon: Daemon) -> None:
    """The file of a daemon that does not run is sound: SQLite finds it so, and text index, vectors, passages,
    duplicates and counts belong to records that are there."""
    db = apsw.Connection(str(next(daemon.home.rglob("witsd.db"))))
    try:
        load_vectors(db)
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        db.execute("INSERT INTO memory_fts(memory_fts, rank) VALUES ('integrity-check', 1)")
        for what, sql in _NONE.items():
            assert db.execute(sql).fetchall() == [], what
        found = generations(db)
        _check_vectors(db, found)
    finally:
        db.close()


#: What there must be none of.
_NONE = {
    "namespaces that count wrongly": """
        SELECT n.name, n.records, n.bytes, count(m.id) FROM memory_namespaces n LEFT JOIN memories m
        ON m.namespace_id = n.namespace_id AND m.part_of IS NULL AND m.duplicate_of IS NULL GROUP BY n.namespace_id
        HAVING n.records <> count(m.id) OR n.bytes <> COALESCE(sum(length(CAST(m.text AS BLOB))), 0)""",
    "passages without their text": """
        SELECT p.id FROM memories p LEFT JOIN memories m ON m.id = p.part_of
        WHERE p.part_of IS NOT NULL AND m.id IS NULL""",
    "texts that cannot be found": """
        SELECT m.id FROM memories m WHERE m.part_of IS NULL AND m.duplicate_of IS NULL AND m.indexed = 0
        AND NOT EXISTS (SELECT 1 FROM memories p WHERE p.part_of = m.id)""",
    "records that are not in the text index, and what is there of none": """
        SELECT m.id, f.id FROM (SELECT id FROM memories WHERE indexed = 1) m
        FULL JOIN (SELECT id FROM memory_fts_docsize) f ON m.id = f.id WHERE m.id IS NULL OR f.id IS NULL""",
    "duplicates of none": """
        SELECT d.id FROM memories d LEFT JOIN memories m ON m.id = d.duplicate_of
        WHERE d.duplicate_of IS NOT NULL AND m.id IS NULL""",
    "records that count their duplicates wrongly": """
        SELECT m.id FROM memories m
        WHERE m.duplicates <> (SELECT count(*) FROM memories d WHERE d.duplicate_of = m.id)""",
    "imported parts that are lost": """
        SELECT i.key FROM memory_imports i LEFT JOIN memories m ON m.id = i.memory WHERE m.id IS NULL""",
    "more than one model that is searched": """
        SELECT count(*) FROM memory_generations WHERE state = 'current' HAVING count(*) > 1""",
}


def _check_vectors(db: apsw.Connection, found: list[Generation]) -> None:
    """Each model has the vectors of all that are said to have one, nobody else's, and nothing is left of others."""
    tables = "SELECT name FROM sqlite_schema WHERE sql LIKE 'CREATE VIRTUAL TABLE%USING vec0%'"
    named = {generation.table for generation in found} | {generation.coarse for generation in found if generation.bits}
    assert {name for (name,) in db.execute(tables)} == named
    for generation in found:
        has = {rowid for (rowid,) in db.execute(f"SELECT rowid FROM {generation.table}")}
        sql = "SELECT id FROM memories WHERE indexed = 1 AND embedded >= ?"
        assert has == {rowid for (rowid,) in db.execute(sql, (generation.number,))}, generation
        if generation.bits:
            assert {rowid for (rowid,) in db.execute(f"SELECT rowid FROM {generation.coarse}")} == has, generation
