"""What an agent's process should do next: a pure function of its state and what has happened.

``step(life, input, spec, now, jitter)`` returns the new state and the effects to carry out. Times are
monotonic seconds; nothing here waits, forks or reads a clock.

    inactive --start--> starting --ready--> active --exit--> backoff --delay--> starting
                            |                  |                |
                            +------stop--------+--> stopping --exit--> inactive
                                                                (too many exits: failed)
"""

from __future__ import annotations

import enum
from typing import Literal

import msgspec

from witsd.values.spec import AgentSpec, Restart
from witsd.values.wire.agents import AgentState

#: Exits that are remembered. Who may restart as often as that is never given up (``Restart``).
_MOST_EXITS = 1000


class Lifecycle(msgspec.Struct, frozen=True, kw_only=True):
    """Where an agent is. ``wanted``: it should be up once it can. ``exits``: those that count for backoff."""

    state: AgentState = "inactive"
    wanted: bool = False
    reason: str = ""
    restarts: int = 0
    exits: tuple[float, ...] = ()
    #: Starting, but others come first: there is no process yet.
    awaiting: bool = False
    #: When the state times out: readiness while starting, the delay while in backoff.
    deadline: float | None = None


class Effect(enum.Enum):
    """What the supervisor is to do, in order."""

    #: Say ``Cleared`` or ``Blocked`` once it is known whether what comes before it is up.
    AWAIT = "await"
    SPAWN = "spawn"
    STOP = "stop"


class Start(msgspec.Struct, frozen=True):
    """Somebody wants it up. ``by_hand`` forgives earlier exits and wakes it from ``failed``."""

    by_hand: bool


class Stop(msgspec.Struct, frozen=True):
    """Somebody wants it down, for ``reason`` where that is worth showing."""

    reason: str = ""


class Restarted(msgspec.Struct, frozen=True):
    """Somebody wants a new process: it stops, then starts."""


class Ready(msgspec.Struct, frozen=True):
    """The process can take work."""


class Exited(msgspec.Struct, frozen=True):
    """The process and its group are gone. ``failure``: not a clean end of its own will."""

    reason: str
    failure: bool


class Broken(msgspec.Struct, frozen=True):
    """The process lives but is of no use (closed its stdout, hung, spoke another protocol)."""

    reason: str


class Elapsed(msgspec.Struct, frozen=True):
    """The deadline has passed."""


class Waits(msgspec.Struct, frozen=True):
    """It is held up by others, for a ``reason`` to be shown; when they are gone from it, the reason it had."""

    reason: str


class Cleared(msgspec.Struct, frozen=True):
    """What has to be up before it is up. ``turn``: which wait of its unit's found so."""

    turn: int


class Blocked(msgspec.Struct, frozen=True):
    """What it requires cannot be had."""

    reason: str
    turn: int


class Sighted(msgspec.Struct, frozen=True):
    """External: the process is there; ``again``: another was before it."""

    again: bool


class Lost(msgspec.Struct, frozen=True):
    """External: the process is not there."""

    reason: str


Input = Start | Stop | Restarted | Ready | Exited | Broken | Elapsed | Waits | Cleared | Blocked | Sighted | Lost
Step = tuple[Lifecycle, tuple[Effect, ...]]


def step(life: Lifecycle, event: Input, spec: AgentSpec, now: float, jitter: float) -> Step:
    """The one transition function. ``jitter`` is a fraction from 0 to 1, used for backoff delays."""
    if spec.kind == "external":
        return _external(life, event), ()
    match event:
        case Start(by_hand=by_hand):
            return _start(life, by_hand, spec, now)
        case Stop(reason=reason):
            return _stop(life, reason)
        case Restarted():
            return _restart(life, spec, now)
        case Waits(reason=reason) if life.awaiting or (life.state == "stopping" and not life.wanted):
            return msgspec.structs.replace(life, reason=reason), ()
        case Cleared() if life.awaiting:
            return _spawn(life, spec, now)
        case Blocked(reason=reason) if life.awaiting:
            return msgspec.structs.replace(life, state="failed", wanted=False, awaiting=False, reason=reason), ()
        case Ready() if life.state == "starting" and not life.awaiting:
            return msgspec.structs.replace(life, state="active", reason="", deadline=None), ()
        case Elapsed() if life.state == "backoff":
            return _begin(msgspec.structs.replace(life, restarts=life.restarts + 1), spec, now)
        case Elapsed() if life.state == "starting" and not life.awaiting:
            reason = _not_ready(spec)
            return msgspec.structs.replace(life, state="stopping", reason=reason, deadline=None), (Effect.STOP,)
        case Broken(reason=reason) if life.state in ("starting", "active") and not life.awaiting:
            return msgspec.structs.replace(life, state="stopping", reason=reason, deadline=None), (Effect.STOP,)
        case Exited() if not life.awaiting:
            return _exited(life, event, spec, now, jitter)
    return life, ()  # a late word about something that is over


def _not_ready(spec: AgentSpec) -> str:
    """Why it is given up. A native one has said nothing we know: most often it is a program of another kind."""
    reason = f"was not ready within {spec.ready.timeout_s:g} s"
    if spec.kind != "native":
        return reason
    return (
        f"{reason}: it never answered `initialize` on its stdout; "
        "a program that does not speak the protocol is added with --kind exec"
    )


