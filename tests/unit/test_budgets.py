"""Accounts by themselves: periods, what is set aside, wall time; prices and what is left for an answer."""

from __future__ import annotations

import pytest

from tests.doubles.clock import FakeClock
from witsd.services.budgets import Account, hold, least, tighter
from witsd.services.models.prices import Price, find_price, fitted
from witsd.values.config_models import PriceConfig
from witsd.values.errors import LimitExceeded
from witsd.values.spec import AgentBudget, Budget
from witsd.values.wire.budgets import Left, Spent
from witsd.values.wire.models import ChatMessage, ModelsCompleteParams
from witsd.values.wire.runs import Usage

ASK = ModelsCompleteParams(messages=(ChatMessage(role="user", content="Hello!"),))


def account(limit: Budget, clock: FakeClock | None = None) -> Account:
    return Account("digest", "[budget] in the definition of digest", lambda: limit, clock or FakeClock())


def test_a_day_of_utc_begins_anew_and_a_total_never() -> None:
    clock = FakeClock()
    day, total = (account(AgentBudget(calls=1, per=per), clock) for per in ("day", "total"))
    for each in (day, total):
        hold((each,), tokens=0, usd=0).settle(Usage(input_tokens=3, output_tokens=4))
        with pytest.raises(LimitExceeded) as refused:
            hold((each,), tokens=0, usd=0)
        assert "raise `calls` of [budget] in the definition of digest" in refused.value.message
    assert "begins anew at 20" in day.exhausted("calls").message
    clock.forward(86_400)
    assert (day.left, day.spent) == (Left(calls=1), Spent())
    assert (total.left.calls, total.spent.tokens) == (0, 7)


def test_a_budget_for_each_run_limits_no_agent() -> None:
    assert account(AgentBudget(calls=1, tokens=1, cost_usd=1, wall_s=1, per="run")).left == Left()


def test_what_is_set_aside_cannot_be_spent_twice_and_comes_back() -> None:
    tight, wide = account(Budget(tokens=100, cost_usd=1)), account(Budget(tokens=1000))
    first = hold((tight, wide), tokens=60, usd=0.75)
    assert least((tight, wide)) == Left(tokens=40, cost_usd=0.25)
    for tokens, usd in ((41, 0), (1, 0.3)):
        with pytest.raises(LimitExceeded):
            hold((wide, tight), tokens=tokens, usd=usd)
    assert (wide.calls, wide.held_tokens) == (1, 60), "what is refused takes nothing from anybody"
    first.settle(Usage(input_tokens=10, output_tokens=5, cost_usd=0.1, calls=9))
    assert (tight.left, tight.spent) == (Left(tokens=85, cost_usd=0.9), Spent(tokens=15, cost_usd=0.1, calls=1))


def test_another_try_is_paid_like_the_first() -> None:
    two = account(Budget(calls=2))
    call = hold((two,), tokens=0, usd=0)
    call.another()
    with pytest.raises(LimitExceeded):
        call.another()
    assert (two.calls, call.calls) == (2, 2)


def test_runs_at_once_use_wall_time_once() -> None:
    clock = FakeClock()
    it = account(Budget(wall_s=10), clock)
    it.enter()
    clock.forward(2)
    it.enter()
    clock.forward(3)
    it.leave()
    clock.forward(1)
    it.leave()
    clock.forward(100)
    assert (it.spent.wall_s, it.left.wall_s) == (6, 4)


def test_the_tighter_of_two_where_nothing_is_no_limit() -> None:
    assert tighter(Budget(calls=5, tokens=7), Budget(calls=3, cost_usd=2)) == Budget(calls=3, tokens=7, cost_usd=2)


@pytest.mark.parametrize(
    ("left", "asked", "sent", "aside"),
    [
        (Left(), None, None, 0),
        (Left(), 50, 50, 50),
        (Left(tokens=100_000), None, None, 2048),
        (Left(tokens=100_000), 9000, 9000, 9000),
        (Left(tokens=104), None, 100, 100),
        (Left(tokens=104), 50, 50, 50),
        (Left(tokens=2), None, 1, 1),
        (Left(cost_usd=0.000105), None, 50, 50),
    ],
)
def test_an_answer_is_bounded_by_what_is_left(left: Left, asked: int | None, sent: int | None, aside: int) -> None:
    params = ModelsCompleteParams(messages=ASK.messages, max_tokens=asked)
    made, answer = fitted(params, left, Price(1, 2), 4)
    assert (made.max_tokens, answer) == (sent, aside)


def test_prices_by_name_and_by_pattern() -> None:
    rows = (
        PriceConfig(name="up/small", input_usd=1, output_usd=2),
        PriceConfig(name="gpt-*", input_usd=3),
        PriceConfig(name="up/*", input_usd=5, output_usd=6),
    )
    assert find_price(rows, "openai", "up", "small") == Price(1, 2)
    assert find_price(rows, "openai", "other", "gpt-4.1") == Price(3, 0)
    assert find_price(rows, "openai", "up", "large") == Price(5, 6)
    assert find_price(rows, "openai", "other", "x") is None
    assert find_price((), "offline", "offline", "offline") == Price(0, 0)
