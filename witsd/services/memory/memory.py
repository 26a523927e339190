"""``memory/*``: one call each. What they do inside a transaction is in the modules beside this one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import apsw
import attrs
import msgspec
import trio

from witsd.journal.journal import Journal, Tx
from witsd.services.backup import known
from witsd.services.idempotency import once
from witsd.services.memory import (
    access,
    asking,
    contradictions,
    exporting,
    filters,
    hygiene,
    importing,
    listing,
    records,
    statements,
    store,
    vectors,
)
from witsd.services.memory.asking import Asking
from witsd.services.memory.deletion import Deletion
from witsd.services.memory.embedding import Embedding
from witsd.services.memory.recall import without_recalled
from witsd.services.models.embedders import Embedders
from witsd.services.runs import Runs, cursor_number
from witsd.values.actor import Actor, Scope
from witsd.values.clock import Clock
from witsd.values.config_memory import RetentionConfig
from witsd.values.errors import Conflict, InvalidParams, ModelError, NotFound
from witsd.values.ids import Ids
from witsd.values.wire import memory as wire
from witsd.values.wire.common import UNSET


@attrs.define(eq=False)
class Memory:
    """The service. Made by ``open_memory``, whose nursery runs the embedding."""

    _journal: Journal
    _runs: Runs
    _clock: Clock
    _ids: Ids
    embedding: Embedding
    deletion: Deletion
    asking: Asking

    # ---- writing ----------------------------------------------------------------------------------------

    async def add(self, actor: Actor, params: wire.MemoryAddParams) -> wire.MemoryAdded:
        """Durable when this returns, and found by its words; by its meaning soon after."""
        text = without_recalled(records.checked_text(params.text))
        if not text.strip():
            raise InvalidParams(
                "params.text: all of it was recalled from memory, where it is already", path="params.text"
            )
        metadata = records.encoded_metadata(params.metadata)
        kind = params.kind or ("turn" if params.session_id or params.speaker else "fact")
        now = self._clock.wall_us()
        new = store.New(
            memory_id=self._ids.new("mem"),
            namespace=params.namespace,
            kind=kind,
            text=text,
            author=actor.label,
            trust=0,
            metadata=metadata,
            speaker=params.speaker,
            session_id=params.session_id,
            run_id=self.run_of(actor, params.run_id),
            source=params.source,
            time_us=None if params.time is None else records.micros(params.time, "params.time"),
            valid_from_us=None if params.valid_from is None else records.micros(params.valid_from, "params.valid_from"),
            valid_to_us=None if params.valid_to is None else records.micros(params.valid_to, "params.valid_to"),
            expires_us=None if params.ttl_s is None else now + int(params.ttl_s * 1e6),
            vector=None if params.vector is None else vectors.pack(params.vector),
            dedupe=kind != "turn" if params.dedupe is None else params.dedupe,
        )

        def work(tx: Tx) -> tuple[wire.MemoryAdded, bool]:
            agent_of = access.agent_of(tx)
            access.require(actor, params.namespace, agent_of)
            self._fits(tx, new.vector)

            def make() -> wire.MemoryAdded:
                closing = [self._changeable(tx, actor, memory_id) for memory_id in params.supersedes]
                sources = [self._changeable(tx, actor, memory_id) for memory_id in params.derived_from]
                trust = access.trust_for(actor, params.trust, params.source, min((s.trust for s in sources), default=9))
                rowid, added = store.add(tx, attrs.evolve(new, trust=trust))
                for row in closing:
                    if row.id != rowid:
                        hygiene.close(tx, row, rowid, actor.label, new.run_id)
                if not added.deduplicated:
                    contradictions.settle(tx, rowid, text, self._ids)
                for row in sources:
                    tx.execute("INSERT OR IGNORE INTO memory_links VALUES (?, ?)", (row.id, rowid))
                return added

            return once(
                tx, actor.identity, "memory/add", params.idempotency_key, params, wire.MemoryAdded, make
            )

        # What it states may be written down beside it, which has no vector then.
        due = new.vector is None or statements.may_state(text)
        return (await self._journal.write(work, then=self.embedding.nudge if due else None))[0]

    def run_of(self, actor: Actor, run_id: str | None) -> str | None:
        """The run a text comes from: the one that is named, which must be the agent's own, or the only one it has."""
        if actor.agent is None:
            return run_id
        own = [run.run_id for run in self._runs.book.live.values() if run.agent == actor.agent and run.started_us]
        if run_id is None:
            return own[0] if len(own) == 1 else None
        if run_id not in own:
            raise NotFound(f"{actor.label} works on no run {run_id!r}", kind="run", id=run_id)
        return run_id

    def _changeable(self, tx: Tx, actor: Actor, memory_id: str) -> records.Row:
        """A record that the caller may read and write."""
        row = records.load_tx(tx, memory_id)
        access.require(actor, row.namespace, access.agent_of(tx))
        return row

    def _fits(self, tx: Tx, packed: bytes | None) -> None:
        """Raises where a caller's own vector cannot be placed: ``ModelError``, ``InvalidParams``."""
        if packed is None:
            return
        among = vectors.current(vectors.generations_tx(tx))
        if among is None:
            raise ModelError(
                "no embedding model is in use yet, so a vector cannot be placed: leave it out, or try again",
                provider=self.embedding.embedder, status=None, retryable=True,
            )  # fmt: skip
        vectors.check(packed, among)

    async def update(self, actor: Actor, params: wire.MemoryUpdateParams) -> wire.Memory:
        """Raises ``Conflict`` where ``version`` is given and is another one by now."""
        changes: dict[str, Any] = {}
        if isinstance(params.text, str):
            changes["text"] = records.checked_text(params.text)
        if isinstance(params.metadata, dict):
            changes["metadata"] = records.encoded_metadata(params.metadata)
        if isinstance(params.kind, str):
            changes["kind"] = params.kind
        if params.ttl_s is not UNSET:
            expires = None if params.ttl_s is None else self._clock.wall_us() + int(float(params.ttl_s) * 1e6)
            changes["expires_us"] = expires
        if params.valid_to is not UNSET:
            valid_to = params.valid_to
            changes["valid_to_us"] = records.micros(valid_to, "params.valid_to") if isinstance(valid_to, str) else None
        if isinstance(params.trust, str):
            changes["trust"] = access.trust_for(actor, params.trust, None, 9)
        if not changes:
            raise InvalidParams("params: there is nothing to change", path="params")
        vector = None if params.vector is None else vectors.pack(params.vector)
        run_id = self.run_of(actor, params.run_id)

        def work(tx: Tx) -> wire.Memory:
            row = self._changeable(tx, actor, params.memory_id)
            self._fits(tx, vector)
            if params.version is not None and params.version != row.version:
                raise Conflict(
                    f"the record is at version {row.version} by now: read it again", version=row.version
                )
            if actor.agent is not None and {"text", "trust"} & set(changes):
                # An agent never lends a text more trust than it has.
                changes["trust"] = min(changes.get("trust", 9), access.trust_for(actor, None, None, row.trust))
            store.update(tx, row, changes, actor.label, run_id, vector)
            return records.view(records.load_tx(tx, params.memory_id))

        return await self._journal.write(work, then=self.embedding.nudge)

    # ---- reading ----------------------------------------------------------------------------------------

    async def get(self, actor: Actor, params: wire.MemoryIdParams) -> wire.Memory:
        def look(db: apsw.Connection) -> wire.Memory:
            row = asking.readable(db, actor, params.memory_id)
            chunks = db.execute("SELECT count(*) FROM memories WHERE part_of = ?", (row.id,)).get
            return records.view(row, chunks)

        return await self._journal.store.read(look)

    async def list(self, actor: Actor, params: wire.MemoryListParams) -> wire.MemoryPage:
        before = cursor_number(params.cursor)
        condition = filters.compiled(params.filter)

        def look(db: apsw.Connection) -> wire.MemoryPage:
            names = None if params.namespace is None else (params.namespace,)
            spaces = asking.allowed(db, actor, names)
            live = filters.live(self._clock.wall_us(), params.include, access.least_trust(actor))
            return listing.page(db, params, before, spaces, live, condition)

        return await self._journal.store.read(look)

    async def history(self, actor: Actor, params: wire.MemoryIdParams) -> wire.MemoryHistoryResult:
        return await self._journal.store.read(
            lambda db: listing.history(db, asking.readable(db, actor, params.memory_id))
        )

    async def namespaces(self, actor: Actor, params: wire.MemoryNamespacesParams) -> wire.MemoryNamespacePage:
        """Those that the caller may use, by name."""

        def look(db: apsw.Connection) -> wire.MemoryNamespacePage:
            agent_of = asking.agent_reader(db)
            return listing.namespaces(
                db, params, lambda name: access.may_use(actor, name, agent_of), self.deletion.retention_of
            )

        return await self._journal.store.read(look)

    async def stats(self, actor: Actor, params: wire.MemoryStatsParams) -> wire.MemoryStats:
        def look(db: apsw.Connection) -> wire.MemoryStats:
            names = None if params.namespace is None else (params.namespace,)
            spaces = asking.allowed(db, actor, names)
            return listing.stats(db, spaces, self._clock.wall_us(), self.embedding.embedder, self.embedding.trouble)

        return await self._journal.store.read(look)

    # ---- deleting ---------------------------------------------------------------------------------------

    async def delete(self, actor: Actor, params: wire.MemoryDeleteParams) -> wire.MemoryDeleteResult:
        """Nothing of the text is in the database when this returns."""
        ids = (*params.memory_ids, *(() if params.memory_id is None else (params.memory_id,)))
        if not ids:
            raise InvalidParams("give memory_id or memory_ids", path="params.memory_id")

        def chosen(tx: Tx) -> list[int]:
            return [self._changeable(tx, actor, memory_id).id for memory_id in dict.fromkeys(ids)]

        # Who may not touch what was said cannot blot it out either, least of all by remembering and deleting its words.
        redact = params.redact and Scope.CHAT in actor.scopes
        done = await self.deletion.delete(actor, chosen, redact=redact)
        # Where backups are is for those who may make them.
        backups = await self._journal.store.read(known) if Scope.ADMIN in actor.scopes else ()
        return msgspec.structs.replace(done, backups=backups)

    async def clear(self, actor: Actor, params: wire.MemoryClearParams) -> wire.MemoryClearResult:
        before = None if params.before is None else records.micros(params.before, "params.before")

        def permitted(db: apsw.Connection) -> None:
            access.require(actor, params.namespace, asking.agent_reader(db))

        await self._journal.store.read(permitted)
        return wire.MemoryClearResult(
            deleted=await self.deletion.clear(params.namespace, params.session_id, before)
        )

    async def revert(self, actor: Actor, params: wire.MemoryRevertParams) -> wire.MemoryRevertResult:
        """Take back what a run wrote. An agent may do so for its own runs."""
        return await self.deletion.revert(actor, params.run_id)

    # ---- in and out -------------------------------------------------------------------------------------

    async def import_(self, actor: Actor, params: wire.MemoryImportParams) -> wire.MemoryImportResult:
        """All items or none; durable when this returns."""
        coming = [
            importing.checked(item, self._ids.new("mem"), actor, f"params.items[{n}]")
            for n, item in enumerate(params.items)
        ]
        packed = (params.model, params.digest)

        def work(tx: Tx) -> wire.MemoryImportResult:
            return importing.bring_in(tx, coming, params.whole, packed, actor)

        return await self._journal.write(work, then=self.embedding.nudge)

    async def export(self, actor: Actor, params: wire.MemoryExportParams) -> wire.MemoryExportResult:
        """Oldest first, and all there is: also what has expired or is no longer true."""
        after = cursor_number(params.cursor) or 0

        def look(db: apsw.Connection) -> wire.MemoryExportResult:
            names = None if params.namespace is None else (params.namespace,)
            return exporting.piece(db, params, after, asking.allowed(db, actor, names))

        return await self._journal.store.read(look)

    async def reindex(self, actor: Actor, params: wire.MemoryReindexParams) -> wire.MemoryStats:
        """Use another embedder, or without a name this one anew; it happens in the background."""
        if params.embedder is None:
            await self.embedding.anew()
        else:
            await self.embedding.choose(params.embedder)
        return await self.stats(actor, wire.MemoryStatsParams())


@asynccontextmanager
async def open_memory(
    journal: Journal,
    runs: Runs,
    embedders: Embedders,
    clock: Clock,
    ids: Ids,
    retentions: Sequence[RetentionConfig] = (),
) -> AsyncIterator[Memory]:
    """Embed in the background for as long as the block lasts."""
    embedding = Embedding(journal, embedders)
    await embedding.load()
    deletion = Deletion(journal, runs, embedding, tuple(retentions))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(embedding.run)
        runs.book.remembered = embedding.nudge
        asked = Asking(journal, runs, clock, embedding)
        yield Memory(journal, runs, clock, ids, embedding, deletion, asked)
        nursery.cancel_scope.cancel()
