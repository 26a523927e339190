"""Defining the agents of ``tests/agents`` in a real daemon, and giving them work."""

from __future__ import annotations

import sys
from typing import Any

from tests.support.daemon import ROOT
from tests.support.wire import Wire

PYTHONPATH = f"{ROOT}:{ROOT / 'clients/python'}"


def define(connection: Wire, name: str, program: str, **more: Any) -> dict[str, Any]:
    """A native agent called ``name`` that runs ``tests/agents/<program>_agent.py``; returns when it is up."""
    spec = {
        "name": name,
        "kind": "native",
        "command": [sys.executable, str(ROOT / f"tests/agents/{program}_agent.py")],
        "env": {"PYTHONPATH": PYTHONPATH},
        **more,
    }
    agent: dict[str, Any] = connection.call("agents/define", spec=spec)
    if agent["spec"].get("start", "boot") == "boot":
        agent = connection.call("agents/start", name=name)
    return agent


def begin(connection: Wire, agent: str, *steps: list[Any], text: str = "", **more: Any) -> str:
    """Start a run of the script agent; its id."""
    given = {"text": text, "data": list(steps)}
    run_id: str = connection.call("runs/start", agent=agent, input=given, **more)["run_id"]
    return run_id


def wait(connection: Wire, run_id: str) -> dict[str, Any]:
    run: dict[str, Any] = connection.call("runs/wait", run_id=run_id, timeout_s=60)
    return run


def play(connection: Wire, agent: str, *steps: list[Any], text: str = "", **more: Any) -> dict[str, Any]:
    """Run the script to its end."""
    return wait(connection, begin(connection, agent, *steps, text=text, **more))


def events_of(connection: Wire, run_id: str) -> list[dict[str, Any]]:
    """Everything the journal holds of a run."""
    found: list[dict[str, Any]] = []
    while True:
        after = found[-1]["seq"] if found else 0
        page = connection.call("events/read", stream=f"run:{run_id}", after_seq=after, limit=1000)["events"]
        if not page:
            return found
        found += page
