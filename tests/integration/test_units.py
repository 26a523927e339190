"""The units in ``systemd/``, read by systemd's own tools; nothing is started."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.daemon import ROOT
from witsd.cli import service_files

UNITS = ROOT / "systemd"
#: What ``systemd-analyze security`` may say of the system service.
MOST_EXPOSED = 3.0

needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed: the units were not verified"
)
SYSTEM = Path("/usr/lib/systemd/system")


def program(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)


def verify(*args: str, cwd: Path, **env: str) -> str:
    """All that ``systemd-analyze verify`` has to say; it needs no running systemd."""
    done = subprocess.run(
        ["systemd-analyze", *args[:-1], "verify", "--man=no", *args[-1].split()],
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = done.stdout + done.stderr
    assert said.strip() or done.returncode == 0, "it failed without a word"
    return said


def user_scene(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A folder with the user's units, and an environment in which the program they start exists."""
    (tmp_path / "run").mkdir()
    program(tmp_path / "home/.local/bin/witsd")
    folder = tmp_path / "units"
    shutil.copytree(UNITS, folder)
    return folder, {"HOME": str(tmp_path / "home"), "XDG_RUNTIME_DIR": str(tmp_path / "run")}


@needs_analyze
def test_systemd_has_nothing_to_say_about_the_users_units(tmp_path: Path) -> None:
    folder, env = user_scene(tmp_path)
    assert verify("--user", "./witsd.service ./witsd.socket", cwd=folder, **env) == ""
    broken = folder / "witsd.service"
    broken.write_text(broken.read_text().replace("Type=notify", "Typ=notify"))
    assert "Typ" in verify("--user", "./witsd.service ./witsd.socket", cwd=folder, **env)


@needs_analyze
@pytest.mark.skipif(not SYSTEM.is_dir(), reason="systemd's own units are not here to verify against")
def test_systemd_has_nothing_to_say_about_the_system_service(tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(SYSTEM, root / "usr/lib/systemd/system", symlinks=True)
    (root / "lib").symlink_to("usr/lib")
    for name in ("usr/local/bin/witsd", "bin/kill"):
        program(root / name)
    folder = root / "etc/systemd/system"
    folder.mkdir(parents=True)
    shutil.copy(UNITS / "witsd@.service", folder)
    assert verify(f"--root={root}", "witsd@ada.service", cwd=tmp_path) == ""


@needs_analyze
def test_the_system_service_is_closed_as_far_as_agents_allow() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(UNITS / "witsd@.service")],
        env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    found = re.search(r"Overall exposure level for .*: (\d+\.\d)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= MOST_EXPOSED, done.stdout


@needs_analyze
def test_an_installed_unit_with_awkward_paths_is_read_as_it_is_meant(tmp_path: Path) -> None:
    folder, env = user_scene(tmp_path)
    place = tmp_path / 'my "agents" 100% $HOME'
    program(place / "witsd")
    (folder / "witsd.service").write_text(
        service_files.unit([str(place / "witsd"), "up"], {"PATH": "/a b:/50%", "WITSD_HOME": str(place)})
    )
    assert verify("--user", "./witsd.service", cwd=folder, **env) == ""


def directives(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and line[0] not in "#"]


def test_the_unit_in_the_folder_is_the_one_that_install_writes() -> None:
    shipped = directives((UNITS / "witsd.service").read_text())
    assert shipped == directives(service_files.unit(["/HOME/.local/bin/witsd", "up"], {}).replace("/HOME", "%h"))


@pytest.mark.parametrize("name", ["witsd.service", "witsd@.service"])
def test_what_both_services_promise(name: str) -> None:
    lines = set(directives((UNITS / name).read_text()))
    assert {
        "Type=notify",
        "WatchdogSec=30",
        "KillMode=mixed",
        "Delegate=yes",
        "OOMPolicy=continue",
        "UMask=0077",
        "Restart=on-failure",
    } <= lines
    # Read-only control groups would take back what Delegate= gives.
    assert not any(line.startswith("ProtectControlGroups=y") for line in lines)


def test_the_socket_is_its_owners_alone() -> None:
    lines = directives((UNITS / "witsd.socket").read_text())
    assert {"SocketMode=0600", "DirectoryMode=0700", "ListenStream=%t/witsd/witsd.sock"} <= set(lines)
    assert all(line.startswith("ListenStream=127.0.0.1:") for line in lines if re.match(r"ListenStream=\d", line))
