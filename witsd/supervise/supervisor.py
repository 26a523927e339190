"""All agents: definitions in, units running, and a way for runs to reach a live one.

One unit, one task, one process at most. A request that concerns one agent waits for that agent alone.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

from witsd.supervise import definitions, order
from witsd.supervise.containment import sweep
from witsd.supervise.definitions import Definitions, Disorder
from witsd.supervise.instances import instance, template_of
from witsd.supervise.lifecycle import Lifecycle, Restarted, Start, Stop
from witsd.supervise.link import AgentLink
from witsd.supervise.process import reap_adopted
from witsd.supervise.remembered import SHUTDOWN, Remembered, end_hidden, remembered
from witsd.supervise.roster import Roster
from witsd.supervise.surroundings import Surroundings
from witsd.supervise.threads import in_thread
from witsd.supervise.tree import Tree, open_tree
from witsd.supervise.unit import Unit
from witsd.values.actor import Actor
from witsd.values.errors import AgentFailed, Conflict, InvalidState, LimitExceeded, NotFound, Timeout
from witsd.values.ids import AgentName, SessionId
from witsd.values.spec import AgentSpec
from witsd.values.wire.system import DefinitionError

log = logging.getLogger("witsd.supervise")

#: How long a removed agent may take beyond its ``grace_s``, in seconds.
_RETIRE_S = 10.0
#: Instances of one definition.
MAX_INSTANCES = 1000
#: A change of these alone takes effect without a new process.
_POLICY = frozenset(
    {
        *("start", "idle_stop_s", "requires", "after", "skills", "description", "restart", "ready"),
        *("stop", "health", "limits", "alerts", "stream"),
    }
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
    errors: tuple[DefinitionError, ...] = ()
    #: Told of each definition that has changed: runs may wait for what it now allows.
    on_defined: Callable[[AgentName], None] = lambda name: None
    roster: Roster = attrs.field(init=False)
    _defining: trio.Lock = attrs.field(factory=trio.Lock)
    #: Set for each name that is on its way out, once it is.
    _leaving: dict[str, trio.Event] = attrs.field(factory=dict)
    #: Instances that were up when the last daemon ended, by hand.
    _resumed: set[str] = attrs.field(factory=set)
    _begun: bool = False

    def __attrs_post_init__(self) -> None:
        self.roster = Roster(self._add)

    @property
    def units(self) -> dict[AgentName, Unit]:
        return self.roster.units

    def begin(self) -> None:
        """Start what starts at boot: called once everything that agents may ask for is there."""
        self._begun = True
        for unit in self.units.values():
            self._run(unit)

    def recall(self, found: Definitions, old: Mapping[str, Remembered]) -> None:
        """Make the agents of these definitions, and the instances that there were, as the last daemon left them."""
        self.errors = found.errors
        self.roster.defined = {*found.specs, *found.broken}
        specs = dict(found.specs)
        for name in found.broken & old.keys():
            if (last_good := old[name].spec) is not None:
                log.warning("definition.last_good_used agent=%s", name)
                specs[name] = last_good
        for name in old.keys() - self.roster.defined:
            if (template := specs.get(template_of(name))) is not None:
                specs[name] = instance(template, name)
                if template.start == "manual" and old[name].wanted:
                    self._resumed.add(name)  # nothing else says that it is to be up
        for name, spec in specs.items():
            unit = self._add(spec, old[name].life if name in old else None)
            if name in old and old[name].foreign:
                unit.sighted = old[name].identity

    def _run(self, unit: Unit) -> None:
        self._nursery.start_soon(unit.run)
        if unit.spec.start == "boot" or unit.name in self._resumed:
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
        """Raises ``NotFound`` for a name that is not defined, and for an instance that nobody has asked for yet."""
        found = self.units.get(AgentName(name))
        if found is None:
            text = f"there is no agent {name!r}"
            if self.roster.can_be(name):
                text += f" yet: `witsd agent start {name}` makes it from {template_of(name)!r}"
            raise NotFound(text, kind="agent", id=name)
        return found

    def obtain(self, name: str) -> Unit:
        """``unit``, made now where it is an instance that nobody has asked for yet. Raises ``LimitExceeded`` too."""
        if AgentName(name) not in self.units and len(self.roster.instances(template_of(name))) >= MAX_INSTANCES:
            raise LimitExceeded(
                f"there are {MAX_INSTANCES} instances of {template_of(name)}: remove some (witsd agent rm)",
                limit="instances",
                value=MAX_INSTANCES,
            )
        return self.roster.obtain(name) or self.unit(name)

    # ---- definitions ----------------------------------------------------------------------------------

    async def define(self, spec: AgentSpec) -> Unit:
        """Write the definition and put it into effect; started at once when ``start = "boot"``.

        Raises ``Disorder`` where what it says of other agents cannot be.
        """
        while True:
            await self._wait_gone([spec.name])
            async with self._defining:
                if spec.name in self._leaving:
                    continue
                specs = self._in_effect() | {spec.name: spec}
                wrong = order.mistakes(specs, {spec.name}, lambda name: name == spec.name or self.roster.can_be(name))
                if wrong:
                    raise Disorder(wrong[spec.name].path, wrong[spec.name].message)
                if self._changes_nature(spec):
                    self._withdraw(spec.name)
                    continue
                await in_thread(definitions.write, self.folder, spec)
                self.roster.defined.add(spec.name)
                for changed in (spec, *(instance(spec, unit.name) for unit in self.roster.instances(spec.name))):
                    self._apply(changed)
            break
        unit = self.unit(spec.name)
        await unit.settle()
        return unit

    def going_with(self, name: str) -> list[str]:
        """The names that go when ``name`` is removed: it and its instances. Raises ``NotFound``, ``Conflict``."""
        unit = self.unit(name)
        going = [unit.name, *(one.name for one in self.roster.instances(name))]
        users = sorted({one.name for n in going for one in self.roster.following(n)} - set(going))
        if users:
            raise Conflict(
                f"{name} is named in `requires` or `after` of {', '.join(users)}: change or remove that first",
                agents=users,
            )
        return [*going]

    async def remove(self, name: str) -> None:
        """Stop the agent, then forget it and its file, and so for its instances. Logs and runs stay."""
        async with self._defining:
            going = self.going_with(name)
            await in_thread(definitions.remove, self.folder, name)
            for one in going:
                self._withdraw(one)
        await self._wait_gone(going)

    async def reload(self) -> tuple[tuple[str, ...], tuple[DefinitionError, ...]]:
        """Read the folder again: ``(names that changed, mistakes)``. What did not change is not touched."""
        while True:
            async with self._defining:
                found = await in_thread(definitions.load, self.folder, self._in_effect())
                for spec in found.specs.values():
                    if self._changes_nature(spec):
                        self._withdraw(spec.name)
                busy = found.specs.keys() & self._leaving.keys()
                if not busy:
                    changed, gone = self._put_into_effect(found)
                    break
            await self._wait_gone(busy)
        await self._wait_gone(gone)
        return tuple(sorted([*changed, *gone])), found.errors

    def _in_effect(self) -> dict[str, AgentSpec]:
        """What has a definition of its own; instances follow from these."""
        return {str(name): unit.spec for name, unit in self.units.items() if name in self.roster.defined}

    def _put_into_effect(self, found: Definitions) -> tuple[list[str], list[str]]:
        self.errors = found.errors
        self.roster.defined = {*found.specs, *found.broken}
        specs = dict(found.specs)
        gone = []
        for name, unit in self.units.items():
            if name in self.roster.defined:
                continue
            template = template_of(name)
            if template in found.specs:
                specs[name] = instance(found.specs[template], name)
            elif template not in found.broken:
                gone.append(name)
            else:
                specs[name] = unit.spec
        before = {name: unit.spec for name, unit in self.units.items()}
        changed = [name for name, spec in specs.items() if before.get(AgentName(name)) != spec]
        for changing in changed:
            self._apply(specs[changing])
        for leaving in gone:
            self._withdraw(leaving)
        return changed, [*gone]

    def _changes_nature(self, spec: AgentSpec) -> bool:
        """Whether this is to be watched, and what there is of that name is ours, or the other way round."""
        unit = self.units.get(AgentName(spec.name))
        return unit is not None and unit.spec.kind != spec.kind and "external" in (unit.spec.kind, spec.kind)

    def _add(self, spec: AgentSpec, life: Lifecycle | None = None) -> Unit:
        unit = Unit(spec, self.shared, self.roster, since_us=self.shared.clock.wall_us())
        if life is not None:
            unit.life = life
        self.units[unit.name] = unit
        self.roster.changed()
        unit.record(publish=False)
        if self._begun:
            self._run(unit)
        return unit

    def _apply(self, spec: AgentSpec) -> None:
        unit = self.units.get(AgentName(spec.name))
        if unit is None:
            self._add(spec)
            return
        before, unit.spec = unit.spec, spec
        self.roster.changed()
        unit.record(publish=False)
        differs = _process_differs(before, spec)
        if unit.life.wanted or spec.kind == "external":
            if differs or spec.kind == "external":  # is looked for anew, also where the same number is said again
                unit.tell(Restarted())
        elif spec.start == "boot" and (differs or before.start != "boot"):
            unit.tell(Start(by_hand=True))
        elif differs and unit.life.state == "failed":
            unit.tell(Stop())  # what failed was another command
        self.on_defined(unit.name)

    def _withdraw(self, name: str) -> None:
        """Nobody finds it from here on, so nobody starts it again while it stops; ``_wait_gone`` until it is gone."""
        unit = self.units.pop(AgentName(name))
        self.roster.defined.discard(name)
        self.roster.leaving.add(name)
        self.roster.changed()
        self._leaving[name] = trio.Event()
        self.shared.watch.forget(name)
        self._nursery.start_soon(self._retire, unit)

    async def _retire(self, unit: Unit) -> None:
        unit.tell(Stop("was removed"))
        with trio.move_on_after(unit.spec.stop.grace_s + _RETIRE_S):
            while order.is_up(unit) and unit.spec.kind != "external":
                await unit.wait_change()
        await unit.end()
        await self.shared.journal.append(
            statements=(("DELETE FROM agents WHERE name = ?", (unit.spec.name,)),), keep=True
        )
        self.roster.leaving.discard(unit.name)
        self._leaving.pop(unit.name).set()

    async def _wait_gone(self, names: Iterable[str]) -> None:
        """Return once none of these is on its way out any more: one that is slow delays its own name alone."""
        for name in names:
            while (leaving := self._leaving.get(name)) is not None:
                await leaving.wait()

    # ---- start, stop ----------------------------------------------------------------------------------

    async def start(self, name: str, *, wait: bool, timeout_s: float) -> Unit:
        """Raises ``AgentFailed`` with the reason when it cannot be brought up, ``Timeout``."""
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
        """A new process, whatever the state was."""
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
    async def open_run_process(self, unit: Unit, asked_from: str) -> AsyncIterator[Tree]:
        """A fresh process of a ``run_per_request`` agent, once what it requires is up; ended with the block.

        Raises ``SpawnError``, and what ``lease`` raises. It starts in its definition's folder, where relative paths in
        its command lead somewhere; ``asked_from``, the folder of whoever asks, is in ``WITSD_INPUT_CWD``.
        """
        await self._up(unit)
        more = {"WITSD_INPUT_CWD": asked_from}
        async with open_tree(unit.spec, self.shared, more_env=more, grace_s=unit.spec.stop.grace_s) as tree:
            unit.run_processes[tree.process.pid] = tree.process
            try:
                yield tree
            finally:
                del unit.run_processes[tree.process.pid]

    async def stop_all(self) -> None:
        """Stop every agent, those that need others before these; returns when all are gone.

        Each is bounded by its own ``grace_s``, from when those that need it are gone.

        Then what left its agent's group, and so outlived it, goes as it would at the next start.
        """
        # All are told before any is waited for, so that each knows who is going down with it.
        for unit in self.units.values():
            if unit.life.state != "failed":  # stays so: the next daemon does not try it again by itself
                unit.tell(Stop(SHUTDOWN))
        for unit in list(self.units.values()):
            await unit.settle()
            while order.is_up(unit) and unit.spec.kind != "external":
                await unit.wait_change()
        await self._wait_gone(list(self._leaving))
        swept = await in_thread(sweep, self.shared.containment)
        if swept.processes:
            log.warning("supervise.swept processes=%d", swept.processes)


def _check_ours(unit: Unit, what: str) -> None:
    if unit.spec.kind == "external":
        raise InvalidState(
            f"{unit.name} is not {what} by witsd, which only watches it: whoever runs that process has to",
            state=unit.life.state,
        )


def _process_differs(before: AgentSpec, after: AgentSpec) -> bool:
    if before.health.watchdog_s != after.health.watchdog_s:
        return True  # the process was told the span when it was started
    return any(
        getattr(before, field) != getattr(after, field) for field in AgentSpec.__struct_fields__ if field not in _POLICY
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
        supervisor = Supervisor(folder, shared, nursery)
        supervisor.recall(found, old)
        nursery.start_soon(shared.watch.run, lambda: supervisor.units.values())
        stale = [name for name in old if name not in supervisor.units and name not in found.broken]
        shared.journal.append_nowait(statements=[("DELETE FROM agents WHERE name = ?", (name,)) for name in stale])
        try:
            yield supervisor
        finally:
            nursery.cancel_scope.cancel()
