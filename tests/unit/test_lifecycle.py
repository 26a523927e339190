"""The transition function, told as short stories."""

from __future__ import annotations

import attrs
import msgspec
import pytest

from witsd.supervise.lifecycle import (
    Blocked,
    Broken,
    Cleared,
    Effect,
    Elapsed,
    Exited,
    Input,
    Lifecycle,
    Ready,
    Restarted,
    Start,
    Stop,
    Waits,
    backoff,
    step,
)
from witsd.values.spec import AgentSpec, Restart

SPEC = AgentSpec(name="a", kind="native", command=("true",), restart=Restart(max_restarts=3, window_s=100))
CRASH = Exited("exited with code 1", failure=True)
CLEAN = Exited("exited with code 0", failure=False)
BY_HAND, ON_DEMAND = Start(by_hand=True), Start(by_hand=False)


@attrs.define
class Story:
    """Feeds events one after the other; ``now`` moves on by hand."""

    spec: AgentSpec = SPEC
    life: Lifecycle = Lifecycle()
    now: float = 1000.0
    effects: list[Effect] = attrs.field(factory=list)

    def tell(self, *events: Input) -> str:
        for event in events:
            self.life, effects = step(self.life, event, self.spec, self.now, 0.0)
            self.effects += effects
        return self.life.state


def with_restart(**changes: object) -> AgentSpec:
    return msgspec.structs.replace(SPEC, restart=msgspec.structs.replace(SPEC.restart, **changes))


def test_start_is_not_ready() -> None:
    story = Story()
    assert story.tell(BY_HAND) == "starting"
    assert story.effects == [Effect.SPAWN]
    assert story.life.deadline == story.now + SPEC.ready.timeout_s
    assert story.tell(Ready()) == "active"
    assert story.life.deadline is None


def test_crash_backs_off_and_comes_back() -> None:
    story = Story()
    assert story.tell(BY_HAND, Ready(), CRASH) == "backoff"
    assert story.life.deadline == story.now + 1
    assert story.tell(Elapsed()) == "starting"
    assert story.life.restarts == 1
    assert story.tell(Ready(), CRASH) == "backoff"
    assert story.life.deadline == story.now + 2


def test_too_many_exits_fail_with_a_reason_a_person_understands() -> None:
    story = Story()
    story.tell(BY_HAND)
    for _ in range(3):
        assert story.tell(CRASH) == "backoff"
        story.tell(Elapsed())
    assert story.tell(CRASH) == "failed"
    assert "exited with code 1" in story.life.reason
    assert "max_restarts = 3" in story.life.reason
    assert not story.life.wanted
    assert story.tell(ON_DEMAND) == "failed", "demand does not wake what has failed"
    assert story.tell(BY_HAND) == "starting"
    assert story.life.exits == ()


def test_who_may_restart_very_often_is_never_given_up_and_costs_no_more_each_time() -> None:
    story = Story(with_restart(backoff_s=0, max_restarts=1_000_000))
    story.tell(BY_HAND)
    for _ in range(3000):
        assert story.tell(CRASH) == "starting"
    assert len(story.life.exits) == 1000
    assert story.life.restarts == 3000


def test_exits_outside_the_window_are_forgiven() -> None:
    story = Story()
    story.tell(BY_HAND)
    for _ in range(10):
        assert story.tell(Ready(), CRASH) == "backoff"
        assert story.life.deadline == story.now + 1, "the delay begins anew"
        story.now += 101
        story.tell(Elapsed())


@pytest.mark.parametrize(
    ("policy", "event", "state"),
    [
        ("never", CRASH, "failed"),
        ("never", CLEAN, "inactive"),
        ("on_failure", CLEAN, "inactive"),
        ("on_failure", CRASH, "backoff"),
        ("always", CLEAN, "backoff"),
        ("always", CRASH, "backoff"),
    ],
)
def test_policies(policy: str, event: Input, state: str) -> None:
    story = Story(with_restart(policy=policy))
    assert story.tell(BY_HAND, Ready(), event) == state


def test_a_clean_exit_while_starting_is_a_failure_all_the_same() -> None:
    story = Story()
    assert story.tell(BY_HAND, CLEAN) == "backoff"
    assert story.life.reason == "exited with code 0 before it was ready: does it call agent.serve()?"


def test_no_backoff_restarts_at_once() -> None:
    story = Story(with_restart(backoff_s=0))
    assert story.tell(BY_HAND, Ready(), CRASH) == "starting"
    assert story.effects == [Effect.SPAWN, Effect.SPAWN]


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("exec", ""),
        (
            "native",
            ": it never answered `initialize` on its stdout; "
            "a program that does not speak the protocol is added with --kind exec",
        ),
    ],
)
def test_never_ready_is_stopped_and_counts_as_a_failure(kind: str, more: str) -> None:
    story = Story(msgspec.structs.replace(SPEC, kind=kind))
    story.tell(BY_HAND)
    assert story.tell(Elapsed()) == "stopping"
    assert story.effects == [Effect.SPAWN, Effect.STOP]
    assert story.tell(Exited("was killed by SIGTERM", failure=True)) == "backoff"
    assert story.life.reason == f"was not ready within 30 s{more}"


