"""Which agent comes before which: what ``requires`` and ``after`` say, checked, and waited for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import Protocol

import msgspec
import trio

from witsd.supervise.instances import template_of
from witsd.supervise.lifecycle import Blocked, Cleared, Input, Lifecycle, Start, Stop, Waits
from witsd.values.spec import AgentSpec


class Mistake(msgspec.Struct, frozen=True):
    """What is wrong with an agent's place in the order; ``path`` is its key, as in ``requires[0]``."""

    path: str
    message: str


def mistakes(specs: Mapping[str, AgentSpec], fresh: Set[str], known: Callable[[str], bool]) -> dict[str, Mistake]:
    """What is wrong with the ``fresh`` ones among ``specs``, by name. ``known``: there is or can be such an agent.

    An agent that is not fresh is how it is; with a circle, all fresh members are at fault. ``specs`` are those with a
    definition of their own: an instance that one of them names takes part as its template has it, there already or not.
    """
    found: dict[str, Mistake] = {}
    for name in sorted(fresh):
        for key, position, other in _mentions(specs[name]):
            if not known(other):
                found[name] = Mistake(f"{key}[{position}]", f"`{key}` names {other!r}, and there is no such agent")
                break
    while circle := _circle(specs, found.keys()):
        shown = " -> ".join(circle)
        blamed = False
        for name, following in pairwise(circle):
            owner = name if name in specs else template_of(name)
            if owner in fresh:
                blamed = True
                key, position = next((k, p) for k, p, other in _mentions(specs[owner]) if other == following)
                found[owner] = Mistake(f"{key}[{position}]", f"`{key}` goes round in a circle: {shown}")
        if not blamed:
            break
    return found


def _mentions(spec: AgentSpec) -> list[tuple[str, int, str]]:
    return [
        *(("requires", n, other) for n, other in enumerate(spec.requires)),
        *(("after", n, other) for n, other in enumerate(spec.after)),
    ]


def _circle(specs: Mapping[str, AgentSpec], left_out: Set[str]) -> Sequence[str]:
    """Some circle, each followed by one that it names and the first again at the end; empty where there is none."""
    graph = {name: (*spec.requires, *spec.after) for name, spec in specs.items() if name not in left_out}
    for other in {other for others in graph.values() for other in others} - specs.keys():
        if (template := template_of(other)) in graph:
            graph[other] = graph[template]  # what an instance needs does not depend on its name
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        members: list[str] = error.args[1]
        return members[::-1]  # given from what comes first to what needs it
    return ()


class Member(Protocol):
    """One agent, as the order sees it."""

    @property
    def spec(self) -> AgentSpec: ...

    @property
    def life(self) -> Lifecycle: ...

    def tell(self, event: Input) -> None: ...

    async def ask(self, event: Input) -> None: ...

    async def settle(self) -> None: ...

    async def wait_change(self) -> None: ...


class Neighbours(Protocol):
    """The other agents."""

    def obtain(self, name: str) -> Member | None:
        """The agent of that name, made from its template where need be; None where there is none."""

    def requiring(self, name: str) -> Sequence[Member]:
        """Those whose ``requires`` names it."""

    def following(self, name: str) -> Sequence[Member]:
        """Those whose ``requires`` or ``after`` names it."""

    def let_go(self, names: Sequence[str]) -> None:
        """One that requires these is down: they may be idle now."""


def is_up(member: Member) -> bool:
    return member.life.state not in ("inactive", "failed")


def _is_active(member: Member | None) -> bool:
    return member is not None and member.life.state == "active"


async def before_start(me: Member, others: Neighbours, turn: int) -> None:
    """Start what ``me`` requires, wait until it may start, and tell it so, or why it cannot."""
    waiting: list[str] = []

    async def wait_for(name: str, required: bool) -> None:
        refusal = await _until_up(name, required, others)
        waiting.remove(name)
        if refusal:
            me.tell(Blocked(refusal, turn))
            nursery.cancel_scope.cancel()
        elif waiting:
            me.tell(_waits_for(waiting))

    while True:
        spec = me.spec
        waiting[:] = dict.fromkeys((*spec.requires, *spec.after))
        if missing := [name for name in waiting if not _is_active(others.obtain(name))]:
            me.tell(_waits_for(missing))
        async with trio.open_nursery() as nursery:
            for name in tuple(waiting):
                nursery.start_soon(wait_for, name, name in spec.requires)
        if nursery.cancel_scope.cancel_called:
            return
        # The first of them may be gone again by the time the last is up.
        if all(_is_active(others.obtain(name)) for name in spec.requires):
            me.tell(Cleared(turn))
            return


def _waits_for(names: Sequence[str]) -> Waits:
    return Waits(f"waits for {', '.join(names)}")


async def _until_up(name: str, required: bool, others: Neighbours) -> str:
    """Return "" once ``name`` is no reason to wait any longer, else why it never will be up."""
    started = False
    while True:
        other = others.obtain(name)
        if other is None:
            return f"requires {name}, which is not there" if required else ""
        await other.settle()  # what it was told before us counts
        life = other.life
        if life.state == "active":
            return ""
        coming = life.state in ("starting", "backoff") or (life.state == "stopping" and life.wanted)
        if not required and (life.state == "backoff" or not coming):
            return ""
        if required and life.state == "failed":
            return f"requires {name}, which failed: {life.reason}"
        if required and not coming and other.spec.kind != "external":  # nobody can start that; it may come
            if started:
                return f"requires {name}, which is down again: {life.reason or 'it was stopped'}"
            started = True
            await other.ask(Start(by_hand=False))
            continue
        await other.wait_change()


async def before_stop(me: Member, others: Neighbours) -> None:
    """Stop those that require ``me``, and return when nobody that comes after it is on its way down any more.

    Bounded by their ``grace_s``, each after the other along a chain.
    """
    name, reason = me.spec.name, me.life.reason
    for other in others.requiring(name):
        await other.settle()
        if is_up(other) and other.life.wanted:
            await other.ask(Stop(f"was stopped with {name}, which it requires"))
    waited = False
    while True:
        for other in others.following(name):
            await other.settle()
        going = [other for other in others.following(name) if other.life.state == "stopping"]
        if not going:
            break
        waited = True
        me.tell(Waits(f"waits for {', '.join(other.spec.name for other in going)} to stop"))
        await going[0].wait_change()
    if waited:
        me.tell(Waits(reason))
