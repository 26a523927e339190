"""What memory is asked: hits for a question, and passages for a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apsw
import attrs

from witsd.journal.journal import Journal
from witsd.services import session_rows
from witsd.services.memory import access, filters, records, vectors
from witsd.services.memory import context as packing
from witsd.services.memory import search as searching
from witsd.services.memory.embedding import Embedding
from witsd.services.memory.recall import marked
from witsd.services.runs import Runs, cursor_number
from witsd.values.actor import Actor
from witsd.values.clock import Clock
from witsd.values.errors import InvalidParams, ModelError, NotFound, Timeout
from witsd.values.ids import AgentName
from witsd.values.wire import memory as wire
from witsd.values.wire.common import UNSET

#: Records a namespace-less search may put together: further pages are no longer what is meant by the best.
_MOST_OFFSET = 1000
_NOTHING = "nothing is embedded yet"


@attrs.define(eq=False)
class Asking:
    """``memory/search`` and ``memory/context``; each sees one moment of the database."""

    _journal: Journal
    _runs: Runs
    _clock: Clock
    _embedding: Embedding

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
        packed, embedded, degraded = None, None, ""
        if vector is not None and mode != "keyword":
            packed = vectors.pack(vector)
        elif query.strip() and mode != "keyword":
            packed, embedded, degraded = await self._embedded(query, mode)

        def look(db: apsw.Connection) -> tuple[searching.Found, str] | None:
            """None where the model that the question was embedded by has been replaced since."""
            among = vectors.current(vectors.generations(db))
            if packed is not None and embedded is None and among is not None:
                vectors.check(packed, among)
            if embedded is not None and among is not None and not vectors.same_model(embedded, among):
                return None
            usable = packed is not None and among is not None
            live = self._live(db, actor, include, skip_session)
            question = searching.Question(
                query=query,
                mode=mode,
                namespace_ids=allowed(db, actor, names),
                live=live,
                filter=condition,
                vector=packed if usable else None,
                among=among if usable else None,
                offset=offset,
                limit=limit,
                min_score=min_score,
            )
            return searching.search(db, question), degraded if packed is None or among is not None else _NOTHING

        while (answer := await self._journal.store.read(look)) is None:
            packed, embedded, degraded = await self._embedded(query, mode)
        return answer

    def _live(
        self, db: apsw.Connection, actor: Actor, include: Sequence[str], skip_session: str | None
    ) -> filters.Condition:
        """What may be shown to ``actor`` now, without what of ``skip_session`` is in its prompt anyway."""
        live = filters.live(self._clock.wall_us(), include, access.least_trust(actor))
        if skip_session is None:
            return live
        return filters.but_recent(live, skip_session, self._in_prompt(db, skip_session))

    async def _embedded(
        self, query: str, mode: wire.MemoryMode
    ) -> tuple[bytes | None, vectors.Generation | None, str]:
        """The question's vector and its generation; where there is none and words do, why."""
        among = vectors.current(await self._journal.store.read(vectors.generations))
        if among is None:
            return None, None, _NOTHING
        try:
            return await self._embedding.question(query, among), among, ""
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


# ---- who may see what, as a reader sees it ----------------------------------------------------------------


def readable(db: apsw.Connection, actor: Actor, memory_id: str) -> records.Row:
    """Raises ``NotFound``, also for what is trusted too little to be shown; ``PermissionDenied``."""
    row = records.find(db, memory_id)
    if row is None:
        raise records.missing(memory_id)
    access.require(actor, row.namespace, agent_reader(db))
    if row.trust < access.least_trust(actor):
        raise records.missing(memory_id)
    return row


def allowed(db: apsw.Connection, actor: Actor, names: Sequence[str] | None) -> list[int] | None:
    """The numbers of the namespaces asked for, or of all the caller may read; None where that is every one."""
    agent_of = agent_reader(db)
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


def agent_reader(db: apsw.Connection) -> access.AgentOf:
    return lambda session_id: db.execute("SELECT agent FROM sessions WHERE session_id = ?", (session_id,)).get
