"""Control groups as files: what is mounted, who is in a group, ending everything in it.

Plain functions over directories. Those that walk, wait or retry say that they block: run them in a thread.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import msgspec

#: How deep and how far a search through a hierarchy goes; machines have some hundreds of groups.
_SEARCH_DEPTH = 16
_SEARCH_GROUPS = 20_000
#: Handles open at once while a list of processes is signalled.
_BATCH = 64
#: What reading a group's file says when the group has vanished, or (v2) holds threads and no processes.
_GONE = (errno.ENOENT, errno.ENODEV)
_NO_PROCESSES = (*_GONE, errno.EOPNOTSUPP)
#: No handle to be had: says nothing about the group.
SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_OCTAL = re.compile(r"\\([0-7]{3})")


def write(file: Path, value: object) -> None:
    """Never creates the file: a group without it has not got that feature."""
    handle = os.open(file, os.O_WRONLY | os.O_CLOEXEC | os.O_TRUNC)
    try:
        os.write(handle, str(value).encode())
    finally:
        os.close(handle)


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """What a kernel does with a group; a test puts a tree of plain files in its place."""

    proc: Path = Path("/proc/self")
    write: Callable[[Path, object], None] = write
    mkdir: Callable[[Path], None] = os.mkdir
    rmdir: Callable[[Path], None] = os.rmdir


class Hierarchy(msgspec.Struct, frozen=True, kw_only=True):
    """A mounted hierarchy. ``own``: the daemon's group in it. ``at_top``: the highest group we can see."""

    mount: Path
    own: Path
    path: str
    #: Empty for v2, whose controllers depend on the group.
    controllers: frozenset[str]
    v2: bool

    @property
    def at_top(self) -> bool:
        return self.own == self.mount


def hierarchies(proc: Path) -> tuple[Hierarchy, ...]:
    """Every hierarchy that is mounted and in which our own group can be reached."""
    try:
        membership = (proc / "cgroup").read_text(errors="surrogateescape")
        mounts = (proc / "mountinfo").read_text(errors="surrogateescape")
    except OSError:
        return ()
    paths: dict[frozenset[str], str] = {}
    for line in membership.splitlines():
        _, names, path = line.split(":", 2)
        paths[frozenset(filter(None, names.split(",")))] = path
    found: dict[frozenset[str], Hierarchy] = {}
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        fields, (kind, _, options) = left.split(), right.split(" ", 2)
        if kind not in ("cgroup", "cgroup2"):
            continue
        given = frozenset(options.split(","))
        key = next((k for k in paths if k and k <= given), None) if kind == "cgroup" else frozenset[str]()
        if key is None or key not in paths or key in found:
            continue
        root, mount, path = _unescape(fields[3]), Path(_unescape(fields[4])), paths[key]
        inside = path.removeprefix(root.rstrip("/"))
        if ".." in path.split("/") or (inside == path and root != "/") or (inside and inside[0] != "/"):
            continue  # our group lies outside what is mounted here
        own = mount / inside.strip("/") if inside.strip("/") else mount
        found[key] = Hierarchy(mount=mount, own=own, path=path, controllers=key, v2=kind == "cgroup2")
    return tuple(found.values())


def _unescape(text: str) -> str:
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), text)


