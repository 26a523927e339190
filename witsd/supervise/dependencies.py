"""Which agent needs which: cycles are found before anything is started, and a stop goes the other way round."""

from __future__ import annotations

from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter

from witsd.values.spec import AgentSpec


def needs(spec: AgentSpec) -> tuple[str, ...]:
    """The agents that come up before this one: those it requires and those it only follows."""
    return tuple(dict.fromkeys((*spec.requires, *spec.after)))


def find_cycle(specs: Mapping[str, AgentSpec]) -> tuple[str, ...]:
    """The names along one cycle, the first repeated at the end; empty where there is none."""
    try:
        TopologicalSorter({name: needs(spec) for name, spec in specs.items()}).prepare()
    except CycleError as error:
        return tuple(reversed(error.args[1]))
    return ()


def dependents(name: str, specs: Mapping[str, AgentSpec]) -> tuple[str, ...]:
    """Who directly comes up after ``name``, by name."""
    return tuple(sorted(other for other, spec in specs.items() if name in needs(spec)))
