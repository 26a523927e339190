"""The gateway: finds the model a caller means, checks that it may, and hands the call on.

A name is ``auto``, a provider (its default model), ``provider/model``, or a model that some provider
lists. ``auto`` is the configured default where there is one, else the first chat model that is available, in
the providers' order, ``offline`` being the last. A model named outright, here or as the default, is that model or an
error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import attrs
import msgspec
import trio

from witsd.services.models.provider import Deltas, EmbeddingProvider, OnDelta, Provider
from witsd.values.actor import Actor
from witsd.values.errors import InvalidParams, ModelError, NotFound, Timeout
from witsd.values.wire.common import UNSET
from witsd.values.wire.models import (
    Model,
    ModelPage,
    ModelsCompleteParams,
    ModelsCompleteResult,
    ModelsListParams,
)

#: How many names an error lists.
_SHOWN = 8


class Progress(Protocol):
    """How pieces of the answer get back to the caller."""

    @property
    def wanted(self) -> bool: ...

    async def __call__(self, *, delta: str | None = None, thought: str | None = None) -> None: ...


@attrs.define(eq=False)
class Models:
    """Serves ``models/list`` and ``models/complete`` over ``providers``, in their order."""

    providers: Sequence[Provider]
    default: str = "auto"

    async def list(self, actor: Actor, params: ModelsListParams) -> ModelPage:
        """The models of every provider; an agent sees those it is granted.

        Raises ``InvalidParams`` for a cursor that is none.
        """
        try:
            start = int(params.cursor or "0")
        except ValueError:
            start = -1
        if start < 0:
            raise InvalidParams("params.cursor: give back what next_cursor said", path="params.cursor")
        rows = [row for row in await self._rows() if _granted(actor, row.provider, row.name)]
        chosen = await self._auto(actor)
        if chosen is not None:
            rows = [msgspec.structs.replace(row, default=(row.provider, row.name) == chosen) for row in rows]
        page = tuple(rows[start : start + params.limit])
        end = start + len(page)
        return ModelPage(items=page, next_cursor=str(end) if end < len(rows) else UNSET)

    async def complete(
        self, actor: Actor, params: ModelsCompleteParams, progress: Progress
    ) -> ModelsCompleteResult:
        """One call. With ``params.stream`` and a caller that wants progress, pieces come as its ``delta``.

        Raises ``NotFound`` for a model nobody has, ``PermissionDenied`` without the grant, ``ModelError``
        from the provider, ``Timeout`` after ``params.timeout_s``.
        """
        if not params.messages:
            raise InvalidParams("params.messages: there is nothing to answer", path="params.messages")
        on_delta: OnDelta | None = None
        if params.stream and progress.wanted:

            async def on_text(text: str) -> None:
                await progress(delta=text)

            async def on_thought(text: str) -> None:
                await progress(thought=text)

            on_delta = Deltas(on_text, on_thought)

        with trio.move_on_after(params.timeout_s if params.timeout_s is not None else float("inf")):
            provider, model = await self._resolve(actor, params.model)
            return await provider.complete(params, model, on_delta)
        raise Timeout(f"the model did not finish within {params.timeout_s:g} s: raise timeout_s")

    async def aclose(self) -> None:
        """Close every provider."""
        for provider in self.providers:
            await provider.aclose()

    # -- which model --------------------------------------------------------------------------------

    async def _resolve(self, actor: Actor, name: str | None) -> tuple[Provider, str]:
        if name is None or name in ("", "auto"):
            name = self.default
        if name == "auto":
            chosen = await self._first_available(actor)
            if chosen is None:
                # Only grants can have taken everything away: `offline` is always there.
                actor.require_grant("models", "offline")
                raise NotFound("no model is available", kind="model", id="auto")
        else:
            chosen = await self._named(name)
            if not _granted(actor, *chosen):
                actor.require_grant("models", "/".join(chosen))
        return self._provider(chosen[0]), chosen[1]

    async def _auto(self, actor: Actor) -> tuple[str, str] | None:
        """The model ``auto`` means for this actor now: ``(provider, model)``; None where it leads nowhere."""
        if self.default == "auto":
            return await self._first_available(actor)
        try:
            return await self._named(self.default)
        except (NotFound, ModelError):
            return None

    async def _first_available(self, actor: Actor) -> tuple[str, str] | None:
        for provider in self.providers:
            for row in await provider.models():
                if row.available and row.kind == "chat" and _granted(actor, provider.name, row.name):
                    return provider.name, row.name
        return None

    async def _named(self, name: str) -> tuple[str, str]:
        """Raises ``NotFound``, or ``ModelError`` when it is known but cannot be used."""
        head, _, rest = name.partition("/")
        for provider in self.providers:
            if provider.name == name:
                rows = await provider.models()
                return _usable(next((row for row in rows if row.kind == "chat"), rows[0]))
            if provider.name == head and rest:
                return provider.name, rest
        rows = await self._rows()
        for wanted in (name, f"{name}:latest"):
            found = [row for row in rows if row.name == wanted]
            if found:
                return _usable(next((row for row in found if row.available), found[0]))
        shown = ", ".join(
            f"{row.provider}/{row.name}" for row in rows if row.available and row.kind == "chat"
        )
        silent = "; ".join(dict.fromkeys(str(row.reason) for row in rows if not row.available))
        raise NotFound(
            f"no provider lists a model {name!r}. There are: {_shortened(shown)}."
            + (f" Not available: {silent}." if silent else "")
            + " A model that is not listed is named PROVIDER/MODEL",
            kind="model",
            id=name,
        )

    async def _rows(self) -> tuple[Model, ...]:
        """Every provider's models, asked all at once, in the providers' order."""
        found: dict[int, tuple[Model, ...]] = {}

        async def ask(index: int, provider: Provider) -> None:
            found[index] = await provider.models()

        async with trio.open_nursery() as nursery:
            for index, provider in enumerate(self.providers):
                nursery.start_soon(ask, index, provider)
        return tuple(row for _, rows in sorted(found.items()) for row in rows)

    def embedding_provider(self, name: str) -> EmbeddingProvider | None:
        """The provider of that name, if it embeds."""
        for provider in self.providers:
            if provider.name == name and isinstance(provider, EmbeddingProvider):
                return provider
        return None

    def _provider(self, name: str) -> Provider:
        return next(provider for provider in self.providers if provider.name == name)


def _granted(actor: Actor, provider: str, model: str) -> bool:
    """A grant may name the model with its provider or without."""
    return actor.granted("models", f"{provider}/{model}") or actor.granted("models", model)


def _usable(row: Model) -> tuple[str, str]:
    if not row.available:
        raise ModelError(str(row.reason), provider=row.provider, status=None)
    if row.kind != "chat":
        raise ModelError(f"{row.name} is no chat model", provider=row.provider, status=None)
    return row.provider, row.name


def _shortened(names: str) -> str:
    parts = names.split(", ")
    return ", ".join(parts[:_SHOWN]) + (f" and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else "")
