"""Taking back: a delete that leaves no byte of the text, a run that is undone, what retention lets go."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import apsw
import attrs
import msgspec
import trio

from witsd.journal.journal import Journal, Tx
from witsd.services.memory import access, hygiene, records, redaction, store
from witsd.services.memory.embedding import Embedding
from witsd.services.runs import Runs
from witsd.values.actor import Actor
from witsd.values.config_memory import RetentionConfig
from witsd.values.errors import LimitExceeded, NotFound, PermissionDenied
from witsd.values.wire import memory as wire

log = logging.getLogger("witsd.memory")

#: Records deleted in one transaction, and pages of the text index merged in one.
_SLICE = 200
_MERGE_PAGES = 500
#: How long what has expired can still be asked for, in seconds.
KEEP_EXPIRED_S = 7 * 86_400
_EVERY_S = 60.0
#: In ``meta`` while the file may hold traces of what was deleted: how often something was, since it last held none.
_TRACES = "memory.traces"


@attrs.define(eq=False)
class Deletion:
    """Deleting, in several steps of which each leaves a sound database."""

    _journal: Journal
    _runs: Runs
    _embedding: Embedding
    _retentions: tuple[RetentionConfig, ...]
    _purging: trio.Lock = attrs.field(factory=trio.Lock)
    #: Purges that have begun.
    _purges: int = 0

    async def delete(
        self, actor: Actor, chosen: Callable[[Tx], list[int]], *, redact: bool
    ) -> wire.MemoryDeleteResult:
        """Delete what ``chosen`` picks, with its duplicates and what was derived from it where ``actor`` may write.

        Blotted out first and deleted last: should the daemon die on the way, the record is still there to be deleted.
        """

        def look(tx: Tx) -> tuple[list[int], list[redaction.Gone]]:
            rowids = _within(tx, actor, _whole_of(tx, chosen(tx)))
            rows = records.by_ids_tx(tx, rowids)
            return rowids, [redaction.Gone(r.text, r.session_id, r.run_id, r.message_id) for r in rows]

        rowids, gone = await self._journal.write(look)
        redacted = await self._redact(gone) if redact else 0
        deleted = await self._journal.write(lambda tx: _erase(tx, rowids, "deleted"))
        await self._wipe()
        self._embedding.nudge()  # who has taken another's place is to be embedded
        return wire.MemoryDeleteResult(deleted=tuple(deleted), redacted=redacted)

    async def _redact(self, gone: Sequence[redaction.Gone]) -> int:
        places = await self._journal.store.read(lambda db: redaction.search(db, gone))
        count = 0
        for positions in redaction.slices(places.events):
            changed = await self._journal.write(
                lambda tx, positions=positions: redaction.blot_events(tx, gone, positions)  # type: ignore[misc]
            )
            self._journal.hub.rewrite(changed)
            count += len(changed)
        count += await self._journal.write(lambda tx: redaction.blot_rows(tx, gone, places))
        for session_id in {one.session_id for one in gone if one.session_id is not None}:
            self._runs.forget_session(session_id)
        return count

    async def clear(self, namespace: str, session_id: str | None, before_us: int | None) -> int:
        """Delete the records of a namespace; what was derived from them elsewhere stays."""
        where, values = ["n.name = ?", "m.part_of IS NULL"], [namespace]
        if session_id is not None:
            where.append("m.session_id = ?")
            values.append(session_id)
        if before_us is not None:
            where.append("m.time_us < ?")
            values.append(before_us)  # type: ignore[arg-type]
        # Duplicates first: else each of them takes its turn in standing for the rest.
        sql = (
            f"SELECT m.id FROM {records.FROM} WHERE {' AND '.join(where)} "
            "ORDER BY m.duplicate_of IS NULL, m.id LIMIT ?"
        )

        def work(tx: Tx) -> int:
            rowids = [int(i) for (i,) in tx.execute(sql, (*values, _SLICE))]
            count = len(_erase(tx, rowids, "cleared"))
            tx.execute("DELETE FROM memory_namespaces WHERE name = ? AND NOT EXISTS "
                       "(SELECT 1 FROM memories m WHERE m.namespace_id = memory_namespaces.namespace_id)", (namespace,))
            return count

        total = count = await self._journal.write(work)
        while count == _SLICE:
            count = await self._journal.write(work)
            total += count
        if total:
            await self._wipe()
        return total

    async def _wipe(self) -> None:
        try:
            await self.purge()
        except LimitExceeded as error:
            if error.data["limit"] != "disk":
                raise
            raise LimitExceeded(
                "it is deleted and found no more, but the file still holds traces of it: the disk is full. "
                "Free some space, and within a minute they are gone, too", limit="disk", value=0,
            ) from error  # fmt: skip

    async def purge(self) -> None:
        """Leave nothing of what was deleted in the file: not in old parts of the text indexes, nor in the log.

        An index that was appended to keeps the words of a deleted row in an older part of it until the two are
        merged. (FTS5's ``secure-delete`` would edit them in place, but makes each later update 40 times slower.)
        """
        seen = self._purges
        async with self._purging:
            if self._purges > seen:
                return  # one that began after this was asked for has seen to it
            self._purges += 1
            before = await self._journal.store.read(_traces)
            for table in ("memory_fts", "messages_fts"):
                pages = -_MERGE_PAGES
                while await self._journal.write(lambda tx, t=table, p=pages: _merge(tx, t, p)):  # type: ignore[misc]
                    pages = _MERGE_PAGES
            if await self._journal.empty_log():
                sql = "DELETE FROM meta WHERE key = ? AND value = ?"
                await self._journal.write(lambda tx: tx.execute(sql, (_TRACES, before)))

    # ---- undoing a run ------------------------------------------------------------------------------------

    async def revert(self, actor: Actor, run_id: str) -> wire.MemoryRevertResult:
        """Delete what an agent wrote during a run and what derives from it; bring back what it changed or closed.

        What the person said to start the run stays. Raises ``NotFound``, ``PermissionDenied``.
        """

        def work(tx: Tx) -> wire.MemoryRevertResult:
            known = tx.execute("SELECT agent FROM runs WHERE run_id = ?", (run_id,))
            written = tx.execute(
                "SELECT m.id FROM memories m LEFT JOIN messages q ON q.message_id = m.message_id "
                "WHERE m.run_id = ? AND m.part_of IS NULL AND COALESCE(q.role, '') <> 'user'",
                (run_id,),
            )
            changed = tx.execute("SELECT 1 FROM memory_history WHERE run_id = ? LIMIT 1", (run_id,))
            if not (known or written or changed):
                raise NotFound(f"there is no run {run_id!r}", kind="run", id=run_id)
            if actor.agent is not None and (not known or known[0][0] != actor.agent):
                raise PermissionDenied(f"{actor.label} may not undo this run", needs="run")
            going = _within(tx, actor, store.with_derived(tx, [int(i) for (i,) in written]))
            deleted = _erase(tx, going, "reverted")
            restored = _restore(tx, run_id, actor.label)
            if restored:
                _leave_traces(tx)
            return wire.MemoryRevertResult(deleted=tuple(deleted), restored=tuple(restored))

        result = await self._journal.write(work, then=self._embedding.nudge)
        if result.deleted or result.restored:
            await self._wipe()
        return result

    # ---- letting go -----------------------------------------------------------------------------------------

    def retention_of(self, namespace: str) -> wire.MemoryRetention:
        """The first that fits."""
        found = next((one for one in self._retentions if one.fits(namespace)), None)
        if found is None:
            return wire.MemoryRetention()
        return wire.MemoryRetention(
            max_age_days=found.max_age_days, max_records=found.max_records, max_bytes=found.max_bytes
        )

    async def keep_up(self) -> None:
        """Let go of what has expired and what retention does not keep, and of traces that were left, for ever."""
        while True:
            try:
                await self.tidy()
                if await self._journal.store.read(_traces):
                    await self.purge()
            except (apsw.Error, LimitExceeded) as error:
                log.error("memory.upkeep_failed error=%s", error)
            await trio.sleep(_EVERY_S)

    async def tidy(self) -> int:
        """Do all that is due, a slice at a time; returns how many records went."""
        total = count = await self._journal.write(_let_expired_go)
        while count == _SLICE:
            count = await self._journal.write(_let_expired_go)
            total += count
        if not self._retentions:
            return total
        spaces = await self._journal.store.read(records.namespaces)
        for name, space in spaces.items():
            bounds = self.retention_of(name)
            if bounds == wire.MemoryRetention():
                continue

            def work(tx: Tx, space: int = space, bounds: wire.MemoryRetention = bounds) -> int:
                age_us = int(bounds.max_age_days * 86_400e6)
                rowids = hygiene.over(tx, space, age_us, bounds.max_records, bounds.max_bytes, _SLICE)
                return len(store.erase(tx, rowids, "retention"))

            while count := await self._journal.write(work):
                total += count
        if total:
            log.info("memory.upkeep deleted=%d", total)
        return total


def _erase(tx: Tx, rowids: Sequence[int], reason: str) -> list[str]:
    """Delete for good: see ``_leave_traces``."""
    if rowids:
        _leave_traces(tx)
    return store.erase(tx, rowids, reason)


def _leave_traces(tx: Tx) -> None:
    """Remember that the file is to be rid of them, should the daemon die before that is done."""
    tx.execute(
        "INSERT INTO meta(key, value) VALUES (?, '1') ON CONFLICT(key) DO UPDATE SET value = value + 1", (_TRACES,)
    )


def _traces(db: apsw.Connection) -> str | None:
    """Set while there may be traces; another value for each that was left."""
    found: str | None = db.execute("SELECT value FROM meta WHERE key = ?", (_TRACES,)).get
    return found


def _within(tx: Tx, actor: Actor, rowids: Sequence[int]) -> list[int]:
    """Those in namespaces that the caller may use: what others have made of a text is not an agent's to delete."""
    agent_of = access.agent_of(tx)
    return [row.id for row in records.by_ids_tx(tx, rowids) if access.may_use(actor, row.namespace, agent_of)]


def _whole_of(tx: Tx, rowids: Sequence[int]) -> list[int]:
    """With what was derived, and with all who say the same: they are the same text."""
    found = store.with_derived(tx, rowids)
    for rowid in list(found):
        heads = tx.execute("SELECT COALESCE(duplicate_of, id) FROM memories WHERE id = ?", (rowid,))
        for (head,) in heads:
            same = tx.execute("SELECT id FROM memories WHERE id = ?1 OR duplicate_of = ?1", (head,))
            found += [int(i) for (i,) in same]
    return store.with_derived(tx, found)


def _merge(tx: Tx, table: str, pages: int) -> bool:
    """Merge a slice of a text index into one part; False when there is nothing left to do."""
    before = tx.execute("SELECT total_changes()")[0][0]
    tx.execute(f"INSERT INTO {table}({table}, rank) VALUES ('merge', ?)", (pages,))
    return int(tx.execute("SELECT total_changes()")[0][0]) - int(before) >= 2


def _let_expired_go(tx: Tx) -> int:
    rows = tx.execute(
        "SELECT id FROM memories WHERE expires_us < ? AND part_of IS NULL LIMIT ?",
        (tx.now_us - int(KEEP_EXPIRED_S * 1e6), _SLICE),
    )
    return len(store.erase(tx, [int(i) for (i,) in rows], "expired"))


def _restore(tx: Tx, run_id: str, actor: str) -> list[str]:
    """Bring back what a run changed, where nobody has changed the same since."""
    restored = []
    changes: dict[int, dict[str, Any]] = {}
    for rowid, version, before in tx.execute(
        "SELECT memory, version, before FROM memory_history WHERE run_id = ? ORDER BY id", (run_id,)
    ):
        since = {
            name
            for (later,) in tx.execute(
                "SELECT before FROM memory_history WHERE memory = ? AND version > ? AND run_id IS NOT ?",
                (rowid, version, run_id),
            )
            for name in msgspec.json.decode(later)
        }
        for name, value in msgspec.json.decode(before).items():
            if name not in since:
                changes.setdefault(rowid, {}).setdefault(name, value)
    for rowid, columns in changes.items():
        rows = records.by_ids_tx(tx, [rowid])
        if not rows or rows[0].memory_id is None:
            continue
        # What the run wrote is not kept as history either.
        tx.execute("DELETE FROM memory_history WHERE memory = ? AND run_id = ?", (rowid, run_id))
        store.update(tx, rows[0], columns, actor, None, None, change="restored")
        restored.append(rows[0].memory_id)
    tx.execute(
        "DELETE FROM blocks WHERE run_id = ?1 AND version = (SELECT max(b.version) FROM blocks b "
        "WHERE b.agent = blocks.agent AND b.name = blocks.name)",
        (run_id,),
    )
    return restored
