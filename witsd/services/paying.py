"""Who pays: the run that a model call or a delegated run is for, and the accounts behind it."""

from __future__ import annotations

from collections.abc import Iterable

from witsd.services.budgets import Account, least
from witsd.services.run_book import RunBook
from witsd.services.run_state import LiveRun
from witsd.values.actor import Actor
from witsd.values.errors import InvalidParams, InvalidState, LimitExceeded, NotFound
from witsd.values.ids import AgentName, RunId
from witsd.values.spec import Budget
from witsd.values.wire.budgets import Left
from witsd.values.wire.common import UNSET
from witsd.values.wire.runs import Run

#: Runs that have delegated one another.
MAX_DEPTH = 16


def run_of(book: RunBook, actor: Actor, run_id: str | None, *, field: str) -> LiveRun | None:
    """The run that ``actor`` does this for: the one named, else the only one that the agent is on.

    None where there is none: an agent's own account pays then. Raises ``NotFound`` for a run that is not on or
    another agent's, ``InvalidParams`` where the agent is on several, and it matters which.
    """
    if run_id is not None:
        run = book.live.get(RunId(run_id))
        if run is None or run.status not in ("running", "waiting") or actor.agent not in (None, run.agent):
            raise NotFound(f"{actor.label} is on no such run", kind="run", id=run_id)
        if run.ending:
            raise InvalidState("the run is over", state="ending")
        return run
    if actor.agent is None:
        return None
    on = [
        run
        for run in book.live.values()
        if run.agent == actor.agent and run.status in ("running", "waiting") and not run.ending
    ]
    if len(on) == 1:
        return on[0]
    own = book.budgets.of_agent(actor.agent)
    if any(least(payer for payer in run.payers if payer is not own) != Left() for run in on):
        raise InvalidParams(
            f"{actor.label} is on {len(on)} runs and one of them has a budget: say which this is for, as `{field}` or "
            "by using the run's own key, or set limits.concurrency = 1",
            path=f"params.{field}",
        )
    return None


def payers(book: RunBook, actor: Actor, run: LiveRun | None) -> tuple[Account, ...]:
    """The accounts that pay a call of ``actor``'s for ``run``; nobody's where a person calls."""
    if run is not None:
        return run.payers
    return () if actor.agent is None else (book.budgets.of_agent(actor.agent),)


def open_account(book: RunBook, run: LiveRun, above: Iterable[Account]) -> None:
    """Give a new run its account, and those of its agent and of whoever has delegated it."""
    accounts = (book.budgets.of_run(run.budget), book.budgets.of_agent(run.agent), *above)
    run.payers = tuple({id(account): account for account in accounts}.values())


def check_depth(parent: LiveRun) -> int:
    """How deep what ``parent`` delegates is. Raises ``LimitExceeded``."""
    if parent.depth + 1 >= MAX_DEPTH:
        raise LimitExceeded(
            f"{MAX_DEPTH} runs have delegated one another: this looks like agents that ask each other in a circle",
            limit="delegation",
            value=MAX_DEPTH,
        )
    return parent.depth + 1


def reopened(book: RunBook, parent: Run) -> tuple[Account, ...]:
    """The accounts of a run that was over before the daemon started: what it delegated goes on spending them."""
    state = parent.budget
    limit = Budget() if state is UNSET or state.limit is UNSET else state.limit
    account = book.budgets.of_run(limit)
    if state is not UNSET:
        account.restore(state.spent, 0)
    return (account, book.budgets.of_agent(AgentName(parent.agent)))
