"""Texts into vectors: by the built-in ``hash``, by an agent that embeds, or by a provider's ``/embeddings``.

A name is ``hash``, an agent's (one whose ``initialize`` said ``capabilities.embeddings``), or
``PROVIDER/MODEL``. What comes back is never trusted: it is counted, measured and brought to length 1 here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import attrs
import msgspec
import trio

from witsd.services.memory import hashing
from witsd.services.models.gateway import Models
from witsd.services.models.provider import EmbeddingProvider
from witsd.supervise.supervisor import Supervisor
from witsd.values.actor import Actor
from witsd.values.errors import ModelError, NotFound, PermissionDenied, Timeout, WitsdError
from witsd.values.wire.models import ModelsEmbedParams, ModelsEmbedResult

#: A batch may take this long, in seconds: models on a slow machine do a few texts a second.
EMBED_S = 300.0
#: Wider vectors than any model known has are a mistake.
MAX_DIMENSIONS = 8192
HASH = "hash"


class Embedder(Protocol):
    """One way to embed. ``name`` finds it again; what the model is called is in its answers."""

    @property
    def name(self) -> str: ...

    async def embed(self, texts: Sequence[str], *, query: bool = False) -> ModelsEmbedResult:
        """One vector of length 1 for each text. Raises ``ModelError``, ``Timeout``."""


@attrs.frozen
class HashEmbedder:
    """Words and pieces of words, hashed: deterministic, at once, without weights."""

    name: str = HASH

    async def embed(self, texts: Sequence[str], *, query: bool = False) -> ModelsEmbedResult:
        def work() -> tuple[tuple[float, ...], ...]:
            return tuple(tuple(hashing.embed(text, query=query)) for text in texts)

        vectors = await trio.to_thread.run_sync(work)
        return ModelsEmbedResult(
            vectors=vectors, dimensions=hashing.DIMENSIONS, model=HASH, digest=hashing.VERSION
        )


@attrs.frozen
class AgentEmbedder:
    """An agent that embeds: a process of its own, started when it is needed."""

    supervisor: Supervisor
    name: str

    async def embed(self, texts: Sequence[str], *, query: bool = False) -> ModelsEmbedResult:
        params = ModelsEmbedParams(texts=tuple(texts), query=query)
        async with self.supervisor.lease(self.name) as lease:
            try:
                result = await lease.link.request("models/embed", params, ModelsEmbedResult, timeout_s=EMBED_S)
            except trio.BrokenResourceError:
                why = await lease.why_gone()
                raise self._error(f"{self.name} {why} while it embedded", retryable=True) from None
            except Timeout:
                raise
            except WitsdError as error:
                raise self._error(f"{self.name} cannot embed: {error.message}") from error
        return checked(result, len(texts), provider=self.name)

    def _error(self, text: str, *, retryable: bool = False) -> ModelError:
        return ModelError(text, provider=self.name, status=None, retryable=retryable)


@attrs.frozen
class ProviderEmbedder:
    """A provider's ``/embeddings``."""

    provider: EmbeddingProvider
    model: str

    @property
    def name(self) -> str:
        return f"{self.provider.name}/{self.model}"

    async def embed(self, texts: Sequence[str], *, query: bool = False) -> ModelsEmbedResult:
        with trio.move_on_after(EMBED_S):
            result = await self.provider.embed(texts, self.model)
            return checked(result, len(texts), provider=self.provider.name)
        raise Timeout(f"{self.name} did not embed within {EMBED_S:g} s")


@attrs.define(eq=False)
class Embedders:
    """Finds an embedder by its name and serves ``models/embed``."""

    supervisor: Supervisor
    models: Models
    #: The one that memory uses.
    current: str = HASH

    def find(self, name: str) -> Embedder:
        """Raises ``NotFound``. An agent is believed to embed until it says that it does not."""
        if name == HASH:
            return HashEmbedder()
        head, _, model = name.partition("/")
        provider = self.models.embedding_provider(head) if model else None
        if provider is not None:
            return ProviderEmbedder(provider, model)
        try:
            self.supervisor.unit(name)
        except NotFound:
            raise NotFound(
                f"there is no embedder {name!r}: it is hash, the name of an agent that embeds, or PROVIDER/MODEL. "
                "For all-MiniLM-L6-v2: witsd model install minilm",
                kind="embedder",
                id=name,
            ) from None
        return AgentEmbedder(self.supervisor, name)

    async def embed(self, actor: Actor, params: ModelsEmbedParams) -> ModelsEmbedResult:
        """Serves ``models/embed``. ``hash`` and what memory uses anyway need no grant."""
        name = self.models.router.expand(params.model)[0] if params.model else self.current
        if name not in (HASH, self.current) and not actor.granted("models", name):
            actor.require_grant("models", name)
        if actor.agent == name:
            raise PermissionDenied("an agent cannot ask itself to embed", needs="another model")
        embedder = self.find(name)
        if isinstance(embedder, ProviderEmbedder):  # the others are this machine's own, and cost nothing
            return await self.models.paid(
                actor, params, embedder.provider, embedder.model, lambda: embedder.embed(params.texts)
            )
        return await embedder.embed(params.texts, query=params.query)


def checked(result: ModelsEmbedResult, texts: int, *, provider: str) -> ModelsEmbedResult:
    """``result`` with vectors of length 1. Raises ``ModelError`` naming what is wrong with it."""

    def refuse(what: str) -> ModelError:
        return ModelError(f"{provider} answered {what}", provider=provider, status=None)

    if len(result.vectors) != texts:
        raise refuse(f"{len(result.vectors)} vectors for {texts} texts")
    wide = result.dimensions
    if not 0 < wide <= MAX_DIMENSIONS:
        raise refuse(f"vectors of {wide} dimensions")
    unit = []
    for vector in result.vectors:
        if len(vector) != wide:
            raise refuse(f"a vector of {len(vector)} numbers where it says {wide}")
        length = math.hypot(*vector)
        if not math.isfinite(length):
            raise refuse("a vector that holds a number that is none")
        # A text without any word may well be nothing: it stays so, and is near to nothing.
        unit.append(tuple(x / length for x in vector) if length > 0 else vector)
    return msgspec.structs.replace(result, vectors=tuple(unit))
