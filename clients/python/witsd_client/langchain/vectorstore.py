"""A namespace of the daemon's memory as a vector store of LangChain's."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from witsd_client.generated import Memory, MemoryHit, MemoryMode, MemoryPage, MemorySearchResult, ModelsEmbedResult
from witsd_client.langchain.bridge import Bridge, bridge
from witsd_client.sync import SyncClient

#: Under which key of a record's metadata a document's own id stands.
ID_KEY = "document_id"
_PAGE = 100
#: How many characters a text may have to be embedded as one, and how many texts at a time.
_SHORT, _BATCH = 1000, 64


class WitsVectorStore(VectorStore):
    """Documents in ``namespace``, embedded by the daemon and found by meaning and words.

    They are memories like any other: durable, with a history, exported and backed up with the rest, and under the
    agent's grants. ``mode``: ``semantic``, ``keyword``, or ``hybrid``: by both, and where that finds fewer than were
    asked for, the rest by meaning alone, since a vector store gives the nearest however far they are. A filter is that
    of ``memory/search``: ``{"metadata.topic": "tax"}``. Scores are from 0 up, the higher the nearer.
    """

    def __init__(
        self, namespace: str, *, mode: MemoryMode = "hybrid", client: SyncClient | None = None
    ) -> None:
        self.namespace = namespace
        self.mode: MemoryMode = mode
        self._client = client

    @classmethod
    def from_texts(  # type: ignore[override]
        cls,
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        namespace: str,
        ids: list[str] | None = None,
        client: SyncClient | None = None,
        **kwargs: Any,
    ) -> Self:
        """A store of ``texts``. ``embedding`` is not asked: the daemon embeds."""
        store = cls(namespace, client=client)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    # ---- writing --------------------------------------------------------------------------------------

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Keep texts; one under an id that is there takes its place. Returns their ids."""
        over = self._bridge
        rows = _rows(texts, metadatas, ids)
        known = {_id_of(memory): memory.memory_id for memory in self._under([row[0] for row in rows])}
        vectors: dict[str, Any] = {}
        for batch in _batches(rows):
            embedded = over.call("models/embed", {"texts": batch}, ModelsEmbedResult)
            vectors |= dict(zip(batch, embedded.vectors, strict=True))
        for row in rows:
            method, params = self._write(row, known, vectors)
            added = over.call(method, params)
            known[row[0]] = added["memory_id"]
        return [row[0] for row in rows]

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """See ``add_texts``."""
        over = self._bridge
        rows = _rows(texts, metadatas, ids)
        known = {_id_of(memory): memory.memory_id for memory in await self._aunder([row[0] for row in rows])}
        vectors: dict[str, Any] = {}
        for batch in _batches(rows):
            embedded = await over.acall("models/embed", {"texts": batch}, ModelsEmbedResult)
            vectors |= dict(zip(batch, embedded.vectors, strict=True))
        for row in rows:
            method, params = self._write(row, known, vectors)
            added = await over.acall(method, params)
            known[row[0]] = added["memory_id"]
        return [row[0] for row in rows]

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Delete documents without a trace; without ``ids`` all of the namespace."""
        if ids is None:
            self._bridge.call("memory/clear", {"namespace": self.namespace})
        elif found := self._under(ids):
            self._bridge.call("memory/delete", _deletion(found))
        return True

    async def adelete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """See ``delete``."""
        if ids is None:
            await self._bridge.acall("memory/clear", {"namespace": self.namespace})
        elif found := await self._aunder(ids):
            await self._bridge.acall("memory/delete", _deletion(found))
        return True

    # ---- reading --------------------------------------------------------------------------------------

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Those that are there, in the order of ``ids``."""
        return _documents(self._under(ids), ids)

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """See ``get_by_ids``."""
        return _documents(await self._aunder(ids), ids)

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """The ``k`` nearest; ``filter`` and ``mode`` as in ``memory/search``."""
        return [document for document, _ in self.similarity_search_with_score(query, k, **kwargs)]

    async def asimilarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """See ``similarity_search``."""
        return [document for document, _ in await self.asimilarity_search_with_score(query, k, **kwargs)]

    def similarity_search_with_score(self, query: str, k: int = 4, **kwargs: Any) -> list[tuple[Document, float]]:
        """The same with their scores."""
        params = self._search(query, k, kwargs)
        hits = self._bridge.call("memory/search", params, MemorySearchResult).items
        if len(hits) < k and params["mode"] == "hybrid":
            hits += self._bridge.call("memory/search", {**params, "mode": "semantic"}, MemorySearchResult).items
        return _scored(hits, k)

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """See ``similarity_search_with_score``."""
        params = self._search(query, k, kwargs)
        hits = (await self._bridge.acall("memory/search", params, MemorySearchResult)).items
        if len(hits) < k and params["mode"] == "hybrid":
            more = {**params, "mode": "semantic"}
            hits += (await self._bridge.acall("memory/search", more, MemorySearchResult)).items
        return _scored(hits, k)

    # ---- calls ----------------------------------------------------------------------------------------

    @property
    def _bridge(self) -> Bridge:
        return bridge(self._client)

    def _write(
        self, row: tuple[str, str, dict[str, Any]], known: dict[str, str], vectors: dict[str, Any]
    ) -> tuple[str, dict[str, Any]]:
        document_id, text, metadata = row
        fields: dict[str, Any] = {"text": text, "metadata": {**metadata, ID_KEY: document_id}}
        if text in vectors:
            fields["vector"] = vectors[text]
        if document_id in known:
            return "memory/update", {"memory_id": known[document_id], **fields}
        return "memory/add", {"namespace": self.namespace, "kind": "document", "dedupe": False, **fields}

    def _search(self, query: str, k: int, more: dict[str, Any]) -> dict[str, Any]:
        params = {"namespace": self.namespace, "query": query, "limit": k, "mode": more.get("mode", self.mode)}
        return {**params, "filter": more["filter"]} if more.get("filter") else params

    def _page(self, ids: Sequence[str]) -> dict[str, Any]:
        wanted = {f"metadata.{ID_KEY}": {"in": list(ids)}}
        return {"namespace": self.namespace, "filter": wanted, "limit": _PAGE}

    def _under(self, ids: Sequence[str]) -> list[Memory]:
        found: list[Memory] = []
        for start in range(0, len(ids), _PAGE):
            found += self._bridge.call("memory/list", self._page(ids[start : start + _PAGE]), MemoryPage).items
        return found

    async def _aunder(self, ids: Sequence[str]) -> list[Memory]:
        found: list[Memory] = []
        for start in range(0, len(ids), _PAGE):
            params = self._page(ids[start : start + _PAGE])
            found += (await self._bridge.acall("memory/list", params, MemoryPage)).items
        return found