def test_broken_is_stopped_and_its_clean_exit_is_no_excuse() -> None:
    story = Story()
    assert story.tell(BY_HAND, Ready(), Broken("did not answer a ping within 5 s")) == "stopping"
    assert story.tell(CLEAN) == "backoff"
    assert story.life.reason == "did not answer a ping within 5 s"


@pytest.mark.parametrize("before", [(BY_HAND,), (BY_HAND, Ready())])
def test_stop_while_it_lives(before: tuple[Input, ...]) -> None:
    story = Story()
    story.tell(*before)
    assert story.tell(Stop()) == "stopping"
    assert story.tell(Exited("was killed by SIGKILL", failure=True)) == "inactive", "asked for is no failure"


@pytest.mark.parametrize("events", [(CRASH,), (CRASH, Elapsed(), CRASH, Elapsed(), CRASH, Elapsed(), CRASH)])
def test_stop_in_backoff_and_failed_is_over_at_once(events: tuple[Input, ...]) -> None:
    story = Story()
    story.tell(BY_HAND, *events)
    assert story.life.state in ("backoff", "failed")
    assert story.tell(Stop()) == "inactive"
    assert story.tell(Elapsed()) == "inactive", "a late timer starts nothing"


def test_restart_waits_for_the_old_process() -> None:
    story = Story()
    story.tell(BY_HAND, Ready())
    assert story.tell(Restarted()) == "stopping"
    assert story.effects == [Effect.SPAWN, Effect.STOP]
    assert story.tell(CRASH) == "starting"
    assert story.effects == [Effect.SPAWN, Effect.STOP, Effect.SPAWN]
    assert story.life.exits == (), "asked for, so it counts against nobody"


def test_start_while_stopping_starts_afterwards() -> None:
    story = Story()
    story.tell(BY_HAND, Ready(), Stop(), BY_HAND)
    assert story.life.state == "stopping"
    assert story.tell(CLEAN) == "starting"


def test_start_while_it_stops_for_a_reason_is_no_failure() -> None:
    story = Story()
    story.tell(BY_HAND, Ready(), Stop("idle"), ON_DEMAND)
    assert story.tell(CLEAN) == "starting", "without a delay"
    assert story.life.exits == ()


@pytest.mark.parametrize("wish", [BY_HAND, Restarted()])
def test_who_asks_while_what_is_broken_stops_waits_for_no_backoff(wish: Input) -> None:
    story = Story()
    assert story.tell(BY_HAND, Ready(), Broken("did not answer a ping within 5 s"), ON_DEMAND) == "stopping"
    assert story.life.reason, "that it is needed is no reason to forgive it"
    assert story.tell(wish, CLEAN) == "starting"
    assert story.life.restarts == 0


def test_stop_of_a_restart_wins_when_it_comes_last() -> None:
    story = Story()
    story.tell(BY_HAND, Ready(), Restarted(), Stop())
    assert story.tell(CLEAN) == "inactive"


@pytest.mark.parametrize("jitter", [0.0, 0.5, 0.999])
def test_backoff_doubles_up_to_its_cap_and_jitter_only_shortens(jitter: float) -> None:
    restart = Restart(backoff_s=1, backoff_max_s=10)
    delays = [backoff(restart, exits, jitter) for exits in range(1, 8)]
    full = [1, 2, 4, 8, 10, 10, 10]
    assert all(0.75 * f <= d <= f for d, f in zip(delays, full, strict=True))
    assert backoff(restart, 10_000, 0) == 10, "no overflow"


NEEDY = msgspec.structs.replace(SPEC, requires=("db",))


def test_others_come_first_and_the_time_to_be_ready_counts_from_the_process() -> None:
    story = Story(NEEDY)
    assert story.tell(BY_HAND, Waits("waits for db")) == "starting"
    assert story.effects == [Effect.AWAIT]
    assert (story.life.reason, story.life.deadline) == ("waits for db", None)
    story.now += 1000
    assert story.tell(Cleared(1)) == "starting"
    assert story.effects == [Effect.AWAIT, Effect.SPAWN]
    assert (story.life.reason, story.life.deadline) == ("", story.now + SPEC.ready.timeout_s)


def test_what_it_requires_cannot_be_had() -> None:
    story = Story(NEEDY)
    assert story.tell(BY_HAND, Blocked("requires db, which failed: exited with code 1", 1)) == "failed"
    assert story.life.reason == "requires db, which failed: exited with code 1"
    assert story.tell(ON_DEMAND) == "failed"
    assert story.tell(BY_HAND) == "starting"


def test_one_that_waits_stops_at_once() -> None:
    story = Story(NEEDY)
    assert story.tell(BY_HAND, Stop("idle")) == "inactive"
    assert story.tell(Cleared(1)) == "inactive", "a late word"
    assert story.effects == [Effect.AWAIT]


def test_a_restart_after_a_crash_waits_for_others_too() -> None:
    story = Story(NEEDY)
    story.tell(BY_HAND, Cleared(1), Ready(), CRASH)
    story.now += 100
    assert story.tell(Elapsed()) == "starting"
    assert story.effects == [Effect.AWAIT, Effect.SPAWN, Effect.AWAIT]
