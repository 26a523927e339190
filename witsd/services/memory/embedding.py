"""Vectors follow in the background: one task takes what has none yet, in batches, through the embedder in use.

What is due stands in the database (``memories.embedded`` below the generation), so nothing is forgotten when the daemon
dies. Another model makes another generation: it is filled while the earlier one is searched, and takes over in one
transaction once nothing is due.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import apsw
import attrs
import trio

from witsd.journal.journal import Journal, Tx
from witsd.services.memory import hygiene, vectors
from witsd.services.models.embedders import HASH, Embedders
from witsd.values.errors import WitsdError
from witsd.values.wire.models import ModelsEmbedResult

log = logging.getLogger("witsd.memory")

#: Passages in one batch, and characters of each that are embedded.
BATCH = 32
MAX_CHARS = 8000
#: Pauses after an embedder has failed, in seconds: from the first, doubled up to the last.
RETRY_S, RETRY_MAX_S = 1.0, 60.0
_EMBEDDER = "memory.embedder"


@attrs.frozen
class _Due:
    rowid: int
    namespace_id: int
    version: int
    text: str


@attrs.define(eq=False)
class Embedding:
    """The queue, and the vectors of questions."""

    _journal: Journal
    _embedders: Embedders
    _wake: trio.Event = attrs.field(factory=trio.Event)
    #: Why nothing is embedded at the moment; empty while all is well.
    trouble: str = ""

    @property
    def embedder(self) -> str:
        """The name of the one in use."""
        return self._embedders.current

    def nudge(self, _: object = None) -> None:
        """Something is due."""
        self._wake.set()

    async def load(self) -> None:
        """Take up the choice that was made before."""

        def look(db: apsw.Connection) -> str:
            row = db.execute("SELECT value FROM meta WHERE key = ?", (_EMBEDDER,)).fetchone()
            return HASH if row is None else str(row[0])

        self._embedders.current = await self._journal.store.read(look)

    async def choose(self, name: str) -> None:
        """Use this embedder from now on. Raises ``NotFound``."""
        self._embedders.find(name)

        def work(tx: Tx) -> None:
            tx.execute(
                "INSERT INTO meta(key, value) VALUES (?, ?) ON CONFLICT(key) DO UPDATE SET value = excluded.value",
                (_EMBEDDER, name),
            )

        def chosen(_: None) -> None:
            self._embedders.current = name
            self.nudge()

        await self._journal.write(work, then=chosen)

    async def question(self, text: str, among: vectors.Generation) -> bytes:
        """The vector of a question, for one generation. Raises ``ModelError`` and whatever else an embedder does."""
        embedder = self._embedders.find(among.embedder)
        result = await embedder.embed((text[:MAX_CHARS],), query=True)
        return vectors.pack(result.vectors[0], among.dimensions, "the vector of the question")

    # ---- the task ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Embed for ever."""
        pause = RETRY_S
        while True:
            self._wake = trio.Event()
            try:
                worked = await self._step()
            except (WitsdError, apsw.Error) as error:
                if self.trouble != str(error):
                    self.trouble = str(error)
                    log.warning("memory.embedder_failed embedder=%s error=%s", self.embedder, error)
                with trio.move_on_after(pause):
                    await self._wake.wait()
                pause = min(2 * pause, RETRY_MAX_S)
                await trio.sleep(RETRY_S)
                continue
            if self.trouble:
                log.info("memory.embedder_works embedder=%s", self.embedder)
            self.trouble, pause = "", RETRY_S
            if not worked:
                await self._wake.wait()

    async def _step(self) -> bool:
        """One batch; False when nothing is due."""
        name = self.embedder
        generations = await self._journal.store.read(vectors.generations)
        target = generations[-1] if generations else None
        if target is None or target.embedder != name:
            target = await self._begin(name)
        number = target.number
        batch = await self._journal.store.read(lambda db: _due(db, number))
        if batch:
            result = await self._embedders.find(name).embed([due.text for due in batch])
            if _other(target, result):
                target = await self._begin(name, result)
                return True
            await self._journal.write(lambda tx: _store(tx, target, batch, result.vectors))
            return True
        if target.state == "building":
            await self._journal.write(lambda tx: _take_over(tx, target))
            log.info("memory.reindexed model=%s dimensions=%d", target.model, target.dimensions)
            return True
        return False

    async def _begin(self, name: str, result: ModelsEmbedResult | None = None) -> vectors.Generation:
        """The generation of the model that ``name`` leads to: what it is called, only its answer says."""
        if result is None:
            # `hash` needs no text to say what it is, and its tables are not made before they are needed.
            result = await self._embedders.find(name).embed(() if name == HASH else ("a first text",))
        model, digest, dimensions = result.model, result.digest, result.dimensions
        return await self._journal.write(lambda tx: vectors.begin(tx, name, model, digest, dimensions))


def _other(target: vectors.Generation, result: ModelsEmbedResult) -> bool:
    return (result.model, result.digest, result.dimensions) != (target.model, target.digest, target.dimensions)


def _due(db: apsw.Connection, generation: int) -> list[_Due]:
    rows = db.execute(
        "SELECT id, namespace_id, version, speaker, heading, text FROM memories "
        "WHERE indexed = 1 AND embedded < ? ORDER BY embedded, id LIMIT ?",
        (generation, BATCH),
    )
    return [
        _Due(rowid, space, version, embedded_text(text, speaker, heading or ""))
        for rowid, space, version, speaker, heading, text in rows
    ]


def embedded_text(text: str, speaker: str, heading: str) -> str:
    """What of a passage its vector stands for."""
    if heading:
        text = f"{heading}\n{text}"
    return (f"{speaker}: {text}" if speaker else text)[:MAX_CHARS]


def _store(tx: Tx, target: vectors.Generation, batch: Sequence[_Due], found: Sequence[Sequence[float]]) -> None:
    """Put the vectors of those that are still there and still say the same; look for what says nearly the same."""
    for due, vector in zip(batch, found, strict=True):
        still = tx.execute(
            "SELECT kind, text, part_of FROM memories WHERE id = ? AND version = ? AND indexed = 1",
            (due.rowid, due.version),
        )
        if not still:
            continue
        if not any(vector):  # a text without any word, as some models see it: near to nothing
            tx.execute("UPDATE memories SET embedded = ? WHERE id = ?", (target.number, due.rowid))
            continue
        packed = vectors.pack(vector, target.dimensions, "the vector of a record")
        vectors.put(tx, target, due.rowid, due.namespace_id, packed)
        kind, text, part_of = still[0]
        if target.state == "current" and kind != "turn" and part_of is None:
            hygiene.link_near(tx, target, due.rowid, due.namespace_id, packed, text)


def _take_over(tx: Tx, target: vectors.Generation) -> None:
    """Unless something has come meanwhile."""
    if not tx.execute(
        "SELECT 1 FROM memories WHERE indexed = 1 AND embedded < ? LIMIT 1", (target.number,)
    ):
        vectors.finish(tx, target)
