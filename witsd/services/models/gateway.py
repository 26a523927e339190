"""The gateway: every call of a model goes through here, wherever it comes from.

It finds the model a caller means (``routing``), checks that it may and that it is paid for (``budgets``), bounds the
call in time and in number, goes on to the next of a route where one fails, and writes down what was used.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

import attrs
import msgspec
import trio

from witsd.services.budgets import Hold, hold, least
from witsd.services.models.metering import Called, Meter, Tab
from witsd.services.models.prices import Price, completed, find_price, fitted, tokens_in, tokens_of
from witsd.services.models.provider import Deltas, EmbeddingProvider, Provider, extra_try
from witsd.services.models.routing import Router, Target
from witsd.values.actor import Actor
from witsd.values.clock import Clock
from witsd.values.config_models import DEFAULT_LIMITS, PriceConfig, ProviderLimits
from witsd.values.errors import (
    InvalidParams,
    LimitExceeded,
    ModelError,
    NotFound,
    Overloaded,
    PermissionDenied,
    Timeout,
    WitsdError,
)
from witsd.values.items import ItemStatus
from witsd.values.wire.common import UNSET
from witsd.values.wire.models import (
    ModelPage,
    ModelsCompleteParams,
    ModelsCompleteResult,
    ModelsEmbedParams,
    ModelsEmbedResult,
    ModelsListParams,
)
from witsd.values.wire.runs import Usage

#: Calls that may wait for room at one provider.
_MAX_WAITING = 1000


class Progress(Protocol):
    """How pieces of the answer get back to the caller."""

    @property
    def wanted(self) -> bool: ...

    async def __call__(self, *, delta: str | None = None, thought: str | None = None) -> None: ...


@attrs.define(eq=False)
class _Heard:
    """Passes on what a model says, and counts it."""

    wanted: Deltas | None
    chars: int = 0

    @property
    def deltas(self) -> Deltas | None:
        wanted = self.wanted
        if wanted is None:
            return None
        think = wanted.thought

        async def text(piece: str) -> None:
            self.chars += len(piece)
            await wanted.text(piece)

        async def thought(piece: str) -> None:
            if think is not None:
                self.chars += len(piece)
                await think(piece)

        return Deltas(text, thought)


@attrs.define(eq=False)
class _Room:
    """How many calls a provider may have at once."""

    limits: ProviderLimits
    _free: trio.Semaphore = attrs.field(init=False)
    _waiting: int = 0

    def __attrs_post_init__(self) -> None:
        self._free = trio.Semaphore(self.limits.concurrency)

    @asynccontextmanager
    async def enter(self, provider: str) -> AsyncIterator[None]:
        if self._waiting >= _MAX_WAITING:
            raise Overloaded(f"{_MAX_WAITING} calls wait for {provider} already", retry_after_ms=1000)
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._free.release()


@attrs.define(eq=False)
class Models:
    """Serves ``models/list`` and ``models/complete`` over ``providers``, in their order."""

    router: Router
    clock: Clock
    prices: Sequence[PriceConfig] = ()
    limits: Mapping[str, ProviderLimits] = attrs.field(factory=dict)
    #: Set once there are runs to pay for.
    meter: Meter | None = None
    _rooms: dict[str, _Room] = attrs.field(factory=dict)

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
        rows = await self.router.rows(actor)
        page = tuple(rows[start : start + params.limit])
        end = start + len(page)
        return ModelPage(items=page, next_cursor=str(end) if end < len(rows) else UNSET)

    async def complete(
        self, actor: Actor, params: ModelsCompleteParams, progress: Progress
    ) -> ModelsCompleteResult:
        """One call. With ``params.stream`` and a caller that wants progress, pieces come as its ``delta``.

        Raises ``NotFound`` for a model or a run that is not there, ``PermissionDenied`` without the grant,
        ``LimitExceeded`` where a budget does not suffice, ``ModelError`` from the provider, ``Overloaded``,
        ``Timeout`` after ``params.timeout_s``.
        """
        if not params.messages:
            raise InvalidParams("params.messages: there is nothing to answer", path="params.messages")
        on_delta: Deltas | None = None
        if params.stream and progress.wanted:

            async def on_text(text: str) -> None:
                await progress(delta=text)

            async def on_thought(text: str) -> None:
                await progress(thought=text)

            on_delta = Deltas(on_text, on_thought)

        tab = Tab() if self.meter is None else self.meter.begin(actor, params.run_id)
        with trio.move_on_after(params.timeout_s if params.timeout_s is not None else float("inf")):
            with tab.open():
                return await self._by_route(actor, params, on_delta, tab)
        raise Timeout(f"the model did not finish within {params.timeout_s:g} s: raise timeout_s")

    async def aclose(self) -> None:
        """Close every provider."""
        for provider in self.router.providers:
            await provider.aclose()

    def embedding_provider(self, name: str) -> EmbeddingProvider | None:
        """The provider of that name, if it embeds."""
        for provider in self.router.providers:
            if provider.name == name and isinstance(provider, EmbeddingProvider):
                return provider
        return None

    async def paid(
        self,
        actor: Actor,
        params: ModelsEmbedParams,
        provider: Provider,
        model: str,
        embed: Callable[[], Awaitable[ModelsEmbedResult]],
    ) -> ModelsEmbedResult:
        """``embed()``, paid and written down as a call of ``model`` is. Raises as ``complete``."""
        tab = Tab() if self.meter is None else self.meter.begin(actor, params.run_id)
        with tab.open():
            price, asked = self.price(provider, model), tokens_of(sum(map(len, params.texts)))
            _check_price(tab, price, f"{provider.name}/{model}")
            usd = price.of(asked, 0) if price is not None else 0.0
            held = hold(tab.accounts, tokens=asked, usd=usd)
            begun, status, error = self.clock.monotonic(), "failed", ""
            try:
                token = extra_try.set(held.another)
                try:
                    async with self._room(provider.name).enter(provider.name):
                        result = await embed()
                finally:
                    extra_try.reset(token)
                status = "completed"
                return result
            except WitsdError as refused:
                error, asked, usd = refused.name, 0, 0.0
                raise
            finally:
                used = Usage(input_tokens=asked, calls=held.calls, cost_usd=usd)
                held.settle(used)
                took = (self.clock.monotonic() - begun) * 1000
                told = Called(
                    provider=provider.name,
                    model=model,
                    usage=used,
                    duration_ms=took,
                    status="completed" if status == "completed" else "failed",
                    error=error,
                )
                tab.note(told)

    # -- one call -----------------------------------------------------------------------------------

    async def _by_route(
        self, actor: Actor, params: ModelsCompleteParams, on_delta: Deltas | None, tab: Tab
    ) -> ModelsCompleteResult:
        names = self.router.expand(params.model)
        heard = _Heard(on_delta)
        failed: list[tuple[str, WitsdError]] = []
        for name in names:
            try:
                target = await self.router.resolve(actor, name, asked=params.model)
                return await self._call(target, params, heard, tab)
            except (ModelError, NotFound, PermissionDenied, Overloaded) as error:
                if heard.chars or len(names) == 1:  # what has been said cannot be taken back
                    raise
                failed.append((name, error))
        raise _none_answered(params.model or "auto", failed)

    async def _call(
        self, target: Target, params: ModelsCompleteParams, heard: _Heard, tab: Tab
    ) -> ModelsCompleteResult:
        provider, model = target.provider, target.model
        price = self.price(provider, model)
        asked = tokens_in(params)
        params, held = _reserve(tab, params, price, asked, f"{provider.name}/{model}")
        begun = self.clock.monotonic()

        def over(usage: Usage, name: str, status: ItemStatus = "completed", error: str = "") -> None:
            held.settle(usage)
            took = (self.clock.monotonic() - begun) * 1000
            told = Called(
                provider=provider.name, model=name, usage=usage, duration_ms=took, status=status, error=error
            )
            tab.note(told)

        def broken(status: ItemStatus, error: str, *, asked: int) -> None:
            tokens = tokens_of(heard.chars)
            cost = price.of(asked, tokens) if price is not None else 0.0
            usage = Usage(input_tokens=asked, output_tokens=tokens, calls=held.calls, cost_usd=cost)
            over(usage, model or provider.name, status, error)

        try:
            result = await self._in_time(provider, model, params, heard.deltas, held)
        except WitsdError as error:
            # What is refused outright is not billed; what breaks off has been read, and answered in part.
            broken("failed", error.name, asked=asked if heard.chars else 0)
            raise
        except BaseException:
            broken("cancelled", "cancelled", asked=asked)
            raise
        usage = completed(result, price, asked=asked, calls=held.calls)
        over(usage, result.model)
        return msgspec.structs.replace(result, usage=usage)

    async def _in_time(
        self, provider: Provider, model: str, params: ModelsCompleteParams, on_delta: Deltas | None, held: Hold
    ) -> ModelsCompleteResult:
        limits = self._limits(provider.name)
        async with self._room(provider.name).enter(provider.name):
            token = extra_try.set(held.another)
            try:
                with trio.move_on_after(limits.call_timeout_s):
                    return await provider.complete(params, model, on_delta)
            finally:
                extra_try.reset(token)
        raise ModelError(
            f"{provider.name} did not finish its answer within {limits.call_timeout_s:g} s: raise call_timeout_s of "
            f"[providers.{provider.name}], or ask for less",
            provider=provider.name,
            status=None,
            retryable=True,
        )

    def _limits(self, provider: str) -> ProviderLimits:
        return self.limits.get(provider, DEFAULT_LIMITS)

    def _room(self, provider: str) -> _Room:
        room = self._rooms.get(provider)
        if room is None:
            room = self._rooms[provider] = _Room(self._limits(provider))
        return room

    def price(self, provider: Provider, model: str) -> Price | None:
        """What a model of a provider costs; None where nobody has said."""
        return find_price(self.prices, provider.kind, provider.name, model)


def _reserve(
    tab: Tab, params: ModelsCompleteParams, price: Price | None, asked: int, name: str
) -> tuple[ModelsCompleteParams, Hold]:
    left = least(tab.accounts)
    _check_price(tab, price, name)
    params, answer = fitted(params, left, price, asked)
    usd = price.of(asked, answer) if price is not None else 0.0
    return params, hold(tab.accounts, tokens=asked + answer, usd=usd)


def _check_price(tab: Tab, price: Price | None, name: str) -> None:
    left = least(tab.accounts).cost_usd
    if price is None and left is not UNSET:
        raise LimitExceeded(
            f"{name} has no price, and a budget in US dollars counts: add [prices.{name!r}] with input_usd and "
            "output_usd, for a million tokens, to witsd.toml (0 where it costs nothing)",
            limit="budget.cost_usd",
            value=left,
        )


def _none_answered(name: str, failed: Sequence[tuple[str, WitsdError]]) -> WitsdError:
    if all(isinstance(error, PermissionDenied) for _, error in failed):
        return failed[0][1]
    last = next((error for _, error in reversed(failed) if isinstance(error, ModelError)), failed[-1][1])
    return ModelError(
        f"none of the models of {name} answered. " + "; ".join(f"{each}: {error.message}" for each, error in failed),
        provider=str(last.data.get("provider", "")),
        status=last.data.get("status"),
        retryable=any(bool(error.data.get("retryable")) for _, error in failed),
    )
