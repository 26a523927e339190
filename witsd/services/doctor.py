"""What ``witsd doctor`` looks at: one function for each part, used by the daemon and, while it is down, from outside.

All of them block for a moment (files, the database, never a network) and belong in a thread. None raises for
what it finds: what cannot be looked at is a finding as well.
"""

from __future__ import annotations

import os
import pwd
import resource
import shutil
import stat
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import apsw
import attrs
from witsd_client.paths import Paths

from witsd.journal.cipher import Cipher, unlocked
from witsd.journal.migrations import APPLICATION_ID, SchemaError
from witsd.values.clock import rfc3339
from witsd.values.wire.common import UNSET
from witsd.values.wire.doctor import DoctorItem, DoctorStatus
from witsd.values.wire.system import DefinitionError

#: Free space on the database's disk below which the journal soon cannot grow, and below which it cannot now.
LOW_DISK_BYTES, NO_DISK_BYTES = 1 << 30, 100 << 20
#: A checkpoint keeps it near 16 MiB; this much says that a reader never lets go.
LARGE_WAL_BYTES = 256 << 20
#: How long the database is read for faults; a large one is not read to its end.
CHECK_S = 5.0
#: Descriptors of the daemon's own, and those an agent takes (three pipes, a pidfd, log, container).
_FDS_DAEMON, _FDS_AGENT = 64, 6
#: 2025-01-01: a machine that believes it is earlier has no clock.
_EPOCH_US = 1_735_689_600_000_000
#: How far ahead of the clock the newest event may be before the clock counts as set back.
_AHEAD_US = 60_000_000


@attrs.frozen(kw_only=True)
class Machine:
    """Where it runs. ``root`` is another folder in tests."""

    env: Mapping[str, str]
    root: Path = Path("/")
    uid: int = attrs.field(factory=os.geteuid)

    def which(self, program: str) -> str | None:
        return shutil.which(program, path=self.env.get("PATH", os.defpath))

    def read(self, path: str) -> str | None:
        """A small file under the root; None where it is not, or is not ours to read."""
        with suppress(OSError):
            return (self.root / path).read_text().strip()
        return None

    @property
    def user(self) -> str:
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return str(self.uid)


