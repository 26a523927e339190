"""What real agents write, at full speed and without end: all of it is kept, and the daemon stays small."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.integration.test_agents import define, python
from tests.support.daemon import PATIENCE_S, Daemon
from tests.support.wire import RpcError, wire

#: By how much the daemon's memory may grow, in bytes.
MORE_RSS = 8 << 20


def rss(daemon: Daemon) -> int:
    return int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[1]) * 4096


def test_a_flood_of_lines_is_kept_whole(daemon: Daemon) -> None:
    count = 300_000
    flood = f"import sys\nfor n in range({count}): sys.stdout.write(f'line {{n}} ' + 'x' * (n % 60) + chr(10))\n"
    with wire(daemon.socket) as c:
        c.subscribe("agent:flood")
        before = rss(daemon)
        define(c, "flood", python(flood), kind="exec", restart={"policy": "never"})
        c.until("agent.state", where=lambda d: d["state"] == "inactive")
        assert rss(daemon) - before < MORE_RSS
        seen = 0
        while page := c.call("agents/logs", name="flood", after_seq=seen)["lines"]:
            for line in page:
                assert line["seq"] == seen + 1
                assert line["text"] == f"line {seen} " + "x" * (seen % 60)
                seen += 1
        assert seen == count


def test_a_line_without_end_is_kept_in_pieces_within_bounded_memory(daemon: Daemon) -> None:
    size = 64 << 20
    code = f"import sys\nfor _ in range({size >> 16}): sys.stderr.write('y' * (1 << 16))\n"
    with wire(daemon.socket) as c:
        c.subscribe("agent:endless", "agent:endless-run")
        before = rss(daemon)
        define(c, "endless", python(code), kind="exec", restart={"policy": "never"})
        c.until("agent.state", where=lambda d: d["state"] == "inactive")
        assert rss(daemon) - before < MORE_RSS
        newest = c.call("agents/logs", name="endless", tail=1)["lines"][0]
        assert (newest["seq"], set(newest["text"])) == (size >> 16, {"y"})
        # The same from a process that serves one run.
        define(c, "endless-run", python(code), kind="exec", run_per_request=True)
        run = c.call("runs/start", agent="endless-run", input="go")
        assert c.call("runs/wait", run_id=run["run_id"], timeout_s=60)["status"] == "completed"
        assert rss(daemon) - before < MORE_RSS
        assert c.call("agents/logs", name="endless-run", tail=1)["lines"][0]["seq"] == size >> 16


def test_a_log_folder_that_is_taken_away_stops_nobody(daemon: Daemon) -> None:
    code = "import sys\nwhile True: print('line', flush=True) or sys.stdin.readline() or __import__('time').sleep(1000)"
    logs = daemon.home / "logs"
    with wire(daemon.socket) as c:
        define(c, "talks", python(code), kind="exec")
        give_up = time.monotonic() + PATIENCE_S
        while not c.call("agents/logs", name="talks")["lines"] and time.monotonic() < give_up:
            c.call("ping")
        logs.rename(daemon.home / "moved")
        logs.write_text("not a folder")
        before = c.call("agents/restart", name="talks")["pid"]
        give_up = time.monotonic() + PATIENCE_S
        while "logs.write_failed" not in daemon.log() and time.monotonic() < give_up:
            c.call("agents/get", name="talks")
        with pytest.raises(RpcError, match="cannot be read"):
            c.call("agents/logs", name="talks", tail=10)
        assert c.call("agents/get", name="talks")["pid"] == before, "it lives on"
        logs.unlink()
        c.subscribe("log:talks", since={"log:talks": 0})
        c.call("agents/restart", name="talks")
        lost = c.until("log.line", where=lambda d: d["source"] == "witsd")
        assert "1 lines before this one are lost: Not a directory" in lost["data"]["text"]
        assert c.until("log.line")["data"]["text"] == "line"


def test_lines_of_json_have_a_level(daemon: Daemon) -> None:
    code = (
        "import json, time\n"
        "for level in ('info', 'WARN', 50): print(json.dumps({'level': level, 'msg': 'x'}), flush=True)\n"
        "print('plain', flush=True)\ntime.sleep(1000)\n"
    )
    with wire(daemon.socket) as c:
        c.subscribe("log:json", since={"log:json": 0})
        define(c, "json", python(code), kind="exec")
        levels = [c.until("log.line")["data"].get("level") for _ in range(4)]
        assert levels == ["info", "warning", "error", None]
        assert [line.get("level") for line in c.call("agents/logs", name="json")["lines"]] == levels
    shown = daemon.cli("agent", "logs", "json", "--level", "warning", "--json")
    assert [json.loads(line)["level"] for line in shown.stdout.splitlines()] == ["warning", "error"], shown.stderr
    assert "invalid" in daemon.cli("agent", "logs", "json", "--level", "loud").stderr.lower()
