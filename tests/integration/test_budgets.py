"""Budgets under the real daemon, before a real server: what goes out, what is refused, what is written down."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.doubles.fake_openai import Exchange, failing, whole
from tests.support.agents import begin, define, play, wait
from tests.support.daemon import Daemon
from tests.support.gate import gate
from tests.support.upstream import configure, upstream
from tests.support.wire import RpcError, wire

ASK = {"messages": [{"role": "user", "content": "Hello!"}], "model": "up/gpt-fake"}
GRANTS = {"models": ["*"], "agents": ["*"]}


@pytest.fixture
def home() -> Iterator[Daemon]:
    """A daemon, not started, that finds no model of this machine by chance."""
    it = Daemon({"OLLAMA_HOST": "127.0.0.1:1"})
    try:
        yield it
    finally:
        it.remove_after_showing()


def ended(run: dict[str, Any], name: str = "fan") -> Any:
    assert run["status"] == "completed", run
    return next(item["data"] for item in run["items"] if item["type"] == "custom" and item["name"] == name)


def test_fifty_calls_at_once_under_a_budget_of_ten_make_ten(home: Daemon) -> None:
    with upstream(always=whole("Hi.")) as fake:
        configure(home, fake)
        home.start()
        with wire(home.socket) as c:
            define(c, "script", "script", grants=GRANTS)
            run = play(c, "script", ["fan", "models/complete", ASK, 50], budget={"calls": 10})
            again = c.call("runs/get", run_id=run["run_id"])
        assert sorted(ended(run)) == ["budget.calls"] * 40 + ["ok"] * 10
        assert len(fake.chats) == 10
        assert run["budget"]["spent"] == {**again["budget"]["spent"], "tokens": 120, "calls": 10, "cost_usd": 0.0}
        assert (run["budget"]["left"], run["budget"]["limit"]) == ({"calls": 0}, {"calls": 10})
        assert run["usage"] == {"input_tokens": 90, "output_tokens": 30, "calls": 10, "cost_usd": 0.0}
        assert [item["type"] for item in again["items"]].count("usage") == 10


def test_an_agents_budget_is_for_all_its_runs_and_outlives_the_daemon(home: Daemon) -> None:
    with upstream(always=whole("Hi.")) as fake:
        configure(home, fake)
        home.start()
        with wire(home.socket) as c:
            define(c, "script", "script", grants=GRANTS, budget={"calls": 5, "per": "total"})
            first = play(c, "script", ["fan", "models/complete", ASK, 3])
            second = play(c, "script", ["fan", "models/complete", ASK, 50])
            assert sorted(ended(first)) == ["ok"] * 3
            assert sorted(ended(second)) == ["budget.calls"] * 48 + ["ok"] * 2
            spent = c.call("agents/get", name="script")["budget"]
        assert (spent["spent"]["calls"], spent["left"], spent["limit"]) == (5, {"calls": 0}, {"calls": 5})
        home.kill()
        home.start()
        with wire(home.socket) as c:
            c.call("agents/start", name="script")
            kept = c.call("agents/get", name="script")["budget"]["spent"]
            assert (kept["calls"], kept["tokens"]) == (5, 60)
            assert ended(play(c, "script", ["fan", "models/complete", ASK, 2])) == ["budget.calls"] * 2
            # Whoever owns it may allow more, at once.
            define(c, "script", "script", grants=GRANTS, budget={"calls": 6, "per": "total"})
            assert sorted(ended(play(c, "script", ["fan", "models/complete", ASK, 2]))) == ["budget.calls", "ok"]
        assert len(fake.chats) == 6


def test_what_a_run_delegates_spends_its_budget(home: Daemon) -> None:
    with upstream(always=whole("Hi.")) as fake:
        configure(home, fake)
        home.start()
        with wire(home.socket) as c:
            define(c, "boss", "script", grants=GRANTS, budget={"calls": 100})
            define(c, "helper", "script", grants=GRANTS, budget={"calls": 50, "per": "run"})
            work = {"agent": "helper", "input": {"data": [["fan", "models/complete", ASK, 30]]}}
            steps = (["delegate", work], ["fan", "models/complete", ASK, 1], ["delegate", work])
            run = play(c, "boss", *steps, budget={"calls": 10})
            child = ended(run, "delegated")
            assert (child["parent_run_id"], child["status"]) == (run["run_id"], "completed")
            assert child["budget"]["spent"]["calls"] == 10
            assert child["budget"]["limit"] == {"calls": 50}
            assert run["budget"]["spent"]["calls"] == 10
            assert run["usage"]["calls"] == 0
            assert c.call("agents/get", name="boss")["budget"]["spent"]["calls"] == 10
            assert c.call("agents/get", name="helper")["budget"]["spent"]["calls"] == 10
        assert len(fake.chats) == 10


def test_only_an_agents_own_run_that_is_on_delegates(home: Daemon) -> None:
    home.start()
    with wire(home.socket) as c, gate(home.home) as held:
        define(c, "script", "script", grants=GRANTS)
        define(c, "other", "script", grants=GRANTS)
        mine = begin(c, "script", ["gate", held.path])
        start = {"agent": "script", "input": "x", "parent_run_id": mine}
        answer = ended(play(c, "other", ["call", "runs/start", start]), "answer")
        assert answer["error"]["data"]["name"] == "not_found"
        ask = {"messages": ASK["messages"], "model": "offline", "run_id": mine}
        answer = ended(play(c, "other", ["call", "models/complete", ask]), "answer")
        assert answer["error"]["data"]["name"] == "not_found"
        with pytest.raises(RpcError) as refused:
            c.call("runs/start", agent="script", input="x", parent_run_id=mine)
        assert refused.value.data["path"] == "params.parent_run_id"
        held.let()
        wait(c, mine)


def test_agents_that_ask_each_other_in_a_circle_come_to_an_end(home: Daemon) -> None:
    home.start()
    with wire(home.socket) as c:
        define(c, "echo", "script", grants=GRANTS, limits={"concurrency": 50})

        def nested(depth: int) -> list[list[Any]]:
            return [["delegate", {"agent": "echo", "input": {"data": nested(depth - 1)}}]] if depth else []

        run = play(c, "echo", *nested(20))
        deepest = run
        while deepest["status"] == "completed":
            deepest = ended(deepest, "delegated")
        assert (deepest["status"], deepest["error"]["data"]["limit"]) == ("failed", "delegation")


def test_who_delegates_and_is_cancelled_takes_the_rest_along(home: Daemon) -> None:
    home.start()
    with wire(home.socket) as c, gate(home.home) as held:
        define(c, "boss", "script", grants=GRANTS)
        define(c, "helper", "script")
        c.subscribe("run:*", types=["run.started"])
        run = begin(c, "boss", ["delegate", {"agent": "helper", "input": {"data": [["gate", held.path]]}}])
        child = c.until("run.started", where=lambda d: d["agent"] == "helper")["data"]["run_id"]
        c.call("runs/cancel", run_id=run)
        over = wait(c, child)
        assert over["status"] == "cancelled"
        assert run in over["reason"]


def test_an_agent_on_two_runs_says_for_which_it_calls_where_one_has_a_budget(home: Daemon) -> None:
    home.start()
    with wire(home.socket) as c, gate(home.home) as held:
        define(c, "script", "script", grants=GRANTS)
        other = begin(c, "script", ["gate", held.path], budget={"calls": 1})
        ask = {"messages": ASK["messages"], "model": "offline"}
        answer = ended(play(c, "script", ["call", "models/complete", ask]), "answer")
        assert answer["error"]["data"]["path"] == "params.run_id"
        run = play(c, "script", ["mine", "models/complete", ask])
        assert "result" in ended(run, "answer")
        assert run["usage"]["calls"] == 1
        held.let()
        assert wait(c, other)["usage"]["calls"] == 0


def test_tokens_and_money_are_looked_at_before_the_call(home: Daemon) -> None:
    prices = '[prices."up/*"]\ninput_usd = 500000\noutput_usd = 1000000\n'
    with upstream(always=whole("Hi.")) as fake:
        configure(home, fake, settings=prices)
        home.start()
        with wire(home.socket) as c:
            define(c, "script", "script", grants=GRANTS)
            # 9 tokens in at half a dollar, 3 out at one: 7.5 dollars a call.
            run = play(c, "script", *[["fan", "models/complete", ASK, 1]] * 3, budget={"cost_usd": 14.5})
            assert [item["data"] for item in run["items"] if item["type"] == "custom"] == [
                ["ok"],
                ["ok"],
                ["budget.cost_usd"],
            ]
            assert run["usage"]["cost_usd"] == run["budget"]["spent"]["cost_usd"] == 15
            assert run["budget"]["left"] == {"cost_usd": 0}
            # The answer is bounded by what is left.
            assert [seen.body.get("max_tokens") for seen in fake.chats] == [12, 5]
            long = {**ASK, "messages": [{"role": "user", "content": "word " * 500}]}
            refused = play(c, "script", ["fan", "models/complete", long, 1], budget={"tokens": 100})
            assert ended(refused) == ["budget.tokens"]
            assert len(fake.chats) == 2


def test_a_model_without_a_price_is_refused_where_money_counts(home: Daemon) -> None:
    with upstream(always=whole("Hi.")) as fake:
        configure(home, fake)
        home.start()
        with wire(home.socket) as c:
            define(c, "script", "script", grants=GRANTS)
            run = play(c, "script", ["fan", "models/complete", ASK, 1], budget={"cost_usd": 1})
            assert ended(run) == ["budget.cost_usd"]
            free = {**ASK, "model": "offline"}
            assert ended(play(c, "script", ["fan", "models/complete", free, 1], budget={"cost_usd": 1})) == ["ok"]
        assert fake.chats == []


def test_each_try_of_a_call_counts(home: Daemon) -> None:
    with upstream(always=failing(500)) as fake:
        configure(home, fake, more="retries = 5")
        home.start()
        with wire(home.socket) as c:
            define(c, "script", "script", grants=GRANTS)
            run = play(c, "script", ["fan", "models/complete", ASK, 1], budget={"calls": 2})
            assert ended(run) == ["budget.calls"]
            assert run["budget"]["spent"]["calls"] == 2
        assert len(fake.chats) == 2


def test_a_run_that_takes_longer_than_its_budget_fails(home: Daemon) -> None:
    home.start()
    with wire(home.socket) as c, gate(home.home) as held:
        define(c, "script", "script", grants=GRANTS)
        run = play(c, "script", ["gate", held.path], budget={"wall_s": 0.2})
        assert (run["status"], run["error"]["data"]["limit"]) == ("failed", "budget.wall_s")
        assert run["budget"]["left"] == {"wall_s": 0}


def test_a_call_ends_with_its_run_and_is_counted(home: Daemon) -> None:
    async def never(exchange: Exchange) -> None:
        await exchange.stream.receive_some()  # until the caller hangs up

    with upstream(always=never) as fake:
        configure(home, fake)
        home.start()
        with wire(home.socket) as c, wire(home.socket) as other, gate(home.home) as held:
            define(c, "script", "script", grants=GRANTS)
            other.subscribe("run:*", types=["run.started"])
            run = begin(c, "script", ["gate", held.path], budget={"calls": 5})
            other.until("run.started")
            other.send({"jsonrpc": "2.0", "id": 7, "method": "models/complete", "params": {**ASK, "run_id": run}})
            while not fake.chats:
                c.call("ping")
            c.call("runs/cancel", run_id=run)
            over = wait(c, run)
            assert (over["status"], over["budget"]["spent"]["calls"]) == ("cancelled", 1)
            used = next(item for item in over["items"] if item["type"] == "usage")
            assert (used["status"], used["calls"]) == ("cancelled", 1)
            assert other.receive()["error"]["data"]["name"] == "invalid_state"


def test_nobody_is_told_of_a_budget_where_there_is_none(home: Daemon) -> None:
    home.start()
    with wire(home.socket) as c:
        define(c, "script", "script", grants=GRANTS)
        run = play(c, "script", ["say", "hello"])
        assert "budget" not in run
        assert "budget" not in c.call("agents/get", name="script")
