"""The command line against a real daemon: agents, asking, runs, sessions, tokens, events."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import PATIENCE_S, ROOT, Daemon

PROBE = str(ROOT / "tests/support/probe_agent.py")


def ok(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, f"{done.args[3:]}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def value(done: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(ok(done))


def items(done: subprocess.CompletedProcess[str]) -> list[Any]:
    found: list[Any] = value(done)["items"]
    return found


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def probe(daemon: Daemon) -> Daemon:
    """A daemon with the agent ``probe``, added as a person would add it."""
    env = f"PYTHONPATH={daemon.env['PYTHONPATH']}"
    added = daemon.cli("agent", "add", "probe", "--env", env, "--", sys.executable, PROBE)
    assert "probe is active (pid" in ok(added)
    return daemon


def test_status_for_people_and_programs(daemon: Daemon) -> None:
    shown = ok(daemon.cli("status"))
    assert f"pid {daemon.pid}" in shown
    assert str(daemon.socket) in shown
    assert daemon.http in shown
    for args in (["status", "--json"], ["--json", "status"]):
        assert value(daemon.cli(*args))["pid"] == daemon.pid


def test_ask_the_assistant_in_an_empty_home(daemon: Daemon) -> None:
    done = daemon.cli("ask", "assistant", "What", "can you do?")
    assert ok(done).strip()
    assert done.stdout.endswith("\n")


def test_add_refuses_a_taken_name_and_replaces_when_told(probe: Daemon, tmp_path: Path) -> None:
    args = ["agent", "add", "probe", "--kind", "exec", "--run-per-request"]
    refused = probe.cli(*args, "--", "cat")
    assert refused.returncode == 1
    assert PROBE in refused.stderr
    assert "--replace" in refused.stderr
    assert value(probe.cli("agent", "show", "probe", "--json"))["kind"] == "native"
    replaced = value(probe.cli(*args, "--replace", "--json", "--", "cat", "--json", cwd=tmp_path))
    assert replaced["kind"] == "exec"
    assert replaced["spec"]["command"] == ["cat", "--json"]
    assert replaced["spec"]["cwd"] == str(tmp_path)


def test_a_relative_program_is_found_from_the_callers_folder(daemon: Daemon, tmp_path: Path) -> None:
    program = tmp_path / "shout.sh"
    program.write_text("#!/bin/sh\ntr a-z A-Z\n")
    program.chmod(0o755)
    ok(daemon.cli("agent", "add", "shout", "--kind", "exec", "--run-per-request", "./shout.sh", cwd=tmp_path))
    assert ok(daemon.cli("ask", "shout", "loud")).strip() == "LOUD"


def test_add_says_when_the_agent_does_not_come_up(daemon: Daemon) -> None:
    done = daemon.cli("agent", "add", "broken", "--", sys.executable, "-c", "raise SystemExit(7)")
    assert done.returncode == 1
    assert "does not come up" in done.stderr
    assert "7" in done.stderr
    assert "witsd agent logs broken" in done.stderr
    assert daemon.cli("agent", "add", "later", "--start", "manual", "--", "true").returncode == 0


def test_what_does_not_fit_is_told_in_words(daemon: Daemon) -> None:
    named = daemon.cli("agent", "add", "Bad Name", "--", "true")
    assert named.returncode == 1
    assert "all of them a-z, 0-9, - or _" in named.stderr
    assert "[a-z" not in named.stderr
    spec = {"name": "x", "kind": "exec", "command": ["true"], "restart": {"policy": "sometimes"}}
    wrong = daemon.cli("rpc", "agents/define", json.dumps({"spec": spec}))
    assert "params.spec.restart.policy: 'sometimes' is not valid here: say always, never or on_failure" in wrong.stderr


def test_control_list_show_and_remove(probe: Daemon) -> None:
    assert "probe is inactive" in ok(probe.cli("agent", "stop", "probe"))
    assert "probe is active" in ok(probe.cli("agent", "start", "probe"))
    assert "probe is active" in ok(probe.cli("agent", "restart", "probe"))
    table = ok(probe.cli("agent", "list"))
    assert table.splitlines()[0].split()[:3] == ["NAME", "KIND", "STATE"]
    assert {a["name"] for a in items(probe.cli("agent", "list", "--json"))} == {"assistant", "probe"}
    shown = ok(probe.cli("agent", "show", "probe"))
    assert "active" in shown
    assert PROBE in shown
    ok(probe.cli("agent", "rm", "probe"))
    gone = probe.cli("agent", "show", "probe")
    assert gone.returncode == 1


def test_an_unknown_agent_names_those_that_are_near(probe: Daemon) -> None:
    done = probe.cli("ask", "porbe", "hello")
    assert (done.returncode, done.stdout) == (1, "")
    assert "did you mean probe?" in done.stderr
    as_json = probe.cli("ask", "porbe", "hello", "--json")
    assert json.loads(as_json.stderr)["error"]["code"] == -32002


def test_ask_sends_the_folder_and_the_words(probe: Daemon, tmp_path: Path) -> None:
    assert ok(probe.cli("ask", "probe", "cwd", cwd=tmp_path)).strip() == str(tmp_path)
    assert ok(probe.cli("ask", "probe", "one", "two", "three")).split() == ["one", "two", "three"]
    assert ok(probe.cli("ask", "probe", "return", "given back")) == "given back\n"


def test_ask_takes_its_text_from_standard_input(probe: Daemon) -> None:
    assert ok(probe.cli("ask", "probe", stdin="from a pipe")).split() == ["from", "a", "pipe"]
    assert ok(probe.cli("ask", "probe", "-", stdin="by name")).split() == ["by", "name"]


def test_ask_attaches_what_is_piped_in_beside_the_text(probe: Daemon) -> None:
    ok(probe.cli("ask", "probe", "read this", stdin="the attachment"))
    session = items(probe.cli("session", "list", "--json"))[0]["session_id"]
    asked = value(probe.cli("session", "show", session, "--json"))["last_messages"][0]
    assert asked["text"] == "read this"
    assert asked["attachments"][0]["text"] == "the attachment"


def test_ask_does_not_hang_on_a_pipe_nobody_closes(probe: Daemon) -> None:
    reading, writing = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "witsd.cli.main", "ask", "probe", "go on"],
            env=probe.env, stdin=reading, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )
    finally:
        os.close(reading)
        os.close(writing)
    assert ok(done).split() == ["go", "on"]
    assert "nothing came on standard input" in done.stderr


def test_ask_as_json_is_the_events_of_the_run(probe: Daemon) -> None:
    events = lines(ok(probe.cli("ask", "probe", "--json", "a b")))
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
    assert events[-1]["type"] == "run.completed"
    run_id = events[-1]["data"]["run_id"]
    run = value(probe.cli("run", "show", run_id, "--json"))
    assert run["status"] == "completed"
    assert run["input"]["text"] == "a b"


def test_escape_sequences_of_an_agent_do_not_act(probe: Daemon) -> None:
    done = probe.cli("ask", "probe", "escape")
    assert "unharmed" in ok(done)
    run_id = items(probe.cli("run", "list", "--json"))[0]["run_id"]
    session = items(probe.cli("session", "list", "--json"))[0]["session_id"]
    shown = [
        done, probe.cli("run", "show", run_id), probe.cli("run", "wait", run_id),
        probe.cli("session", "show", session), probe.cli("session", "search", "unharmed"),
        probe.cli("events", "-n", "1000"), probe.cli("run", "show", run_id, "--json"),
    ]
    for output in shown:
        assert "unharmed" in ok(output), output.args
        assert "\x1b" not in output.stdout
        assert "\x07" not in output.stdout


def test_a_failed_run_is_status_1_and_says_why(probe: Daemon) -> None:
    done = probe.cli("ask", "probe", "fail")
    assert done.returncode == 1
    assert done.stdout == "half \n"
    assert "no luck" in done.stderr
    run_id = items(probe.cli("run", "list", "--status", "failed", "--json"))[0]["run_id"]
    waited = probe.cli("run", "wait", run_id)
    assert waited.returncode == 1
    assert "no luck" in waited.stderr


@contextmanager
def started(daemon: Daemon, *args: str, into: int = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    """A command that goes on while the test looks at it; ``into``: where all that it says goes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "witsd.cli.main", *args],
        env=daemon.env, stdin=subprocess.DEVNULL, stdout=into, stderr=into, text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=PATIENCE_S)


