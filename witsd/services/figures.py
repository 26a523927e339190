"""What ``/metrics`` tells: the daemon's and every agent's figures, gathered for the text format."""

from __future__ import annotations

import attrs

from witsd.services.system import System
from witsd.supervise.supervisor import Supervisor
from witsd.supervise.unit import Unit
from witsd.values.actor import OWNER
from witsd.values.wire.common import Empty
from witsd.values.wire.metrics import AgentsMetricsResult, VitalsSample
from witsd.values.wire.system import SystemStatus


@attrs.frozen
class AgentFacts:
    """One agent as it is now."""

    unit: Unit
    metrics: AgentsMetricsResult

    @property
    def current(self) -> VitalsSample | None:
        found = self.metrics.current
        return found if isinstance(found, VitalsSample) and self.unit.process is not None else None


async def gather(system: System, supervisor: Supervisor) -> tuple[SystemStatus, list[AgentFacts]]:
    """The daemon's status and its agents, by name."""
    status = await system.status(OWNER, Empty())
    watch = supervisor.shared.watch
    return status, [
        AgentFacts(unit, watch.metrics(name, 60)) for name, unit in sorted(supervisor.units.items())
    ]
