"""``/metrics``: figures as Prometheus text.

The format is "Prometheus text-based format 0.0.4" (prometheus.io/docs/instrumenting/exposition_formats).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, get_args

import msgspec

from witsd.values.wire.agents import AgentState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_STATES: tuple[AgentState, ...] = get_args(AgentState)
#: Label values beside the number they belong to.
_Rows = Iterable[tuple[Mapping[str, str], float | None]]


class AgentFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One agent. None: there is no such figure, and no line for it."""

    name: str
    state: AgentState
    healthy: bool | None
    restarts: int
    cpu_percent: float | None = None
    rss_bytes: int | None = None
    fds: int | None = None
    threads: int | None = None
    processes: int | None = None
    read_bytes: int | None = None
    write_bytes: int | None = None
    requests: int = 0
    errors: int = 0
    request_ms: float = 0.0
    p95_ms: float | None = None
    #: Names of the alerts that are up.
    alerts: Sequence[str] = ()
    #: How often each limit was passed.
    breaches: Mapping[str, int] = {}


class DaemonFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon itself. ``runs`` and ``sessions``: how many by status; None where it is not known."""

    version: str
    started_s: float
    rss_bytes: int
    db_bytes: int
    journal_events: int
    journal_bytes: int
    runs: Mapping[str, int] = {}
    sessions: int = 0
    connections: int | None = None


def prometheus(daemon: DaemonFigures, agents: Sequence[AgentFigures]) -> str:
    """The whole text. Families come in a fixed order, agents in the order given."""
    return "".join((*_daemon(daemon), *_agents(agents)))


def _daemon(daemon: DaemonFigures) -> Iterator[str]:
    yield _family("witsd_info", "gauge", "The daemon's version.", [({"version": daemon.version}, 1)])
    yield _one("witsd_start_time_seconds", "gauge", "When the daemon started, in seconds since 1970.", daemon.started_s)
    yield _one("witsd_resident_memory_bytes", "gauge", "The daemon's own resident memory.", daemon.rss_bytes)
    yield _one("witsd_database_bytes", "gauge", "Size of the database.", daemon.db_bytes)
    yield _one("witsd_journal_events", "gauge", "Events in the journal.", daemon.journal_events)
    yield _one("witsd_journal_bytes", "gauge", "Bytes of the events in the journal.", daemon.journal_bytes)
    runs = [({"status": status}, float(count)) for status, count in daemon.runs.items()]
    yield _family("witsd_runs", "gauge", "Runs by status.", runs)
    yield _one("witsd_sessions", "gauge", "Sessions.", daemon.sessions)
    yield _one("witsd_connections", "gauge", "Connections that are open.", daemon.connections)


def _agents(agents: Sequence[AgentFigures]) -> Iterator[str]:
    def rows(figure: str, scale: float = 1.0) -> Iterator[tuple[Mapping[str, str], float | None]]:
        for agent in agents:
            value = getattr(agent, figure)
            yield {"agent": agent.name}, None if value is None else value * scale

    states = [
        ({"agent": agent.name, "state": state}, float(agent.state == state)) for agent in agents for state in _STATES
    ]
    alerts = [({"agent": agent.name, "alert": alert}, 1.0) for agent in agents for alert in agent.alerts]
    yield _family("witsd_agent_state", "gauge", "1 for the state that the agent is in.", states)
    yield _family("witsd_agent_healthy", "gauge", "1 when it answered its last proof of life.", rows("healthy"))
    yield _family("witsd_agent_restarts", "gauge", "Restarts since it was started by hand.", rows("restarts"))
    yield _family("witsd_agent_cpu_cores", "gauge", "Cores kept busy by all its processes.", rows("cpu_percent", 0.01))
    yield _family("witsd_agent_resident_memory_bytes", "gauge", "Memory of all its processes.", rows("rss_bytes"))
    yield _family("witsd_agent_open_fds", "gauge", "Descriptors that its processes have open.", rows("fds"))
    yield _family("witsd_agent_threads", "gauge", "Threads of all its processes.", rows("threads"))
    yield _family("witsd_agent_processes", "gauge", "Its processes.", rows("processes"))
    yield _family("witsd_agent_read_bytes_total", "counter", "Bytes read from storage.", rows("read_bytes"))
    yield _family("witsd_agent_written_bytes_total", "counter", "Bytes written to storage.", rows("write_bytes"))
    yield _family("witsd_agent_requests_total", "counter", "Requests that have ended.", rows("requests"))
    yield _family("witsd_agent_request_errors_total", "counter", "Requests that failed.", rows("errors"))
    yield _family("witsd_agent_request_seconds_total", "counter", "Time that requests took.", rows("request_ms", 0.001))
    yield _family(
        "witsd_agent_request_p95_seconds",
        "gauge",
        "95 of 100 requests of the last five minutes took no longer.",
        rows("p95_ms", 0.001),
    )
    breaches = [
        ({"agent": agent.name, "limit": limit}, float(count))
        for agent in agents
        for limit, count in agent.breaches.items()
    ]
    yield _family("witsd_agent_limit_breaches_total", "counter", "Times that a limit was passed.", breaches)
    yield _family("witsd_agent_alert", "gauge", "1 while the alert is up.", alerts)


def _one(name: str, kind: Literal["counter", "gauge"], about: str, value: float | None) -> str:
    return _family(name, kind, about, [({}, value)])


def _family(name: str, kind: Literal["counter", "gauge"], about: str, rows: _Rows) -> str:
    """A family with its lines; its head alone where it has none, so that it is known to exist."""
    about = about.replace("\\", r"\\").replace("\n", r"\n")
    lines = [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
    for labels, value in rows:
        if value is None:
            continue
        inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        lines.append(f"{name}{{{inside}}} {_number(value)}" if inside else f"{name} {_number(value)}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) else repr(float(value))
