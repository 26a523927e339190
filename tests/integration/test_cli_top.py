"""``witsd top`` at a real terminal, against real agents."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import PATIENCE_S, Daemon
from tests.support.terminal import CTRL_C, Terminal

TOP = [sys.executable, "-m", "witsd.cli.main", "top"]
ALTERNATE, BACK, CURSOR = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25h"
DOWN, ESCAPE = "\x1b[B", "\x1b"
#: Says a line each time something is written to its fifo, so that a test decides when.
TALKER = "while :; do read line < {fifo}; echo \"$line\"; done"


@pytest.fixture
def agents(daemon: Daemon) -> Daemon:
    """``alpha`` runs, ``beta`` was never started, ``gamma`` has failed."""
    for name, more in (
        ("alpha", {"command": ["sleep", "1000"]}),
        ("beta", {"command": ["sleep", "1000"], "start": "manual"}),
        ("gamma", {"command": ["false"], "restart": {"policy": "never"}}),
    ):
        daemon.call("agents/define", spec={"name": name, "kind": "exec", **more})
    wait_for(daemon, "alpha", "active")
    wait_for(daemon, "gamma", "failed")
    return daemon


def agent(daemon: Daemon, name: str) -> dict[str, Any]:
    found: dict[str, Any] = daemon.call("agents/get", name=name)
    return found


def wait_for(daemon: Daemon, name: str, state: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while (found := agent(daemon, name))["state"] != state:
        assert time.monotonic() < deadline, found


def top(daemon: Daemon, *args: str) -> Terminal:
    return Terminal([*TOP, *args], env=daemon.env, cwd=daemon.user_home)


def restored(terminal: Terminal, before: list[Any]) -> bool:
    """The terminal is as it was: its own screen, a cursor, whole lines."""
    return terminal.raw.rindex(BACK) > terminal.raw.rindex(ALTERNATE) and CURSOR in terminal.raw and (
        terminal.modes() == before
    )


def test_keys_start_and_stop_a_real_agent(agents: Daemon) -> None:
    with top(agents) as it:
        before = it.modes()
        it.until("4 agents: 1 active, 1 failed, 2 inactive")
        it.until("gamma")
        it.until("exited with code 1")
        it.until("alpha: exec, active")
        it.press("t")
        it.until("stop alpha?")
        it.press("n")
        it.until("alpha is left as it is")
        assert agent(agents, "alpha")["state"] == "active"
        it.press("tt")
        it.until("alpha is inactive")
        assert agent(agents, "alpha")["state"] == "inactive"
        it.press(DOWN + "js")
        it.until("beta is active")
        pid = agent(agents, "beta")["pid"]
        it.press("r")
        it.until("restart beta?")
        it.press("y")
        it.until("beta is active")
        assert agent(agents, "beta")["pid"] != pid
        it.press("q")
        assert it.end() == 0
        assert restored(it, before)


def test_what_cannot_be_done_is_told(agents: Daemon) -> None:
    agents.call("agents/define", spec={"name": "nowhere", "kind": "exec", "command": ["/no/such"], "start": "manual"})
    with top(agents) as it:
        it.until("5 agents")
        it.press("Gs")
        it.until("nowhere did not come up")
        it.press("Q")
        assert it.end() == 0


def test_the_log_of_the_selected_agent_is_followed(daemon: Daemon) -> None:
    fifo = daemon.home / "talk"
    os.mkfifo(fifo)
    command = ["sh", "-c", TALKER.format(fifo=fifo)]
    daemon.call("agents/define", spec={"name": "talker", "kind": "exec", "command": command})
    with top(daemon) as it:
        it.until("2 agents: 1 active")
        it.press("G")
        it.until("talker: exec, active")
        it.press("l")
        it.until("following")
        fifo.write_text("a fresh line \x1b[2J of its own\n")
        it.until("a fresh line")
        assert "\x1b[2J" not in it.raw
        it.press("k" * 3)
        it.press(ESCAPE)
        it.until("t  stop")
        it.press("l")
        it.until("a fresh line")
        it.press("q")
        it.until("talker: exec, active")
        it.press("q")
        assert it.end() == 0


def test_a_daemon_that_restarts_is_waited_for(agents: Daemon) -> None:
    with top(agents) as it:
        it.until("4 agents: 1 active")
        agents.kill()
        it.until("no connection to the daemon since")
        agents.start()
        it.until("4 agents: 1 active, 1 failed, 2 inactive")
        it.press("q")
        assert it.end() == 0


@pytest.mark.parametrize(
    ("ending", "status"), [(CTRL_C, 0), (signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGHUP, 128 + signal.SIGHUP)]
)
def test_the_terminal_is_given_back_whatever_ends_it(agents: Daemon, ending: str | int, status: int) -> None:
    with top(agents) as it:
        before = it.modes()
        it.until("4 agents")
        assert it.modes() != before
        if isinstance(ending, str):
            it.press(ending)
        else:
            it.signal(ending)
        assert it.end() == status
        assert restored(it, before)


def test_the_terminal_is_given_back_after_an_error(agents: Daemon, tmp_path: Path) -> None:
    broken = "from witsd.cli import top_view\nfrom witsd.cli.main import main\n"
    broken += "def frame(*_): raise RuntimeError('a bug')\ntop_view.frame = frame\nmain()\n"
    argv = [sys.executable, "-c", f"import sys; sys.argv = ['witsd', 'top']\n{broken}"]
    with Terminal(argv, env=agents.env, cwd=tmp_path) as it:
        before = it.modes()
        it.until("a bug")
        assert it.end() == 1
        assert restored(it, before)


def test_ctrl_z_gives_the_terminal_back_until_it_goes_on(agents: Daemon) -> None:
    with top(agents) as it:
        before = it.modes()
        it.until("4 agents")
        it.signal(signal.SIGTSTP)
        deadline = time.monotonic() + PATIENCE_S
        while not it.stopped():
            assert time.monotonic() < deadline
        assert it.modes() == before
        it.signal(signal.SIGCONT)
        it.until("4 agents")
        it.press("q")
        assert it.end() == 0
        assert restored(it, before)


def test_many_agents_in_a_small_window_that_changes(daemon: Daemon) -> None:
    for number in range(40):
        spec = {"name": f"agent-{number:02}", "kind": "exec", "command": ["sleep", "9"], "start": "manual"}
        daemon.call("agents/define", spec=spec)
    with top(daemon, "--sort", "name") as it:
        it.resize(80, 24)
        it.until("41 agents: 41 inactive")
        it.until("agent-00")
        it.press("G")
        it.until("assistant: assistant, inactive")
        it.resize(30, 6)
        it.until("agent-39")
        it.press("g")
        it.until("agent-00")
        it.resize(140, 12)
        it.until("REMARK")
        it.press("/agent-2")
        it.until("agent-20")
        it.press("\r")
        it.until("31 not shown")
        it.press(ESCAPE)
        it.until("?  help")
        it.press("?")
        it.until("the other way round")
        it.press(" q")
        assert it.end() == 0
        assert "Traceback" not in it.shown


def test_it_costs_next_to_nothing(agents: Daemon) -> None:
    with top(agents) as it:
        it.until("4 agents")
        before, began = it.cpu_s(), time.monotonic()
        for _ in range(5):  # it looks once a second
            it.until("4 agents")
        assert it.cpu_s() - before < 0.1 * (time.monotonic() - began), "far more than the two per cent it may use"
        it.press("q")
        assert it.end() == 0


def test_without_a_terminal_it_is_one_table(agents: Daemon) -> None:
    done = agents.cli("top")
    assert (done.returncode, done.stderr) == (0, "")
    head, *rows = done.stdout.splitlines()
    assert head.split()[:3] == ["NAME", "KIND", "STATE"]
    assert [row.split()[0] for row in rows] == ["alpha", "assistant", "beta", "gamma"]
    assert "exited with code 1" in rows[3]
    assert agents.cli("top", "--once", "--sort", "state").stdout.splitlines()[1].startswith("gamma")


def test_json_is_a_line_each_time(agents: Daemon) -> None:
    done = agents.cli("top", "--json", "--once")
    assert done.stdout.count("\n") == 1
    names = {one["name"]: one["state"] for one in json.loads(done.stdout)["agents"]}
    assert names["alpha"] == "active"
    with Terminal([*TOP, "--json"], env=agents.env, cwd=agents.user_home) as it:
        it.until('{"time": ')
        it.until('{"time": ')
        it.press(CTRL_C)
        assert it.end() == 0


def test_no_daemon_is_status_3(stopped_daemon: Daemon) -> None:
    with top(stopped_daemon) as it:
        it.until("no daemon answers")
        assert it.end() == 3
        assert ALTERNATE not in it.raw
