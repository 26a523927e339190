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
from witsd.services import session_rows
from witsd.services.backup import known
from witsd.services.idempotency import once
from witsd.services.memory import (
    access,
    contradictions,
    exporting,
    filters,
    hygiene,
    importing,
    listing,
    records,
    store,
    vectors,
)
from witsd.services.memory import context as packing
from witsd.services.memory import search as searching
from witsd.services.memory.deletion import Deletion
from witsd.services.memory.embedding import Embedding
from witsd.services.memory.recall import marked, without_recalled
from witsd.services.models.embedders import Embedders
from witsd.services.runs import Runs, cursor_number
from witsd.values.actor import Actor, Scope
from witsd.values.clock import Clock
from witsd.values.config_memory import RetentionConfig
from witsd.values.errors import Conflict, InvalidParams, ModelError, NotFound, Timeout
from witsd.values.ids import AgentName, Ids
from witsd.values.wire import memory as wire
from witsd.values.wire.common import UNSET

#: Records a namespace-less search may put together: further pages are no longer what is meant by the best.
_MOST_OFFSET = 1000


@attrs.define(eq=False)
class Memory:
    """The service. Made by ``open_memory``, whose nursery runs the embedding."""

    _journal: Journal
    _runs: Runs
    _clock: Clock
    _ids: Ids
    embedding: Embedding
    deletion: Deletion

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
            vector=None if params.vector is None else await self._pack(params.vector),
            dedupe=kind != "turn" if params.dedupe is None else params.dedupe,
        )

        def work(tx: Tx) -> tuple[wire.MemoryAdded, bool]:
            agent_of = access.agent_of(tx)
            access.require(actor, params.namespace, agent_of)

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

        return (await self._journal.write(work, then=self.embedding.nudge))[0]

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

    async def _pack(self, vector: Sequence[float]) -> bytes:
        among = vectors.current(await self._journal.store.read(vectors.generations))
        if among is None:
            raise ModelError(
                "no embedding model is in use yet, so a vector cannot be placed: leave it out, or try again",
                provider=self.embedding.embedder, status=None, retryable=True,
            )  # fmt: skip
        return vectors.pack(vector, among.dimensions)

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
        vector = None if params.vector is None else await self._pack(params.vector)
        run_id = self.run_of(actor, params.run_id)

        def work(tx: Tx) -> wire.Memory:
            row = self._changeable(tx, actor, params.memory_id)
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
            row = readable(db, actor, params.memory_id)
            chunks = db.execute("SELECT count(*) FROM memories WHERE part_of = ?", (row.id,)).get
            return records.view(row, chunks)

        return await self._journal.store.read(look)

    async def search(self, actor: Actor, params: wire.MemorySearchParams) -> wire.MemorySearchResult:
        """Best first. A namespace that nothing was written to yet is an empty one."""
        if params.namespace is not None and params.namespaces is not None:
            raise InvalidParams("give either namespace or namespaces, not both", path="params.namespaces")
        names = (params.namespace,) if params.namespace is not None else params.namespaces
        offset = cursor_number(params.cursor) or 0
        if offset > _MOST_OFFSET:
            raise InvalidParams(f"params.cursor: nobody pages beyond {_MOST_OFFSET} hits", path="params.cursor")
        found, degraded = await self.find(
            actor, params.query, names, limit=params.limit, offset=offset, mode=params.mode, filter=params.filter,
            vector=params.vector, min_score=params.min_score, include=params.include,
        )  # fmt: skip
        return wire.MemorySearchResult(
            items=found.hits,
            next_cursor=str(offset + len(found.hits)) if found.more and found.hits else UNSET,
            degraded=degraded or UNSET,
        )

    async def find(
        self,
        actor: Actor,
        query: str,
        names: Sequence[str] | None,
        *,
        limit: int,
        offset: int = 0,
        mode: wire.MemoryMode = "hybrid",
        filter: dict[str, Any] | None = None,  # noqa: A002
        vector: Sequence[float] | None = None,
        min_score: float | None = None,
        include: Sequence[str] = (),
        skip_session: str | None = None,
    ) -> tuple[searching.Found, str]:
        """A page of hits, and why meaning did not count where it was to (empty: it did)."""
        condition = filters.compiled(filter)
        packed, among, degraded = None, None, ""
        if mode != "keyword" and (vector is not None or query.strip()):
            packed, among, degraded = await self._question(query, vector, mode)

        def look(db: apsw.Connection) -> searching.Found:
            live = self._live(db, actor, include, skip_session)
            question = searching.Question(
                query=query,
                mode=mode,
                namespace_ids=allowed(db, actor, names),
                live=live,
                filter=condition,
                vector=packed,
                # The generation may have been replaced since: its table is gone then.
                among=None if among is None else next((g for g in vectors.generations(db) if g == among), None),
                offset=offset,
                limit=limit,
                min_score=min_score,
            )
            return searching.search(db, question)

        return await self._journal.store.read(look), degraded

    def _live(
        self, db: apsw.Connection, actor: Actor, include: Sequence[str], skip_session: str | None
    ) -> filters.Condition:
        """What may be shown to ``actor`` now, without what of ``skip_session`` is in its prompt anyway."""
        live = filters.live(self._clock.wall_us(), include, access.least_trust(actor))
        if skip_session is None:
            return live
        return filters.but_recent(live, skip_session, self._in_prompt(db, skip_session))

    async def _question(
        self, query: str, vector: Sequence[float] | None, mode: wire.MemoryMode
    ) -> tuple[bytes | None, vectors.Generation | None, str]:
        """The question's vector and its generation; where there is none and words do, why."""
        among = vectors.current(await self._journal.store.read(vectors.generations))
        if among is None:
            return None, None, "nothing is embedded yet"
        if vector is not None:
            return vectors.pack(vector, among.dimensions), among, ""
        try:
            return await self.embedding.question(query, among), among, ""
        except (ModelError, Timeout, NotFound) as error:
            if mode == "semantic":
                raise
            return None, None, f"{among.embedder} cannot embed the question: {error.message}"

    async def context(self, actor: Actor, params: wire.MemoryContextParams) -> wire.MemoryContextResult:
        """The best passages under a budget. Counts them as used."""
        names = params.namespaces
        if names is None and actor.agent is None and params.session_id is not None:
            names = await self._journal.store.read(lambda db: _of_session(db, str(params.session_id)))
        found, _ = await self.find(
            actor, params.query, names, limit=packing.HITS, filter=params.filter, skip_session=params.session_id,
            min_score=packing.LEAST_SCORE,
        )  # fmt: skip

        def fill(db: apsw.Connection) -> packing.Packed:
            live = self._live(db, actor, (), params.session_id)
            return packing.pack(db, list(zip(found.rowids, found.hits, strict=True)), params.max_tokens, live)

        packed = await self._journal.store.read(fill)
        if not packed.hits:
            return wire.MemoryContextResult(text="", items=(), tokens=0)
        text = marked(f"From memory, which may be out of date:\n{packed.text}")
        now = self._clock.wall_us()
        counted = "UPDATE memories SET uses = uses + 1, used_us = ? WHERE id = ?"
        self._journal.append_nowait(statements=[(counted, (now, rowid)) for rowid in packed.used], keep=False)
        return wire.MemoryContextResult(text=text, items=packed.hits, tokens=packing.tokens(text))

    def _in_prompt(self, db: apsw.Connection, session_id: str) -> int:
        """How many of a session's newest messages its agent has before it anyway."""
        session = session_rows.find(db, session_id)
        unit = None if session is None else self._runs.supervisor.units.get(AgentName(session.agent))
        # With the message that it is to answer.
        return 200 if unit is None else unit.spec.history_messages + 1

    async def list(self, actor: Actor, params: wire.MemoryListParams) -> wire.MemoryPage:
        before = cursor_number(params.cursor)
        condition = filters.compiled(params.filter)

        def look(db: apsw.Connection) -> wire.MemoryPage:
            names = None if params.namespace is None else (params.namespace,)
            spaces = allowed(db, actor, names)
            live = filters.live(self._clock.wall_us(), params.include, access.least_trust(actor))
            return listing.page(db, params, before, spaces, live, condition)

        return await self._journal.store.read(look)

    async def history(self, actor: Actor, params: wire.MemoryIdParams) -> wire.MemoryHistoryResult:
        return await self._journal.store.read(
            lambda db: listing.history(db, readable(db, actor, params.memory_id))
        )

    async def namespaces(self, actor: Actor, params: wire.MemoryNamespacesParams) -> wire.MemoryNamespacePage:
        """Those that the caller may use, by name."""

        def look(db: apsw.Connection) -> wire.MemoryNamespacePage:
            agent_of = _agent_reader(db)
            return listing.namespaces(
                db, params, lambda name: access.may_use(actor, name, agent_of), self.deletion.retention_of
            )

        return await self._journal.store.read(look)

    async def stats(self, actor: Actor, params: wire.MemoryStatsParams) -> wire.MemoryStats:
        def look(db: apsw.Connection) -> wire.MemoryStats:
            names = None if params.namespace is None else (params.namespace,)
            spaces = allowed(db, actor, names)
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
            access.require(actor, params.namespace, _agent_reader(db))

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
            return exporting.piece(db, params, after, allowed(db, actor, names))

        return await self._journal.store.read(look)

    async def reindex(self, actor: Actor, params: wire.MemoryReindexParams) -> wire.MemoryStats:
        """Use another embedder, or without a name this one anew; it happens in the background."""
        if params.embedder is None:
            await self.embedding.anew()
        else:
            await self.embedding.choose(params.embedder)
        return await self.stats(actor, wire.MemoryStatsParams())


