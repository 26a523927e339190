"""Agents as real processes under the real daemon: how they start, what they write, how they end."""

from __future__ import annotations

import os
import signal
import stat
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.agents import begin
from tests.support.daemon import Daemon
from tests.support.processes import no_zombies, of_daemon, wait_for, wait_gone
from tests.support.wire import RpcError, Wire, wire

ECHO = """
from witsd_client import Agent
agent = Agent("echo")
@agent.run
async def echo(run):
    await run.say(run.text)
agent.serve()
"""


def define(connection: Wire, name: str, command: list[str], kind: str = "native", **more: Any) -> dict[str, Any]:
    spec = {"name": name, "kind": kind, "command": command, **more}
    result: dict[str, Any] = connection.call("agents/define", spec=spec)
    return result


def python(code: str) -> list[str]:
    return ["python", "-c", code]


def ask(connection: Wire, agent: str, text: str, **more: Any) -> dict[str, Any]:
    run_id = connection.call("runs/start", agent=agent, input=text, **more)["run_id"]
    run: dict[str, Any] = connection.call("runs/wait", run_id=run_id, timeout_s=60)
    return run


def log_of(connection: Wire, name: str) -> list[str]:
    return [line["text"] for line in connection.call("agents/logs", name=name)["lines"]]


def test_native_agent_answers_and_stops(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        define(c, "echo", python(ECHO))
        run = ask(c, "echo", "hello")
        assert (run["status"], run["output"]) == ("completed", "hello")
        assert run["items"][0]["type"] == "message"
        pid = c.call("agents/get", name="echo")["pid"]
        assert c.call("agents/stop", name="echo")["state"] == "inactive"
        assert wait_gone(pid)
        assert c.call("agents/stop", name="echo")["state"] == "inactive", "stopped already is no error"
        with pytest.raises(RpcError) as refused:
            ask(c, "echo", "hello")
        assert refused.value.code == -32005
        assert "witsd agent start echo" in str(refused.value)
        assert c.call("agents/start", name="echo")["state"] == "active"
        assert ask(c, "echo", "again")["output"] == "again"
        before = c.call("agents/get", name="echo")["pid"]
        after = c.call("agents/restart", name="echo")
        assert after["state"] == "active"
        assert after["pid"] != before


def test_exec_service_log_is_kept_numbered_and_followed(daemon: Daemon) -> None:
    code = "import sys,time\nfor i in range(3): print('line', i)\nprint('oops', file=sys.stderr)\nsys.stdin.read()"
    with wire(daemon.socket) as c:
        c.subscribe("log:svc", since={"log:svc": 0})
        define(c, "svc", python(code), kind="exec")
        lines = [c.until("log.line") for _ in range(4)]
        assert [line["seq"] for line in lines] == [1, 2, 3, 4]
        assert {(line["data"]["source"], line["data"]["text"]) for line in lines} == {
            ("stdout", "line 0"),
            ("stdout", "line 1"),
            ("stdout", "line 2"),
            ("stderr", "oops"),
        }
        assert [line["seq"] for line in c.call("agents/logs", name="svc", after_seq=2)["lines"]] == [3, 4]
        assert [line["seq"] for line in c.call("agents/logs", name="svc", tail=1)["lines"]] == [4]
        with pytest.raises(RpcError) as refused:
            ask(c, "svc", "do something")
        assert refused.value.code == -32005
        assert "run_per_request" in str(refused.value)
    daemon.restart()
    with wire(daemon.socket) as c:
        c.subscribe("log:svc", since={"log:svc": 4})
        assert c.until("log.line")["seq"] == 5, "numbering goes on across a restart"


def test_stopping_an_agent_ends_the_processes_of_its_runs(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        define(c, "sleeper", ["sleep", "1000"], kind="exec", run_per_request=True, limits={"concurrency": 1})
        c.subscribe("run:*")
        runs = [begin(c, "sleeper") for _ in range(2)]
        c.until("run.started")
        assert c.call("agents/stop", name="sleeper")["state"] == "inactive"
        for run_id in runs:
            run = c.call("runs/get", run_id=run_id)
            assert (run["status"], run["reason"]) == ("cancelled", "the agent was stopped")
        assert of_daemon(daemon.home) == []


def test_exec_run_per_request(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        define(c, "upper", ["tr", "a-z", "A-Z"], kind="exec", run_per_request=True)
        run = ask(c, "upper", "grüße")
        assert (run["status"], run["output"]) == ("completed", "GRüßE")
        define(
            c,
            "fails",
            ["sh", "-c", "echo partial; echo why it failed >&2; exit 3"],
            kind="exec",
            run_per_request=True,
        )
        run = ask(c, "fails", "")
        assert run["status"] == "failed"
        assert run["error"]["code"] == -32007
        assert "exited with code 3" in run["error"]["message"]
        assert "why it failed" in run["error"]["message"]
        assert run["items"][0]["text"] == "partial\n"
        assert "why it failed" in log_of(c, "fails")


def test_exec_run_is_cancelled_with_its_whole_group(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        define(
            c,
            "slow",
            ["sh", "-c", "trap '' TERM; sleep 1000 & echo $!; wait"],
            kind="exec",
            run_per_request=True,
            stop={"grace_s": 0.2},
        )
        c.subscribe("run:*")
        run_id = c.call("runs/start", agent="slow", input="")["run_id"]
        grandchild = int(c.until("item.delta")["data"]["text"])
        assert c.call("runs/cancel", run_id=run_id)["status"] == "cancelled"
        assert wait_gone(grandchild)
        assert of_daemon(daemon.home) == []


@pytest.mark.parametrize(
    ("command", "cwd", "says"),
    [
        (["no-such-program-anywhere"], "~", "no program 'no-such-program-anywhere'"),
        (["./plain.txt"], "{home}", "not executable"),
        (["./missing"], "{home}", "does not exist"),
        (["true"], "{home}/nowhere", "working folder"),
        (["./bad-interpreter"], "{home}", "its program cannot be run: No such file"),
    ],
)
def test_what_cannot_be_run_says_why(daemon: Daemon, command: list[str], cwd: str, says: str) -> None:
    (daemon.home / "plain.txt").write_text("no program\n")
    script = daemon.home / "bad-interpreter"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    with wire(daemon.socket) as c:
        define(c, "bad", command, cwd=cwd.format(home=daemon.home), restart={"policy": "never"}, start="manual")
        with pytest.raises(RpcError) as failed:
            c.call("agents/start", name="bad")
        assert failed.value.code == -32007
        assert says in str(failed.value)
        agent = c.call("agents/get", name="bad")
        assert agent["state"] == "failed"
        assert says in agent["reason"]
    assert of_daemon(daemon.home) == []


def test_crash_loop_is_capped_and_forgiven_by_hand(daemon: Daemon) -> None:
    mended = daemon.home / "mended"
    code = f"import os\nif not os.path.exists({str(mended)!r}): raise SystemExit(7)\n{ECHO}"
    with wire(daemon.socket) as c:
        c.subscribe("agent:loop")
        define(c, "loop", python(code), restart={"backoff_s": 0, "max_restarts": 3})
        failed = c.until("agent.state", where=lambda d: d["state"] == "failed")
        assert "exited with code 7" in failed["data"]["reason"]
        assert "max_restarts = 3" in failed["data"]["reason"]
        with pytest.raises(RpcError) as refused:
            ask(c, "loop", "x")
        assert refused.value.code == -32007
    daemon.restart()
    with wire(daemon.socket) as c:
        assert c.call("agents/get", name="loop")["state"] == "failed", "a restart forgives nothing"
        mended.touch()
        assert c.call("agents/start", name="loop")["state"] == "active"
        assert ask(c, "loop", "x")["output"] == "x"


def test_rubbish_on_stdout_is_logged_and_harms_nobody(daemon: Daemon) -> None:
    noisy = "import os\nos.write(1, b'hello world\\n{\"broken\\n' + b'x' * 6_000_000 + b'\\n\\xff\\xfe\\n')\n" + ECHO
    with wire(daemon.socket) as c:
        c.subscribe("agent:noisy")
        define(c, "noisy", python(noisy))
        warning = c.until("agent.log")
        assert "not JSON-RPC" in warning["data"]["text"]
        assert ask(c, "noisy", "still here")["output"] == "still here"
        lines = log_of(c, "noisy")
        assert "hello world" in lines
        assert '{"broken' in lines
        assert any(line.startswith("xxx") for line in lines)
        status = c.call("system/status")
        assert status["agents"] == {"active": 1, "inactive": 1}


def test_never_answers_initialize(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        c.subscribe("agent:mute")
        spec: dict[str, Any] = {"ready": {"timeout_s": 0.5}, "restart": {"policy": "never"}, "stop": {"grace_s": 1}}
        define(c, "mute", ["sleep", "1000"], **spec)
        failed = c.until("agent.state", where=lambda d: d["state"] == "failed")
        assert "not ready within 0.5 s" in failed["data"]["reason"]
    assert of_daemon(daemon.home) == []


def test_nothing_is_inherited_but_three_pipes(daemon: Daemon) -> None:
    looks = "import os\nprint(sorted(f for f in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{f}')))"
    with wire(daemon.socket) as c:
        define(c, "looks", python(looks), kind="exec", run_per_request=True)
        assert ask(c, "looks", "")["output"].strip() == "['0', '1', '2']"
    assert of_daemon(daemon.home) == []


def test_the_run_dir_is_empty_at_each_start(daemon: Daemon) -> None:
    leaves = 'ls -A "$WITSD_RUN_DIR" | wc -l; mkdir "$WITSD_RUN_DIR/left" && : >"$WITSD_RUN_DIR/left/file"; sleep 1000'
    with wire(daemon.socket) as c:
        c.subscribe("log:leaves", since={"log:leaves": 0})
        define(c, "leaves", ["sh", "-c", leaves], kind="exec", start="manual")
        for _ in range(3):
            c.call("agents/start", name="leaves")
            assert c.until("log.line")["data"]["text"].strip() == "0"
            c.call("agents/stop", name="leaves")


def test_the_death_of_who_forks_is_survived(daemon: Daemon) -> None:
    """An agent that runs goes on, the next start gets another."""
    with wire(daemon.socket) as c:
        define(c, "stays", ["sleep", "1000"], kind="exec")
        pid = c.call("agents/start", name="stays")["pid"]
        (forker,) = (p for p in psutil.Process(daemon.pid).children() if "forker.py" in " ".join(p.cmdline()))
        forker.kill()
        assert wait_gone(forker.pid)
        define(c, "next", ["sleep", "1000"], kind="exec", restart={"policy": "never"})
        c.call("agents/start", name="next")
        assert c.call("agents/get", name="next")["state"] == "active"
        assert c.call("agents/get", name="stays")["pid"] == pid
    daemon.stop()
    assert of_daemon(daemon.home) == []


def test_who_forks_is_replaced_when_somebody_has_stopped_it(daemon: Daemon) -> None:
    """What it was asked for meanwhile fails, or is done; nothing of it comes later, when it goes on."""
    with wire(daemon.socket) as c:
        define(c, "first", ["sleep", "1000"], kind="exec")
        assert c.call("agents/start", name="first")["state"] == "active"
        (forker,) = (p for p in psutil.Process(daemon.pid).children() if "forker.py" in " ".join(p.cmdline()))
        forker.suspend()
        c.subscribe("agent:next")
        define(c, "next", ["sleep", "1000"], kind="exec", restart={"policy": "never"})
        failed = c.until("agent.state", where=lambda d: d["state"] == "failed")
        assert "could not be started: the process that forks has not answered" in failed["data"]["reason"]
        assert wait_gone(forker.pid)
        assert c.call("agents/start", name="next")["state"] == "active"
        assert len(wait_for(daemon.home, 2)) == 2
    assert no_zombies(daemon.pid)


def test_a_stop_that_somebody_else_overtakes_says_so(daemon: Daemon) -> None:
    with wire(daemon.socket) as c, wire(daemon.socket) as other:
        define(
            c,
            "wanted",
            ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done"],
            kind="exec",
            ready={"when": "log", "pattern": "up"},
            stop={"grace_s": 3},
        )
        assert c.call("agents/start", name="wanted")["state"] == "active"
        other.subscribe("agent:wanted")
        c.send({"jsonrpc": "2.0", "id": "stop", "method": "agents/stop", "params": {"name": "wanted"}})
        other.until("agent.state", where=lambda d: d["state"] == "stopping")
        assert other.call("agents/start", name="wanted", wait=False)["state"] == "stopping"
        answer = c.receive()
        assert answer["error"]["code"] == -32009
        assert "wanted was started again" in answer["error"]["message"]
        assert c.call("agents/start", name="wanted")["state"] == "active"
        assert len(of_daemon(daemon.home)) > 0


def test_closes_stdout_but_lives(daemon: Daemon) -> None:
    closes = "import os, time\nos.close(1)\ntime.sleep(1000)"
    with wire(daemon.socket) as c:
        c.subscribe("agent:shut")
        define(c, "shut", python(closes), restart={"policy": "never"}, stop={"grace_s": 1})
        failed = c.until("agent.state", where=lambda d: d["state"] == "failed")
        assert "closed its stdout" in failed["data"]["reason"]
    assert of_daemon(daemon.home) == []


def test_dies_in_the_middle_of_a_run(daemon: Daemon) -> None:
    dies = "await run.say('half'); await run.client.ping(); import os; os.kill(os.getpid(), 9)"
    code = ECHO.replace("await run.say(run.text)", dies)
    with wire(daemon.socket) as c:
        define(c, "dies", python(code), restart={"backoff_s": 0})
        run = ask(c, "dies", "x")
        assert run["status"] == "failed"
        assert run["error"]["code"] == -32007
        assert "was killed by SIGKILL" in run["error"]["message"]
        assert run["items"][0]["text"] == "half", "what was said is kept"
        assert run["items"][0]["status"] == "failed"


def test_stop_takes_the_group_also_what_ignores_sigterm(daemon: Daemon) -> None:
    stubborn = (
        "import subprocess,sys,signal,time\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import signal,time\\nsignal.signal(15, signal.SIG_IGN)\\n"
        'print("up", flush=True)\\ntime.sleep(1000)\'], stdout=subprocess.PIPE)\n'
        "p.stdout.readline()\nprint(p.pid, flush=True)\ntime.sleep(1000)"
    )
    with wire(daemon.socket) as c:
        c.subscribe("log:tree", since={"log:tree": 0})
        define(c, "tree", python(stubborn), kind="exec", stop={"grace_s": 1})
        grandchild = int(c.until("log.line")["data"]["text"])
        c.call("agents/stop", name="tree")
        assert wait_gone(grandchild)


DETACHES = """
import os, signal, subprocess, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.close(1); os.close(2)
        time.sleep(1000)
    os._exit(0)
os.wait()
print("detached", flush=True)
time.sleep(1000)
"""


def test_nothing_outlives_a_killed_daemon_past_the_next_start(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        c.subscribe("log:tree", since={"log:tree": 0})
        define(c, "tree", python(DETACHES), kind="exec")
        c.until("log.line", where=lambda d: d["text"] == "detached")
        define(c, "echo", python(ECHO))
        assert ask(c, "echo", "x")["output"] == "x"
        children = [c.call("agents/get", name=name)["pid"] for name in ("tree", "echo")]
    before = of_daemon(daemon.home)
    assert len(before) == 3, "two agents and the one that detached itself"
    daemon.kill()
    assert all(wait_gone(pid) for pid in children), "the death signal"
    daemon.start()
    assert all(wait_gone(pid) for pid in before), "the sweep"
    with wire(daemon.socket) as c:
        c.subscribe("log:tree", since={"log:tree": 1})
        c.until("log.line", where=lambda d: d["text"] == "detached")
    assert len(of_daemon(daemon.home)) == 3, "three again, not six"


def test_the_daemon_adopts_and_reaps_orphans(daemon: Daemon) -> None:
    fork = "subprocess.Popen(['sh', '-c', 'true & true & exec true'])"
    code = f"import subprocess\nfor _ in range(50): {fork}\nprint('ok')"
    with wire(daemon.socket) as c:
        c.subscribe("log:forks", "agent:forks", since={"log:forks": 0, "agent:forks": 0})
        define(c, "forks", python(code), kind="exec", restart={"policy": "never"})
        c.until("agent.state", where=lambda d: d["state"] == "inactive")
        define(c, "echo", python(ECHO))
        ask(c, "echo", "the reaper has had its turn")
    children = Path(f"/proc/{daemon.pid}/task").glob("*/children")
    pids = [int(pid) for file in children for pid in file.read_text().split()]
    states = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] for pid in pids]
    assert "Z" not in states


def test_an_idle_agent_is_not_killed_by_its_own_death_signal(daemon: Daemon) -> None:
    """A death signal follows the forking thread: one that ended after idling would take the agent with it."""
    with wire(daemon.socket) as c:
        define(c, "echo", python(ECHO), health={"interval_s": 0})
        ask(c, "echo", "x")
        pid = c.call("agents/get", name="echo")["pid"]
        assert not wait_gone(pid, timeout_s=15), "it died while idle"  # trio ends a thread that has idled for 10 s
        assert c.call("agents/get", name="echo")["pid"] == pid


def test_on_demand_costs_no_process_when_idle(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        c.subscribe("agent:lazy")
        define(c, "lazy", python(ECHO), start="on_demand", idle_stop_s=0.3)
        assert c.call("agents/get", name="lazy")["state"] == "inactive"
        runs = [c.call("runs/start", agent="lazy", input=str(i))["run_id"] for i in range(5)]
        assert [c.call("runs/wait", run_id=r)["output"] for r in runs] == ["0", "1", "2", "3", "4"]
        stopped = c.until("agent.state", where=lambda d: d["state"] == "inactive")
        assert stopped["data"]["reason"] == "idle"
        assert of_daemon(daemon.home) == []
        assert ask(c, "lazy", "awake again")["output"] == "awake again"


def test_a_stopped_agent_is_hung_and_replaced(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        define(
            c,
            "echo",
            python(ECHO),
            health={"interval_s": 0.2, "timeout_s": 3},  # in which one that runs answers, on a busy machine, too
            stop={"grace_s": 0.5},
            restart={"backoff_s": 0},
        )
        ask(c, "echo", "x")
        pid = c.call("agents/get", name="echo")["pid"]
        c.subscribe("agent:echo")
        os.kill(pid, signal.SIGSTOP)
        c.until("agent.health", where=lambda d: d["health"] == "hung")
        c.until("agent.state", where=lambda d: d["state"] == "active")
        assert wait_gone(pid)
        assert ask(c, "echo", "back")["output"] == "back"


def test_an_agent_that_dials_the_socket_is_the_agent_and_not_the_owner(daemon: Daemon) -> None:
    dials = f"""
import json, os, socket, sys
def ask(method):
    s = socket.socket(socket.AF_UNIX); s.connect(os.environ["WITSD_LISTEN_UNIX"])
    s.sendall(json.dumps({{"jsonrpc": "2.0", "id": 1, "method": method}}).encode() + b"\\n")
    return s.makefile().readline().strip()
print("child", ask("initialize")); print("child", ask("agents/list"))
sys.stdout.flush()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.environ.clear()
        os.execve({sys.executable!r}, ["python", "-c", "import socket,sys\\ns=socket.socket(socket.AF_UNIX)\\n"
          "s.connect(sys.argv[1])\\ns.sendall(b'{{\\"jsonrpc\\":\\"2.0\\",\\"id\\":1,\\"method\\":\\"agents/list\\"}}\\\\n')\\n"
          "print('detached', s.makefile().readline().strip(), flush=True)", {str(daemon.socket)!r}], {{}})
    os._exit(0)
os.wait()
import time; time.sleep(1000)
"""
    with wire(daemon.socket) as c:
        c.subscribe("log:spy", since={"log:spy": 0})
        define(c, "spy", python(dials), kind="exec")
        hello = c.until("log.line")["data"]["text"]
        assert '"label":"agent:spy"' in hello
        assert '"scopes":[]' in hello
        refused = c.until("log.line")["data"]["text"]
        assert "-32003" in refused, refused
        detached = c.until("log.line", where=lambda d: d["text"].startswith("detached"))["data"]["text"]
        assert "-32003" in detached, "also when it has left session, parent and environment behind"


def test_environment_is_built_not_inherited(stopped_daemon: Daemon) -> None:
    stopped_daemon.env |= {"OPENAI_API_KEY": "sk-secret", "WANTED": "yes"}
    stopped_daemon.start()
    with wire(stopped_daemon.socket) as c:
        define(c, "env", ["env"], kind="exec", run_per_request=True, env={"MINE": "1"}, pass_env=["WANTED"])
        env = dict(line.split("=", 1) for line in ask(c, "env", "")["output"].splitlines())
    assert env["OPENAI_API_KEY"].startswith("sk-witsd-"), "one of its own for /v1"
    assert "sk-secret" not in env.values()
    assert env["MINE"] == "1"
    assert env["WANTED"] == "yes"
    assert env["PATH"].startswith(str(Path(sys.executable).parent))


def test_removed_while_it_works(daemon: Daemon) -> None:
    forever = ECHO.replace("await run.say(run.text)", "import trio; await run.say('on it'); await trio.sleep_forever()")
    with wire(daemon.socket) as c:
        c.subscribe("run:*")
        define(c, "busy", python(forever))
        run_id = c.call("runs/start", agent="busy", input="x")["run_id"]
        c.until("item.delta")
        c.call("agents/remove", name="busy")
        assert c.call("runs/get", run_id=run_id)["status"] == "cancelled"
        with pytest.raises(RpcError) as missing:
            c.call("agents/get", name="busy")
        assert missing.value.code == -32002
    assert not (daemon.home / "agents/busy.toml").exists()
    assert of_daemon(daemon.home) == []
