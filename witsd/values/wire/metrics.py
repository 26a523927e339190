"""``agents/metrics``, ``agents/record`` and the data of ``agent.alert``."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from witsd.values.wire.common import UNSET, Timestamp, UnsetType

AlertName = Literal["cpu_percent", "memory_bytes", "error_rate", "restarts", "silence_s"]
LimitName = Literal["memory_bytes", "cpu_percent", "tasks", "open_files", "output_bytes_per_s", "run_timeout_s"]
LimitAction = Literal["killed", "throttled", "refused", "slowed", "failed", "reported"]
Enforcer = Literal["kernel", "samples", "daemon"]


class AgentsMetricsParams(Struct, frozen=True, kw_only=True):
    """``window_s``: how far back; samples are kept for half a day, ever more coarsely."""

    name: str
    window_s: Annotated[float, Meta(gt=0, le=43_200)] = 120


class AgentsRecordParams(Struct, frozen=True, kw_only=True):
    """A request that happened outside a run and has just ended."""

    name: str
    duration_ms: Annotated[float, Meta(ge=0, le=31_536_000_000)]
    error: bool = False


class VitalsSample(Struct, frozen=True, kw_only=True):
    """What an agent's whole process tree used.

    ``cpu_percent`` is of one core; ``rss_bytes`` counts shared pages once a process; ``read_bytes`` and
    ``write_bytes`` are totals from and to storage since its processes were started.
    """

    time: Timestamp
    cpu_percent: float
    rss_bytes: int
    fds: int
    threads: int
    processes: int
    read_bytes: int
    write_bytes: int


class RequestStats(Struct, frozen=True, kw_only=True):
    """Requests over the last ``window_s`` seconds (five minutes at most). ``p95_ms`` is the longest of fewer than 20,
    else within 9 % (19 % where it is near the mean)."""

    count: int
    errors: int
    error_rate: float
    mean_ms: float
    p95_ms: float
    window_s: float


class RaisedAlert(Struct, frozen=True, kw_only=True):
    """An alert that is up; ``value`` is the figure it was raised with."""

    alert: AlertName
    threshold: float
    value: float
    since: Timestamp


class AgentsMetricsResult(Struct, frozen=True, kw_only=True):
    """``current``, ``average`` and ``peak`` are absent where the window has no sample; totals have no average or peak
    and are the latest in all three."""

    samples: tuple[VitalsSample, ...]
    requests: RequestStats
    alerts: tuple[RaisedAlert, ...]
    current: VitalsSample | UnsetType = UNSET
    average: VitalsSample | UnsetType = UNSET
    peak: VitalsSample | UnsetType = UNSET


class AgentAlertData(Struct, frozen=True, kw_only=True):
    """``agent.alert``: a threshold of ``[alerts]`` that is reached or no longer, or a passed one of ``[limits]``.

    A cleared one has no ``value`` where there is nothing to read any more. ``breached``: ``alert`` is the limit,
    ``threshold`` what it is set to, ``value`` the figure that passed it, ``action`` what was done and ``count`` how
    often since it was told last (once a minute; ``killed`` always). ``reported``: nothing could be done.
    """

    name: str
    alert: AlertName | LimitName
    state: Literal["raised", "cleared", "breached"]
    threshold: float
    value: float | UnsetType = UNSET
    action: LimitAction | UnsetType = UNSET
    enforced_by: Enforcer | UnsetType = UNSET
    count: int | UnsetType = UNSET
