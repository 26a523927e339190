"""``/metrics`` as the parser of the Prometheus client reads it."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from witsd.door.metrics_text import AgentFigures, DaemonFigures, prometheus

DAEMON = DaemonFigures(
    version="0.1.0",
    started_s=1_795_165_507.25,
    rss_bytes=40 << 20,
    db_bytes=1 << 20,
    journal_events=12,
    journal_bytes=3456,
    runs={"queued": 1, "running": 2},
    sessions=4,
    connections=1,
)
DIGEST = AgentFigures(
    name="digest",
    state="active",
    healthy=True,
    restarts=2,
    cpu_percent=12.5,
    rss_bytes=1 << 33,
    fds=9,
    threads=3,
    processes=2,
    read_bytes=5,
    write_bytes=6,
    requests=10,
    errors=1,
    request_ms=2500.0,
    p95_ms=400.0,
    breaches={"memory_bytes": 2},
    alerts=("memory_bytes",),
)
STOPPED = AgentFigures(name="stopped", state="inactive", healthy=None, restarts=0)


def parsed(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_family_has_help_and_type_and_comes_once() -> None:
    text = prometheus(DAEMON, (DIGEST, STOPPED))
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert family.name.startswith("witsd_")
        assert family.documentation
        assert family.type in ("gauge", "counter")
        assert all(sample.name.endswith("_total") is (family.type == "counter") for sample in family.samples)
    assert text.count("# HELP") == text.count("# TYPE") == len(families)
    assert text.endswith("\n")


def test_figures_come_in_base_units() -> None:
    samples = parsed(prometheus(DAEMON, (DIGEST,)))
    digest = (("agent", "digest"),)
    assert samples["witsd_agent_cpu_cores", digest] == 0.125
    assert samples["witsd_agent_resident_memory_bytes", digest] == 1 << 33
    assert samples["witsd_agent_request_seconds_total", digest] == 2.5
    assert samples["witsd_agent_request_p95_seconds", digest] == 0.4
    assert samples["witsd_agent_requests_total", digest] == 10
    assert samples["witsd_agent_request_errors_total", digest] == 1
    assert samples["witsd_agent_alert", (("agent", "digest"), ("alert", "memory_bytes"))] == 1
    assert samples["witsd_agent_limit_breaches_total", (("agent", "digest"), ("limit", "memory_bytes"))] == 2
    assert samples["witsd_start_time_seconds", ()] == 1_795_165_507.25
    assert samples["witsd_runs", (("status", "running"),)] == 2
    assert samples["witsd_info", (("version", "0.1.0"),)] == 1


def test_one_state_of_each_agent_is_1() -> None:
    samples = parsed(prometheus(DAEMON, (DIGEST, STOPPED)))
    states = {key: value for (name, key), value in samples.items() if name == "witsd_agent_state"}
    assert len(states) == 12
    assert [dict(key) for key, value in states.items() if value == 1] == [
        {"agent": "digest", "state": "active"},
        {"agent": "stopped", "state": "inactive"},
    ]


def test_what_is_not_known_has_no_line() -> None:
    names = {name for name, key in parsed(prometheus(DAEMON, (STOPPED,))) if ("agent", "stopped") in key}
    assert "witsd_agent_cpu_cores" not in names
    assert "witsd_agent_healthy" not in names
    assert "witsd_agent_restarts" in names
    assert ("witsd_connections", ()) not in parsed(prometheus(msgspec.structs.replace(DAEMON, connections=None), ()))


@given(
    name=st.text(st.characters(exclude_categories=["Cs"])), version=st.text(st.characters(exclude_categories=["Cs"]))
)
def test_any_text_survives_in_a_label(name: str, version: str) -> None:
    """Quotes, backslashes and newlines above all; other line ends are nothing special in this format."""
    agent: Any = msgspec.structs.replace(STOPPED, name=name)
    samples = parsed(prometheus(msgspec.structs.replace(DAEMON, version=version), (agent,)))
    assert samples["witsd_info", (("version", version),)] == 1
    assert samples["witsd_agent_restarts", (("agent", name),)] == 0


@given(value=st.floats(allow_nan=False))
def test_any_number_survives(value: float) -> None:
    figures = msgspec.structs.replace(DAEMON, started_s=value)
    assert parsed(prometheus(figures, ()))["witsd_start_time_seconds", ()] == value


def test_names_are_stable_and_each_says_what_it_is() -> None:
    """A dashboard breaks when a name changes: this list only grows."""
    text = prometheus(DAEMON, [DIGEST])
    helped = {line.split()[2] for line in text.splitlines() if line.startswith("# HELP") and len(line.split()) > 3}
    typed = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert helped == typed
    assert typed >= {
        "witsd_agent_state",
        "witsd_agent_healthy",
        "witsd_agent_restarts",
        "witsd_agent_cpu_cores",
        "witsd_agent_resident_memory_bytes",
        "witsd_agent_open_fds",
        "witsd_agent_threads",
        "witsd_agent_processes",
        "witsd_agent_read_bytes_total",
        "witsd_agent_written_bytes_total",
        "witsd_agent_requests_total",
        "witsd_agent_request_errors_total",
        "witsd_agent_request_seconds_total",
        "witsd_agent_request_p95_seconds",
        "witsd_agent_limit_breaches_total",
        "witsd_agent_alert",
        "witsd_info",
        "witsd_resident_memory_bytes",
        "witsd_database_bytes",
        "witsd_runs",
        "witsd_sessions",
    }
