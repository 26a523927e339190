"""A unit's inbox: who tells, who asks, and who waits until all that is handled."""

from __future__ import annotations

from typing import cast

import trio.testing

from witsd.supervise.lifecycle import Stop
from witsd.supervise.order import Neighbours
from witsd.supervise.surroundings import Surroundings
from witsd.supervise.unit import Unit
from witsd.values.spec import AgentSpec

SPEC = AgentSpec(name="mine", kind="exec", command=("sleep", "1000"))


async def test_one_waits_along_with_another_who_has_asked() -> None:
    # Its task does not run, so that what it is told stays unhandled: nothing else around it is looked at.
    unit = Unit(SPEC, cast(Surroundings, None), cast(Neighbours, None))
    done: list[str] = []

    async def ask() -> None:
        await unit.ask(Stop())
        done.append("asked")

    async def settle() -> None:
        await unit.settle()
        done.append("settled")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(settle)
        await trio.testing.wait_all_tasks_blocked()
        assert done == []
        ((_, handled),) = unit._inbox
        assert handled is not None
        handled.set()
    assert sorted(done) == ["asked", "settled"]
