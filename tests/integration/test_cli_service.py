"""``witsd service`` against a systemctl, loginctl and launchctl that keep a record instead of doing anything."""

from __future__ import annotations

import json
import os
import plistlib
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from witsd_client.paths import Paths

from tests.support.daemon import Daemon
from witsd.cli import service_files

USER = pwd.getpwuid(os.geteuid()).pw_name
UNIT = "witsd.service"
COMMAND = service_files.command(Path(sys.executable).parent, sys.executable)

#: Each writes its arguments down, and remembers as little state as its caller looks at.
FAKES = {
    "systemctl": """
        case "$2" in
        show)
            if [ -e active ]; then echo ActiveState=active; echo SubState=running; echo MainPID=4242
            else echo ActiveState=inactive; echo SubState=dead; echo MainPID=0; fi
            [ -e enabled ] && echo UnitFileState=enabled
            [ -e loaded ] && echo LoadState=loaded || echo LoadState=not-found ;;
        daemon-reload) [ -e "$HOME/.config/systemd/user/witsd.service" ] && touch loaded || rm -f loaded ;;
        enable) touch active enabled ;;
        disable) rm -f active enabled ;;
        esac
    """,
    "loginctl": """
        case "$1" in
        show-user) [ -e linger ] && echo yes || echo no ;;
        enable-linger) touch linger ;;
        esac
    """,
    "launchctl": """
        case "$1" in
        print) [ -e active ] || exit 113; printf 'x = {\\n\\tstate = running\\n\\tpid = 77\\n}\\n' ;;
        bootstrap) touch active ;;
        bootout) rm active ;;
        esac
    """,
}