def test_ask_streams_and_ctrl_c_cancels_the_run(probe: Daemon) -> None:
    with started(probe, "ask", "probe", "wait") as process:
        assert process.stdout is not None
        assert process.stdout.read(6) == "begun "  # shown while the run goes on
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 1
        assert "cancelled" in err
    assert items(probe.cli("run", "list", "--json"))[0]["status"] == "cancelled"


def test_ask_says_why_nothing_happens(daemon: Daemon) -> None:
    crash = [sys.executable, "-c", "raise SystemExit(7)"]
    spec = {"name": "broken", "kind": "native", "command": crash, "restart": {"backoff_s": 600, "backoff_max_s": 600}}
    daemon.call("agents/define", spec=spec)
    with started(daemon, "ask", "broken", "hello") as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        while "again" not in said:  # it may be seen while it starts
            assert "broken is starting; waiting" in said
            said = process.stderr.readline()
        assert "broken exited with code 7" in said
        assert "is about to be started again; waiting" in said
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 1


def test_a_question_nobody_can_answer_cancels_the_run(probe: Daemon) -> None:
    done = probe.cli("ask", "probe", "question")
    assert (done.returncode, done.stdout) == (1, "")
    assert "which colour?" in done.stderr
    assert "nobody is here to answer: the run is cancelled" in done.stderr
    run = items(probe.cli("run", "list", "--json"))[0]
    assert (run["status"], run["reason"]) == ("cancelled", "nobody was there to answer its question")