def _external(life: Lifecycle, event: Input) -> Lifecycle:
    """Nothing that anybody wishes changes a process that is not ours."""
    match event:
        case Sighted(again=again):
            return msgspec.structs.replace(life, state="active", reason="", restarts=life.restarts + again)
        case Lost(reason=reason):
            return msgspec.structs.replace(life, state="inactive", reason=reason)
    return life


def _begin(life: Lifecycle, spec: AgentSpec, now: float) -> Step:
    """A process, once those that come before it are up. The time for readiness counts from the process."""
    if not spec.requires and not spec.after:
        return _spawn(life, spec, now)
    life = msgspec.structs.replace(life, state="starting", wanted=True, awaiting=True, reason="", deadline=None)
    return life, (Effect.AWAIT,)


def _spawn(life: Lifecycle, spec: AgentSpec, now: float) -> Step:
    deadline = now + spec.ready.timeout_s
    return (
        msgspec.structs.replace(life, state="starting", wanted=True, awaiting=False, reason="", deadline=deadline),
        (Effect.SPAWN,),
    )


def _start(life: Lifecycle, by_hand: bool, spec: AgentSpec, now: float) -> Step:
    if by_hand:
        life = msgspec.structs.replace(life, exits=(), restarts=0)
    match life.state:
        case "inactive":
            return _begin(life, spec, now)
        case "failed" | "backoff" if by_hand:
            return _begin(life, spec, now)
        case "stopping" if by_hand or not life.wanted:
            # Why it was stopped no longer matters; left standing, it would count as a failure (_exited).
            return msgspec.structs.replace(life, wanted=True, reason=""), ()
    return life, ()


def _stop(life: Lifecycle, reason: str) -> Step:
    match life.state:
        case "starting" if life.awaiting:
            return msgspec.structs.replace(life, state="inactive", wanted=False, awaiting=False, reason=reason), ()
        case "starting" | "active":
            life = msgspec.structs.replace(life, state="stopping", wanted=False, reason=reason, deadline=None)
            return life, (Effect.STOP,)
        case "backoff" | "failed":
            return msgspec.structs.replace(life, state="inactive", wanted=False, reason=reason, deadline=None), ()
        case "stopping":
            return msgspec.structs.replace(life, wanted=False, reason=reason), ()
    return life, ()


def _restart(life: Lifecycle, spec: AgentSpec, now: float) -> Step:
    life = msgspec.structs.replace(life, exits=(), restarts=0)
    if life.state in ("starting", "active") and not life.awaiting:
        # An asked-for restart leaves no reason behind, which is how _exited tells it from a failure.
        return msgspec.structs.replace(life, state="stopping", wanted=True, reason="", deadline=None), (Effect.STOP,)
    return _start(life, True, spec, now)


def _exited(life: Lifecycle, event: Exited, spec: AgentSpec, now: float, jitter: float) -> Step:
    if life.state == "stopping":
        if not life.wanted:
            return msgspec.structs.replace(life, state="inactive"), ()
        if not life.reason:
            return _begin(life, spec, now)
        # It was stopped because it was broken: that is a failure, whatever its exit status says.
        event = Exited(life.reason, failure=True)
    elif life.state not in ("starting", "active"):
        return life, ()
    restart = spec.restart
    if life.state == "starting" and not event.failure:
        hint = "" if spec.kind == "exec" else ": does it call agent.serve()?"
        event = Exited(f"{event.reason} before it was ready{hint}", failure=True)
    if restart.policy == "never" or (restart.policy == "on_failure" and not event.failure):
        state: Literal["failed", "inactive"] = "failed" if event.failure else "inactive"
        return (
            msgspec.structs.replace(life, state=state, wanted=False, reason=event.reason, deadline=None),
            (),
        )
    exits = (*(t for t in life.exits if t > now - restart.window_s), now)[-_MOST_EXITS:]
    life = msgspec.structs.replace(life, exits=exits)
    if len(exits) > restart.max_restarts:
        reason = (
            f"{event.reason}; {len(exits)} exits within {restart.window_s:g} s, more than "
            f"max_restarts = {restart.max_restarts}"
        )
        return msgspec.structs.replace(life, state="failed", wanted=False, reason=reason, deadline=None), ()
    delay = backoff(restart, len(exits), jitter)
    if delay == 0:
        return _begin(msgspec.structs.replace(life, restarts=life.restarts + 1), spec, now)
    return (
        msgspec.structs.replace(life, state="backoff", wanted=True, reason=event.reason, deadline=now + delay),
        (),
    )


def backoff(restart: Restart, exits: int, jitter: float) -> float:
    """The delay in seconds before restart number ``exits``: doubling, capped, then cut by up to a quarter.

    The cut spreads agents that died together (AWS Architecture Blog, "Exponential Backoff And Jitter").
    """
    if restart.backoff_s == 0:
        return 0.0
    full = min(restart.backoff_max_s, restart.backoff_s * 2.0 ** min(exits - 1, 32))
    return full * (1 - 0.25 * jitter)
