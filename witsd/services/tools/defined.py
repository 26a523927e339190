"""``tools/define`` and ``tools/remove``: tools made at run time. Their code runs in the sandbox, and nowhere else."""

from __future__ import annotations

import ast
import hashlib
from typing import Any

import apsw
import attrs
import msgspec

from witsd.journal.journal import Journal, Tx
from witsd.services.tools import code
from witsd.services.tools.acting import Acting, Begun, Call
from witsd.services.tools.foreign import schema_reader
from witsd.services.tools.registry import Registry, offered_name
from witsd.services.tools.tool import Tool, ToolContext
from witsd.values.actor import Actor
from witsd.values.errors import Conflict, InvalidParams, LimitExceeded, NotFound, PermissionDenied
from witsd.values.ids import Ids
from witsd.values.wire import tools as wire
from witsd.values.wire.common import Empty

MAX_DEFINED = 1000
#: What the code begins with: its arguments, as it is given them.
_ARGUMENTS = "import json, sys; arguments = json.loads(sys.stdin.read()); del json, sys\n"
_encode = msgspec.json.Encoder().encode


@attrs.define(eq=False)
class Defined:
    """The service; ``load`` first."""

    _journal: Journal
    _registry: Registry
    _acting: Acting
    _ids: Ids

    async def load(self) -> None:
        """Bring back what was defined before."""

        def look(db: apsw.Connection) -> list[tuple[str, str, bytes]]:
            return [(name, author, data) for name, author, data in db.execute("SELECT * FROM defined_tools")]

        for name, author, data in await self._journal.store.read(look):
            params = msgspec.json.decode(data, type=wire.ToolsDefineParams)
            self._registry.defined[name] = made(name, author, params)

    async def define(self, actor: Actor, params: wire.ToolsDefineParams) -> wire.ToolDefined:
        """There is the tool from now on, also after a restart; one of its name that the caller defined is replaced.

        An agent's is called ``AGENT__NAME`` and waits for an approval of exactly this code. Raises ``InvalidParams``
        for code or a schema that cannot be, ``Conflict`` for a name that is taken, and as an approval does.
        """
        name = params.name if actor.agent is None else offered_name(actor.agent, params.name)
        _check(params)
        await self._registry.load()
        if self._registry.has(name) and name not in self._registry.defined:
            raise Conflict(f"there is a tool {name!r} already", name=name)
        if len(self._registry.defined) >= MAX_DEFINED and name not in self._registry.defined:
            raise LimitExceeded(f"{MAX_DEFINED} tools are defined: remove some", limit="tools", value=MAX_DEFINED)
        if actor.agent is not None:
            await self._ask(actor, params)

        def keep(tx: Tx) -> None:
            known = tx.execute("SELECT author FROM defined_tools WHERE name = ?", (name,))
            if known and actor.agent is not None and known[0][0] != actor.label:
                raise Conflict(f"{name!r} was defined by {known[0][0]}", name=name)
            tx.execute("INSERT OR REPLACE INTO defined_tools VALUES (?,?,?)", (name, actor.label, _encode(params)))

        def then(_: object) -> None:
            self._registry.defined[name] = made(name, actor.label, params)

        await self._journal.write(keep, then=then)
        return wire.ToolDefined(name=name)

    async def _ask(self, actor: Actor, params: wire.ToolsDefineParams) -> None:
        call = Call(
            call_id=self._ids.new("call"),
            tool="tools/define",
            arguments=msgspec.to_builtins(params),
            actor=actor,
            cwd=None,
            run=None,
            ask=True,
            key=None,
            timeout_s=params.timeout_s,
        )
        begun = await self._acting.begin(call)
        if isinstance(begun, Begun):
            self._acting.end(begun.call_id, wire.ToolsCallResult())

    async def remove(self, actor: Actor, params: wire.ToolsRemoveParams) -> Empty:
        """Raises ``NotFound``, ``PermissionDenied`` for an agent and a tool that it has not defined."""

        def gone(tx: Tx) -> None:
            known = tx.execute("SELECT author FROM defined_tools WHERE name = ?", (params.name,))
            if not known:
                raise NotFound(f"no tool {params.name!r} was defined", kind="tool", id=params.name)
            if actor.agent is not None and known[0][0] != actor.label:
                raise PermissionDenied(f"{params.name!r} was defined by {known[0][0]}", needs="author")
            tx.execute("DELETE FROM defined_tools WHERE name = ?", (params.name,))

        def then(_: object) -> None:
            self._registry.defined.pop(params.name, None)

        await self._journal.write(gone, then=then)
        return Empty()


def made(name: str, author: str, params: wire.ToolsDefineParams) -> Tool:
    """The tool: it can do nothing outside of its sandbox, so nobody is asked for a call."""

    async def run(context: ToolContext, arguments: dict[str, Any]) -> object:
        given = _encode(arguments).decode()
        outcome = await code.run(context, time_s=None, stdin=given, code=_ARGUMENTS + params.code)
        return await code.answer(context, outcome)

    return Tool(
        name=name,
        description=params.description,
        input_schema=params.input_schema or {"type": "object", "properties": {}},
        run=run,
        read=schema_reader(params.input_schema),
        policy="allow",
        read_only=True,
        parallel=True,
        source=f"defined:{author}",
        version=hashlib.sha256(_encode(params)).hexdigest(),
        timeout_s=code.TIMEOUT_S,
        concurrency=4,
    )


def _check(params: wire.ToolsDefineParams) -> None:
    try:
        ast.parse(params.code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InvalidParams(f"params.code is no Python: {error}", path="params.code") from None
    if params.input_schema:
        import jsonschema

        try:
            jsonschema.Draft202012Validator.check_schema(params.input_schema)
        except jsonschema.SchemaError as error:
            raise InvalidParams(f"params.input_schema: {error.message}", path="params.input_schema") from None
        if params.input_schema.get("type") != "object":
            raise InvalidParams('params.input_schema is to have "type": "object"', path="params.input_schema")