def test_a_program_that_reads_the_events_may_answer(probe: Daemon) -> None:
    with started(probe, "ask", "probe", "--json", "question") as process:
        assert process.stdout is not None
        event = json.loads(process.stdout.readline())
        while event["type"] != "input.requested":
            event = json.loads(process.stdout.readline())
        run_id, request_id = event["data"]["run_id"], event["data"]["request_id"]
        probe.call("runs/respond", run_id=run_id, request_id=request_id, response="red")
        out, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0
        assert "painted red" in out


def test_a_lost_connection_is_told_on_a_line_of_its_own(probe: Daemon) -> None:
    reading, writing = os.pipe()
    with started(probe, "ask", "probe", "wait", into=writing) as process, open(reading) as shown:
        os.close(writing)
        assert shown.read(6) == "begun "
        probe.kill()
        assert shown.readline() == "\n"
        assert shown.readline() == "the connection to the daemon is lost; waiting for it to come back\n"
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)


def test_piped_chat_goes_on_after_a_failed_run(probe: Daemon) -> None:
    done = probe.cli("chat", "probe", stdin="first\nfail\n/nonsense\nlast\n")
    assert done.returncode == 1
    assert done.stdout.split() == ["first", "half", "last"]
    assert "no luck" in done.stderr
    assert "no command /nonsense" in done.stderr
    asks = probe.cli("chat", "probe", stdin="question\nblue\nquestion\n")
    assert asks.returncode == 1
    assert "painted blue" in asks.stdout
    assert "nobody is here to answer" in asks.stderr


def test_run_cancel_and_wait(probe: Daemon) -> None:
    run_id = value(probe.cli("rpc", "runs/start", '{"agent": "probe", "input": "wait"}'))["run_id"]
    waited = probe.cli("run", "wait", run_id, "--timeout", "0.2")
    assert waited.returncode == 1
    assert "larger `--timeout`" in waited.stderr
    assert "cancelled" in ok(probe.cli("run", "cancel", run_id, "--reason", "enough"))
    assert "enough" in ok(probe.cli("run", "show", run_id))


def test_a_daemon_that_answers_late_is_waited_for_and_the_wait_is_told(probe: Daemon) -> None:
    os.kill(probe.pid, signal.SIGSTOP)  # its socket still listens: who connects waits in the backlog
    try:
        with started(probe, "status") as process:
            assert process.stderr is not None
            assert process.stderr.readline().startswith("the daemon has not answered yet")
            os.kill(probe.pid, signal.SIGCONT)
            out, err = process.communicate(timeout=PATIENCE_S)
    finally:
        os.kill(probe.pid, signal.SIGCONT)
    assert (process.returncode, err) == (0, "")
    assert str(probe.socket) in out


