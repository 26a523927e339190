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
from witsd.values.errors import ModelError, Timeout, WitsdError
from witsd.values.wire.models import ModelsEmbedResult

log = logging.getLogger("witsd.memory")

#: Passages in one batch, and characters of each that are embedded.
BATCH = 32
MAX_CHARS = 8000
#: Pauses after an embedder has failed, in seconds: from the first, doubled up to the last.
RETRY_S, RETRY_MAX_S = 1.0, 60.0
#: A question waits so long for its vector, in seconds; then words must do.
QUESTION_S = 10.0
#: What a server answers that has too much to do, whatever it is asked.
_BUSY = (408, 425, 429, 503)
_EMBEDDER = "memory.embedder"
_QUESTION, _RECORD = "the vector of the question", "the vector of a record"
#: A text that every embedder can embed.
_ANY = "a first text"


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
    #: Whether a question has shown that there is another model behind a name.
    _replaced: bool = False
    #: Whether the last batch was another model's than those before it.
    _differed: bool = False
    #: So many are embedded one by one, after a batch has failed; and the one that failed when it was alone.
    _one_by_one: int = 0
    _failed_alone: _Due | None = None

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

    async def anew(self) -> None:
        """Embed all that is stored once more; what there is goes on being searched until that is done."""
        await self._journal.write(vectors.begin_anew, then=self.nudge)

    async def question(self, text: str, among: vectors.Generation) -> bytes:
        """The vector of a question, for one generation. Raises ``Timeout`` and whatever else an embedder does."""
        embedder = self._embedders.find(among.embedder)
        result = None
        with trio.move_on_after(QUESTION_S):
            result = await embedder.embed((text[:MAX_CHARS],), query=True)
        if result is None:
            raise Timeout(f"it has not answered within {QUESTION_S:g} s")
        if _other(among, result):
            self._replaced = True
            self.nudge()
            raise ModelError(
                f"{among.embedder} is another model by now, {result.model}, and what is stored is embedded anew first",
                provider=among.embedder, status=None, retryable=True,
            )  # fmt: skip
        return vectors.check(vectors.pack(result.vectors[0], _QUESTION), among, _QUESTION)

    # ---- the task ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Embed for ever."""
        pause = RETRY_S
        while True:
            self._wake = trio.Event()
            try:
                worked = await self._step()
            except Exception as error:  # noqa: BLE001  (the boundary: whatever it is, searches by words go on)
                self._failed(error)
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

    def _failed(self, error: Exception) -> None:
        """Say it once, until it is another one."""
        expected = isinstance(error, (WitsdError, apsw.Error))
        trouble = str(error) if expected else f"{type(error).__name__}: {error}"
        if self.trouble == trouble:
            return
        self.trouble = trouble
        bug = None if expected else error
        log.warning("memory.embedder_failed embedder=%s error=%s", self.embedder, trouble, exc_info=bug)

    async def _step(self) -> bool:
        """One batch; False when nothing is due."""
        name = self.embedder
        generations = await self._journal.store.read(vectors.generations)
        target = generations[-1] if generations else None
        if target is None or target.embedder != name or self._replaced:
            self._replaced = False
            target = await self._begin(name)
        number, at_once = target.number, 1 if self._one_by_one else BATCH
        batch = await self._journal.store.read(lambda db: _due(db, number, at_once))
        if batch:
            await self._embed(name, target, batch)
            return True
        if target.state == "building":
            if await self._journal.write(lambda tx: _take_over(tx, target)):
                log.info("memory.reindexed model=%s dimensions=%d", target.model, target.dimensions)
            return True
        return False

    async def _embed(self, name: str, target: vectors.Generation, batch: Sequence[_Due]) -> None:
        """Embed a batch and store its vectors, where they are of ``target``; else begin what they are of.

        After a failure each is tried alone, so that the one of which no vector can be had is found and passed over.
        """
        embedder = self._embedders.find(name)
        try:
            result = await embedder.embed([due.text for due in batch])
        except (ModelError, Timeout) as error:
            if error.data.get("status") in _BUSY:
                raise
            if len(batch) > 1:
                self._one_by_one = len(batch)
                raise
            (alone,) = batch
            if self._failed_alone != alone:
                self._failed_alone = alone
                raise
            await embedder.embed((_ANY,))  # raises where it is not the text that is at fault
            log.warning("memory.text_not_embedded record=%d embedder=%s", alone.rowid, name)
            await self._journal.write(lambda tx: _pass_over(tx, target, alone))
            return
        self._one_by_one = max(0, self._one_by_one - len(batch))
        if not _other(target, result):
            self._differed = False
            await self._journal.write(lambda tx: _store(tx, target, batch, result.vectors))
            return
        if self._differed:
            # Another model each time: what is begun would be given up again at once, for ever.
            self._differed = False
            raise ModelError(
                f"{name} answers as one model and then as another: {target.model} with {target.dimensions} numbers, "
                f"{result.model} with {result.dimensions}", provider=name, status=None, retryable=True,
            )  # fmt: skip
        self._differed = True
        await self._begin(name, result)

    async def _begin(self, name: str, result: ModelsEmbedResult | None = None) -> vectors.Generation:
        """The generation of the model that ``name`` leads to: what it is called, only its answer says."""
        if result is None:
            # `hash` needs no text to say what it is, and its tables are not made before they are needed.
            result = await self._embedders.find(name).embed(() if name == HASH else (_ANY,))
        model, digest, dimensions = result.model, result.digest, result.dimensions
        return await self._journal.write(lambda tx: vectors.begin(tx, name, model, digest, dimensions))


def _other(target: vectors.Generation, result: ModelsEmbedResult) -> bool:
    return (result.model, result.digest, result.dimensions) != (target.model, target.digest, target.dimensions)


def _due(db: apsw.Connection, generation: int, limit: int) -> list[_Due]:
    rows = db.execute(
        "SELECT id, namespace_id, version, speaker, heading, text FROM memories "
        "WHERE indexed = 1 AND embedded < ? ORDER BY embedded, id LIMIT ?",
        (generation, limit),
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
    if not vectors.wanted(tx, target):
        return
    for due, vector in zip(batch, found, strict=True):
        still = tx.execute(
            "SELECT kind, text, part_of FROM memories WHERE id = ? AND version = ? AND indexed = 1",
            (due.rowid, due.version),
        )
        if not still:
            continue
        if not any(vector):  # a text without any word, as some models see it: near to nothing
            _pass_over(tx, target, due)
            continue
        packed = vectors.check(vectors.pack(vector, _RECORD), target, _RECORD)
        vectors.put(tx, target, due.rowid, due.namespace_id, packed)
        kind, text, part_of = still[0]
        if target.state == "current" and kind != "turn" and part_of is None:
            hygiene.link_near(tx, target, due.rowid, due.namespace_id, packed, text)


def _pass_over(tx: Tx, target: vectors.Generation, due: _Due) -> None:
    """It has no vector, and is found by its words."""
    sql = "UPDATE memories SET embedded = ? WHERE id = ? AND version = ?"
    tx.execute(sql, (target.number, due.rowid, due.version))


def _take_over(tx: Tx, target: vectors.Generation) -> bool:
    """Unless something has come meanwhile."""
    due = tx.execute("SELECT 1 FROM memories WHERE indexed = 1 AND embedded < ? LIMIT 1", (target.number,))
    if due or not vectors.wanted(tx, target):
        return False
    vectors.finish(tx, target)
    return True
