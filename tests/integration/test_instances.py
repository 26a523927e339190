"""``digest@work``: agents made of another's definition when somebody first wants them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_order import get, service
from tests.integration.test_reload import reload
from tests.support.agents import PYTHONPATH
from tests.support.daemon import Daemon
from tests.support.processes import wait_gone
from tests.support.wire import RpcError, Wire, wire

#: Answers with its own name, what it was started with, and where.
WHO = """
import os, sys
from witsd_client import Agent
agent = Agent("who")
@agent.run
async def who(run):
    names = ("WITSD_AGENT", "WITSD_AGENT_INSTANCE", "PLACE")
    await run.say(" ".join([*(os.environ.get(n, "-") for n in names), sys.argv[1], os.getcwd()]))
agent.serve()
"""


def template(c: Wire, daemon: Daemon, **more: Any) -> None:
    for place in ("work", "home"):
        (daemon.home / place).mkdir(exist_ok=True)
    c.call(
        "agents/define",
        spec={
            "name": "who",
            "kind": "native",
            "command": ["python", "-c", WHO, "for-%i"],
            "cwd": str(daemon.home / "%i"),
            "env": {"PYTHONPATH": PYTHONPATH, "PLACE": "at %i"},
            "start": "manual",
            **more,
        },
    )


def ask(c: Wire, name: str) -> str:
    run_id = c.call("runs/start", agent=name, input="who are you")["run_id"]
    run = c.call("runs/wait", run_id=run_id, timeout_s=60)
    assert run["status"] == "completed", run
    assert run["agent"] == name
    output: str = run["output"]
    return output


def names(c: Wire) -> list[str]:
    return [agent["name"] for agent in c.call("agents/list")["items"] if agent["name"] != "assistant"]


def test_an_instance_is_made_when_it_is_wanted_and_has_a_life_of_its_own(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        template(c, daemon, start="on_demand")
        with pytest.raises(RpcError, match="there is no agent 'who@work' yet: `witsd agent start who@work` makes it"):
            get(c, "who@work")
        assert names(c) == ["who"]
        assert ask(c, "who@work") == f"who@work work at work for-work {daemon.home}/work"
        session = c.call("sessions/create", agent="who@home")
        assert session["agent"] == "who@home"
        assert ask(c, "who@home") == f"who@home home at home for-home {daemon.home}/home"
        assert names(c) == ["who", "who@home", "who@work"]
        assert get(c, "who")["state"] == "inactive", "the definition itself was not asked"
        assert get(c, "who@work")["spec"]["cwd"] == f"{daemon.home}/work"
        c.call("agents/stop", name="who@work")
        assert get(c, "who@home")["state"] == "active"
        c.call("agents/remove", name="who@work")
        assert names(c) == ["who", "who@home"]
        for bad in ("who@", "who@A", "who@a@b", "nobody@work", "@work"):
            with pytest.raises(RpcError) as refused:
                c.call("runs/start", agent=bad, input="")
            assert refused.value.code == -32002, bad


def test_its_logs_its_stream_and_its_identity_are_its_own(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        service(c, "svc", "echo I am %i; exec sleep 1000", start="manual")
        c.subscribe("agent:svc@one", "log:svc@one")
        c.call("agents/start", name="svc@one")
        assert c.until("log.line")["data"]["text"] == "I am one"
        assert [line["text"] for line in c.call("agents/logs", name="svc@one")["lines"]] == ["I am one"]
        assert c.call("agents/metrics", name="svc@one")["samples"] is not None
        pid = get(c, "svc@one")["pid"]
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert {b"WITSD_AGENT=svc@one", b"WITSD_AGENT_INSTANCE=one"} <= set(environ)


def test_an_instance_survives_the_daemon_as_it_was_wanted(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        service(c, "svc", start="manual")
        service(c, "user", start="manual", requires=["svc@needed"])
        for name in ("svc@up", "svc@down", "user"):
            c.call("agents/start", name=name)
        c.call("agents/stop", name="svc@down")
    for way in (daemon.stop, daemon.kill):
        way()
        daemon.start()
        with wire(daemon.socket) as c:
            assert names(c) == ["svc", "svc@down", "svc@needed", "svc@up", "user"]
            assert get(c, "svc@up")["state"] in ("starting", "active"), "nobody had to start it"
            assert c.call("agents/start", name="svc@up")["state"] == "active"
            assert [get(c, n)["state"] for n in ("svc", "svc@down", "user")] == ["inactive"] * 3
    with wire(daemon.socket) as c:
        with pytest.raises(RpcError, match="named in `requires` or `after` of user"):
            c.call("agents/remove", name="svc")
        c.call("agents/remove", name="user")
        pid = get(c, "svc@up")["pid"]
        c.call("agents/remove", name="svc")
        assert names(c) == [], "instances go with what they are made of"
        assert wait_gone(pid)


def test_a_changed_definition_changes_its_instances_and_an_own_file_overrides(daemon: Daemon) -> None:
    folder = daemon.home / "agents"
    own = 'name = "svc@own"\nkind = "exec"\nstart = "manual"\ncommand = ["sleep", "2001"]\n'
    with wire(daemon.socket) as c:
        service(c, "svc", "exec sleep 1001", start="manual")
        c.call("agents/start", name="svc@made")
        c.call("agents/start", name="svc@own")
        (folder / "svc@own.toml").write_text(own)
        file = folder / "svc.toml"
        file.write_text(file.read_text().replace("1001", "1002"))
        c.subscribe("agent:svc@made")
        before = get(c, "svc@made")["pid"]
        assert reload(c) == (["svc", "svc@made", "svc@own"], [])
        c.until("agent.state", where=lambda d: d["state"] == "active" and d["pid"] != before)
        assert get(c, "svc@made")["spec"]["command"][-1] == "exec sleep 1002"
        assert get(c, "svc@own")["spec"]["command"] == ["sleep", "2001"]
        service(c, "svc", "exec sleep 1003", start="manual")
        assert get(c, "svc@made")["spec"]["command"][-1] == "exec sleep 1003"
        assert get(c, "svc@own")["spec"]["command"] == ["sleep", "2001"], "what has its own file is not touched"
        (folder / "svc@own.toml").unlink()
        assert c.call("system/reload")["changed"] == ["svc@own"]
        assert get(c, "svc@own")["spec"]["command"][-1] == "exec sleep 1003"
        file.unlink()
        assert c.call("system/reload")["changed"] == ["svc", "svc@made", "svc@own"]
        assert names(c) == []


def test_from_the_command_line(daemon: Daemon) -> None:
    command = ("sh", "-c", "tr a-z A-Z; echo ' %i'")
    added = daemon.cli("agent", "add", "upper", "--kind", "exec", "--run-per-request", "--", *command)
    assert added.returncode == 0, added.stderr
    said = daemon.cli("ask", "upper@work", "hello")
    assert said.stdout.split() == ["HELLO", "work"], said
    assert "upper@work" in daemon.cli("agent", "list").stdout
    assert daemon.cli("agent", "rm", "upper@work").returncode == 0
    assert "upper@work" not in daemon.cli("agent", "list").stdout
