"""What happens to a run, written down: each step changes its row and says so in its stream, as one transaction."""

from __future__ import annotations

import logging
from collections.abc import Callable

import attrs
import trio

from witsd.journal.event import entry
from witsd.journal.journal import Journal, Tx
from witsd.services import run_rows, session_rows
from witsd.services.budgets import Budgets
from witsd.services.deltas import Deltas
from witsd.services.run_state import LiveRun
from witsd.values.actor import Actor
from witsd.values.clock import Clock
from witsd.values.errors import LimitExceeded
from witsd.values.ids import Ids, ItemId, RunId
from witsd.values.items import Item, ItemStatus, MessageItem, UsageItem
from witsd.values.wire import event_types as types
from witsd.values.wire import runs as wire
from witsd.values.wire.common import UNSET
from witsd.values.wire.native import DeltaNotification, ItemNotification

log = logging.getLogger("witsd.runs")

#: What a run's end makes of the items that are still open.
_CLOSES_AS: dict[str, ItemStatus] = {
    "completed": "completed",
    "failed": "failed",
    "cancelled": "cancelled",
    "interrupted": "cancelled",
}
#: How long a run's end waits to be written. It is a fact and stays queued, also when the disk takes longer.
_WRITE_S = 30
#: How long its end waits for model calls that have been told to stop.
_CALLS_S = 5


