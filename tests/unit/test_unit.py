"""What a unit is told before its task has begun."""

from __future__ import annotations

from typing import cast

import trio.testing

from witsd.supervise.lifecycle import Stop
from witsd.supervise.order import Neighbours
from witsd.supervise.surroundings import Surroundings
from witsd.supervise.unit import Unit
from witsd.values.spec import AgentSpec

SPEC = AgentSpec(name="mine", kind="exec", command=("sleep", "1000"))


async def test_what_is_told_before_its_task_has_begun_is_waited_for() -> None:
    # Nothing else around it is looked at: an agent without a process that is told to stop has nothing to do.
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
        assert unit._inbox == [Stop()]
        unit._scope.cancel()  # its task ends before it has begun
        nursery.start_soon(unit.run)
    assert sorted(done) == ["asked", "settled"]