def number(file: Path, key: str = "") -> int | None:
    """The figure in a file, or in its line ``key``; None where there is none (``max`` is none too)."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        words = line.split()
        if key and words[:1] == [key]:
            words = words[1:]
        elif key:
            continue
        return int(words[0]) if words and words[0].isdigit() else None
    return None


def words(file: Path) -> frozenset[str]:
    try:
        return frozenset(file.read_text().split())
    except OSError:
        return frozenset()


def groups(top: Path) -> Iterator[Path]:
    """The group and all below it, the lowest first. Blocks: a directory read for each."""
    try:
        below = [entry.path for entry in os.scandir(top) if entry.is_dir(follow_symlinks=False)]
    except OSError as error:
        if error.errno not in _GONE:
            raise
        return
    for path in below:
        yield from groups(Path(path))
    yield top


def members(top: Path) -> set[int]:
    """The pids of all processes in the group and below it; zombies are in no group. Blocks, briefly.

    Raises ``OSError`` when it cannot tell (no handle to be had); a group that has vanished is an empty one.
    """
    found: set[int] = set()
    for group in groups(top):
        try:
            # A process of a pid namespace that we cannot see into shows as 0.
            found.update(int(pid) for pid in (group / "cgroup.procs").read_text().split() if pid != "0")
        except OSError as error:
            if error.errno not in _NO_PROCESSES:
                raise
    return found


def populated(top: Path) -> bool:
    """Whether any process is in it or below it; raises as ``members``. On v2 one read of a kernel file."""
    try:
        return "populated 1" in (top / "cgroup.events").read_text()
    except OSError as error:
        if error.errno not in _GONE:
            raise
    return bool(members(top))


def send(pids: Iterable[int], number: int, still_there: Callable[[], Collection[int]]) -> int:
    """Signal processes found by number; returns how many. Blocks.

    ``still_there`` is asked again once handles to them are open, so a reused number is never hit.
    """
    left, sent = [pid for pid in pids if pid != os.getpid()], 0
    while left:
        batch, left = left[:_BATCH], left[_BATCH:]
        handles: dict[int, int] = {}
        try:
            for pid in batch:
                try:
                    handles[pid] = os.pidfd_open(pid)
                except ProcessLookupError:
                    continue
                except OSError as error:
                    if error.errno not in (errno.EMFILE, errno.ENFILE) or not handles:
                        raise
                    left = [pid for pid in batch if pid not in handles] + left  # with the handles there are
                    break
            for pid in handles.keys() & set(still_there()):
                try:
                    signal.pidfd_send_signal(handles[pid], number)
                    sent += 1
                except (ProcessLookupError, PermissionError):
                    continue  # gone in the meantime, or another user's: counted as not sent
        finally:
            for handle in handles.values():
                os.close(handle)
    return sent


def kill(top: Path, deadline_s: float = 5.0) -> int:
    """SIGKILL everything in the group, frozen or forking as it may be; returns how many there were.

    With ``cgroup.kill`` one write, after which they are dying; the caller waits. Without it this freezes,
    kills and thaws until the group is empty or the deadline has passed. Blocks. Raises as ``members``.
    """
    found = members(top)
    if os.getpid() not in found:
        try:
            write(top / "cgroup.kill", 1)
            return len(found)
        except OSError as error:
            if error.errno in SCARCE:
                raise  # otherwise: an older kernel, v1, or not allowed
    return _kill_by_hand(top, deadline_s)


def _kill_by_hand(top: Path, deadline_s: float) -> int:
    give_up = time.monotonic() + deadline_s
    killed: set[int] = set()
    pause = 0.0005
    while found := members(top) - {os.getpid()}:
        undo = _freeze(top, give_up)
        try:
            # Frozen, nobody forks between being listed and being killed.
            found = members(top) - {os.getpid()}
            send(found, signal.SIGKILL, lambda: members(top))
            killed |= found
        finally:
            _thaw(top, undo)
        if time.monotonic() > give_up:
            break
        time.sleep(pause)  # on a thread: gives the kernel time to take them down
        pause = min(pause * 2, 0.02)
    return len(killed)


def _freeze(top: Path, give_up: float) -> str:
    """Keep them from forking; returns the limit of tasks to put back, where that is how."""
    if os.getpid() in members(top):
        return ""  # not ourselves with them
    # A group that may not fork is as good as a frozen one, where there is no freezer.
    before = "".join(words(top / "pids.max"))
    for file, value in (("freezer.state", "FROZEN"), ("cgroup.freeze", 1), ("pids.max", 0)):
        try:
            write(top / file, value)
        except OSError:
            continue
        if file == "pids.max":
            return before
        break
    give_up = min(give_up, time.monotonic() + 0.2)  # one in the middle of vfork or I/O does not freeze: kill anyway
    while time.monotonic() < give_up and words(top / "freezer.state") == {"FREEZING"}:
        time.sleep(0.0005)
    return ""


def _thaw(top: Path, tasks: str) -> None:
    if tasks:
        try:
            write(top / "pids.max", tasks)
        except OSError:
            pass  # vanished
    for group in groups(top):  # those below may have been frozen by the agent itself
        for file, value in (("freezer.state", "THAWED"), ("cgroup.freeze", 0)):
            try:
                write(group / file, value)
            except OSError:
                continue


def wait_empty(top: Path, deadline_s: float) -> bool:
    """Wait until nobody is in the group. Blocks."""
    give_up, pause = time.monotonic() + deadline_s, 0.0005
    while populated(top):
        if time.monotonic() > give_up:
            return False
        time.sleep(pause)
        pause = min(pause * 2, 0.02)
    return True


def remove(top: Path, host: Host, deadline_s: float = 2.0, *, below_only: bool = False) -> bool:
    """Remove the group and all below it, trying again while the kernel says busy. Blocks.

    False when the deadline has passed or it is not ours to remove: a later sweep finds it again.
    """
    give_up, pause = time.monotonic() + deadline_s, 0.0005
    while True:
        busy = False
        for group in groups(top):
            if below_only and group == top:
                continue
            try:
                host.rmdir(group)
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                    return False
                busy = True
        if not busy:
            return True
        if time.monotonic() > give_up:
            return False
        time.sleep(pause)
        pause = min(pause * 2, 0.05)


def search(mount: Path, name: str) -> list[Path]:
    """The groups of that name anywhere in a hierarchy. Blocks: some milliseconds on a machine with systemd."""
    # By strings: a Path keeps each name of it for good.
    found: list[Path] = []
    level, seen = [str(mount)], 0
    for _ in range(_SEARCH_DEPTH):
        following: list[str] = []
        for group in level:
            try:
                below = [entry for entry in os.scandir(group) if entry.is_dir(follow_symlinks=False)]
            except OSError:
                continue
            seen += len(below)
            found += [Path(entry.path) for entry in below if entry.name == name]
            following += [entry.path for entry in below if entry.name != name]
            if seen > _SEARCH_GROUPS:
                return found
        level = following
    return found


def is_delegated(group: Path) -> bool:
    """Whether systemd says that what lies below this group is ours (``Delegate=yes``)."""
    for name in ("user.delegate", "trusted.delegate"):
        try:
            if os.getxattr(group, name) == b"1":
                return True
        except OSError:
            continue
    return False


def try_joining(group: Path) -> str:
    """Whether a process of ours can be put into the group: empty, or why not. Blocks: starts a shell."""
    done = subprocess.run(
        ["/bin/sh", "-c", 'echo 0 >"$0/cgroup.procs"', str(group)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
        check=False,
    )
    return "" if done.returncode == 0 else done.stderr.decode(errors="replace").strip() or "it cannot be joined"
