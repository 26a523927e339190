"""What a model provider is to the gateway."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import Literal, Protocol, runtime_checkable

import attrs

from witsd.values.wire.common import UNSET
from witsd.values.wire.models import Model, ModelsCompleteParams, ModelsCompleteResult, ModelsEmbedResult

#: Called with each piece of the answer's text, in order; may wait (a slow reader slows the provider).
OnDelta = Callable[[str], Awaitable[None]]


@attrs.frozen
class Deltas:
    """An ``OnDelta`` that also wants the model's reasoning, in pieces of its own."""

    text: OnDelta
    thought: OnDelta | None = None

    async def __call__(self, text: str) -> None:
        await self.text(text)

    @staticmethod
    def of(on_delta: OnDelta) -> Deltas:
        """``on_delta`` as one, whatever it is."""
        return on_delta if isinstance(on_delta, Deltas) else Deltas(on_delta)


def _unpaid() -> None:
    """Nobody counts."""


#: To be called before each further try of the same call: it raises ``LimitExceeded`` where a budget has none left.
extra_try: ContextVar[Callable[[], None]] = ContextVar("extra_try", default=_unpaid)


def offered(
    name: str, provider: str, reason: str | None, *, streams: bool, kind: Literal["chat", "embedding"] = "chat"
) -> Model:
    """A model as a provider lists it; ``reason`` says why it cannot be used now, None that it can."""
    return Model(
        name=name,
        provider=provider,
        kind=kind,
        default=False,
        available=reason is None,
        streams=streams,
        reason=UNSET if reason is None else reason,
    )


class Provider(Protocol):
    """One place that answers model calls. Its ``name`` is what stands before ``/`` in a model's name."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    async def models(self) -> tuple[Model, ...]:
        """What it offers now, its own default first; never raises, never empty.

        One that cannot be used is ``available = False`` with a ``reason`` a person can act on. A
        provider that cannot say which models it has lists one named like itself.
        """

    async def complete(
        self, request: ModelsCompleteParams, model: str, on_delta: OnDelta | None
    ) -> ModelsCompleteResult:
        """One call to ``model`` (empty: the provider's default). ``request.model`` is not looked at.

        ``on_delta`` None: nobody wants pieces. Where it is given but the model cannot stream, it is
        never called; where it is a ``Deltas``, reasoning goes to its ``thought``.
        A provider that tries again calls ``extra_try`` before it does.
        Raises ``ModelError`` with ``provider``, ``status`` (HTTP's, or None) and
        ``retryable``.
        """

    async def aclose(self) -> None:
        """Give back connections. The provider may be used no more."""


@runtime_checkable
class EmbeddingProvider(Provider, Protocol):
    """A provider that also turns texts into vectors."""

    async def embed(self, texts: Sequence[str], model: str) -> ModelsEmbedResult:
        """One vector for each text by ``model``, as the server gave them. Raises ``ModelError``."""
