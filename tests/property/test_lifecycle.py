"""Whatever happens in whatever order: never two live processes for one agent, and none left behind."""

from __future__ import annotations

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

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
    step,
)
from witsd.values.spec import AgentSpec, Restart

jitters = st.floats(0, 1)


class Agent(RuleBasedStateMachine):
    """The supervisor's part is played by ``live`` (is there a process) and ``stopping`` (was it told to end)."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = AgentSpec(
            name="a", kind="native", command=("true",), restart=Restart(max_restarts=2, window_s=50)
        )
        self.needs: tuple[str, ...] = ()
        self.life = Lifecycle()
        self.now = 0.0
        self.live = False
        self.told_to_stop = False

    def tell(self, event: Input, jitter: float = 0.0) -> None:
        self.life, effects = step(self.life, event, self.spec, self.now, jitter)
        for effect in effects:
            if effect is Effect.SPAWN:
                assert not self.live, "a second process"
                self.live, self.told_to_stop = True, False
            elif effect is Effect.AWAIT:
                assert self.needs
                assert not self.live
            else:
                assert self.live, "nothing to stop"
                self.told_to_stop = True

    @rule(by_hand=st.booleans())
    def start(self, by_hand: bool) -> None:
        self.tell(Start(by_hand))

    @rule()
    def stop(self) -> None:
        self.tell(Stop())

    @rule()
    def restart(self) -> None:
        self.tell(Restarted())

    @rule()
    def ready(self) -> None:
        self.tell(Ready())

    @rule()
    def broken(self) -> None:
        self.tell(Broken("hung"))

    @rule(needs=st.sampled_from([(), ("db",)]))
    def needs_others(self, needs: tuple[str, ...]) -> None:
        self.needs = needs
        self.spec = msgspec.structs.replace(self.spec, requires=needs)

    @rule()
    def waits(self) -> None:
        self.tell(Waits("waits for db"))

    @rule()
    def others_are_up(self) -> None:
        self.tell(Cleared(1))

    @rule()
    def others_cannot_be_had(self) -> None:
        self.tell(Blocked("requires db, which failed", 1))

    @rule(seconds=st.floats(0, 100))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        if self.life.deadline is not None and self.now >= self.life.deadline:
            self.tell(Elapsed())

    @rule()
    def late_timer(self) -> None:
        if self.life.state not in ("starting", "backoff"):
            self.tell(Elapsed())

    @precondition(lambda self: self.live)
    @rule(failure=st.booleans(), jitter=jitters, policy=st.sampled_from(["always", "on_failure", "never"]))
    def exit(self, failure: bool, jitter: float, policy: str) -> None:
        self.live = False
        self.spec = AgentSpec(
            name="a",
            kind="native",
            command=("true",),
            requires=self.needs,
            restart=Restart(max_restarts=2, window_s=50, policy=policy),  # type: ignore[arg-type]
        )
        self.tell(Exited("exited", failure), jitter)

    @invariant()
    def state_tells_the_truth(self) -> None:
        up = self.life.state in ("starting", "active", "stopping")
        assert self.live == (up and not self.life.awaiting)
        assert self.life.state == "starting" or not self.life.awaiting

    @invariant()
    def whatever_must_end_was_told_so(self) -> None:
        assert self.told_to_stop or self.life.state != "stopping"

    @invariant()
    def only_what_can_time_out_has_a_deadline(self) -> None:
        times_out = self.life.state in ("starting", "backoff") and not self.life.awaiting
        assert (self.life.deadline is not None) == times_out

    @invariant()
    def trouble_has_a_reason(self) -> None:
        assert self.life.reason or self.life.state not in ("backoff", "failed")


TestAgent = Agent.TestCase
TestAgent.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
