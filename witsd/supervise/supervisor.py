"""All agents: definitions in, units running, and a way for runs to reach a live one.

One unit, one task, one process at most. A request that concerns one agent waits for that agent alone.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import apsw
import attrs
import msgspec
import trio

from witsd.supervise import definitions
from witsd.supervise.containment import sweep
from witsd.supervise.identity import Identity, is_same
from witsd.supervise.lifecycle import Lifecycle, Restarted, Start, Stop
from witsd.supervise.link import AgentLink
from witsd.supervise.process import reap_adopted
from witsd.supervise.surroundings import Surroundings
from witsd.supervise.tree import Tree, open_tree
from witsd.supervise.unit import Unit
from witsd.values.actor import Actor
from witsd.values.errors import AgentFailed, InvalidState, NotFound, Timeout
from witsd.values.ids import AgentName, SessionId
from witsd.values.spec import AgentSpec
from witsd.values.wire.system import DefinitionError

log = logging.getLogger("witsd.supervise")

#: How long a removed agent may take beyond its ``grace_s``, in seconds.
_RETIRE_S = 10.0
#: A change of these alone takes effect without a new process.
_POLICY = frozenset(
    {"start", "idle_stop_s", "skills", "description", "restart", "ready", "stop", "health", "limits", "stream"}
)


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

    folder: Path
    shared: Surroundings
    _nursery: trio.Nursery
    units: dict[AgentName, Unit] = attrs.field(factory=dict)
    errors: tuple[DefinitionError, ...] = ()
    #: Told of each definition that has changed: runs may wait for what it now allows.
    on_defined: Callable[[AgentName], None] = lambda name: None
    _defining: trio.Lock = attrs.field(factory=trio.Lock)
    _begun: bool = False

    def begin(self) -> None:
        """Start what starts at boot: called once everything that agents may ask for is there."""
        self._begun = True
        for unit in self.units.values():
            self._run(unit)

    def _run(self, unit: Unit) -> None:
        self._nursery.start_soon(unit.run)
        if unit.spec.start == "boot":
            unit.tell(Start(by_hand=False))

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
        """Raises ``NotFound`` for a name that is not defined."""
        found = self.units.get(AgentName(name))
        if found is None:
            raise NotFound(f"there is no agent {name!r}", kind="agent", id=name)
        return found

    # ---- definitions ----------------------------------------------------------------------------------

    async def define(self, spec: AgentSpec) -> Unit:
        """Write the definition and put it into effect; started at once when ``start = "boot"``."""
        async with self._defining:
            await trio.to_thread.run_sync(definitions.write, self.folder, spec)
            self._apply(spec)
        unit = self.unit(spec.name)
        await unit.settle()
        return unit

    async def remove(self, name: str) -> None:
        """Stop the agent, then forget it and its file. Its log and runs stay."""
        async with self._defining:
            unit = self.unit(name)
            await trio.to_thread.run_sync(definitions.remove, self.folder, name)
            await self._retire(unit)

    async def reload(self) -> tuple[tuple[str, ...], tuple[DefinitionError, ...]]:
        """Read the folder again: ``(names that changed, mistakes)``. What did not change is not touched."""
        async with self._defining:
            found = await trio.to_thread.run_sync(definitions.load, self.folder)
            self.errors = found.errors
            changed = [
                name
                for name, spec in found.specs.items()
                if AgentName(name) not in self.units or self.units[AgentName(name)].spec != spec
            ]
            gone = [name for name in self.units if name not in found.specs and name not in found.broken]
            for name in changed:
                self._apply(found.specs[name])
            async with trio.open_nursery() as nursery:
                for name in gone:
                    nursery.start_soon(self._retire, self.units[name])
            return tuple(sorted([*changed, *gone])), found.errors

    def _apply(self, spec: AgentSpec, life: Lifecycle | None = None) -> None:
        name = AgentName(spec.name)
        unit = self.units.get(name)
        if unit is None:
            unit = Unit(spec, self.shared, since_us=self.shared.clock.wall_us())
            if life is not None:
                unit.life = life
            self.units[name] = unit
            unit.record(publish=False)
            if self._begun:
                self._run(unit)
            return
        before, unit.spec = unit.spec, spec
        unit.record(publish=False)
        differs = _process_differs(before, spec)
        if unit.life.wanted:
            if differs:
                unit.tell(Restarted())
        elif spec.start == "boot" and (differs or before.start != "boot"):
            unit.tell(Start(by_hand=True))
        elif differs and unit.life.state == "failed":
            unit.tell(Stop())  # what failed was another command
        self.on_defined(name)

    async def _retire(self, unit: Unit) -> None:
        # Nobody finds it from here on, so nobody starts it again while it stops.
        self.units.pop(unit.name, None)
        self.shared.watch.forget(unit.name)
        unit.tell(Stop("was removed"))
        # Whoever asked for it may be gone by now; half a removal would leave a unit that belongs to nothing.
        deadline = trio.current_time() + unit.spec.stop.grace_s + _RETIRE_S
        with trio.CancelScope(shield=True, deadline=deadline):
            while unit.life.state not in ("inactive", "failed"):
                await unit.wait_change()
        unit.end()
        await self.shared.journal.append(
            statements=(("DELETE FROM agents WHERE name = ?", (unit.spec.name,)),), keep=True
        )

    # ---- start, stop ----------------------------------------------------------------------------------

    async def start(self, name: str, *, wait: bool, timeout_s: float) -> Unit:
        """Raises ``AgentFailed`` with the reason when it cannot be brought up, ``Timeout``."""
        unit = self.unit(name)
        if unit.life.state == "active":
            return unit
        await unit.ask(Start(by_hand=True))
        if wait:
            await self._reach_active(unit, timeout_s)
        return unit

    async def restart(self, name: str, *, wait: bool, timeout_s: float) -> Unit:
        """A new process, whatever the state was."""
        unit = self.unit(name)
        await unit.ask(Restarted())
        if wait:
            await self._reach_active(unit, timeout_s)
        return unit

    async def stop(self, name: str, *, wait: bool, timeout_s: float) -> Unit:
        """No error when it is stopped already."""
        unit = self.unit(name)
        if unit.life.state == "inactive":
            return unit
        await unit.ask(Stop())
        if wait:
            with trio.move_on_after(timeout_s):
                while unit.life.state not in ("inactive", "failed"):
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
        raise Timeout(f"{unit.name} is still {unit.life.state} after {timeout_s:g} s")

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
        if unit.spec.start == "on_demand" and unit.life.state in ("inactive", "stopping"):
            await unit.ask(Start(by_hand=False))
        while unit.life.state != "active" or unit.link is None:
            match unit.life.state:
                case "failed":
                    raise AgentFailed(
                        f"{unit.name} has failed: it {unit.life.reason}. Mend it, then: witsd agent start {unit.name}",
                        reason=unit.life.reason,
                    )
                case "inactive":
                    raise InvalidState(f"{unit.name} is stopped: witsd agent start {unit.name}", state="inactive")
            await unit.wait_change()
        return Lease(unit, unit.link, unit.generation, unit.holds)

    @asynccontextmanager
    async def open_run_process(self, unit: Unit, asked_from: str) -> AsyncIterator[Tree]:
        """A fresh process of a ``run_per_request`` agent, ended with the block. Raises ``SpawnError``.

        It starts in its definition's folder, where relative paths in its command lead somewhere;
        ``asked_from``, the folder of whoever asks, is in ``WITSD_INPUT_CWD``.
        """
        more = {"WITSD_INPUT_CWD": asked_from}
        async with open_tree(unit.spec, self.shared, more_env=more, grace_s=unit.spec.stop.grace_s) as tree:
            unit.run_processes[tree.process.pid] = tree.process
            try:
                yield tree
            finally:
                del unit.run_processes[tree.process.pid]

    async def stop_all(self) -> None:
        """Stop every agent at once; returns when all are gone, each bounded by its own ``grace_s``.

        Then what left its agent's group, and so outlived it, goes as it would at the next start.
        """
        async with trio.open_nursery() as nursery:
            for unit in list(self.units.values()):
                nursery.start_soon(self._stop_for_shutdown, unit)
        swept = await trio.to_thread.run_sync(sweep, self.shared.containment)
        if swept.processes:
            log.warning("supervise.swept processes=%d", swept.processes)

    async def _stop_for_shutdown(self, unit: Unit) -> None:
        if unit.life.state == "failed":
            return  # stays so: the next daemon does not try it again by itself
        await unit.ask(Stop("the daemon is stopping"))
        while unit.life.state not in ("inactive", "failed"):
            await unit.wait_change()


def _process_differs(before: AgentSpec, after: AgentSpec) -> bool:
    return any(
        getattr(before, field) != getattr(after, field) for field in AgentSpec.__struct_fields__ if field not in _POLICY
    )


@attrs.frozen
class Remembered:
    """What the last daemon knew of an agent."""

    life: Lifecycle
    identity: Identity | None
    #: The last definition that was good; None where this version cannot read it any more.
    spec: AgentSpec | None


def remembered(db: apsw.Connection, now: float, wall_us: int) -> dict[str, Remembered]:
    """The agents table as the last daemon left it, its times brought to this daemon's clock."""
    found = {}
    for name, spec, state, reason, restarts, pid, start, boot, history in db.execute(
        "SELECT name, spec, state, reason, restarts, pid, start_time, boot_id, history FROM agents"
    ):
        exits = tuple(min(now, now - (wall_us - t) / 1e6) for t in msgspec.json.decode(history, type=list[int]))
        # Only a failure outlives the daemon: what ran was ended by its death, which counts against nobody.
        failed = state == "failed"
        life = Lifecycle(
            state="failed" if failed else "inactive",
            reason=reason if failed else "",
            restarts=restarts,
            exits=exits,
        )
        try:
            last_good = msgspec.json.decode(spec, type=AgentSpec)
        except msgspec.ValidationError:
            last_good = None
        found[name] = Remembered(life, Identity(pid, start, boot) if pid is not None else None, last_good)
    return found


