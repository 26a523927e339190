"""All agents: started, stopped, and a way for runs to reach a live one.

One unit, one task, one process at most. A request that concerns one agent waits for that agent alone.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

from witsd.supervise import definitions, order
from witsd.supervise.containment import sweep
from witsd.supervise.in_effect import RETIRE_S, InEffect
from witsd.supervise.instances import template_of
from witsd.supervise.lifecycle import Restarted, Start, Stop
from witsd.supervise.link import AgentLink
from witsd.supervise.process import reap_adopted
from witsd.supervise.remembered import SHUTDOWN, end_hidden, remembered
from witsd.supervise.roster import Roster
from witsd.supervise.surroundings import Surroundings
from witsd.supervise.threads import in_thread
from witsd.supervise.tree import Tree, open_tree
from witsd.supervise.unit import Unit
from witsd.values.actor import Actor
from witsd.values.errors import AgentFailed, Conflict, InvalidState, LimitExceeded, Timeout
from witsd.values.ids import AgentName, SessionId

log = logging.getLogger("witsd.supervise")

#: Instances of one definition.
MAX_INSTANCES = 1000


@attrs.define(eq=False)
class Lease:
    """A live agent, held up for the length of a piece of work."""

    unit: Unit
    link: AgentLink
    generation: int
    #: The sessions that this process has been told of: ``Unit.holds`` of its time.
    holds: set[SessionId]

    async def why_gone(self) -> str:
        """Why the agent went away in the middle: waits, bounded, for its exit to be known."""
        with trio.move_on_after(5):
            while self.unit.process is not None and self.unit.generation == self.generation:
                await self.unit.process.exited.wait()
                await self.unit.wait_change()
        return self.unit.life.reason or self.unit.last_exit or "went away"


@attrs.define(eq=False)
class Supervisor:
    """Made by ``open_supervisor``, whose nursery runs the units."""

    shared: Surroundings
    in_effect: InEffect

    @property
    def roster(self) -> Roster:
        return self.in_effect.roster

    @property
    def units(self) -> dict[AgentName, Unit]:
        return self.roster.units

    def actor_among(self, pids: Sequence[int]) -> Actor | None:
        """The agent that one of these processes leads."""
        for unit in self.units.values():
            led = {*unit.run_processes, *([unit.process.pid] if unit.process else [])}
            if not led.isdisjoint(pids):
                return unit.actor
        return None

    def actor_of(self, name: AgentName) -> Actor | None:
        unit = self.units.get(name)
        return unit.actor if unit else None

    def unit(self, name: str) -> Unit:
        """As ``Roster.unit``."""
        return self.roster.unit(name)

    def obtain(self, name: str) -> Unit:
        """``unit``, made now where it is an instance that nobody has asked for yet. Raises ``LimitExceeded`` too."""
        if AgentName(name) not in self.units and len(self.roster.instances(template_of(name))) >= MAX_INSTANCES:
            raise LimitExceeded(
                f"there are {MAX_INSTANCES} instances of {template_of(name)}: remove some (witsd agent rm)",
                limit="instances",
                value=MAX_INSTANCES,
            )
        return self.roster.obtain(name) or self.unit(name)

    # ---- start, stop ----------------------------------------------------------------------------------

    async def start(self, name: str, *, wait: bool, timeout_s: float) -> Unit:
        """Raises ``AgentFailed`` with the reason when it cannot be brought up, ``Timeout``, ``Overloaded``."""
        self.in_effect.check_open()
        unit = self.obtain(name)
        _check_ours(unit, "started")
        if unit.life.state == "active":
            return unit
        self._forgive_required(unit)
        await unit.ask(Start(by_hand=True))
        if wait:
            await self._reach_active(unit, timeout_s)
        return unit

    async def restart(self, name: str, *, wait: bool, timeout_s: float) -> Unit:
        """A new process, whatever the state was. Raises as ``start``."""
        self.in_effect.check_open()
        unit = self.obtain(name)
        _check_ours(unit, "restarted")
        self._forgive_required(unit)
        await unit.ask(Restarted())
        if wait:
            await self._reach_active(unit, timeout_s)
        return unit

    def _forgive_required(self, unit: Unit) -> None:
        # What it requires it starts itself; a person's wish also wakes what has failed or is waiting to try again.
        for other in self.roster.required_by(unit):
            if other.life.state in ("failed", "backoff"):
                other.tell(Start(by_hand=True))

    async def stop(self, name: str, *, wait: bool, timeout_s: float) -> Unit:
        """No error when it is stopped already."""
        unit = self.unit(name)
        _check_ours(unit, "stopped")
        if unit.life.state == "inactive":
            return unit
        await unit.ask(Stop())
        if wait:
            with trio.move_on_after(timeout_s):
                while order.is_up(unit):
                    if unit.life.wanted:
                        raise Conflict(
                            f"{name} was started again, by somebody else or by an agent that requires it, before this "
                            "stop was over: stop it again if it is to stay down",
                            agents=[name],
                        )
                    await unit.wait_change()
                return unit
            raise Timeout(f"{name} has not stopped within {timeout_s:g} s; it goes on stopping")
        return unit

    async def _reach_active(self, unit: Unit, timeout_s: float) -> None:
        with trio.move_on_after(timeout_s):
            while unit.life.state in ("starting", "stopping"):
                await unit.wait_change()
            if unit.life.state == "active":
                return
            raise AgentFailed(
                f"{unit.name} did not come up: it {unit.life.reason or 'was stopped'}. "
                f"See its log: witsd agent logs {unit.name}",
                reason=unit.life.reason,
            )
        why = f": it {unit.life.reason}" if unit.life.reason else ""
        raise Timeout(f"{unit.name} is still {unit.life.state} after {timeout_s:g} s{why}")

    # ---- work -----------------------------------------------------------------------------------------

    @asynccontextmanager
    async def lease(self, name: str) -> AsyncIterator[Lease]:
        """A live native agent, started if that is its way; it is not stopped as idle meanwhile.

        Raises ``InvalidState`` when a person has stopped it, ``AgentFailed`` when it cannot come up.
        """
        unit = self.unit(name)
        unit.lease()
        try:
            yield await self._live(unit)
        finally:
            unit.release()

    async def _live(self, unit: Unit) -> Lease:
        await self._up(unit)
        assert unit.link is not None  # a native agent is active once it has answered
        return Lease(unit, unit.link, unit.generation, unit.holds)

    async def _up(self, unit: Unit) -> None:
        if unit.spec.start == "on_demand" and unit.life.state in ("inactive", "stopping"):
            self.in_effect.check_open()
            await unit.ask(Start(by_hand=False))
        while unit.life.state != "active" or (unit.link is None and not unit.spec.run_per_request):
            match unit.life.state:
                case "failed":
                    raise AgentFailed(
                        f"{unit.name} has failed: it {unit.life.reason}. Mend it, then: witsd agent start {unit.name}",
                        reason=unit.life.reason,
                    )
                case "inactive":
                    raise InvalidState(f"{unit.name} is stopped: witsd agent start {unit.name}", state="inactive")
            await unit.wait_change()

    @asynccontextmanager
    async def open_run_process(self, unit: Unit, asked_from: str, run_id: str) -> AsyncIterator[Tree]:
        """A fresh process of a ``run_per_request`` agent, once what it requires is up; ended with the block.

        Raises ``SpawnError``, and what ``lease`` raises. It starts in its definition's folder, where relative paths in
        its command lead somewhere; ``asked_from``, the folder of whoever asks, is in ``WITSD_INPUT_CWD``.
        """
        await self._up(unit)
        more = {"WITSD_INPUT_CWD": asked_from}
        async with open_tree(
            unit.spec, self.shared, more_env=more, grace_s=unit.spec.stop.grace_s, run_id=run_id
        ) as tree:
            unit.run_processes[tree.process.pid] = tree.process
            try:
                yield tree
            finally:
                del unit.run_processes[tree.process.pid]

    async def stop_all(self) -> None:
        """Stop every agent, those that need others before these; returns when all are gone.

        Each is bounded by its own ``grace_s``, from when those that need it are gone, and all together by the sum: one
        that not even SIGKILL ends keeps nobody from the end. Nothing is started from here on.

        Then what left its agent's group, and so outlived it, goes as it would at the next start.
        """
        await self.in_effect.close()
        # All are told before any is waited for, so that each knows who is going down with it.
        for unit in self.units.values():
            if unit.life.state != "failed":  # stays so: the next daemon does not try it again by itself
                unit.tell(Stop(SHUTDOWN))
        with trio.move_on_after(sum(unit.spec.stop.grace_s for unit in self.units.values()) + RETIRE_S) as patience:
            for unit in list(self.units.values()):
                await unit.settle()
                while order.is_up(unit) and unit.spec.kind != "external":
                    await unit.wait_change()
            await self.in_effect.wait_gone()
        if patience.cancelled_caught:
            left = [unit.name for unit in self.units.values() if order.is_up(unit) and unit.spec.kind != "external"]
            log.error("supervise.not_all_stopped agents=%s", ",".join(left) or "-")
        swept = await in_thread(sweep, self.shared.containment)
        if swept.processes:
            log.warning("supervise.swept processes=%d", swept.processes)


def _check_ours(unit: Unit, what: str) -> None:
    if unit.spec.kind == "external":
        raise InvalidState(
            f"{unit.name} is not {what} by witsd, which only watches it: whoever runs that process has to",
            state=unit.life.state,
        )


@asynccontextmanager
async def open_supervisor(
    folder: Path, shared: Surroundings, first_run: Callable[[Path], None]
) -> AsyncIterator[Supervisor]:
    """Sweep what an earlier daemon left, load the definitions and run their units until the block ends.

    ``first_run(folder)`` is called, off the loop, when there is no definition at all.
    """
    old = await shared.journal.store.read(lambda db: remembered(db, shared.clock.monotonic(), shared.clock.wall_us()))
    swept = await in_thread(sweep, shared.containment)
    hidden = await in_thread(end_hidden, old)
    if swept.processes or hidden:
        log.warning("supervise.swept processes=%d by_recorded_pid=%s", swept.processes, ",".join(hidden) or "-")
    shutil.rmtree(shared.run_root, ignore_errors=True)
    last_good = {name: known.spec for name, known in old.items() if known.spec is not None}
    found = await in_thread(definitions.load, folder, last_good)
    if not found.specs and not found.errors:
        await in_thread(first_run, folder)
        found = await in_thread(definitions.load, folder, last_good)
    for error in found.errors:
        log.error("definition.bad file=%s line=%d message=%s", error.file, error.line, error.message)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reap_adopted)
        in_effect = InEffect(folder, shared, nursery)
        in_effect.recall(found, old)
        supervisor = Supervisor(shared, in_effect)
        nursery.start_soon(shared.watch.run, lambda: supervisor.units.values())
        stale = [name for name in old if name not in supervisor.units and name not in found.broken]
        shared.journal.append_nowait(statements=[("DELETE FROM agents WHERE name = ?", (name,)) for name in stale])
        try:
            yield supervisor
        finally:
            nursery.cancel_scope.cancel()
