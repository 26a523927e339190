"""The command line without a daemon: help, usage, exit statuses, completion, and what it imports."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.support.daemon import Daemon
from witsd.cli.main import COMMANDS


def test_version(stopped_daemon: Daemon) -> None:
    done = stopped_daemon.cli("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("witsd 0.")


@pytest.mark.parametrize(
    "args", [["status"], ["ask", "assistant", "hi"], ["agent", "list"], ["chat"], ["down"]]
)
def test_no_daemon_is_status_3_and_one_line_that_helps(stopped_daemon: Daemon, args: list[str]) -> None:
    done = stopped_daemon.cli(*args)
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert str(stopped_daemon.socket) in done.stderr
    assert "`witsd up`" in done.stderr


def test_no_daemon_as_json(stopped_daemon: Daemon) -> None:
    done = stopped_daemon.cli("status", "--json")
    assert (done.returncode, done.stdout) == (3, "")
    assert json.loads(done.stderr)["error"]["name"] == "no_daemon"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["frobnicate"], "No such command"),
        (["agent", "show"], "NAME"),
        (["ask", "assistant"], "nothing to ask"),
        (["ask", "assistant", "what", "is", "-x"], "put `--` before"),
        (["agent", "add", "x", "--env", "novalue", "--", "true"], "not K=V"),
        (["agent", "add", "x", "--run-per-request", "--", "true"], "--kind exec"),
        (["token", "create", "x", "--scope", "everything"], "scopes are"),
        (["token", "create", "x", "--scope", "read", "--expires", "soon"], "no duration"),
        (["rpc", "ping", "{"], "not JSON"),
        (["rpc", "ping", "[1]"], "object"),
        (["events", "--stream", "log:x"], "agent logs"),
        (["chat", "--new", "--session", "s"], "exclude"),
    ],
)
def test_wrong_usage_is_status_2(stopped_daemon: Daemon, args: list[str], says: str) -> None:
    done = stopped_daemon.cli(*args)
    assert done.returncode == 2, done.stderr
    assert says.lower() in done.stderr.lower()
    assert "Traceback" not in done.stderr


def test_every_command_has_help_and_json(stopped_daemon: Daemon) -> None:
    import click

    from witsd.cli.main import cli

    def walk(command: click.Command, path: tuple[str, ...]) -> None:
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                assert inner is not None
                walk(inner, (*path, name))
            return
        assert command.help, path
        assert any(param.name == "as_json" for param in command.params), path

    walk(cli, ())
    assert stopped_daemon.cli("-h").stdout.count("\n  ") > len(COMMANDS)


def test_names_and_summaries_of_the_root_are_those_of_the_modules() -> None:
    import click

    from witsd.cli.main import cli

    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert command.name == name


def imported_by(args: list[str], env: dict[str, str]) -> set[str]:
    program = (
        "import sys, contextlib\n"
        f"sys.argv = ['witsd', *{args!r}]\n"
        "from witsd.cli.main import main\n"
        "with contextlib.suppress(SystemExit): main()\n"
        "print('\\n'.join(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stderr.split())


@pytest.mark.parametrize("args", [["--version"], ["--help"], ["completion", "bash"]])
def test_quick_commands_load_neither_trio_nor_rich(stopped_daemon: Daemon, args: list[str]) -> None:
    loaded = imported_by(args, stopped_daemon.env)
    assert not loaded & {"trio", "anyio", "rich", "msgspec", "asyncio"}


def test_no_kernel_module_is_loaded(stopped_daemon: Daemon) -> None:
    loaded = imported_by(["status"], stopped_daemon.env)
    ours = {name for name in loaded if name.startswith("witsd.") and not name.startswith("witsd.cli")}
    assert "trio" in loaded
    assert ours == set()


def complete(daemon: Daemon, words: str, **env: str) -> list[str]:
    """What the shell is offered after ``words``; the last one may be incomplete."""
    done = subprocess.run(
        [sys.executable, "-m", "witsd.cli.main"],
        env={
            **daemon.env,
            "_WITSD_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
            **env,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


def test_completion_of_commands_without_a_daemon(stopped_daemon: Daemon) -> None:
    assert complete(stopped_daemon, "witsd st") == ["status"]
    assert complete(stopped_daemon, "witsd agent re") == ["restart"]
    assert complete(stopped_daemon, "witsd ask ") == []


def test_completion_of_agents(daemon: Daemon) -> None:
    assert complete(daemon, "witsd ask as") == ["assistant"]
    assert complete(daemon, "witsd agent show ") == ["assistant"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_is_one_its_shell_can_read(stopped_daemon: Daemon, shell: str) -> None:
    done = stopped_daemon.cli("completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert "_WITSD_COMPLETE" in done.stdout
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed: its script was not parsed")
    subprocess.run([program, "-n"], input=done.stdout, text=True, check=True, timeout=60)


def test_up_becomes_the_daemon_and_passes_its_arguments(stopped_daemon: Daemon) -> None:
    done = stopped_daemon.cli("up", "--no-such-setting")
    assert done.returncode == 2
    assert "--no-such-setting" in done.stderr


def test_config_show_needs_no_daemon(stopped_daemon: Daemon) -> None:
    done = stopped_daemon.cli("config", "show", "--json", env={"WITSD_LISTEN_HTTP": "127.0.0.1:7"})
    assert done.returncode == 0, done.stderr
    assert "127.0.0.1:7" in done.stdout
    json.loads(done.stdout)


@pytest.mark.parametrize("args", [["--help"], ["config", "show"], ["config", "show", "--json"]])
def test_a_reader_that_leaves_early_is_no_error(stopped_daemon: Daemon, args: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "witsd.cli.main", *args],
        env=stopped_daemon.env, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
    )
    os.close(writing)
    assert done.stderr == ""


def _witsd(daemon: Daemon, shell: str) -> subprocess.CompletedProcess[str]:
    command = f"{sys.executable} -m witsd.cli.main {shell}"
    return subprocess.run(
        ["sh", "-c", command], env=daemon.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("args", ["status", "agent list --json", "ask assistant hello"])
def test_an_output_that_cannot_be_written(daemon: Daemon, args: str) -> None:
    daemon.call("agents/start", name="assistant", wait=True)  # or `ask` says that it waits for it
    full = _witsd(daemon, f"{args} >/dev/full")
    assert full.returncode == 1
    assert "the output cannot be written: No space left on device" in full.stderr
    assert len(full.stderr.splitlines()) == 1
    closed = _witsd(daemon, f"{args} >&-")
    assert (closed.returncode, closed.stderr) == (0, "")
    assert _witsd(daemon, f"{args} >&- 2>&- <&-").returncode in (0, 2)  # `ask` has nobody to read a question from


@pytest.mark.parametrize("args", [r"""agent show "$(printf '\377')" """, r"""rpc runs/get '{"run_id": "\ud800"}'"""])
def test_what_is_no_text_cannot_be_sent(daemon: Daemon, args: str) -> None:
    done = _witsd(daemon, args)
    assert done.returncode == 1
    assert done.stderr == "witsd: what was given is no Unicode text, so it cannot be sent\n"


def test_a_chat_is_not_ended_by_what_is_no_text(daemon: Daemon) -> None:
    daemon.call("agents/start", name="assistant", wait=True)
    done = _witsd(daemon, "chat assistant <<END\n$(printf 'what is 2+2 \\377')\nEND\n")
    assert (done.returncode, done.stderr) == (0, 'calculator(expression="2+2") = 4\n')
    assert "4" in done.stdout
