"""``tools/*``: the one place through which every tool call goes.

In this order: is there such a tool, may the caller use it, do the arguments fit, must a person be asked; then it
runs, within its time and its size, and what comes of it is an item of the run.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import attrs
import msgspec
import trio
from msgspec import UNSET, Raw

from witsd.services.approvals import Approvals
from witsd.services.run_state import LiveRun
from witsd.services.tools import policies
from witsd.services.tools.acting import Acting, Call
from witsd.services.tools.foreign import BadArguments
from witsd.services.tools.reach import Reach
from witsd.services.tools.registry import Registry
from witsd.services.tools.results import bounded, failure, result_of, text_of
from witsd.services.tools.tool import Tool, ToolContext, ToolFailed, UnknownArgument
from witsd.values.actor import Actor, Scope
from witsd.values.clock import Clock
from witsd.values.errors import InvalidParams, InvalidState, NotFound, PermissionDenied, Timeout, WitsdError
from witsd.values.ids import Ids, ItemId
from witsd.values.items import ItemStatus, ToolCallItem
from witsd.values.spec import AgentSpec, ToolPolicy
from witsd.values.wire import tools as wire
from witsd.values.wire.native import ItemNotification

log = logging.getLogger("witsd.tools")

#: Characters of an exception's text that a caller is told.
_SHOWN = 500
_MISSING = re.compile(r"missing required field `(\w+)`")


class _Called(msgspec.Struct):
    name: str = ""
    run_id: Any = None
    idempotency_key: Any = None


_read_called = msgspec.json.Decoder(_Called).decode


@attrs.define(eq=False)
class Tools:
    """The service."""

    _registry: Registry
    _reach: Reach
    _clock: Clock
    _ids: Ids
    #: Where runs have folders of their own for what tools leave behind.
    _work: Path
    _acting: Acting
    _approvals: Approvals
    #: ``[tools.NAME]`` of the settings.
    _settings: Mapping[str, ToolPolicy]
    _busy: dict[str, trio.CapacityLimiter] = attrs.field(factory=dict)

    # ---- methods --------------------------------------------------------------------------------------

    async def list(self, actor: Actor, params: wire.ToolsListParams) -> wire.ToolPage:
        """By name; an agent sees those that it is granted."""
        await self._registry.load()
        tools = [tool for tool in self._registry.all() if actor.granted("tools", tool.name)]
        if params.cursor is not None:
            tools = [tool for tool in tools if tool.name > params.cursor]
        shown = [self._view(actor, tool) for tool in tools]
        if params.available:
            shown = [tool for tool in shown if tool.available]
        page = shown[: params.limit]
        return wire.ToolPage(items=tuple(page), next_cursor=page[-1].name if len(shown) > len(page) else UNSET)

    def _view(self, actor: Actor, tool: Tool) -> wire.Tool:
        spec = self._spec(actor)
        reason = tool.unavailable(policies.options_of(tool.name, *self._places(spec)))
        return wire.Tool(
            name=tool.name,
            description=tool.description,
            input_schema=tool.input_schema,
            output_schema=tool.output_schema or UNSET,
            source=tool.source,
            policy=policies.decide(tool, {}, (), *self._places(spec)),
            annotations=tool.annotations,
            available=not reason,
            reason=reason or UNSET,
        )

    async def call(self, actor: Actor, params: wire.ToolsCallParams) -> wire.ToolsCallResult:
        """Call a tool. One that fails or refuses its input answers ``is_error``.

        Raises ``NotFound`` (tool, run), ``PermissionDenied`` (grant, a person's no), ``InvalidParams`` with the
        argument's path, ``InvalidState`` for a tool that cannot be used now, ``Timeout``.
        """
        if not self._registry.loaded:
            await self._registry.load()
        actor.require_grant("tools", params.name)
        tool = self._registry.find(params.name)
        arguments = _read(tool, params.arguments)
        if tool.instant and params.run_id is None and _is_free(actor, params):
            return await self._run_tool(tool, self._context(actor, "", None, params.cwd, None, {}), arguments)
        spec = self._spec(actor)
        options = policies.options_of(tool.name, *self._places(spec))
        if reason := tool.unavailable(options):
            raise InvalidState(f"{tool.name} cannot be used: {reason}", state="unavailable")
        policy = self._policy(actor, tool, params.arguments, spec)
        if policy == "deny":
            raise PermissionDenied(
                f"{tool.name} is denied to {actor.label} with these arguments, by a rule or a [tools] policy",
                needs=f"tools.{tool.name}.policy",
            )
        run = self._run(actor, params.run_id)
        harmless = tool.read_only and policy == "allow" and params.idempotency_key is None
        context = self._context(actor, self._ids.new("call"), run, params.cwd, spec, options)
        with nullcontext() if run is None else run.calling():
            if harmless:
                return await self._in_time(tool, context, arguments, params, run)
            return await self._act(tool, context, arguments, params, run, ask=policy == "ask")

    async def _act(
        self,
        tool: Tool,
        context: ToolContext,
        arguments: object,
        params: wire.ToolsCallParams,
        run: LiveRun | None,
        *,
        ask: bool,
    ) -> wire.ToolsCallResult:
        call = Call(
            call_id=context.call_id,
            tool=tool.name,
            arguments=params.arguments,
            actor=context.actor,
            cwd=None if context.cwd is None else str(context.cwd),
            run=run,
            ask=ask,
            key=params.idempotency_key,
            timeout_s=params.timeout_s,
            version=tool.version,
        )
        begun = await self._acting.begin(call)
        if isinstance(begun, wire.ToolsCallResult):
            return begun
        result = None
        try:
            result = await self._in_time(tool, context, arguments, params, run)
        finally:
            self._acting.end(begun.call_id, result)
        return result

    def _spec(self, actor: Actor) -> AgentSpec | None:
        unit = None if actor.agent is None else self._reach.supervisor.units.get(actor.agent)
        return unit.spec if unit else None

    def _places(self, spec: AgentSpec | None) -> tuple[Mapping[str, ToolPolicy], ...]:
        return (self._settings,) if spec is None else (spec.tools, self._settings)

    def _policy(self, actor: Actor, tool: Tool, arguments: dict[str, Any], spec: AgentSpec | None) -> wire.Policy:
        """Who could answer an approval is not asked for one."""
        if _is_asked(actor):
            return "allow"
        rules = self._approvals.rules_for(actor.agent or "", tool.name, arguments)
        return policies.decide(tool, arguments, rules, *self._places(spec))

    def is_instant(self, actor: Actor, params: Raw) -> bool:
        """Whether a ``tools/call`` is of a tool that never waits, by somebody who is asked nothing."""
        if not _is_asked(actor):
            return False
        try:
            called = _read_called(params)
        except (msgspec.DecodeError, ValueError):
            return False
        return called.run_id is None and called.idempotency_key is None and self._registry.is_instant(called.name)

    # ---- one call -------------------------------------------------------------------------------------

    def _run(self, actor: Actor, run_id: str | None) -> LiveRun | None:
        if run_id is None or actor.agent is None:
            return None
        run = self._reach.runs.book.of_agent(actor, run_id)
        if run is None:
            raise NotFound(f"there is no run {run_id!r} of {actor.label} that is on", kind="run", id=run_id)
        return run

    def _context(
        self,
        actor: Actor,
        call_id: str,
        run: LiveRun | None,
        cwd: str | None,
        spec: AgentSpec | None,
        options: Mapping[str, Any],
    ) -> ToolContext:
        if run is not None and run.input.cwd is not UNSET:
            where: Path | None = Path(run.input.cwd)
        elif cwd is not None and actor.agent is None:
            where = Path(cwd)
        else:
            where = Path(spec.cwd).expanduser() if spec is not None else None
        return ToolContext(
            actor=actor,
            call_id=call_id,
            run_id=run.run_id if run else None,
            session_id=run.session_id if run else None,
            agent=spec,
            cwd=where,
            clock=self._clock,
            reach=self._reach,
            work_root=self._work,
            options=options,
        )

    async def _in_time(
        self, tool: Tool, context: ToolContext, arguments: object, params: wire.ToolsCallParams, run: LiveRun | None
    ) -> wire.ToolsCallResult:
        limit_s = min(tool.timeout_s, params.timeout_s or tool.timeout_s)
        begun = ToolCallItem(item_id=ItemId(context.call_id), tool=tool.name, arguments=params.arguments)
        async with self._item(context.actor, run, begun) as ended:
            with trio.move_on_after(limit_s):
                async with self._busy.setdefault(tool.name, trio.CapacityLimiter(tool.concurrency)):
                    return ended(await self._run_tool(tool, context, arguments))
            raise Timeout(f"{tool.name} was not done within {limit_s:g} s", limit="timeout_s", value=limit_s)

    async def _run_tool(self, tool: Tool, context: ToolContext, arguments: object) -> wire.ToolsCallResult:
        try:
            return result_of(await tool.run(context, arguments), tool.output_bytes)
        except ToolFailed as failed:
            return bounded(failure(str(failed)), tool.output_bytes)
        except WitsdError as error:
            if isinstance(error, Timeout):
                raise
            return bounded(failure(error.message), tool.output_bytes)
        except Exception as error:  # the boundary: what a tool raises is its answer
            log.warning("tools.failed tool=%s call=%s", tool.name, context.call_id, exc_info=True)
            if tool.source == "built in":
                return failure(f"{tool.name} met an internal error; the daemon's log has it ({context.call_id})")
            return failure(f"{type(error).__name__}: {error}"[:_SHOWN])

    @asynccontextmanager
    async def _item(self, actor: Actor, run: LiveRun | None, begun: ToolCallItem) -> AsyncIterator[Ending]:
        """Show the call in its run from here to its end, however it ends."""
        ending = Ending()
        book = self._reach.runs.book
        if run is not None:
            book.item(actor, ItemNotification(run_id=run.run_id, item=begun))
        try:
            yield ending
        except trio.Cancelled:
            self._close(actor, run, begun, "cancelled", "cancelled")
            raise
        except WitsdError as error:
            self._close(actor, run, begun, "failed", error.message)
            raise
        else:
            assert ending.result is not None
            result = ending.result
            shown = text_of(result) if result.structured_content is UNSET else result.structured_content
            self._close(actor, run, begun, "completed", shown, is_error=result.is_error)

    def _close(
        self,
        actor: Actor,
        run: LiveRun | None,
        begun: ToolCallItem,
        status: ItemStatus,
        result: object,
        *,
        is_error: bool = True,
    ) -> None:
        if run is None:
            return
        item = msgspec.structs.replace(begun, status=status, result=result, is_error=is_error)
        self._reach.runs.book.item(actor, ItemNotification(run_id=run.run_id, item=item))


@attrs.define(eq=False)
class Ending:
    """Takes what a call has answered on its way out."""

    result: wire.ToolsCallResult | None = None

    def __call__(self, result: wire.ToolsCallResult) -> wire.ToolsCallResult:
        self.result = result
        return result


def _is_asked(actor: Actor) -> bool:
    """Whether it is one of those that answer approvals."""
    return actor.agent is None and Scope.APPROVE in actor.scopes


def _is_free(actor: Actor, params: wire.ToolsCallParams) -> bool:
    """Whether there is nothing to ask and nothing to write down for a call of a tool that answers at once."""
    return params.idempotency_key is None and _is_asked(actor)


def _read(tool: Tool, given: dict[str, object]) -> object:
    """Raises ``InvalidParams`` naming the argument."""
    try:
        return tool.read(given)
    except UnknownArgument as wrong:
        path, text = f".{wrong.name}", str(wrong)
    except BadArguments as wrong:
        path, text = f".{wrong.path}" if wrong.path and wrong.path[0] != "[" else wrong.path, str(wrong)
    except msgspec.ValidationError as wrong:
        text, _, at = str(wrong).partition(" - at `$")
        path = at.rstrip("`")
        if missing := _MISSING.search(text):
            path += f".{missing[1]}"
    full = f"params.arguments{path}"
    raise InvalidParams(f"{tool.name}: {full.removeprefix('params.')}: {text}", path=full, tool=tool.name)