def test_what_took_too_long_is_told_with_the_setting_that_gives_it_more_time(probe: Daemon) -> None:
    spec = probe.call("agents/get", name="probe")["spec"]
    probe.call("agents/define", spec={**spec, "name": "slow", "limits": {"run_timeout_s": 0.2}})
    late = probe.cli("ask", "slow", "wait")
    assert late.returncode == 1
    assert "raise run_timeout_s under [limits] in the definition of slow" in late.stderr
    run_id = probe.call("runs/start", agent="probe", input="wait", timeout_s=0.2)["run_id"]
    assert "larger timeout_s" in probe.cli("run", "wait", run_id).stderr


def test_metrics_of_an_agent(probe: Daemon) -> None:
    ok(probe.cli("ask", "probe", "hello"))
    assert probe.cli("ask", "probe", "fail").returncode == 1
    while "current" not in value(probe.cli("agent", "metrics", "probe", "--json")):
        pass  # the first sample comes within a second
    shown = ok(probe.cli("agent", "metrics", "probe", "--window", "5m"))
    assert shown.splitlines()[0].split() == ["NOW", "AVERAGE", "PEAK", "LAST", "5M"]
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines()[1:] if line}
    assert rows["processes"][:3] == ["1", "1", "1"]
    assert rows["memory"][1] == "MB"
    assert "2 in the last 5m, 1 failed (50.0%), mean" in shown
    idle = probe.cli("agent", "metrics", "assistant")
    assert "was not measured" in idle.stderr
    assert "none in the last 2m" in ok(idle)
    assert probe.cli("agent", "metrics", "probe", "--window", "soon").returncode == 2


def test_logs_and_following_them(probe: Daemon) -> None:
    ok(probe.cli("ask", "probe", "log first line"))
    assert "first line" in ok(probe.cli("agent", "logs", "probe"))
    with started(probe, "agent", "logs", "probe", "-f", "--json") as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["text"] == "first line"
        ok(probe.cli("ask", "probe", "log second \x1b[2J line"))
        assert json.loads(process.stdout.readline())["text"] == "second \x1b[2J line"
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0
    last = ok(probe.cli("agent", "logs", "probe", "-n", "1"))
    assert last.count("\n") == 1
    assert "second" in last
    assert "\x1b" not in last


def test_events_past_and_followed_across_a_restart(probe: Daemon) -> None:
    ok(probe.cli("ask", "probe", "hello"))
    everything = lines(ok(probe.cli("events", "--json", "-n", "1000")))
    positions = [e["pos"] for e in everything if "pos" in e]
    assert positions == sorted(set(positions))
    done = lines(ok(probe.cli("events", "--json", "--stream", "run:*", "--type", "run.completed")))
    assert [e["type"] for e in done] == ["run.completed"]
    one = lines(ok(probe.cli("events", "--json", "--stream", done[0]["stream"])))
    assert one[-1] == done[0]
    assert lines(ok(probe.cli("events", "--json", "--since", str(positions[-2]))))[0]["pos"] == positions[-1]
    follow = ["events", "-f", "--json", "--type", "run.completed", "--since", str(positions[0])]
    with started(probe, *follow) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == done[0]
        probe.restart()
        ok(probe.cli("agent", "start", "probe"))
        ok(probe.cli("ask", "probe", "again"))
        assert json.loads(process.stdout.readline())["pos"] > done[0]["pos"]
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0


def test_sessions(probe: Daemon, tmp_path: Path) -> None:
    ok(probe.cli("ask", "probe", "remember the heron"))
    session = items(probe.cli("session", "list", "--agent", "probe", "--json"))[0]["session_id"]
    ok(probe.cli("ask", "probe", "and the otter", "--session", session))
    assert "heron" in ok(probe.cli("session", "show", session))
    hits = items(probe.cli("session", "search", "otter", "--json"))
    assert {hit["session_id"] for hit in hits} == {session}
    target = tmp_path / "out.md"
    ok(probe.cli("session", "export", session, "--format", "markdown", "-o", str(target)))
    assert "heron" in target.read_text()
    assert list(tmp_path.iterdir()) == [target]
    exported = lines(ok(probe.cli("session", "export", session)))
    assert any("otter" in json.dumps(line) for line in exported)
    ok(probe.cli("session", "rm", session))
    gone = probe.cli("session", "show", session)
    assert gone.returncode == 1
    assert "witsd session list" in gone.stderr


