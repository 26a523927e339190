"""Budgets: what agents and runs may spend on models, looked at before each call and booked after it.

A call is paid by several accounts at once: its run's, its agent's, and those of whoever has delegated the run. What
it may take is set aside in all of them before it goes out, without a wait in between, so that however many go out at
the same moment, no more than are paid for do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import apsw
import attrs
import msgspec

from witsd.journal.journal import Journal
from witsd.values.clock import Clock, rfc3339
from witsd.values.errors import LimitExceeded
from witsd.values.ids import AgentName
from witsd.values.spec import AgentBudget, Budget
from witsd.values.wire.budgets import BudgetState, Left, Spent
from witsd.values.wire.common import UNSET, UnsetType
from witsd.values.wire.runs import Usage

_PERIOD_US = {"hour": 3_600_000_000, "day": 86_400_000_000}
_RENEWED = {"hour": "an hour of UTC", "day": "a day of UTC"}
_UPSERT = (
    "INSERT INTO spending(agent, since_us, spent) VALUES (?,?,?) "
    "ON CONFLICT(agent) DO UPDATE SET since_us = excluded.since_us, spent = excluded.spent"
)
#: Beyond all numbers there is only infinity, which JSON cannot say.
_MOST = 1e300


@attrs.define(eq=False)
class Account:
    """What one agent or one run has spent. ``limit`` is asked anew each time: definitions change."""

    #: How people are told whose it is.
    title: str
    #: Where its limits are set.
    where: str
    limit: Callable[[], Budget]
    clock: Clock
    tokens: int = 0
    cost_usd: float = 0.0
    calls: int = 0
    _wall_s: float = 0.0
    #: When its period began, by wall clock; 0 where it has none.
    since_us: int = 0
    held_tokens: int = 0
    held_usd: float = 0.0
    #: Runs that it pays and that are on, and since when, by monotonic clock.
    _running: int = 0
    _since: float = 0.0

    def renew(self) -> None:
        """Begin anew where its period is over."""
        limit = self.limit()
        period = _PERIOD_US.get(limit.per, 0) if isinstance(limit, AgentBudget) else 0
        since = self.clock.wall_us() // period * period if period else 0
        if since != self.since_us:
            if since and self.since_us:  # else its definition counts otherwise from now on: what was spent stays
                self.tokens, self.cost_usd, self.calls, self._wall_s = 0, 0.0, 0, 0.0
                self._since = self.clock.monotonic()
            self.since_us = since

    @property
    def spent(self) -> Spent:
        return Spent(tokens=self.tokens, cost_usd=self.cost_usd, calls=self.calls, wall_s=round(self.wall_s, 3))

    @property
    def wall_s(self) -> float:
        return self._wall_s + (self.clock.monotonic() - self._since if self._running else 0.0)

    @property
    def left(self) -> Left:
        """What is left of its own limits, what is set aside taken off."""
        self.renew()
        limit = _binding(self.limit())
        tokens: int | UnsetType = UNSET
        if limit.tokens:
            tokens = max(0, limit.tokens - self.tokens - self.held_tokens)
        calls: int | UnsetType = max(0, limit.calls - self.calls) if limit.calls else UNSET
        cost: float | UnsetType = UNSET
        if limit.cost_usd:
            cost = max(0.0, limit.cost_usd - self.cost_usd - self.held_usd)
        wall: float | UnsetType = max(0.0, limit.wall_s - self.wall_s) if limit.wall_s else UNSET
        return Left(tokens=tokens, cost_usd=cost, calls=calls, wall_s=wall)

    @property
    def renews_us(self) -> int | None:
        limit = self.limit()
        period = _PERIOD_US.get(limit.per, 0) if isinstance(limit, AgentBudget) else 0
        return self.since_us + period if period and self.since_us else None

    def restore(self, spent: Spent, since_us: int) -> None:
        """Go on from what was written down."""
        self.tokens, self.cost_usd, self.calls, self._wall_s = spent.tokens, spent.cost_usd, spent.calls, spent.wall_s
        self.since_us = since_us

    def add(self, usage: Usage) -> None:
        self.renew()
        self.tokens += max(0, usage.input_tokens + usage.output_tokens)
        self.cost_usd = min(self.cost_usd + max(0.0, usage.cost_usd), _MOST)
        self.calls += max(0, usage.calls)

    def enter(self) -> None:
        """A run that it pays begins."""
        self.renew()
        if not self._running:
            self._since = self.clock.monotonic()
        self._running += 1

    def leave(self) -> None:
        """Such a run is over."""
        self._running -= 1
        if not self._running:
            self._wall_s += self.clock.monotonic() - self._since

    def exhausted(self, what: str) -> LimitExceeded:
        """Why not: ``what`` is the field of the budget that does not suffice."""
        limit = getattr(self.limit(), what)
        spent = getattr(self.spent, what)
        renewed = _RENEWED.get(getattr(self.limit(), "per", ""), "")
        begins = f"; it begins anew at {rfc3339(self.renews_us or 0)}" if renewed else ""
        words = {"tokens": "tokens", "cost_usd": "US dollars", "calls": "calls of models", "wall_s": "seconds"}[what]
        return LimitExceeded(
            f"{self.title} has no budget left for this: {_figure(spent)} of {_figure(limit)} {words} are spent"
            f"{begins}. To allow more, raise `{what}` of {self.where}",
            limit=f"budget.{what}",
            value=limit,
            spent=spent,
            of=self.title,
        )


@attrs.define(eq=False)
class Hold:
    """What a call may take, set aside in every account that pays it. Ends with ``settle``, once."""

    accounts: tuple[Account, ...]
    tokens: int
    usd: float
    calls: int = 1

    def another(self) -> None:
        """One more try of the same call. Raises ``LimitExceeded`` where there is none left."""
        _require_calls(self.accounts)
        for account in self.accounts:
            account.calls += 1
        self.calls += 1

    def settle(self, usage: Usage) -> None:
        """Book what it has used; its tries have been booked as they were made."""
        for account in self.accounts:
            account.held_tokens -= self.tokens
            account.held_usd -= self.usd
            account.add(msgspec.structs.replace(usage, calls=0))


def hold(accounts: tuple[Account, ...], *, tokens: int, usd: float) -> Hold:
    """Set one call with so many tokens, for so much, aside. Raises ``LimitExceeded`` naming what does not suffice."""
    _require_calls(accounts)
    for account in accounts:
        left = account.left
        if left.tokens is not UNSET and left.tokens < max(1, tokens):
            raise account.exhausted("tokens")
        if left.cost_usd is not UNSET and (left.cost_usd <= 0 or left.cost_usd < usd):
            raise account.exhausted("cost_usd")
        if left.wall_s is not UNSET and left.wall_s <= 0:
            raise account.exhausted("wall_s")
    for account in accounts:
        account.calls += 1
        account.held_tokens += tokens
        account.held_usd += usd
    return Hold(accounts, tokens, usd)


def _require_calls(accounts: Iterable[Account]) -> None:
    for account in accounts:
        if account.left.calls == 0:
            raise account.exhausted("calls")


def least(accounts: Iterable[Account]) -> Left:
    """What all of them together leave."""
    lefts = [account.left for account in accounts]

    def lowest(name: str) -> float | UnsetType:
        return min((value for left in lefts if (value := getattr(left, name)) is not UNSET), default=UNSET)

    tokens, calls = lowest("tokens"), lowest("calls")
    return Left(
        tokens=UNSET if tokens is UNSET else int(tokens),
        cost_usd=lowest("cost_usd"),
        calls=UNSET if calls is UNSET else int(calls),
        wall_s=lowest("wall_s"),
    )


def wall_left_s(accounts: Iterable[Account]) -> tuple[float, Account | None]:
    """How long these pay yet, and which of them ends first; infinity and None where none has such a limit."""
    found: tuple[float, Account | None] = (math.inf, None)
    for account in accounts:
        left = account.left.wall_s
        if left is not UNSET and left < found[0]:
            found = (left, account)
    return found


def tighter(one: Budget, other: Budget) -> Budget:
    """A budget within both."""

    def lower(a: float, b: float) -> float:
        return min(a, b) if a and b else a or b

    return Budget(
        tokens=int(lower(one.tokens, other.tokens)),
        cost_usd=lower(one.cost_usd, other.cost_usd),
        calls=int(lower(one.calls, other.calls)),
        wall_s=lower(one.wall_s, other.wall_s),
    )


@attrs.define(eq=False)
class Budgets:
    """The accounts of all agents. ``limit_of(agent)`` is ``[budget]`` of its definition as it is now."""

    journal: Journal
    clock: Clock
    limit_of: Callable[[AgentName], AgentBudget]
    _agents: dict[AgentName, Account] = attrs.field(factory=dict)

    def of_agent(self, agent: AgentName) -> Account:
        account = self._agents.get(agent)
        if account is None:
            account = self._agents[agent] = Account(
                agent, f"[budget] in the definition of {agent}", lambda: self.limit_of(agent), self.clock
            )
        return account

    def for_run(self, agent: AgentName, own: Budget | None) -> Budget:
        """What a new run of ``agent`` may spend by itself."""
        given = self.limit_of(agent)
        of_each = given if given.per == "run" else Budget()
        return tighter(of_each, own or Budget())

    def of_run(self, limit: Budget) -> Account:
        return Account("the run", "the budget that it was started with", lambda: limit, self.clock)

    def write_down(self, accounts: Iterable[Account]) -> list[tuple[str, tuple[object, ...]]]:
        """Statements that keep what these agents' accounts say."""
        ours = {id(account): name for name, account in self._agents.items()}
        return [
            (_UPSERT, (ours[id(account)], account.since_us, msgspec.json.encode(account.spent)))
            for account in accounts
            if id(account) in ours
        ]

    def forget(self, agent: AgentName) -> None:
        """The agent is gone: one of that name to come begins with nothing spent."""
        if self._agents.pop(agent, None) is not None:
            self.journal.append_nowait(statements=[("DELETE FROM spending WHERE agent = ?", (agent,))])

    def state(self, agent: AgentName) -> BudgetState | UnsetType:
        """For ``agents/get``: nothing where there is no budget and nothing was spent."""
        limit = self.limit_of(agent)
        if agent not in self._agents and limit == AgentBudget():
            return UNSET
        account = self.of_agent(agent)
        left = account.left  # renews it, where it is time
        if limit == AgentBudget() and not (account.calls or account.tokens or account.cost_usd):
            return UNSET
        own = Budget(tokens=limit.tokens, cost_usd=limit.cost_usd, calls=limit.calls, wall_s=limit.wall_s)
        return BudgetState(
            spent=account.spent,
            left=left,
            limit=UNSET if own == Budget() else own,
            renews_at=rfc3339(account.renews_us) if account.renews_us and own != Budget() else UNSET,
        )


async def open_budgets(journal: Journal, clock: Clock, limit_of: Callable[[AgentName], AgentBudget]) -> Budgets:
    """Load what is written down."""

    def load(db: apsw.Connection) -> list[tuple[str, int, bytes]]:
        return list(db.execute("SELECT agent, since_us, spent FROM spending"))

    budgets = Budgets(journal, clock, limit_of)
    for agent, since_us, spent in await journal.store.read(load):
        budgets.of_agent(AgentName(agent)).restore(msgspec.json.decode(spent, type=Spent), since_us)
    return budgets


def _binding(limit: Budget) -> Budget:
    """What limits an account itself: a budget for each run limits the runs' own accounts."""
    return Budget() if isinstance(limit, AgentBudget) and limit.per == "run" else limit


def _figure(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
