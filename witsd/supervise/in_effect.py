"""The definitions in effect: read, written and put in place of each other, and the units that come and go with them.

What did not change is not touched, and one that is slow to go delays its own name alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import attrs
import trio

from witsd.supervise import definitions, order
from witsd.supervise.definitions import Definitions, Disorder
from witsd.supervise.instances import instance, template_of
from witsd.supervise.lifecycle import Lifecycle, Restarted, Start, Stop
from witsd.supervise.remembered import Remembered
from witsd.supervise.roster import Roster
from witsd.supervise.surroundings import Surroundings
from witsd.supervise.threads import in_thread
from witsd.supervise.unit import Unit
from witsd.values.errors import Conflict, Overloaded
from witsd.values.ids import AgentName
from witsd.values.spec import AgentSpec
from witsd.values.wire.system import DefinitionError

log = logging.getLogger("witsd.supervise")

#: How long a removed agent may take beyond its ``grace_s``, in seconds.
RETIRE_S = 10.0
#: A change of these alone takes effect without a new process.
_POLICY = frozenset(
    {
        *("start", "idle_stop_s", "requires", "after", "skills", "description", "restart", "ready"),
        *("stop", "health", "limits", "alerts", "stream", "tools"),
    }
)


@attrs.define(eq=False)
class InEffect:
    """The supervisor's; its nursery runs the units."""

    folder: Path
    shared: Surroundings
    _nursery: trio.Nursery
    errors: tuple[DefinitionError, ...] = ()
    #: Told of each definition that has changed: runs may wait for what it now allows.
    on_defined: Callable[[AgentName], None] = lambda name: None
    roster: Roster = attrs.field(init=False)
    _closed: bool = False
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

    def check_open(self) -> None:
        """Raises ``Overloaded`` once the daemon is stopping: what was started now would keep it from its end."""
        if self._closed:
            raise Overloaded("the daemon is stopping: try again when it is back", retry_after_ms=2000)

    async def close(self) -> None:
        """From here on nothing is started and no definition is put into effect; what is on its way in is in first."""
        async with self._defining:
            self._closed = True

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

    # ---- changes ---------------------------------------------------------------------------------------

    async def define(self, spec: AgentSpec) -> Unit:
        """Write the definition and put it into effect; started at once when ``start = "boot"``.

        Raises ``Disorder`` where what it says of other agents cannot be.
        """
        while True:
            await self.wait_gone([spec.name])
            async with self._defining:
                self.check_open()
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
        unit = self.roster.unit(spec.name)
        await unit.settle()
        return unit

    def going_with(self, name: str) -> list[str]:
        """The names that go when ``name`` is removed: it and its instances. Raises ``NotFound``, ``Conflict``."""
        unit = self.roster.unit(name)
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
            going = self.going_with(name)  # somebody may have wanted another instance meanwhile
            for one in going:
                self._withdraw(one)
        await self.wait_gone(going)

    async def reload(self) -> tuple[tuple[str, ...], tuple[DefinitionError, ...]]:
        """Read the folder again: ``(names that changed, mistakes)``. What did not change is not touched.

        Raises ``Overloaded`` where the daemon is stopping, ``OSError`` for a folder that cannot be read.
        """
        while True:
            async with self._defining:
                self.check_open()
                found = await in_thread(definitions.load, self.folder, self._in_effect())
                for spec in found.specs.values():
                    if self._changes_nature(spec):
                        self._withdraw(spec.name)
                busy = found.specs.keys() & self._leaving.keys()
                if not busy:
                    changed, gone = self._put_into_effect(found)
                    break
            await self.wait_gone(busy)
        await self.wait_gone(gone)
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
        """Nobody finds it from here on, so nobody starts it again while it stops; ``wait_gone`` until it is gone."""
        unit = self.units.pop(AgentName(name))
        self.roster.defined.discard(name)
        self.roster.leaving.add(name)
        self.roster.changed()
        self._leaving[name] = trio.Event()
        self._nursery.start_soon(self._retire, unit)

    async def _retire(self, unit: Unit) -> None:
        unit.tell(Stop("was removed"))
        with trio.move_on_after(unit.spec.stop.grace_s + RETIRE_S):
            while order.is_up(unit) and unit.spec.kind != "external":
                await unit.wait_change()
        await unit.end()
        await self.shared.journal.append(
            statements=(("DELETE FROM agents WHERE name = ?", (unit.spec.name,)),), keep=True
        )
        self.shared.watch.forget(unit.name)
        self.roster.leaving.discard(unit.name)
        self._leaving.pop(unit.name).set()

    async def wait_gone(self, names: Iterable[str] | None = None) -> None:
        """Return once none of these (None: of all) is on its way out: one that is slow delays its own name alone."""
        for name in list(self._leaving) if names is None else names:
            while (leaving := self._leaving.get(name)) is not None:
                await leaving.wait()

def _process_differs(before: AgentSpec, after: AgentSpec) -> bool:
    if before.health.watchdog_s != after.health.watchdog_s:
        return True  # the process was told the span when it was started
    return any(
        getattr(before, field) != getattr(after, field) for field in AgentSpec.__struct_fields__ if field not in _POLICY
    )