def test_a_reader_that_leaves_early_is_no_error(probe: Daemon) -> None:
    ok(probe.cli("ask", "probe", *map(str, range(2000))))
    session = items(probe.cli("session", "list", "--json"))[0]["session_id"]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        for args in (["session", "export", session], ["events", "-f", "--since", "0"], ["agent", "list"]):
            done = subprocess.run(
                [sys.executable, "-m", "witsd.cli.main", *args],
                env=probe.env, stdin=subprocess.DEVNULL, stdout=writing, stderr=subprocess.PIPE, text=True,
                timeout=PATIENCE_S, check=False,
            )
            assert (done.stderr, done.returncode) == ("", 1), args
    finally:
        os.close(writing)


def test_ask_outlives_a_restart_of_the_daemon_and_says_what_became_of_the_run(probe: Daemon) -> None:
    with started(probe, "ask", "probe", "wait") as process:
        assert process.stdout is not None
        assert process.stdout.read(6) == "begun "
        probe.kill()
        probe.start()
        _, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 1
        assert "interrupted" in err


def test_export_to_a_folder_that_is_not_there(probe: Daemon, tmp_path: Path) -> None:
    ok(probe.cli("ask", "probe", "x"))
    session = items(probe.cli("session", "list", "--json"))[0]["session_id"]
    done = probe.cli("session", "export", session, "-o", str(tmp_path / "no" / "out"))
    assert done.returncode == 1
    assert "cannot write" in done.stderr


def test_tokens(daemon: Daemon) -> None:
    secret = ok(daemon.cli("token", "create", "script", "--scope", "read,chat", "--expires", "12h")).strip()
    listed = daemon.cli("token", "list")
    assert secret not in ok(listed)
    entry = items(daemon.cli("token", "list", "--json"))[0]
    assert (entry["name"], sorted(entry["scopes"])) == ("script", ["chat", "read"])
    ok(daemon.cli("token", "revoke", entry["token_id"]))
    assert items(daemon.cli("token", "list", "--json")) == []


def test_models_and_rpc(daemon: Daemon) -> None:
    assert "offline" in ok(daemon.cli("model", "list"))
    assert any(m["name"] == "offline" for m in items(daemon.cli("model", "list", "--json")))
    assert value(daemon.cli("rpc", "ping")) == {}
    assert value(daemon.cli("rpc", "agents/get", "-", stdin='{"name": "assistant"}'))["name"] == "assistant"
    unknown = daemon.cli("rpc", "no/such")
    assert unknown.returncode == 1
    mistyped = daemon.cli("rpc", "agents/lst")
    assert mistyped.stderr == "witsd: Method not found: agents/lst; did you mean agents/list?\n"
    bad = daemon.cli("rpc", "agents/get", '{"name": 7}')
    assert bad.returncode == 1
    assert "name" in bad.stderr


def test_reload_names_file_and_line(daemon: Daemon) -> None:
    broken = daemon.home / "agents" / "broken.toml"
    broken.write_text('name = "broken"\nkind = "native"\ncommand = [\n')
    done = daemon.cli("reload")
    assert done.returncode == 1
    assert "broken.toml" in done.stderr
    broken.unlink()
    ok(daemon.cli("reload"))


def test_down_waits_until_the_daemon_is_gone(probe: Daemon) -> None:
    with started(probe, "ask", "probe", "wait") as busy:
        assert busy.stdout is not None
        assert busy.stdout.read(6) == "begun "
        ok(probe.cli("down", "--grace", "1"))  # the run keeps it from ending at once
        assert probe.process is not None
        assert probe.process.poll() == 0
    assert probe.cli("status").returncode == 3
    probe.start()  # at once: nothing of the old one is in the way
    ok(probe.cli("status"))


def test_up_runs_in_the_foreground_with_its_own_pid(stopped_daemon: Daemon) -> None:
    stopped_daemon.start("up", module="witsd.cli.main")
    assert value(stopped_daemon.cli("status", "--json"))["pid"] == stopped_daemon.pid
    ok(stopped_daemon.cli("down"))
    assert stopped_daemon.wait() == 0