def _rows(
    texts: Iterable[str], metadatas: list[dict[str, Any]] | None, ids: Sequence[str | None] | None
) -> list[tuple[str, str, dict[str, Any]]]:
    """``(id, text, metadata)`` of each. Raises ``ValueError`` where their numbers differ."""
    listed = list(texts)
    given = list(metadatas) if metadatas is not None else [{} for _ in listed]
    names = list(ids) if ids is not None else [None for _ in listed]
    if not len(listed) == len(given) == len(names):
        raise ValueError(f"{len(listed)} texts, {len(given)} metadatas and {len(names)} ids: they belong together")
    return [(name or str(uuid.uuid4()), text, data) for name, text, data in zip(names, listed, given, strict=True)]


def _batches(rows: list[tuple[str, str, dict[str, Any]]]) -> Iterator[list[str]]:
    """The texts to embed before they are written, so that they are found at once; longer ones are embedded in
    passages, by the daemon, in its own time.
    """
    texts = list(dict.fromkeys(text for _, text, _ in rows if text.strip() and len(text) <= _SHORT))
    for start in range(0, len(texts), _BATCH):
        yield texts[start : start + _BATCH]


def _id_of(memory: Memory | MemoryHit) -> str:
    return str(memory.metadata.get(ID_KEY, memory.memory_id))


def _document(memory: Memory | MemoryHit) -> Document:
    metadata = {key: value for key, value in memory.metadata.items() if key != ID_KEY}
    return Document(id=_id_of(memory), page_content=memory.text, metadata=metadata)


def _documents(found: list[Memory], ids: Sequence[str]) -> list[Document]:
    by_id = {_id_of(memory): memory for memory in found}
    return [_document(by_id[one]) for one in ids if one in by_id]


def _scored(hits: Sequence[MemoryHit], k: int) -> list[tuple[Document, float]]:
    """The first ``k``, each once; no score above the one before it."""
    found: dict[str, tuple[Document, float]] = {}
    least = float("inf")
    for hit in hits:
        if hit.memory_id not in found:
            least = min(least, hit.score)
            found[hit.memory_id] = (_document(hit), least)
    return list(found.values())[:k]


def _deletion(found: list[Memory]) -> dict[str, Any]:
    return {"memory_ids": [memory.memory_id for memory in found], "redact": False}
