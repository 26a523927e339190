"""``agents/*``: definitions and the processes they stand for."""

from __future__ import annotations

import re

import attrs
import msgspec

from witsd.services.runs import Runs
from witsd.supervise.definitions import Disorder, Unwritable
from witsd.supervise.supervisor import Supervisor
from witsd.supervise.unit import Unit
from witsd.values.actor import Actor
from witsd.values.errors import InvalidParams, LimitExceeded, NotFound, PermissionDenied
from witsd.values.ids import AgentName
from witsd.values.spec import NAME_PATTERN
from witsd.values.wire import agents as wire
from witsd.values.wire.common import UNSET, Empty
from witsd.values.wire.metrics import AgentsMetricsParams, AgentsMetricsResult, AgentsRecordParams


@attrs.define(eq=False)
class Agents:
    """The service."""

    _supervisor: Supervisor
    _runs: Runs

    async def list(self, actor: Actor, params: wire.AgentsListParams) -> wire.AgentPage:
        """By name; the cursor is the last name given, also where that agent has been removed since."""
        if params.cursor is not None and not re.fullmatch(NAME_PATTERN, params.cursor):
            raise InvalidParams("not a cursor: give back next_cursor as it came", path="params.cursor")
        units = sorted(self._supervisor.units.values(), key=lambda unit: unit.name)
        if params.skill is not None:
            units = [u for u in units if any(skill.name == params.skill for skill in u.spec.skills)]
        if params.cursor is not None:
            units = [unit for unit in units if unit.name > params.cursor]
        page = units[: params.limit]
        return wire.AgentPage(
            items=tuple(self._with_figures(unit) for unit in page),
            next_cursor=page[-1].name if len(units) > len(page) else UNSET,
        )

    async def get(self, actor: Actor, params: wire.AgentNameParams) -> wire.Agent:
        return self._with_figures(self._supervisor.unit(params.name))

    def _with_figures(self, unit: Unit) -> wire.Agent:
        figures = self._supervisor.shared.watch.now(unit.spec.name)
        return msgspec.structs.replace(
            unit.view(),
            vitals=figures.vitals,
            requests=figures.requests,
            alerts=figures.alerts,
            budget=self._runs.book.budgets.state(unit.name),
        )

    async def define(self, actor: Actor, params: wire.AgentsDefineParams) -> wire.Agent:
        """Written to ``agents/<name>.toml``, then in effect. Runs that are on go on with the old process."""
        try:
            unit = await self._supervisor.in_effect.define(params.spec)
        except (Unwritable, Disorder) as error:
            raise InvalidParams(str(error), path=f"params.spec.{error.path}") from error
        except OSError as error:
            raise LimitExceeded(
                f"the definition cannot be written ({error.strerror}): free some space and try again",
                limit="disk",
                value=0,
            ) from error
        return unit.view()

    async def remove(self, actor: Actor, params: wire.AgentNameParams) -> Empty:
        """Its runs end, then its process, then its file. Log, runs and sessions stay to be read."""
        for name in self._supervisor.in_effect.going_with(params.name):
            await self._runs.end_all_of(name, "the agent was removed")
        await self._supervisor.in_effect.remove(params.name)
        self._runs.book.budgets.forget(AgentName(params.name))
        return Empty()

    async def start(self, actor: Actor, params: wire.AgentsControlParams) -> wire.Agent:
        unit = await self._supervisor.start(params.name, wait=params.wait, timeout_s=params.timeout_s)
        return unit.view()

    async def stop(self, actor: Actor, params: wire.AgentsControlParams) -> wire.Agent:
        """With ``run_per_request`` its runs are its processes: they are cancelled."""
        unit = await self._supervisor.stop(params.name, wait=params.wait, timeout_s=params.timeout_s)
        if unit.spec.run_per_request:
            await self._runs.end_all_of(params.name, "the agent was stopped", wait=params.wait)
        return unit.view()

    async def restart(self, actor: Actor, params: wire.AgentsControlParams) -> wire.Agent:
        unit = await self._supervisor.restart(params.name, wait=params.wait, timeout_s=params.timeout_s)
        return unit.view()

    async def metrics(self, actor: Actor, params: AgentsMetricsParams) -> AgentsMetricsResult:
        """What its whole process tree used over the window, and how its requests went."""
        self._supervisor.unit(params.name)
        return self._supervisor.shared.watch.metrics(params.name, params.window_s)

    async def record(self, actor: Actor, params: AgentsRecordParams) -> Empty:
        """Count a request that happened outside a run. An agent counts its own."""
        if actor.agent is not None and actor.agent != params.name:
            raise PermissionDenied(f"{actor.label} counts its own requests only", needs="agent")
        self._supervisor.unit(params.name)
        self._supervisor.shared.watch.record(params.name, params.duration_ms, error=params.error)
        return Empty()

    async def logs(self, actor: Actor, params: wire.AgentsLogsParams) -> wire.AgentsLogsResult:
        """Also those of an agent that is gone, as long as its log is there."""
        logs = self._supervisor.shared.logs
        if params.name not in self._supervisor.units and not logs.exists(params.name):
            raise NotFound(f"there is no agent {params.name!r}", kind="agent", id=params.name)
        log = logs.of(params.name)
        if params.after_seq is not None:
            return wire.AgentsLogsResult(lines=tuple(await log.read_after(params.after_seq, 1000, params.level)))
        return wire.AgentsLogsResult(lines=tuple(await log.tail(params.tail, params.level)))