class Fakes:
    """The tools on PATH, with what they were told."""

    def __init__(self, home: Daemon, folder: Path) -> None:
        self.home = home
        self.folder = folder
        self.state = folder / "state"
        self.state.mkdir()
        for name, body in FAKES.items():
            tool = folder / name
            tool.write_text(
                f'#!/bin/sh\ncd "{self.state}"\nfor word in "{name}" "$@"; do printf "%s " "$word"; done >> told\n'
                f'echo >> told\nif [ -e "fail-{name}-$1" ]; then cat "fail-{name}-$1" >&2; exit 1; fi\n'
                f'if [ -e "fail-{name}-$2" ]; then cat "fail-{name}-$2" >&2; exit 1; fi\n{body}\n'
            )
            tool.chmod(0o755)
        self.env = {"PATH": f"{folder}:{os.environ['PATH']}"}
        self.unit = home.user_home / ".config/systemd/user" / UNIT
        self.plist = home.user_home / "Library/LaunchAgents/witsd.plist"

    def run(self, *args: str, status: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        root = ["--as-root"] if args[0] == "install" else []
        done = self.home.cli("service", *args, *root, env={**self.env, **env})
        assert done.returncode == status, done.stdout + done.stderr
        return done

    def json(self, *args: str) -> Any:
        return json.loads(self.run(*args, "--json").stdout)

    def told(self) -> list[str]:
        """What changes something, since the last call."""
        file = self.state / "told"
        lines = [line.strip() for line in file.read_text().splitlines()] if file.exists() else []
        file.unlink(missing_ok=True)
        return [line for line in lines if not {"show", "show-user", "print"} & set(line.split())]

    def fail(self, tool: str, verb: str, message: str) -> None:
        (self.state / f"fail-{tool}-{verb}").write_text(message + "\n")


@pytest.fixture
def fakes(stopped_daemon: Daemon, tmp_path: Path) -> Fakes:
    folder = tmp_path / "bin"
    folder.mkdir()
    return Fakes(stopped_daemon, folder)


RELOAD, UP = "systemctl --user daemon-reload", f"systemctl --user enable --now {UNIT}"


def test_install_says_each_step_and_takes_them_in_order(fakes: Fakes) -> None:
    done = fakes.run("install")
    assert fakes.told() == [f"loginctl enable-linger {USER}", RELOAD, UP]
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["done"] * 4
    assert f"wrote {fakes.unit}" in done.stdout
    text = fakes.unit.read_text()
    assert service_files.command_of(text) == COMMAND
    assert f"Environment=WITSD_HOME={fakes.home.home}\n" in text
    assert "Environment=WITSD_LISTEN_HTTP=127.0.0.1:0\n" in text
    assert f"{fakes.folder}:" in text  # PATH


def test_installing_again_changes_nothing(fakes: Fakes) -> None:
    fakes.run("install")
    fakes.told()
    before = fakes.unit.stat()
    answer = fakes.json("install")
    assert fakes.told() == [RELOAD, UP]
    assert [step["outcome"] for step in answer["steps"]] == ["unchanged", "unchanged", "done", "done"]
    assert answer["status"]["active"] is True
    assert fakes.unit.stat().st_ino == before.st_ino


def test_a_unit_that_differs_is_mended_and_takes_effect(fakes: Fakes) -> None:
    fakes.run("install")
    fakes.told()
    fakes.unit.write_text("[Service]\nExecStart=/elsewhere/witsd up\n")
    assert fakes.json("status")["this_installation"] is False
    assert "updated" in fakes.run("install").stdout
    assert fakes.told() == [RELOAD, UP, f"systemctl --user restart {UNIT}"]
    assert fakes.json("status")["this_installation"] is True


def test_no_secret_is_written_down(fakes: Fakes) -> None:
    fakes.run("install", OPENAI_API_KEY="sk-hidden", WITSD_TOKEN="hidden-too", WITSD_MODELS_DEFAULT="offline")
    text = fakes.unit.read_text()
    assert "WITSD_MODELS_DEFAULT=offline" in text
    assert "hidden" not in text


def test_status_before_and_after(fakes: Fakes) -> None:
    assert fakes.json("status") == {
        "manager": "systemd",
        "file": str(fakes.unit),
        "installed": False,
        "enabled": False,
        "active": False,
        "state": "inactive dead",
        "pid": None,
        "this_installation": None,
        "linger": False,
    }
    fakes.run("install")
    assert fakes.json("status") == {
        "manager": "systemd",
        "file": str(fakes.unit),
        "installed": True,
        "enabled": True,
        "active": True,
        "state": "active running",
        "pid": 4242,
        "this_installation": True,
        "linger": True,
    }
    assert "pid 4242" in fakes.run("status").stdout


def test_uninstall_and_again(fakes: Fakes) -> None:
    fakes.run("install")
    fakes.told()
    answer = fakes.json("uninstall")
    assert fakes.told() == [f"systemctl --user disable --now {UNIT}", RELOAD]
    assert not fakes.unit.exists()
    assert answer["steps"][-1]["hint"] == f"loginctl disable-linger {USER}"
    assert [step["outcome"] for step in fakes.json("uninstall")["steps"]] == ["unchanged"]
    assert fakes.told() == []


def test_linger_is_left_alone_if_that_is_wanted(fakes: Fakes) -> None:
    fakes.run("install", "--no-linger")
    assert fakes.told() == [RELOAD, UP]


def test_linger_that_is_refused_does_not_keep_it_from_running(fakes: Fakes) -> None:
    fakes.fail("loginctl", "enable-linger", "Access denied")
    answer = fakes.json("install")
    warning = next(step for step in answer["steps"] if step["outcome"] == "warning")
    assert "Access denied" in warning["message"]
    assert warning["hint"] == f"sudo loginctl enable-linger {USER}"
    assert answer["status"]["active"] is True


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("Failed to connect to bus: No medium found", "log in as this user"),
        ("Job failed.", "journalctl --user -u witsd"),
    ],
)
def test_a_start_that_fails_is_told_with_what_to_do(fakes: Fakes, said: str, hint: str) -> None:
    fakes.fail("systemctl", "enable", said)
    done = fakes.run("install", status=1)
    assert said in done.stderr
    assert hint in done.stderr


