"""An agent that dials the daemon's own socket is that agent, however its process came about."""

from __future__ import annotations

import json
import sys
import textwrap
from typing import Any

import pytest

from tests.support.daemon import Daemon
from tests.support.wire import wire

DIAL = textwrap.dedent(
    """
    import json, os, socket, sys, time
    kind = sys.argv[1]
    read, write = os.pipe()
    if kind == "child" and os.fork():
        os.close(write)
        sys.exit(sys.stdout.write(os.read(read, 65536).decode()) and 0)
    if kind in ("orphan", "detached"):
        middle = os.fork()
        if middle:
            os.close(write)
            os.waitpid(middle, 0)
            sys.exit(sys.stdout.write(os.read(read, 65536).decode()) and 0)
        if os.fork():
            os._exit(0)
        if kind == "detached":
            os.setsid()
        patience = time.monotonic() + 20  # until the middle one has gone and the daemon has adopted this one
        while os.getppid() != int(os.environ["DAEMON"]) and time.monotonic() < patience:
            pass
    token = {"name": "x", "scopes": ["admin"]}
    asked = [("initialize", {}), ("agents/define", {"spec": {}}), ("tokens/create", token)]
    dialled = socket.socket(socket.AF_UNIX)
    dialled.connect(os.environ["WITSD_LISTEN_UNIX"])
    lines = dialled.makefile("rw")
    answers = []
    for number, (method, params) in enumerate(asked):
        lines.write(json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}) + "\\n")
        lines.flush()
        answers.append(json.loads(lines.readline()))
    text = json.dumps(answers)
    if kind == "leader":
        print(text)
    else:
        os.write(write, text.encode())
        os._exit(0)
    """
)


@pytest.mark.parametrize("kind", ["leader", "child", "orphan", "detached"])
def test_an_agent_is_never_the_owner(daemon: Daemon, kind: str) -> None:
    spec: dict[str, Any] = {
        "name": "dialler",
        "kind": "exec",
        "command": [sys.executable, "-c", DIAL, kind],
        "run_per_request": True,
        "env": {"DAEMON": str(daemon.pid)},
    }
    daemon.call("agents/define", spec=spec)
    run_id = daemon.call("runs/start", agent="dialler", input="")["run_id"]
    run = daemon.call("runs/wait", run_id=run_id, timeout_s=30)
    assert run["status"] == "completed", run
    who, define, token = json.loads(run["output"])
    assert who["result"]["actor"] == {"kind": "agent", "label": "agent:dialler", "scopes": []}
    assert define["error"]["code"] == token["error"]["code"] == -32003
    # The same two calls are the owner's when they come from outside.
    assert daemon.call("tokens/create", name="x", scopes=["admin"])["token"]


DELEGATE = """
from witsd_client import Agent
from witsd_client.errors import PermissionDenied

agent = Agent("asker")

@agent.run
async def ask(run):
    call = run.client.call
    mine = run.text or (await call("runs/start", {"agent": "upper", "input": "x"}, dict))["run_id"]
    stream = f"run:{mine}"
    for method, params in (
        ("runs/wait", {"run_id": mine}),
        ("runs/get", {"run_id": mine}),
        ("events/read", {"stream": stream}),
        ("events/subscribe", {"streams": [stream], "since": {stream: 0}}),
    ):
        try:
            await call(method, params, dict)
            await run.say("ok ")
        except PermissionDenied:
            await run.say("denied ")

agent.serve()
"""


def test_an_agent_sees_the_runs_it_started_also_once_they_are_over(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        upper = {"name": "upper", "kind": "exec", "run_per_request": True, "command": ["tr", "a-z", "A-Z"]}
        c.call("agents/define", spec=upper)
        asker = {"name": "asker", "kind": "native", "command": ["python", "-c", DELEGATE]}
        c.call("agents/define", spec={**asker, "grants": {"agents": ["upper"]}})
        c.call("agents/start", name="asker")

        def ask(agent: str, text: str = "") -> Any:
            run_id = c.call("runs/start", agent=agent, input=text)["run_id"]
            run = c.call("runs/wait", run_id=run_id, timeout_s=60)
            return run_id if agent == "upper" else run["output"].split()

        assert ask("asker") == ["ok"] * 4
        assert ask("asker", ask("upper", "y")) == ["denied"] * 4, "this one was the owner's"
