"""Which model a name means.

A name is ``auto``, a route, a provider (its default model), ``provider/model``, or a model that some provider lists.
``auto`` is the configured default where there is one, else the first chat model that is available, in the providers'
order, ``offline`` being the last. A model named outright, here or as the default, is that model or an error; a route
is a list of names, of which the first that answers does. The name of a route may be a pattern: ``gpt-*``.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal

import attrs
import msgspec
import trio

from witsd.services.models.provider import Provider
from witsd.values.actor import Actor
from witsd.values.config_models import RouteConfig
from witsd.values.errors import ModelError, NotFound, PermissionDenied
from witsd.values.wire.common import UNSET
from witsd.values.wire.models import Model

#: How many names an error lists.
_SHOWN = 8
ROUTE = "route"


@attrs.frozen
class Target:
    """A model of a provider. ``model`` empty: the provider's default."""

    provider: Provider
    model: str


@attrs.define(eq=False)
class Router:
    """Over ``providers``, in their order."""

    providers: Sequence[Provider]
    default: str = "auto"
    routes: Sequence[RouteConfig] = ()

    def expand(self, name: str | None) -> tuple[str, ...]:
        """The names to try in turn."""
        if name is None or name in ("", "auto"):
            name = self.default
        route = self._route(name)
        return route.models if route is not None else (name,)

    def _route(self, name: str) -> RouteConfig | None:
        """A provider's own name goes before any pattern."""
        exact = next((route for route in self.routes if route.name == name), None)
        if exact is not None or any(provider.name == name for provider in self.providers):
            return exact
        return next((route for route in self.routes if fnmatchcase(name, route.name)), None)

    async def resolve(self, actor: Actor, name: str, *, asked: str | None = None) -> Target:
        """The model ``name`` means, granted. ``asked``: the name of the route that led here, which may be granted, too.

        Raises ``NotFound``, ``PermissionDenied``, or ``ModelError`` for one that is known and cannot be used.
        """
        if name == "auto":
            chosen = await self._first_available(actor)
            if chosen is None:
                # Only grants can have taken everything away: `offline` is always there.
                actor.require_grant("models", "offline")
                raise NotFound("no model is available", kind="model", id="auto")
        else:
            chosen = await self._named(name)
            if not granted(actor, *chosen) and not (asked and actor.granted("models", asked)):
                actor.require_grant("models", "/".join(filter(None, chosen)))
        return Target(next(p for p in self.providers if p.name == chosen[0]), chosen[1])

    async def rows(self, actor: Actor) -> list[Model]:
        """The routes, then every provider's models; an agent sees those it is granted."""
        rows = [row for row in await self._rows() if granted(actor, row.provider, row.name)]
        chosen = await self._auto(actor)
        if chosen is not None:
            rows = [msgspec.structs.replace(row, default=(row.provider, row.name) == chosen) for row in rows]
        return [*[row for route in self.routes if (row := await self._route_row(actor, route)) is not None], *rows]

    async def _route_row(self, actor: Actor, route: RouteConfig) -> Model | None:
        """None where nothing of it is granted."""
        reasons, refused = [], 0
        for name in route.models:
            try:
                await self.resolve(actor, name, asked=route.name)
            except PermissionDenied:
                refused += 1
            except (NotFound, ModelError) as error:
                reasons.append(error.message)
            else:
                reasons = []
                break
        if refused == len(route.models):
            return None
        kind: Literal["chat", "embedding"] = "chat"
        return Model(
            name=route.name,
            provider=ROUTE,
            kind=kind,
            default=self.default == route.name,
            available=not reasons,
            reason="; ".join(reasons) or UNSET,
        )

    async def _auto(self, actor: Actor) -> tuple[str, str] | None:
        """The model ``auto`` means for this actor now: ``(provider, model)``; None where it leads nowhere."""
        if self.default == "auto":
            return await self._first_available(actor)
        if self._route(self.default) is not None:
            return None  # the route's own row says so
        try:
            return await self._named(self.default)
        except (NotFound, ModelError):
            return None

    async def _first_available(self, actor: Actor) -> tuple[str, str] | None:
        for provider in self.providers:
            for row in await provider.models():
                if row.available and row.kind == "chat" and granted(actor, provider.name, row.name):
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
        shown = ", ".join(f"{row.provider}/{row.name}" for row in rows if row.available and row.kind == "chat")
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


def granted(actor: Actor, provider: str, model: str) -> bool:
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
