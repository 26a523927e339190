"""The definitions in ``examples/`` do what the README shows."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.wire import Wire, wire

EXAMPLES = ROOT / "examples"


def put(daemon: Daemon, c: Wire, *names: str, **instead: str) -> None:
    """Copy these definitions as a reader does, and reload."""
    for name in names:
        text = (EXAMPLES / f"{name}.toml").read_text().replace("~/witsd/examples", str(EXAMPLES))
        for old, new in instead.items():
            text = text.replace(old.removeprefix("_"), new)
        (daemon.home / "agents" / f"{name}.toml").write_text(text)
    assert c.call("system/reload")["errors"] == []


def get(c: Wire, name: str) -> dict[str, Any]:
    agent: dict[str, Any] = c.call("agents/get", name=name)
    return agent


def test_a_program_that_runs_all_the_time(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        c.subscribe("log:disk_watch")
        put(daemon, c, "disk_watch")
        line = c.until("log.line")["data"]
        assert "% full" in line["text"]
        assert c.call("agents/start", name="disk_watch")["state"] == "active"
        logged = c.call("agents/logs", name="disk_watch")["lines"][0]
        assert logged["level"] in ("info", "warning")


def test_a_pair_of_which_one_requires_the_other(daemon: Daemon) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with wire(daemon.socket) as c:
        put(daemon, c, "notes", "note", _8765=port)
        assert get(c, "notes")["state"] == "inactive"
        assert daemon.cli("ask", "note", "buy milk").stdout == "1. buy milk\n"
        assert get(c, "notes")["state"] == "active", "it was started for the other"
        assert daemon.cli("ask", "note", "call Ada").stdout == "1. buy milk\n2. call Ada\n"
        c.call("agents/stop", name="notes")
        assert get(c, "note")["reason"] == "was stopped with notes, which it requires"


@pytest.mark.slow
def test_one_with_limits(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        c.subscribe("agent:greedy")
        put(daemon, c, "greedy")
        c.call("agents/start", name="greedy")
        failed = c.until("agent.state", where=lambda d: d["state"] == "failed")["data"]
        assert "memory" in failed["reason"]
        assert "100000000" in failed["reason"].replace("_", "").replace(",", "") or "oom" in failed["reason"]
