"""Each model call is paid and written down: as an item of its run, else in the stream of who has made it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

import attrs

from witsd.journal.event import entry
from witsd.services import paying
from witsd.services.budgets import Account
from witsd.services.run_book import RunBook
from witsd.services.run_state import LiveRun
from witsd.values.actor import Actor
from witsd.values.errors import LimitExceeded
from witsd.values.ids import ItemId
from witsd.values.items import ItemStatus, UsageItem
from witsd.values.wire.common import UNSET
from witsd.values.wire.event_types import ModelCallData
from witsd.values.wire.runs import Usage


@attrs.frozen(kw_only=True)
class Called:
    """One call of a model that is over. ``error``: its name, empty where it answered."""

    provider: str
    model: str
    usage: Usage
    duration_ms: float
    status: ItemStatus = "completed"
    error: str = ""


@attrs.frozen
class Tab:
    """Who pays what one request to the gateway needs."""

    accounts: tuple[Account, ...] = ()
    _actor: Actor | None = None
    _run: LiveRun | None = None
    _book: RunBook | None = None

    @contextmanager
    def open(self) -> Iterator[None]:
        """While the model is called. Raises ``InvalidState`` where the run ends meanwhile."""
        with nullcontext() if self._run is None else self._run.calling():
            yield

    def note(self, called: Called) -> None:
        """Write a call down. Its usage has been booked."""
        if self._book is not None and self._actor is not None:
            with suppress(LimitExceeded):  # the daemon is ending, or its disk is full: the call was made all the same
                self._write(self._book, self._actor, called)

    def _write(self, book: RunBook, actor: Actor, called: Called) -> None:
        usage = called.usage
        if self._run is not None:
            book.used(
                self._run,
                UsageItem(
                    item_id=ItemId(book.ids.new("use")),
                    status=called.status,
                    model=called.model,
                    input_tokens=usage.input_tokens,
                    output_tokens=usage.output_tokens,
                    calls=usage.calls,
                    cost_usd=usage.cost_usd,
                ),
            )
            return
        data = ModelCallData(
            actor=actor.label,
            provider=called.provider,
            model=called.model,
            usage=usage,
            duration_ms=round(called.duration_ms, 3),
            error=called.error or UNSET,
        )
        agent = actor.agent
        stream = "audit" if agent is None else f"agent:{agent}"
        book.journal.append_nowait(
            entry(stream, "model.called", data), statements=book.budgets.write_down(self.accounts), keep=False
        )


@attrs.frozen
class Meter:
    """Opens tabs over the runs that are on."""

    book: RunBook

    def begin(self, actor: Actor, run_id: str | None) -> Tab:
        """Raises as ``paying.run_of``."""
        run = paying.run_of(self.book, actor, run_id, field="run_id")
        return Tab(paying.payers(self.book, actor, run), actor, run, self.book)