def readable(db: apsw.Connection, actor: Actor, memory_id: str) -> records.Row:
    """Raises ``NotFound``, also for what is trusted too little to be shown; ``PermissionDenied``."""
    row = records.find(db, memory_id)
    if row is None:
        raise records.missing(memory_id)
    access.require(actor, row.namespace, _agent_reader(db))
    if row.trust < access.least_trust(actor):
        raise records.missing(memory_id)
    return row


def allowed(db: apsw.Connection, actor: Actor, names: Sequence[str] | None) -> list[int] | None:
    """The numbers of the namespaces asked for, or of all the caller may read; None where that is every one."""
    agent_of = _agent_reader(db)
    if names is not None:
        for name in names:
            access.require(actor, name, agent_of)
        known = [db.execute("SELECT namespace_id FROM memory_namespaces WHERE name = ?", (n,)).get for n in names]
        return [number for number in dict.fromkeys(known) if number is not None]
    if actor.agent is None:
        return None
    return [number for name, number in records.namespaces(db).items() if access.may_use(actor, name, agent_of)]


def _of_session(db: apsw.Connection, session_id: str) -> tuple[str, ...]:
    """What a person sees of memory in a session: what its agent does without further grants."""
    return (f"agent:{session_rows.load(db, session_id).agent}", f"session:{session_id}", "shared")


def _agent_reader(db: apsw.Connection) -> access.AgentOf:
    return lambda session_id: db.execute("SELECT agent FROM sessions WHERE session_id = ?", (session_id,)).get


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
        yield Memory(journal, runs, clock, ids, embedding, deletion)
        nursery.cancel_scope.cancel()