@asynccontextmanager
async def open_supervisor(
    folder: Path, shared: Surroundings, first_run: Callable[[Path], None]
) -> AsyncIterator[Supervisor]:
    """Sweep what an earlier daemon left, load the definitions and run their units until the block ends.

    ``first_run(folder)`` is called, off the loop, when there is no definition at all.
    """
    old = await shared.journal.store.read(lambda db: remembered(db, shared.clock.monotonic(), shared.clock.wall_us()))
    swept = await trio.to_thread.run_sync(sweep, shared.containment)
    alive = [n for n, r in old.items() if r.identity and is_same(r.identity)]
    if swept.processes or alive:
        log.warning("supervise.swept processes=%d still_there=%s", swept.processes, ",".join(alive) or "-")
    shutil.rmtree(shared.run_root, ignore_errors=True)
    found = await trio.to_thread.run_sync(definitions.load, folder)
    if not found.specs and not found.errors:
        await trio.to_thread.run_sync(first_run, folder)
        found = await trio.to_thread.run_sync(definitions.load, folder)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reap_adopted)
        supervisor = Supervisor(folder, shared, nursery, errors=found.errors)
        nursery.start_soon(shared.watch.run, lambda: [unit.facts() for unit in supervisor.units.values()])
        stale = [name for name in old if name not in found.specs and name not in found.broken]
        shared.journal.append_nowait(statements=[("DELETE FROM agents WHERE name = ?", (name,)) for name in stale])
        for error in found.errors:
            log.error("definition.bad file=%s line=%d message=%s", error.file, error.line, error.message)
        specs = dict(found.specs)
        for name in found.broken & old.keys():
            last_good = old[name].spec
            if last_good is not None:
                log.warning("definition.last_good_used agent=%s", name)
                specs[name] = last_good
        for name, spec in specs.items():
            life = old[name].life if name in old else Lifecycle()
            supervisor._apply(spec, life)
        try:
            yield supervisor
        finally:
            nursery.cancel_scope.cancel()