@attrs.define(eq=False)
class RunBook:
    """The runs that are not over, and everything that may be said of one."""

    journal: Journal
    clock: Clock
    ids: Ids
    deltas: Deltas
    budgets: Budgets
    #: Told of each run that is over, with its duration in milliseconds.
    record: Callable[[LiveRun, float], None]
    live: dict[RunId, LiveRun] = attrs.field(factory=dict)
    #: Called when turns may have been remembered.
    remembered: Callable[[], None] = lambda: None

    def insert(self, tx: Tx, run: LiveRun) -> None:
        """The run's row and its first event, in the caller's transaction."""
        run_rows.insert(tx, run)
        tx.emit(
            entry(
                run.stream_name,
                "run.queued",
                types.RunQueuedData(
                    run_id=run.run_id, agent=run.agent, input=run.input, session_id=run.session_id or UNSET
                ),
            )
        )

    async def started(self, run: LiveRun) -> None:
        """Its agent is there and gets it now. Committed before the agent hears of it."""
        await trio.lowlevel.checkpoint_if_cancelled()  # a run that is not to begin stays as it is
        run.status, run.started_us = "running", self.clock.wall_us()
        for account in run.payers:
            account.enter()
        data = types.RunStartedData(run_id=run.run_id, agent=run.agent, session_id=run.session_id or UNSET)

        def work(tx: Tx) -> None:
            tx.execute(
                "UPDATE runs SET status = 'running', started_us = ? WHERE run_id = ?",
                (run.started_us, run.run_id),
            )
            tx.emit(entry(run.stream_name, "run.started", data))
            if run.session_id is not None:
                session_rows.set_status(tx, run.session_id, "running", run.run_id)

        await self.journal.write(work, keep=True)

    async def end(self, run: LiveRun, status: wire.RunStatus, reason: str = "") -> None:
        """Close the run, its items and its turn of the conversation, as one transaction."""
        await self._end_calls(run)
        if run.started_us is not None:
            for account in run.payers:
                account.leave()
        run.final = run.budget_state()
        run.status, run.reason, run.ended_us = status, reason, self.clock.wall_us()
        for question in run.questions.values():
            question.close()
        closed = run.close_items(_CLOSES_AS[status])
        if status == "completed" and run.output in (UNSET, None, ""):
            run.output = run.said()
        for item, _ in closed:
            self.deltas.flush(run.run_id, item.item_id)
        match status:
            case "completed":
                data: object = types.RunCompletedData(run_id=run.run_id, output=run.output, usage=run.usage)
            case "failed":
                assert run.error is not None
                data = types.RunFailedData(run_id=run.run_id, error=run.error, usage=run.usage)
            case _:
                data = types.RunStoppedData(run_id=run.run_id, reason=reason, usage=run.usage)

        accounts = self.budgets.write_down(run.payers)

        def work(tx: Tx) -> None:
            for statement in accounts:
                tx.execute(*statement)
            for item, n in closed:
                tx.execute(*run_rows.item_statement(run.run_id, n, item))
                tx.emit(entry(run.stream_name, "item.completed", types.ItemData(run_id=run.run_id, item=item)))
            run_rows.finish(tx, run)
            tx.emit(entry(run.stream_name, f"run.{status}", data, seals=True))
            if run.session_id is not None:
                session_rows.end_of_run(tx, run, self.ids)

        with trio.CancelScope(shield=True, deadline=trio.current_time() + _WRITE_S):
            await self.journal.write(work, keep=True)
        log.info("run.%s run=%s agent=%s", status, run.run_id, run.agent)
        if run.session_id is not None:
            self.remembered()
        if run.started_us is not None:
            self.record(run, max(0, run.ended_us - run.started_us) / 1000)
        self.live.pop(run.run_id, None)
        run.done.set()

    async def _end_calls(self, run: LiveRun) -> None:
        """Nobody needs its calls any more; what they have used and done belongs to it all the same."""
        run.ending = True
        for call in run.calls:
            call.cancel()
        if run.calls:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _CALLS_S):
                await run.calls_over.wait()

    def stop(self, run: LiveRun, status: wire.RunStatus, reason: str) -> None:
        """Make a run that executes end as ``status``; it is over once ``done`` is set.

        The first to ask decides, but for ``queued``, which ends nothing: it puts the run back into its queue.
        """
        if run.stop_as is None or run.stop_as == "queued":
            run.stop_as, run.stop_reason = status, reason
            run.scope.cancel()

    # ---- what agents say about it ---------------------------------------------------------------------

    def item(self, actor: Actor, params: ItemNotification) -> None:
        """``notifications/item``: insert or replace. For a run that is not the agent's own: ignored."""
        run = self.of_agent(actor, params.run_id)
        if run is None:
            return
        try:
            event, item, n = run.upsert(params.item)
        except LimitExceeded as error:
            self._fail(run, error)
            return
        if not event:
            return
        self.deltas.flush(run.run_id, item.item_id)
        spent = isinstance(item, UsageItem) and event == "item.completed"
        if spent and isinstance(item, UsageItem):  # of a model that it has called by itself
            for account in run.payers:
                account.add(_usage(item))
        self._keep(run, event, item, n, spent=spent)

    def used(self, run: LiveRun, item: UsageItem) -> None:
        """A model call for ``run`` is over, and booked: to be seen among its items."""
        try:
            event, kept, n = run.upsert(item)
        except LimitExceeded as error:
            self._fail(run, error)
            return
        self._keep(run, event, kept, n, spent=True)

    def _keep(self, run: LiveRun, event: str, item: Item, n: int, *, spent: bool) -> None:
        accounts = self.budgets.write_down(run.payers) if spent else ()
        self.journal.append_nowait(
            entry(run.stream_name, event, types.ItemData(run_id=run.run_id, item=item)),
            statements=(run_rows.item_statement(run.run_id, n, item), *accounts),
        )

    def delta(self, actor: Actor, params: DeltaNotification) -> None:
        """``notifications/delta``: append to an item's text; an unknown item begins as a message."""
        run = self.of_agent(actor, params.run_id)
        if run is None:
            return
        try:
            if not run.has(params.item_id):
                begun = MessageItem(item_id=ItemId(params.item_id))
                self.item(actor, ItemNotification(run_id=params.run_id, item=begun))
            if run.grow(params.item_id, params.text) and run.stream:
                self.deltas.add(run.agent, run.run_id, params.item_id, params.text)
        except LimitExceeded as error:
            self._fail(run, error)

    def of_agent(self, actor: Actor, run_id: str) -> LiveRun | None:
        """The agent's own run, while it is on; None for late news and for another agent's."""
        run = self.live.get(RunId(run_id))
        if run is None or run.agent != actor.agent or run.status not in ("running", "waiting"):
            return None
        return run

    def overspent(self, run: LiveRun, error: LimitExceeded) -> None:
        """End it as failed: a budget that pays for it is used up."""
        self._fail(run, error)

    def _fail(self, run: LiveRun, error: LimitExceeded) -> None:
        run.error = wire.ErrorInfo(code=error.code, message=error.message, data=dict(error.data))
        self.stop(run, "failed", "")


def _usage(item: UsageItem) -> wire.Usage:
    return wire.Usage(
        input_tokens=item.input_tokens, output_tokens=item.output_tokens, calls=item.calls, cost_usd=item.cost_usd
    )
