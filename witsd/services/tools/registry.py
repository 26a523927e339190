"""Which tools there are: built in, from installed packages (entry points ``witsd.tools``), and from agents."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator
from importlib import import_module

import apsw
import attrs
import msgspec
import trio

from witsd.journal.journal import Journal
from witsd.services.tools import builtin
from witsd.services.tools.foreign import agent_tool
from witsd.services.tools.tool import Tool, tool
from witsd.supervise.supervisor import Supervisor
from witsd.values.errors import NotFound
from witsd.values.ids import AgentName
from witsd.values.wire.models import ToolDefinition
from witsd.values.wire.tools import TOOL_NAME_PATTERN

log = logging.getLogger("witsd.tools")

ENTRY_POINTS = "witsd.tools"
#: Tools that one agent may offer; what is beyond is left out, and said so in the log.
MAX_OFFERED = 200
#: Names of agents after which ``__`` can only be what ends them.
_PLAIN = re.compile(r"[A-Za-z0-9-]+(?:_[A-Za-z0-9-]+)*")
_definitions = msgspec.json.Decoder(tuple[ToolDefinition, ...]).decode


@attrs.define(eq=False)
class Registry:
    """The tools by name."""

    _journal: Journal
    _supervisor: Supervisor
    _fixed: dict[str, Tool] = attrs.field(factory=dict)
    #: agent -> what it offered when its tools were made, and those by their name here.
    _made: dict[str, tuple[tuple[ToolDefinition, ...], dict[str, Tool]]] = attrs.field(factory=dict)
    #: Those that were made at run time.
    defined: dict[str, Tool] = attrs.field(factory=dict)
    loaded: bool = False
    _loading: trio.Lock = attrs.field(factory=trio.Lock)

    async def load(self) -> None:
        """Import what comes with the daemon and with packages: once, when the first tool is asked for."""
        async with self._loading:
            if not self.loaded:
                self._fixed = await trio.to_thread.run_sync(_find)
                self.loaded = True

    async def recall(self) -> None:
        """What agents offered to the daemon before this one."""

        def look(db: apsw.Connection) -> list[tuple[AgentName, bytes]]:
            return [(agent, tools) for agent, tools in db.execute("SELECT agent, tools FROM agent_tools")]

        for agent, tools in await self._journal.store.read(look):
            unit = self._supervisor.units.get(agent)
            if unit is not None:
                unit.offers = _definitions(tools)

    def is_instant(self, name: str) -> bool:
        """Whether there is such a tool and it is loaded, harmless, and never waits."""
        tool = self._fixed.get(name)
        return tool is not None and tool.instant and tool.read_only

    def has(self, name: str) -> bool:
        return any(tool.name == name for tool in self.all())

    def find(self, name: str) -> Tool:
        """Raises ``NotFound``, with the name that is most like it."""
        found = self._fixed.get(name) or self.defined.get(name)
        if found is None:
            found = next((tools[name] for tools in self._offered() if name in tools), None)
        if found is None:
            import difflib

            near = difflib.get_close_matches(name, [tool.name for tool in self.all()], n=1)
            hint = f"did you mean {near[0]}?" if near else "witsd tool list shows which there are"
            raise NotFound(f"there is no tool {name!r}: {hint}", kind="tool", id=name, near=near)
        return found

    def all(self) -> list[Tool]:
        """By name."""
        offered = (tool for tools in self._offered() for tool in tools.values())
        return sorted([*self._fixed.values(), *self.defined.values(), *offered], key=lambda tool: tool.name)

    def _offered(self) -> Iterator[dict[str, Tool]]:
        """The tools of each agent that has any."""
        for agent, unit in self._supervisor.units.items():
            if not unit.offers:
                continue
            offers, tools = self._made.get(agent, ((), {}))
            if offers is not unit.offers:
                tools = self._make(agent, unit.offers)
                self._made[agent] = (unit.offers, tools)
            yield tools

    def _make(self, agent: str, definitions: tuple[ToolDefinition, ...]) -> dict[str, Tool]:
        if len(definitions) > MAX_OFFERED:
            log.warning("tools.too_many agent=%s offered=%d kept=%d", agent, len(definitions), MAX_OFFERED)
        tools: dict[str, Tool] = {}
        for definition in definitions[:MAX_OFFERED]:
            name = offered_name(agent, definition.name)
            tools[name] = agent_tool(self._supervisor, agent, name, definition)
        return tools


def offered_name(agent: str, name: str) -> str:
    """``AGENT__NAME``: whose tool it is shows, and none can take the place of another.

    What no provider would take as a name, or what is too long, is shortened and told apart by a hash; so is an agent
    whose name would leave open where it ends: ``a__b`` with ``c`` is not ``a`` with ``b__c``.
    """
    if not _PLAIN.fullmatch(agent):
        agent = re.sub(r"[^A-Za-z0-9-]+", "-", agent)[:40] + "-" + hashlib.sha256(agent.encode()).hexdigest()[:8]
    whole = f"{agent}__{name}"
    if re.fullmatch(TOOL_NAME_PATTERN, whole):
        return whole
    digest = hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return re.sub(r"[^A-Za-z0-9_-]", "_", whole)[: 64 - 9] + "_" + digest


def _find() -> dict[str, Tool]:
    from importlib import metadata  # which loads a good deal

    found: dict[str, Tool] = {}
    for name in builtin.MODULES:
        for one in import_module(f"{builtin.__name__}.{name}").TOOLS:
            found[one.name] = one
    for point in metadata.entry_points(group=ENTRY_POINTS):
        source = f"package:{point.dist.name}" if point.dist else "package"
        try:
            given = point.load()
            for one in given if isinstance(given, list | tuple) else (given,):
                made = one if isinstance(one, Tool) else tool(one)
                if made.name in found:
                    log.warning("tools.name_taken tool=%s source=%s by=%s", made.name, source, found[made.name].source)
                    continue
                if not re.fullmatch(TOOL_NAME_PATTERN, made.name):
                    raise ValueError(f"{made.name!r} is no name for a tool: it fits {TOOL_NAME_PATTERN}")
                found[made.name] = attrs.evolve(made, source=source)
        except Exception as error:  # noqa: BLE001  (the boundary: a package's mistake leaves the others as they are)
            log.warning("tools.package_failed entry_point=%s source=%s error=%r", point.name, source, error)
    return found
