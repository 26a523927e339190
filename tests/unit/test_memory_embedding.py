"""The queue of what is to be embedded, where an embedder does what nobody expects."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import attrs
import pytest
import trio

from tests.support.journal import PATIENCE_S, journal_at, table
from witsd.journal.journal import Journal, Tx
from witsd.services.memory import store
from witsd.services.memory.embedding import Embedding
from witsd.services.models.embedders import Embedder, Embedders, HashEmbedder
from witsd.values.wire.models import ModelsEmbedResult


@attrs.define
class Stumbling:
    """``hash``, after a mistake in its own code."""

    name: str = "hash"
    mistakes: int = 1

    async def embed(self, texts: Sequence[str], *, query: bool = False) -> ModelsEmbedResult:
        if self.mistakes:
            self.mistakes -= 1
            raise RuntimeError("a mistake")
        return await HashEmbedder().embed(texts, query=query)


class StumblingEmbedders(Embedders):
    def __init__(self) -> None:
        self.current = "hash"
        self.one = Stumbling()

    def find(self, name: str) -> Embedder:
        return self.one


async def remember(journal: Journal, text: str) -> None:
    def work(tx: Tx) -> None:
        store.add(
            tx, store.New(memory_id=f"mem_{text}", namespace="shared", kind="fact", text=text, author="me", trust=2)
        )

    await journal.write(work)


async def test_a_mistake_is_logged_and_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with journal_at(tmp_path / "j.db") as journal, trio.open_nursery() as nursery:
        await remember(journal, "lemon")
        embedding = Embedding(journal, StumblingEmbedders())
        with caplog.at_level(logging.WARNING, "witsd.memory"), trio.fail_after(PATIENCE_S):
            nursery.start_soon(embedding.run)
            while await table(journal, "SELECT 1 FROM memories WHERE embedded = 0"):  # noqa: ASYNC110
                await trio.sleep(0.02)
        nursery.cancel_scope.cancel()
    assert [(r.getMessage(), r.exc_info is not None) for r in caplog.records] == [
        ("memory.embedder_failed embedder=hash error=RuntimeError: a mistake", True)
    ]
