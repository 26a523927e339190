"""What the doctor says of a machine, of files and of a database: each fault by making it."""

from __future__ import annotations

import os
import resource
import socket
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

import apsw
import attrs
import pytest
from witsd_client.paths import Paths

from witsd.journal.migrations import migrate
from witsd.services import doctor
from witsd.services.doctor import AgentView, Machine
from witsd.supervise.sandbox_ways import Found
from witsd.values.wire.common import UNSET
from witsd.values.wire.doctor import DoctorItem
from witsd.values.wire.system import DefinitionError

NOW_US = 1_795_165_507_000_000

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a file of another user has to be made")


def worst(items: Sequence[DoctorItem], name: str) -> DoctorItem:
    order = ("ok", "warning", "problem")
    found = [item for item in items if item.name == name]
    assert found, f"nothing was said of {name}"
    return max(found, key=lambda item: order.index(item.status))


def says(item: DoctorItem, status: str, *words: str) -> None:
    assert item.status == status, item
    text = f"{item.message} {item.hint}"
    for word in words:
        assert word in text
    # Each fault says what to do; what is well needs nothing.
    assert (item.hint is UNSET) == (status == "ok"), item


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A user on a machine with systemd, bubblewrap and setpriv."""
    root = tmp_path / "root"
    for folder in ("run/systemd/system", "proc/self", "proc/sys/user", "proc/sys/kernel", "var/lib/systemd/linger"):
        (root / folder).mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("0::/user.slice/user-1000.slice/session-1.scope\n")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bwrap", "setpriv"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    return Machine(env={"HOME": "/home/ada", "PATH": str(programs)}, root=root, uid=54321)


def test_environment(machine: Machine, tmp_path: Path) -> None:
    says(doctor.environment(machine), "ok", "Python 3.", "54321")
    env = {**machine.env, "XDG_RUNTIME_DIR": str(tmp_path / "nowhere")}
    says(doctor.environment(attrs.evolve(machine, env=env)), "problem", "nowhere", "su and sudo")
    says(doctor.environment(attrs.evolve(machine, env={})), "warning", "neither HOME")


def test_linger(machine: Machine) -> None:
    says(doctor.linger(machine), "warning", "loginctl enable-linger 54321")
    says(doctor.linger(attrs.evolve(machine, uid=0)), "ok")
    (machine.root / "proc/self/cgroup").write_text("0::/system.slice/system-witsd.slice/witsd@ada.service\n")
    says(doctor.linger(machine), "ok", "no login session")
    (machine.root / "proc/self/cgroup").write_text("0::/user.slice\n")
    (machine.root / "var/lib/systemd/linger/54321").touch()
    says(doctor.linger(machine), "ok", "lingers")
    (machine.root / "var/lib/systemd/linger/54321").unlink()
    (machine.root / "run/systemd/system").rmdir()
    says(doctor.linger(machine), "ok", "no systemd")


def test_sandbox(machine: Machine) -> None:
    says(doctor.sandbox(machine, Found(way="bubblewrap")), "ok", "bubblewrap")
    problems = {"bubblewrap": "bwrap is not installed"}
    says(doctor.sandbox(machine, Found(way="namespaces", problems=problems)), "ok", "namespaces", "not installed")
    problems["namespaces"] = "unshare: Operation not permitted"
    says(doctor.sandbox(machine, Found(way="landlock", problems=problems)), "warning", "can be seen", "install bubble")
    nothing = Found(way=None, problems=problems)
    says(doctor.sandbox(machine, nothing), "warning", "refuse", "Operation not permitted", "install bubblewrap")
    says(doctor.sandbox(machine, Found(way="none", problems=problems)), "warning", "allow_none", "whatever this user")
    (machine.root / "proc/sys/kernel/apparmor_restrict_unprivileged_userns").write_text("1\n")
    says(doctor.sandbox(machine, nothing), "warning", "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0")
    (machine.root / "proc/sys/user/max_user_namespaces").write_text("0\n")
    says(doctor.sandbox(machine, nothing), "warning", "user.max_user_namespaces=10000")
    says(doctor.sandbox(attrs.evolve(machine, uid=0), nothing), "warning", "install bubblewrap")


def test_setpriv(machine: Machine) -> None:
    says(doctor.death_signal(machine), "ok", "setpriv")
    says(doctor.death_signal(attrs.evolve(machine, env={"PATH": "/nowhere"})), "warning", "util-linux")


def test_descriptors() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        pytest.skip("no limit here")
    says(doctor.descriptors(1, 0, 10), "ok", str(soft))
    says(doctor.descriptors(1, soft, 10), "warning", "LimitNOFILE=")
    says(doctor.descriptors(1, 0, soft - 1), "problem", f"{soft - 1} of {soft}")
    says(doctor.descriptors(1, 0), "ok", str(soft))


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths.from_environment({"WITSD_HOME": str(tmp_path / "home")})


def test_folders(paths: Paths) -> None:
    says(worst(doctor.folders(paths), "folders"), "ok")  # not there, but can be made
    paths.log_dir.mkdir(parents=True)
    says(worst(doctor.folders(paths), "folders"), "ok", str(paths.log_dir))
    paths.log_dir.chmod(0o777)
    says(worst(doctor.folders(paths), "folders"), "problem", "logs: others", f"chmod go-w {paths.log_dir}")
    paths.log_dir.rmdir()
    paths.log_dir.touch()
    says(worst(doctor.folders(paths), "folders"), "problem", "no folder", "move it away")


@as_root
def test_a_folder_of_somebody_else(paths: Paths) -> None:
    paths.log_dir.mkdir(parents=True)
    os.chown(paths.log_dir, 54321, 54321)
    says(worst(doctor.folders(paths), "folders"), "problem", "uid 54321")


def test_socket(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    says(doctor.socket_file(path), "problem", "is gone")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        path.chmod(0o600)
        says(doctor.socket_file(path), "ok", str(path))
        path.chmod(0o666)
        says(doctor.socket_file(path), "warning", "chmod 600")
        path.chmod(0o600)
        tmp_path.chmod(0o777)
        says(doctor.socket_file(path), "problem", "chmod 700")
        tmp_path.chmod(0o700)
    path.unlink()
    path.touch()
    says(doctor.socket_file(path), "problem", "no socket")


def test_port() -> None:
    says(doctor.port(None, loopback=True), "ok", "off")
    says(doctor.port("127.0.0.1:1", loopback=True), "ok", "127.0.0.1:1")
    says(doctor.port("0.0.0.0:1", loopback=False), "warning", "other machines", "127.0.0.1:9487")


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A migrated database with an event, its pages in the file itself."""
    path = tmp_path / "witsd.db"
    db = apsw.Connection(str(path))
    migrate(db, str(path))
    with db:
        db.execute("INSERT INTO streams(stream_id, name, last_seq) VALUES (1, 'system', 1)")
        db.execute("INSERT INTO events VALUES (1, 1, 1, NULL, ?, 'x', '{}')", (NOW_US,))
        many = ((-n, n + 1, "y" * 200) for n in range(1, 2000))
        db.executemany("INSERT INTO events VALUES (?, 1, ?, NULL, 1, 'x', ?)", many)
    db.close()
    path.chmod(0o600)
    return path


