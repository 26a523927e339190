"""Figures, alerts and limits of agents, as the real daemon sees real processes."""

from __future__ import annotations

import http.client
from contextlib import closing

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.test_agents import ECHO, ask, define, python
from tests.support.daemon import Daemon
from tests.support.processes import of_daemon
from tests.support.wire import RpcError, wire

EATS = """
import sys, time
print("hungry", flush=True)
sys.stdin.readline()
eaten = bytearray(300 << 20)
for at in range(0, len(eaten), 4096): eaten[at] = 1
time.sleep(1000)
"""


def test_metrics_count_the_tree_and_the_requests(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        c.subscribe("agent:echo", "log:tree", since={"log:tree": 0})
        forks = "import subprocess\nfor _ in range(3): subprocess.Popen(['sleep', '1000'])\nprint('up', flush=True)\n"
        define(c, "tree", python(forks + "import time; time.sleep(1000)"), kind="exec")
        define(c, "echo", python(ECHO))
        c.until("log.line")
        for _ in range(4):
            ask(c, "echo", "x")
        c.call("agents/record", name="echo", duration_ms=1000, error=True)
        metrics = c.call("agents/metrics", name="echo")
        assert (metrics["requests"]["count"], metrics["requests"]["errors"]) == (5, 1)
        assert metrics["requests"]["error_rate"] == 0.2
        while (tree := c.call("agents/metrics", name="tree")).get("current", {}).get("processes") != 4:
            c.call("runs/wait", run_id=c.call("runs/start", agent="echo", input="time passes")["run_id"])
        assert tree["current"]["rss_bytes"] > 1 << 20
        assert tree["samples"][-1]["threads"] >= 4


def test_a_list_of_agents_has_the_figures_of_each(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        define(c, "echo", python(ECHO), alerts={"memory_bytes": 1 << 20})
        define(c, "off", python(ECHO), start="manual")
        c.subscribe("agent:echo")
        while "vitals" not in c.call("agents/get", name="echo"):
            ask(c, "echo", "time passes")
        c.call("agents/record", name="echo", duration_ms=1000, error=True)
        shown = {agent["name"]: agent for agent in c.call("agents/list")["items"]}
        assert shown["echo"]["vitals"]["processes"] == 1
        assert shown["echo"]["vitals"]["rss_bytes"] > 1 << 20
        assert shown["echo"]["requests"]["errors"] == 1
        assert [alert["alert"] for alert in shown["echo"]["alerts"]] == ["memory_bytes"]
        assert not {"vitals", "requests", "alerts"} & set(shown["off"])
        stopped = c.call("agents/stop", name="echo")
        assert "pid" not in stopped
        assert "vitals" not in c.call("agents/get", name="echo"), "what has no process uses nothing"


def test_a_made_up_cursor_is_refused(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        assert c.call("agents/list", cursor="assistant")["items"] == []
        for cursor in ("NOT A NAME", "", "a\n"):
            with pytest.raises(RpcError, match="give back next_cursor") as refused:
                c.call("agents/list", cursor=cursor)
            assert (refused.value.code, refused.value.data["path"]) == (-32602, "params.cursor")


def test_over_its_memory_an_agent_ends_and_says_so(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        c.subscribe("agent:eats", "agent:echo")
        define(c, "echo", python(ECHO))
        c.until("agent.state", where=lambda d: d["name"] == "echo" and d["state"] == "active")
        sibling = c.call("agents/get", name="echo")["pid"]
        hungry = EATS.replace("sys.stdin.readline()\n", "")
        limits = {"memory_bytes": 100 << 20}
        define(c, "eats", python(hungry), kind="exec", limits=limits, restart={"policy": "never"})
        told = c.until("agent.alert")["data"]
        assert (told["alert"], told["state"], told["threshold"]) == ("memory_bytes", "breached", 100 << 20)
        assert told["action"] == "killed"
        assert told["enforced_by"] in ("kernel", "samples")
        failed = c.until("agent.state", where=lambda d: d["name"] == "eats" and d["state"] == "failed")
        assert "memory (oom)" in failed["data"]["reason"]
        assert str(100 << 20) in failed["data"]["reason"]
        assert of_daemon(daemon.home) == [sibling], "its sibling is unharmed"
        assert ask(c, "echo", "x")["output"] == "x"


def test_an_alert_is_raised_once(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        c.subscribe("agent:echo")
        define(c, "echo", python(ECHO), alerts={"memory_bytes": 1 << 20})
        alert = c.until("agent.alert")["data"]
        assert (alert["alert"], alert["state"], alert["threshold"]) == ("memory_bytes", "raised", 1 << 20)
        assert alert["value"] > 1 << 20
        assert [a["alert"] for a in c.call("agents/metrics", name="echo")["alerts"]] == ["memory_bytes"]


def test_metrics_over_http_are_what_prometheus_reads(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        define(c, "echo", python(ECHO))
        ask(c, "echo", "x")
        token = c.call("tokens/create", name="prometheus", scopes=["read"])["token"]
        other = c.call("tokens/create", name="other", scopes=["chat"])["token"]
        while "current" not in c.call("agents/metrics", name="echo"):
            ask(c, "echo", "time passes")
    status, text = get(daemon.http, "/metrics", token)
    assert status == 200
    families = {family.name: family for family in text_string_to_metric_families(text)}
    samples = [sample for family in families.values() for sample in family.samples]
    assert any(sample.labels.get("agent") == "echo" and sample.value > 0 for sample in samples)
    assert get(daemon.http, "/metrics", other)[0] == 403
    assert get(daemon.http, "/metrics", "wrong")[0] == 401
    assert get(daemon.http, "/metrics", "")[0] == 401


def get(address: str, path: str, token: str) -> tuple[int, str]:
    with closing(http.client.HTTPConnection(address, timeout=60)) as connection:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
