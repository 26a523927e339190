"""``agents/metrics`` and ``agents/record`` have the shapes that the protocol promises."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from witsd.values.wire.metrics import (
    AgentAlertData,
    AgentsMetricsParams,
    AgentsMetricsResult,
    AgentsRecordParams,
    RaisedAlert,
    RequestStats,
    VitalsSample,
)

TIME = "2026-01-31T09:05:07.123456Z"
SAMPLE = VitalsSample(
    time=TIME, cpu_percent=1.5, rss_bytes=2, fds=3, threads=4, processes=5, read_bytes=6, write_bytes=7
)
REQUESTS = RequestStats(count=2, errors=1, error_rate=0.5, mean_ms=10, p95_ms=12, window_s=120)


def on_the_wire(value: object) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


def test_metrics_are_as_the_protocol_shows_them() -> None:
    alert = RaisedAlert(alert="silence_s", threshold=30, value=31, since=TIME)
    result = AgentsMetricsResult(
        samples=(SAMPLE,), current=SAMPLE, average=SAMPLE, peak=SAMPLE, requests=REQUESTS, alerts=(alert,)
    )
    shown = on_the_wire(result)
    assert set(shown) == {"samples", "current", "average", "peak", "requests", "alerts"}
    assert set(shown["samples"][0]) == {
        "time", "cpu_percent", "rss_bytes", "fds", "threads", "processes", "read_bytes", "write_bytes",
    }  # fmt: skip
    assert {"count", "errors", "error_rate", "mean_ms", "p95_ms"} <= set(shown["requests"])
    assert shown["alerts"] == [{"alert": "silence_s", "threshold": 30, "value": 31, "since": TIME}]
    assert msgspec.json.decode(msgspec.json.encode(result), type=AgentsMetricsResult) == result


def test_without_samples_there_is_no_current() -> None:
    shown = on_the_wire(AgentsMetricsResult(samples=(), requests=REQUESTS, alerts=()))
    assert set(shown) == {"samples", "requests", "alerts"}


def test_a_cleared_alert_may_have_no_value() -> None:
    data = AgentAlertData(name="a", alert="cpu_percent", state="cleared", threshold=80)
    assert on_the_wire(data) == {"name": "a", "alert": "cpu_percent", "state": "cleared", "threshold": 80}


def test_a_record_needs_no_word_on_errors() -> None:
    assert msgspec.convert({"name": "a", "duration_ms": 3}, AgentsRecordParams).error is False


@pytest.mark.parametrize("duration", [-1, "3", None, 1e300])
def test_a_duration_that_makes_no_sense_is_refused(duration: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"name": "a", "duration_ms": duration}, AgentsRecordParams)


@pytest.mark.parametrize("window", [0, -5, 43_201])
def test_a_window_is_longer_than_nothing_and_not_longer_than_what_is_kept(window: float) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"name": "a", "window_s": window}, AgentsMetricsParams)
