"""The wall clock is set forward and back while the daemon runs: whatever waits goes by the other clock."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.test_agents import ECHO, ask, define, python
from tests.support.daemon import Daemon
from tests.support.processes import wait_gone
from tests.support.wire import wire

DAY_S = 86_400


def set_clock(file: Path, offset_s: int) -> None:
    fresh = file.with_suffix(".new")
    fresh.write_text(str(offset_s))
    fresh.replace(file)


@pytest.mark.parametrize("jump_s", [365 * DAY_S, -365 * DAY_S], ids=["forward", "back"])
def test_a_jump_of_the_wall_clock_moves_no_timer(daemon: Daemon, jump_s: int) -> None:
    offset = daemon.home / "offset"
    set_clock(offset, 0)
    daemon.start("clock", str(offset), module="tests.support.hurt_daemon")
    with wire(daemon.socket) as c:
        c.subscribe("agent:*", "log:soon", since={"log:soon": 0})
        define(c, "echo", python(ECHO), start="on_demand", idle_stop_s=1000)
        assert ask(c, "echo", "x")["output"] == "x"
        pid = c.call("agents/get", name="echo")["pid"]
        slow = {"backoff_s": 1000, "backoff_max_s": 1000}
        define(c, "much-later", ["false"], kind="exec", restart=slow)
        c.until("agent.state", where=lambda d: d["name"] == "much-later" and d["state"] == "backoff")
        define(
            c, "soon", ["sh", "-c", "echo again; exit 1"], kind="exec", restart={"backoff_s": 0.5, "max_restarts": 50}
        )
        c.until("log.line")
        set_clock(offset, jump_s)
        before = c.until("log.line")
        for n in range(2):
            line = c.until("log.line")
            assert line["seq"] == before["seq"] + 1 + n, "what is short goes on"
        assert not wait_gone(pid, 0)
        assert c.call("agents/get", name="echo")["state"] == "active", "it was not idle for a year"
        assert c.call("agents/get", name="much-later")["state"] == "backoff", "what is long goes on waiting"
        define(c, "waits", python(ECHO.replace("await run.say(run.text)", "import trio; await trio.sleep_forever()")))
        late = ask(c, "waits", "x", timeout_s=1)
        assert (late["status"], late["error"]["code"]) == ("failed", -32006)
        seqs = [event["seq"] for event in c.call("events/read", stream="agent:soon", after_seq=0, limit=500)["events"]]
        assert seqs == list(range(1, len(seqs) + 1)), "the order of events is not that of a clock"
    daemon.kill()
    set_clock(offset, -jump_s)
    daemon.start("clock", str(offset), module="tests.support.hurt_daemon")
    with wire(daemon.socket) as c:
        assert ask(c, "echo", "after")["output"] == "after"
        c.subscribe("log:soon")
        c.until("log.line", where=lambda d: d["text"] == "again")
    assert daemon.stop() == 0