def test_a_daemon_that_somebody_started_by_hand_is_not_fought_with(fakes: Fakes) -> None:
    fakes.home.start()
    assert "running already" in fakes.run("install", status=1).stderr
    assert fakes.told() == []
    assert not fakes.unit.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is asked whether it means it")
def test_never_as_root_unless_asked(fakes: Fakes) -> None:
    done = fakes.home.cli("service", "install", env=fakes.env)
    assert done.returncode == 1
    assert "as root" in done.stderr
    assert fakes.told() == []


def test_no_service_manager(fakes: Fakes, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no systemctl" in fakes.run("status", status=1, PATH=str(empty)).stderr


def test_a_property_list_for_launchd(fakes: Fakes) -> None:
    fakes.run("install", "--manager", "launchd")
    domain = f"gui/{os.geteuid()}"
    assert fakes.told() == [f"launchctl enable {domain}/witsd", f"launchctl bootstrap {domain} {fakes.plist}"]
    said = plistlib.loads(fakes.plist.read_bytes())
    assert said["Label"] == "witsd"
    assert said["ProgramArguments"] == COMMAND
    assert said["EnvironmentVariables"]["WITSD_HOME"] == str(fakes.home.home)
    assert (said["RunAtLoad"], said["KeepAlive"], said["Umask"]) == (True, {"SuccessfulExit": False}, 0o077)
    assert Path(said["StandardErrorPath"]).parent.is_dir()


def test_launchd_again_differently_and_away(fakes: Fakes) -> None:
    on_mac = ("--manager", "launchd")
    domain = f"gui/{os.geteuid()}"
    fakes.run("install", *on_mac)
    fakes.told()
    fakes.run("install", *on_mac)
    assert fakes.told() == []
    assert fakes.json("status", *on_mac)["pid"] == 77
    fakes.run("install", *on_mac, WITSD_MODELS_DEFAULT="offline")
    assert fakes.told() == [
        f"launchctl bootout {domain}/witsd",
        f"launchctl enable {domain}/witsd",
        f"launchctl bootstrap {domain} {fakes.plist}",
    ]
    fakes.run("uninstall", *on_mac)
    assert fakes.told() == [f"launchctl bootout {domain}/witsd"]
    assert not fakes.plist.exists()
    assert fakes.json("uninstall", *on_mac)["steps"][0]["outcome"] == "unchanged"


def test_a_broken_property_list_is_not_ours(fakes: Fakes) -> None:
    fakes.plist.parent.mkdir(parents=True)
    fakes.plist.write_bytes(b"<plist>")
    status = fakes.json("status", "--manager", "launchd")
    assert (status["installed"], status["this_installation"], status["active"]) == (True, False, False)


AWKWARD = ['/opt/my agents/100%/$HOME/"q"/back\\slash/witsd', "up"]


def test_awkward_paths_survive_the_unit() -> None:
    text = service_files.unit(AWKWARD, {"PATH": "/a b:/50%"})
    assert 'Environment="PATH=/a b:/50%%"' in text
    assert "$$HOME" in text
    assert service_files.command_of(text) == AWKWARD
    spaced = ["/opt/my agents/witsd", "up"]
    assert 'ExecStart="/opt/my agents/witsd" up' in service_files.unit(spaced, {})
    assert service_files.command_of(service_files.unit(spaced, {})) == spaced


def test_a_line_end_cannot_smuggle_in_a_directive() -> None:
    with pytest.raises(ValueError, match="control character"):
        service_files.unit(["/x", "up"], {"WITSD_HOME": "/x\nExecStartPre=/bin/evil"})


def test_the_plist_carries_what_cannot_be_in_a_unit(tmp_path: Path) -> None:
    paths = Paths.from_environment({"WITSD_HOME": str(tmp_path)})
    assert plistlib.loads(service_files.property_list(AWKWARD, {}, paths))["ProgramArguments"] == AWKWARD
