"""``GET /metrics``: the figures of ``services.figures`` in the words of ``metrics_text``."""

from __future__ import annotations

from witsd.door.metrics_text import AgentFigures, DaemonFigures, prometheus
from witsd.services.figures import AgentFacts, gather
from witsd.services.system import System
from witsd.supervise.supervisor import Supervisor
from witsd.values.clock import Clock


async def render(system: System, supervisor: Supervisor, clock: Clock) -> str:
    """The whole text, as of now."""
    status, agents = await gather(system, supervisor)
    daemon = DaemonFigures(
        version=status.version,
        started_s=clock.wall_us() / 1e6 - status.uptime_s,
        rss_bytes=status.rss_bytes,
        db_bytes=status.db_bytes,
        journal_events=status.journal.events,
        journal_bytes=status.journal.bytes,
        runs=status.runs,
        sessions=status.sessions,
    )
    return prometheus(daemon, [_figures(facts) for facts in agents])


def _figures(facts: AgentFacts) -> AgentFigures:
    unit, now, requests = facts.unit, facts.current, facts.metrics.requests
    watch = unit.shared.watch
    totals = watch.of(unit.spec.name).requests
    return AgentFigures(
        name=unit.spec.name,
        state=unit.life.state,
        healthy=None if unit.health == "unknown" else unit.health == "ok",
        restarts=unit.life.restarts,
        cpu_percent=now.cpu_percent if now else None,
        rss_bytes=now.rss_bytes if now else None,
        fds=now.fds if now else None,
        threads=now.threads if now else None,
        processes=now.processes if now else None,
        read_bytes=now.read_bytes if now else None,
        write_bytes=now.write_bytes if now else None,
        requests=totals.total_count,
        errors=totals.total_errors,
        request_ms=totals.total_ms,
        p95_ms=requests.p95_ms if requests.count else None,
        alerts=[alert.alert for alert in facts.metrics.alerts],
        breaches=watch.breaches.totals.get(unit.spec.name, {}),
    )