def test_a_database_without_fault(database: Path) -> None:
    found = doctor.database(database, now_us=NOW_US)
    says(worst(found, "database"), "ok", "without fault")
    says(worst(found, "clock"), "ok")
    assert not list(database.parent.glob("*-wal"))
    assert {item.name for item in found} == {"database", "disk", "clock"}


def test_no_database_yet(tmp_path: Path) -> None:
    path = tmp_path / "not/made/witsd.db"
    says(worst(doctor.database(path, now_us=NOW_US), "database"), "ok", "not there yet")
    assert not path.parent.exists()


def test_a_database_that_is_damaged(database: Path) -> None:
    size = database.stat().st_size
    with database.open("r+b") as file:
        file.seek(size // 2)
        file.write(os.urandom(size // 4))
    says(worst(doctor.database(database, now_us=NOW_US), "database"), "problem", "backup")


def test_a_file_that_is_no_database(database: Path) -> None:
    database.write_bytes(b"hello" * 1000)
    says(worst(doctor.database(database, now_us=NOW_US), "database"), "problem", "not a database")


def test_somebody_elses_database(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    db = apsw.Connection(str(path))
    db.execute("PRAGMA application_id = 77")
    db.execute("CREATE TABLE x(y)")
    db.close()
    path.chmod(0o600)
    says(worst(doctor.database(path, now_us=NOW_US), "database"), "problem", "not witsd's")


def test_a_database_that_others_read(database: Path) -> None:
    database.chmod(0o644)
    says(worst(doctor.database(database, now_us=NOW_US), "database"), "warning", "chmod 600")


def test_a_large_database_is_not_read_to_its_end(database: Path) -> None:
    found = doctor.database(database, now_us=NOW_US, within_s=0)
    says(worst(found, "database"), "ok", "no fault in the 0 s")


def test_a_log_that_grew(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LARGE_WAL_BYTES", 10)
    db = apsw.Connection(str(database))
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA wal_autocheckpoint = 0")
    db.execute("UPDATE journal SET last_pos = 5")
    says(worst(doctor.database(database, now_us=NOW_US), "database"), "warning", "write-ahead log", "restart")
    db.close()


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says(doctor.disk(tmp_path)[0], "ok", "free at")
    monkeypatch.setattr(doctor, "LOW_DISK_BYTES", 1 << 60)
    says(doctor.disk(tmp_path)[0], "warning", "journal.max_bytes")
    monkeypatch.setattr(doctor, "NO_DISK_BYTES", 1 << 60)
    says(doctor.disk(tmp_path / "not/there")[0], "problem", "make room")


def test_clock(database: Path) -> None:
    before = doctor.database(database, now_us=NOW_US - 3600_000_000)
    says(worst(before, "clock"), "warning", "set back")
    says(worst(doctor.database(database, now_us=1), "clock"), "problem", "1970-01-01", "timedatectl")


def test_definitions(tmp_path: Path) -> None:
    says(worst(doctor.definitions(tmp_path, (), 3), "definitions"), "ok", "3 in")
    error = DefinitionError(file="a.toml", line=7, message="unknown key `x`")
    found = doctor.definitions(tmp_path, (error,), 3)
    says(worst(found, "definitions"), "problem", "a.toml:7: unknown", "witsd reload")
    file = tmp_path / "b.toml"
    file.touch()
    file.chmod(0o666)
    says(worst(doctor.definitions(tmp_path, (), 1), "definitions"), "problem", "any program", str(file))
    file.chmod(0o600)
    tmp_path.chmod(stat.S_IMODE(tmp_path.stat().st_mode) | 0o020)
    says(worst(doctor.definitions(tmp_path, (), 1), "definitions"), "problem", str(tmp_path))


def view(state: str, health: str = "ok", reason: str = "exited with code 3") -> AgentView:
    return AgentView(name="digest", state=state, health=health, reason=reason)


def test_agents() -> None:
    says(doctor.agents([])[0], "ok", "none")
    says(doctor.agents([view("active"), view("active"), view("inactive")])[0], "ok", "2 active, 1 inactive")
    says(doctor.agents([view("active"), view("failed")])[0], "problem", "it exited with code 3", "agent start digest")
    says(doctor.agents([view("active", health="hung")])[0], "problem", "agent restart digest")
    says(doctor.agents([view("backoff")])[0], "warning", "keeps ending")


@attrs.frozen
class Used:
    name: str
    reason: str
    controllers: frozenset[str] = frozenset()
    missing: Mapping[str, str] = {}


def test_limits_say_who_keeps_them() -> None:
    says(doctor.limits(None), "warning", "cpu_percent: reported, not held back")
    every = frozenset({"memory", "cpu", "tasks"})
    says(doctor.limits(Used("cgroup v2", "", every)), "ok", "the kernel keeps memory, cpu, tasks, open files")
    but_memory = Used("cgroup v2", "", every - {"memory"}, {"memory": "not handed on"})
    says(doctor.limits(but_memory), "ok", "memory_bytes: killed within a second of the breach")
    some = Used("cgroup v1", "", frozenset({"tasks"}), {"memory": "not handed on", "cpu": "not handed on"})
    item = doctor.limits(some)
    says(item, "warning", "the kernel keeps tasks, open files; by samples: memory_bytes")
    assert item.message.count("not handed on") == 1
    assert "fork bomb" not in item.message


def test_containment() -> None:
    says(doctor.containment(None), "warning", "Delegate=yes")
    says(doctor.containment(Used("process group", "nothing is writable")), "warning", "nothing is writable")
    says(doctor.containment(Used("cgroup v2", "/sys/fs/cgroup/x")), "ok", "cgroup v2: /sys/fs/cgroup/x")
