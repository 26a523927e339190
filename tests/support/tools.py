"""An agent that calls whatever tool its input names, and what tests need to see of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from tests.support.daemon import PATIENCE_S, Daemon

_PROGRAM = """
import json
from witsd_client import Agent

agent = Agent("caller")

@agent.run
async def call(run):
    wanted = json.loads(run.text)
    result = await run.client.call("tools/call", {"run_id": run.run_id, **wanted})
    return result

agent.serve()
"""


def define_caller(daemon: Daemon, name: str = "caller", **spec: Any) -> None:
    """An agent whose runs are calls of tools: the input is the params of ``tools/call`` as JSON."""
    program = daemon.home / "caller.py"
    program.write_text(_PROGRAM)
    known = {"name": name, "kind": "native", "start": "on_demand", "cwd": str(daemon.home)}
    daemon.call("agents/define", spec={**known, "command": [sys.executable, str(program)], **spec})


def begin(daemon: Daemon, params: dict[str, Any], agent: str = "caller") -> str:
    """Start such a run; its id."""
    import json

    return str(daemon.call("runs/start", agent=agent, input=json.dumps(params))["run_id"])


def outcome(daemon: Daemon, run_id: str) -> dict[str, Any]:
    """The run once it is over."""
    found: dict[str, Any] = daemon.call("runs/wait", run_id=run_id, timeout_s=PATIENCE_S)
    return found


def called(daemon: Daemon, tool: str, arguments: dict[str, Any], agent: str = "caller", **more: Any) -> dict[str, Any]:
    """A call by the agent, from its run's start to its end."""
    return outcome(daemon, begin(daemon, {"name": tool, "arguments": arguments, **more}, agent))


def until(found: Callable[[], Any]) -> Any:
    """What ``found`` returns once it is something."""
    deadline = time.monotonic() + PATIENCE_S
    while not (value := found()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)
    return value


def pending(daemon: Daemon) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = daemon.call("approvals/list", status="pending")["items"]
    return items