class Containment(Protocol):
    """Which means of ending an agent's whole tree is in use (see ``supervise``), and why that one."""

    @property
    def name(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def controllers(self) -> Collection[str]: ...
    @property
    def missing(self) -> Mapping[Any, str]: ...


@attrs.frozen(kw_only=True)
class AgentView:
    """What is looked at of an agent."""

    name: str
    state: str
    health: str
    reason: str


def _item(name: str, status: DoctorStatus, message: str, hint: str = "") -> DoctorItem:
    return DoctorItem(name=name, status=status, message=message, hint=hint or UNSET)


class SandboxFound(Protocol):
    """Which way of walling in code works here, and why no better one (see ``supervise.sandbox_ways``)."""

    @property
    def way(self) -> str | None: ...
    @property
    def why_not(self) -> str: ...
    @property
    def lacks(self) -> str: ...


def machine(it: Machine, found: SandboxFound) -> list[DoctorItem]:
    """All that concerns the machine and not this installation's files. ``found``: what ``sandbox`` looks at."""
    return [environment(it), linger(it), sandbox(it, found), death_signal(it)]


def environment(it: Machine) -> DoctorItem:
    """Python, kernel, and the variables by which files are found."""
    name = "environment"
    if not hasattr(os, "pidfd_open"):
        return _item(name, "problem", f"{sys.platform} has no pidfd: agents cannot be supervised", "run it on Linux")
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return _item(name, "problem", f"the kernel gives no pidfd: {error.strerror}", "it takes Linux 5.3 or newer")
    runtime = it.env.get("XDG_RUNTIME_DIR", "")
    if runtime and not (os.path.isabs(runtime) and os.access(runtime, os.W_OK | os.X_OK)):
        return _item(
            name,
            "problem",
            f"XDG_RUNTIME_DIR={runtime} is no folder one can write to",
            "log in as this user outright (su and sudo keep another's), or unset it",
        )
    if not (it.env.get("HOME") or it.env.get("WITSD_HOME")):
        return _item(name, "warning", "neither HOME nor WITSD_HOME is set", "set HOME: agents look for it too")
    version = ".".join(map(str, sys.version_info[:3]))
    return _item(name, "ok", f"Python {version}, {os.uname().sysname} {os.uname().release}, user {it.user}")


def linger(it: Machine) -> DoctorItem:
    """Whether a logout ends everything."""
    name = "linger"
    if not (it.root / "run/systemd/system").is_dir():
        return _item(name, "ok", "no systemd runs here, so none ends processes at logout")
    if it.uid == 0 or "/system.slice/" in (it.read("proc/self/cgroup") or ""):
        return _item(name, "ok", "not needed: this is no login session's")
    if (it.root / "var/lib/systemd/linger" / it.user).exists():
        return _item(name, "ok", f"{it.user} lingers: a logout ends nothing")
    return _item(
        name,
        "warning",
        f"when {it.user} logs out, systemd may end the daemon and its agents",
        f"loginctl enable-linger {it.user}",
    )


def sandbox(it: Machine, found: SandboxFound) -> DoctorItem:
    """Which way walls in the code that tools run: one that was tried just now."""
    name = "sandbox"
    if found.way is None:
        message = f"code cannot be walled in here, so the tools that run code refuse to ({found.why_not})"
        return _item(name, "warning", message, _sandbox_hint(it))
    not_better = f" ({found.why_not})" if found.why_not else ""
    if found.way == "none":
        message = f"nothing walls in the code that tools run: {found.lacks}{not_better}"
        return _item(name, "warning", message, f"{_sandbox_hint(it)}; then take sandbox.allow_none away")
    if found.lacks:
        return _item(name, "warning", f"{found.way}: {found.lacks}{not_better}", _sandbox_hint(it))
    return _item(name, "ok", f"{found.way}{not_better}")


def _sandbox_hint(it: Machine) -> str:
    if it.uid != 0:
        for switch, off in (
            ("user/max_user_namespaces", "0"),
            ("kernel/unprivileged_userns_clone", "0"),
            ("kernel/apparmor_restrict_unprivileged_userns", "1"),
        ):
            if it.read(f"proc/sys/{switch}") == off:
                value = "10000" if "max" in switch else 1 - int(off)
                return f"sysctl -w {switch.replace('/', '.')}={value}, as root, and install bubblewrap"
    return "install bubblewrap; in a container, allow it to make namespaces"


def death_signal(it: Machine) -> DoctorItem:
    """setpriv, by which an agent dies with the daemon where the kernel refuses ``supervise.forker``."""
    program = it.which("setpriv")
    if program is None:
        return _item(
            "setpriv",
            "warning",
            "setpriv is not installed: where clone3 is refused each start of an agent takes 10 ms longer",
            "install util-linux",
        )
    return _item("setpriv", "ok", program)


def descriptors(connections: int, agents: int, in_use: int | None = None) -> DoctorItem:
    """Whether ``RLIMIT_NOFILE`` suffices; ``in_use`` None: it is not our own process that matters."""
    name = "open files"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = _FDS_DAEMON + connections + _FDS_AGENT * agents
    hint = f"ulimit -n {max(need, 4096)} before `witsd up`, or LimitNOFILE= in the unit"
    if soft == resource.RLIM_INFINITY:
        return _item(name, "ok", "no limit")
    if in_use is not None and in_use > soft * 0.9:
        return _item(name, "problem", f"{in_use} of {soft} are open: new connections and agents will fail", hint)
    if soft < need:
        message = f"the limit is {soft} (hard {hard}); {connections} connections and {agents} agents may need {need}"
        return _item(name, "warning", message, hint)
    return _item(name, "ok", f"{'' if in_use is None else f'{in_use} open, '}the limit is {soft}")


def folders(paths: Paths) -> list[DoctorItem]:
    """Configuration, data and logs: ours, writable, and closed to others."""
    name = "folders"
    found = []
    for what, folder in (("configuration", paths.config_dir), ("data", paths.data_dir), ("logs", paths.log_dir)):
        fault = _folder_fault(folder)
        if fault:
            found.append(_item(name, "problem", f"{what}: {fault[0]}", fault[1]))
    together = ", ".join(dict.fromkeys(str(p) for p in (paths.config_dir, paths.data_dir, paths.log_dir)))
    return found or [_item(name, "ok", together)]


def _folder_fault(folder: Path) -> tuple[str, str] | None:
    """What is wrong with it, and what to do. One that is not there is judged by where it would be made."""
    try:
        info = folder.stat()
    except FileNotFoundError:
        above = next(p for p in folder.absolute().parents if p.exists())
        if os.access(above, os.W_OK | os.X_OK):
            return None
        return f"{folder} is not there and cannot be made in {above}", "set WITSD_HOME to a folder of your own"
    except OSError as error:
        return f"{folder}: {error.strerror}", "see who owns the folders above it"
    if not stat.S_ISDIR(info.st_mode):
        return f"{folder} is no folder", "move it away"
    if info.st_uid not in (os.geteuid(), 0):
        return f"{folder} belongs to {_name(info.st_uid)}", f"chown it, or run witsd as {_name(info.st_uid)}"
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        return f"{folder} cannot be written to", f"chmod u+rwx {folder}"
    if info.st_mode & 0o022 and not info.st_mode & stat.S_ISVTX:
        return f"others may write to {folder}", f"chmod go-w {folder}"
    return None


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def socket_file(path: Path) -> DoctorItem:
    """The Unix socket of a running daemon: whoever can connect is the owner."""
    name = "socket"
    try:
        info = path.lstat()
        folder = path.parent.stat()
    except OSError as error:
        return _item(
            name,
            "problem",
            f"{path} is gone ({error.strerror}): nobody can reach the daemon by it",
            "stop the daemon by its pid and start it again",
        )
    if not stat.S_ISSOCK(info.st_mode):
        return _item(name, "problem", f"{path} is no socket: it has been replaced", "restart the daemon")
    if info.st_mode & 0o077:
        return _item(name, "warning", f"{path} is open to others (who are refused by uid)", f"chmod 600 {path}")
    if folder.st_mode & 0o022 and not folder.st_mode & stat.S_ISVTX:
        return _item(name, "problem", f"others may replace {path}", f"chmod 700 {path.parent}")
    return _item(name, "ok", str(path))


def port(address: str | None, *, loopback: bool) -> DoctorItem:
    """Where HTTP is served."""
    if address is None:
        return _item("port", "ok", "HTTP is off")
    if not loopback:
        return _item(
            "port",
            "warning",
            f"{address} can be reached from other machines, with a token",
            'set listen.http = "127.0.0.1:9487" if that is not wanted',
        )
    return _item("port", "ok", address)


def database(
    path: Path, *, now_us: int, within_s: float = CHECK_S, cipher: Cipher | None = None
) -> list[DoctorItem]:
    """The file, what SQLite says of it, its log, the disk below it, and whether the clock agrees with it."""
    try:
        info = path.stat()
    except FileNotFoundError:
        return [_item("database", "ok", f"{path} is not there yet"), _clock(None, now_us), *disk(path.parent)]
    except OSError as error:
        return [_item("database", "problem", f"{path}: {error.strerror}", "see who owns the folders above it")]
    found = []
    if info.st_uid != os.geteuid():
        found.append(_item("database", "problem", f"{path} belongs to {_name(info.st_uid)}", "chown it"))
    elif info.st_mode & 0o077:
        found.append(_item("database", "warning", f"others may read {path}", f"chmod 600 {path}*"))
    checked, newest = _quick_check(path, within_s, cipher)
    found.append(checked)
    with suppress(OSError):
        wal = Path(f"{path}-wal").stat().st_size
        if wal > LARGE_WAL_BYTES:
            message = f"its write-ahead log has grown to {wal >> 20} MiB: something holds an old read"
            found.append(_item("database", "warning", message, "restart the daemon"))
    return [*found, *disk(path.parent), _clock(newest, now_us)]


def _quick_check(path: Path, within_s: float, cipher: Cipher | None) -> tuple[DoctorItem, int | None]:
    """SQLite's ``quick_check`` over a connection of its own, and the time of the newest event."""
    name = "database"
    give_up = time.monotonic() + within_s
    newest = None
    used = path.stat().st_size
    with suppress(OSError):
        used += Path(f"{path}-wal").stat().st_size
    size = f"{used / 1e6:.1f} MB" if used >= 1e6 else f"{used / 1e3:.0f} kB"
    broken = "stop witsd, move it away (or restore a backup), start again"
    try:
        db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    except apsw.Error as error:
        return _item(name, "problem", f"{path} cannot be opened: {error}", "see its owner and mode"), None
    try:
        unlocked(db, str(path), cipher)
        db.set_busy_timeout(1000)
        if db.pragma("application_id") not in (0, APPLICATION_ID):
            return _item(name, "problem", f"{path} is not witsd's database", "move it away"), None
        row = db.execute("SELECT time_us FROM events ORDER BY pos DESC LIMIT 1").fetchone()
        newest = int(row[0]) if row else None
        db.set_progress_handler(lambda: time.monotonic() > give_up, 10_000)
        said = str(db.execute("PRAGMA quick_check(1)").get)
    except SchemaError as error:
        return _item(name, "problem", str(error), "see [journal] key_file"), newest
    except apsw.InterruptError:
        return _item(name, "ok", f"{path}, {size}; no fault in the {within_s:g} s it was read for"), newest
    except apsw.BusyError as error:
        return _item(name, "warning", f"{path} is locked by another program: {error}", "end that program"), newest
    except apsw.Error as error:
        return _item(name, "problem", f"{path}: {error}", broken), newest
    finally:
        db.close()
    if said != "ok":
        return _item(name, "problem", f"{path} is damaged: {said}", broken), newest
    return _item(name, "ok", f"{path}, {size}, without fault"), newest


def disk(folder: Path) -> list[DoctorItem]:
    """Room for what is yet to be written."""
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    try:
        free = shutil.disk_usage(there).free
    except OSError as error:
        return [_item("disk", "problem", f"{there}: {error.strerror}")]
    message = f"{free / 1e9:.1f} GB free at {there}"
    hint = "make room, or lower journal.max_bytes and logs.max_bytes"
    if free < NO_DISK_BYTES:
        return [_item("disk", "problem", message, hint)]
    return [_item("disk", "warning", message, hint) if free < LOW_DISK_BYTES else _item("disk", "ok", message)]


def _clock(newest_us: int | None, now_us: int) -> DoctorItem:
    now = rfc3339(now_us)[:19] + "Z"
    if now_us < _EPOCH_US:
        return _item("clock", "problem", f"the machine believes it is {now}", "set its clock: timedatectl set-ntp true")
    if newest_us is not None and newest_us > now_us + _AHEAD_US:
        newest = rfc3339(newest_us)[:19] + "Z"
        message = f"it is {now}, but the newest event is of {newest}: the clock was set back"
        return _item("clock", "warning", message, "times in lists will look out of order until then")
    return _item("clock", "ok", now)


def settings(file: Path, waiting: Collection[str], wrong: str) -> DoctorItem:
    """What the file says now, for a daemon that runs with what it said then: see ``Source.pending``."""
    name = "settings"
    if wrong:
        hint = "mend it: the daemon goes on with what it has read, and does not start again with a wrong setting"
        return _item(name, "problem", wrong, hint)
    if waiting:
        message = f"{file} has changed and is not in effect yet: {', '.join(waiting)}"
        return _item(name, "warning", message, "witsd up --replace, or restart the service")
    return _item(name, "ok", f"{file}{'' if file.exists() else ' (not there)'}, as in effect")


def definitions(folder: Path, errors: Iterable[DefinitionError], count: int) -> list[DoctorItem]:
    """Files that cannot be used, and files that others could change: a definition names a program to run."""
    name = "definitions"
    found = [
        _item(
            name,
            "problem",
            f"{error.file}:{error.line}: {error.message}" if error.line else f"{error.file}: {error.message}",
            "mend it, then `witsd reload`; until then the last good one holds",
        )
        for error in errors
    ]
    for path in (folder, *sorted(folder.glob("*.toml"))):
        with suppress(OSError):
            info = path.stat()
            if info.st_mode & 0o022 or info.st_uid not in (os.geteuid(), 0):
                message = f"others may change {path}, and so have any program run as {_name(os.geteuid())}"
                found.append(_item(name, "problem", message, f"chown and chmod go-w {path}"))
    return found or [_item(name, "ok", f"{count} in {folder}")]


def agents(views: Iterable[AgentView]) -> list[DoctorItem]:
    """Those that have failed, hang, or keep ending."""
    found = []
    states: Counter[str] = Counter()
    for view in views:
        states[view.state] += 1
        see = f"witsd agent logs {view.name}"
        if view.state == "failed":
            message = f"{view.name} has failed: it {view.reason or 'gave no reason'}"
            found.append(_item("agents", "problem", message, f"{see}; then witsd agent start {view.name}"))
        elif view.health == "hung":
            found.append(_item("agents", "problem", f"{view.name} does not answer", f"witsd agent restart {view.name}"))
        elif view.state == "backoff":
            found.append(_item("agents", "warning", f"{view.name} keeps ending: it {view.reason or 'exited'}", see))
    summary = ", ".join(f"{n} {state}" for state, n in sorted(states.items())) or "none"
    return found or [_item("agents", "ok", summary)]


def containment(used: Containment | None) -> DoctorItem:
    """By what an agent's whole tree is ended."""
    name = "containment"
    if used is None or not used.name.startswith("cgroup"):
        message = used.reason if used is not None else "an agent's tree is ended by session, process group and mark"
        hint = "`witsd service install`: systemd gives the daemon control groups of its own (Delegate=yes)"
        return _item(name, "warning", f"no control groups: {message}", hint)
    return _item(name, "ok", f"{used.name}: {used.reason}" if used.reason else used.name)


#: What samples do about a limit that the kernel does not keep, and why that is less.
_SAMPLED = {
    "memory": "memory_bytes: killed within a second of the breach, not before",
    "cpu": "cpu_percent: reported, not held back",
    "tasks": "tasks: killed within a second of the breach, and a fork bomb may be faster",
}


def limits(used: Containment | None) -> DoctorItem:
    """Who keeps the limits of agents: the kernel, or samples."""
    name = "limits"
    kept = [limit for limit in _SAMPLED if used is not None and limit in used.controllers]
    kernel = ", ".join([*kept, "open files"])
    left = [limit for limit in _SAMPLED if limit not in kept]
    if not left:
        return _item(name, "ok", f"the kernel keeps {kernel}")
    why = "; ".join(dict.fromkeys(used.missing[limit] for limit in left if limit in used.missing)) if used else ""
    message = f"the kernel keeps {kernel}; by samples: {'; '.join(_SAMPLED[limit] for limit in left)}"
    # Memory by samples is what is promised where the kernel will not; what is only reported, or too late, is less.
    message += f" ({why})" if why else ""
    if left == ["memory"]:
        return _item(name, "ok", message)
    hint = "`witsd service install`: systemd gives the daemon control groups of its own (Delegate=yes)"
    return _item(name, "warning", message, hint)
