"""The agents that there are: those defined, and the instances made of them when somebody first wants one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import attrs

from witsd.supervise.instances import instance, template_of
from witsd.supervise.unit import Unit
from witsd.values.errors import NotFound
from witsd.values.ids import AgentName
from witsd.values.spec import AgentSpec


@attrs.define(eq=False)
class Roster:
    """By name. What units see of each other (``order.Neighbours``)."""

    #: Makes a unit of that definition, puts it in here, and runs it.
    _make: Callable[[AgentSpec], Unit]
    units: dict[AgentName, Unit] = attrs.field(factory=dict)
    #: Those with a file of their own, be it a broken one; the others are instances.
    defined: set[str] = attrs.field(factory=set)
    #: Those on their way out, whose names are free again when they are gone.
    leaving: set[str] = attrs.field(factory=set)
    #: Who names an agent: in ``requires``, and in ``requires`` or ``after``. Made anew when asked after a change.
    _requiring: Mapping[str, Sequence[Unit]] | None = None
    _following: Mapping[str, Sequence[Unit]] = attrs.field(factory=dict)

    def obtain(self, name: str) -> Unit | None:
        """The agent of that name, made from its template where need be; None where there is none."""
        unit = self.units.get(AgentName(name))
        if unit is not None or not self.can_be(name) or name in self.defined:
            return unit
        return self._make(instance(self.units[AgentName(template_of(name))].spec, name))

    def unit(self, name: str) -> Unit:
        """Raises ``NotFound`` for a name that is not defined, and for an instance that nobody has asked for yet."""
        found = self.units.get(AgentName(name))
        if found is None:
            text = f"there is no agent {name!r}"
            if self.can_be(name):
                text += f" yet: `witsd agent start {name}` makes it from {template_of(name)!r}"
            raise NotFound(text, kind="agent", id=name)
        return found

    def can_be(self, name: str) -> bool:
        """Whether there is such an agent, or can be at once."""
        return name in self.units or (template_of(name) in self.units and name not in self.leaving)

    def instances(self, name: str) -> list[Unit]:
        """Those made of the definition ``name``."""
        units = self.units.values()
        return [unit for unit in units if template_of(unit.name) == name and unit.name not in self.defined]

    def changed(self) -> None:
        """A definition is another, or there is one more or one less."""
        self._requiring = None

    def requiring(self, name: str) -> Sequence[Unit]:
        return self._named()[0].get(name, ())

    def following(self, name: str) -> Sequence[Unit]:
        return self._named()[1].get(name, ())

    def _named(self) -> tuple[Mapping[str, Sequence[Unit]], Mapping[str, Sequence[Unit]]]:
        if self._requiring is None:
            requiring, following = defaultdict(list), defaultdict(list)
            for unit in self.units.values():
                for name in unit.spec.requires:
                    requiring[name].append(unit)
                for name in {*unit.spec.requires, *unit.spec.after}:
                    following[name].append(unit)
            self._requiring, self._following = requiring, following
        return self._requiring, self._following

    def let_go(self, names: Sequence[str]) -> None:
        for name in names:
            unit = self.units.get(AgentName(name))
            if unit is not None:
                unit.let_go()

    def required_by(self, unit: Unit) -> list[Unit]:
        """All that ``unit`` requires, and what those require in their turn, what comes first first."""
        found: list[Unit] = []
        seen = {unit.name}

        def visit(one: Unit) -> None:
            for name in one.spec.requires:
                other = self.obtain(name)
                if other is not None and other.name not in seen:
                    seen.add(other.name)
                    visit(other)
                    found.append(other)

        visit(unit)
        return found
