"""A view of the machine of one's own without bubblewrap: namespaces, and a file system that holds what was asked for.

It takes Linux 5.12 (``mount_setattr``), and root or user namespaces for everybody.
"""

from __future__ import annotations

import ctypes
import os
import struct

from witsd.supervise.cage.confine import libc

TYPE_CHECKING = False  # these modules cost a third of the start, and are for checkers alone
if TYPE_CHECKING:
    from collections.abc import Sequence

    #: What to put there, in this order: ``("ro", path)``, ``("rw", path)``, ``("empty", path, bytes)``,
    #: ``("hide", path)``, ``("link", target, path)``.
    Step = tuple[str, ...] | tuple[str, str, int]

_NEWNS, _NEWCGROUP, _NEWUTS, _NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
_NEWUSER, _NEWPID, _NEWNET = 0x10000000, 0x20000000, 0x40000000
_BIND, _RECURSIVE, _PRIVATE, _REMOUNT, _RDONLY = 4096, 16384, 1 << 18, 32, 1
_NOSUID, _NODEV, _NOEXEC = 2, 4, 8
_DETACH = 2
_SYS_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
#: As mount_setattr(2) has them: the same bits but for the recursion.
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
_DEVICES = ("null", "zero", "full", "random", "urandom")
#: Where the new root is put together: there on every machine, and covered for us alone.
_BASE = "/tmp"  # noqa: S108


def leave(*, network: bool, user: bool) -> None:
    """Leave all namespaces of the machine; the next fork is the first process of its own. Raises ``OSError``."""
    uid, gid = os.geteuid(), os.getegid()
    if user:
        unshare(_NEWUSER)
        map_user(uid, gid)
    unshare(_NEWNS | _NEWCGROUP | _NEWUTS | _NEWIPC | _NEWPID | (0 if network else _NEWNET))


def unshare(flags: int) -> None:
    if libc.unshare(flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "unshare")


def own_user(uid: int, gid: int) -> None:
    """One more user namespace, in which processes are counted from none. Raises ``OSError``."""
    unshare(_NEWUSER)
    map_user(uid, gid)


def map_user(uid: int, gid: int) -> None:
    """Stay who we are in a user namespace that was just made."""
    for file, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{file}", "w") as handle:
            handle.write(text)


def build(plan: Sequence[Step]) -> None:
    """Make ``plan`` the whole file system of this mount namespace. Raises ``OSError``."""
    _mount("none", "/", flags=_RECURSIVE | _PRIVATE)
    _mount("tmpfs", _BASE, "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
    os.chdir(_BASE)
    os.mkdir("new")
    os.mkdir("old")
    _mount("new", "new", flags=_BIND)
    _pivot(".", "old")
    os.chdir("/")
    for step in plan:
        _take(step)
    _devices("/new/dev")
    os.makedirs("/new/proc", exist_ok=True)
    try:
        _mount("proc", "/new/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
        for name in ("sys", "sysrq-trigger", "irq", "bus"):  # what root may write to
            if os.path.exists(f"/new/proc/{name}"):
                _mount(f"/new/proc/{name}", f"/new/proc/{name}", flags=_BIND)
                _read_only(f"/new/proc/{name}")
    except PermissionError:
        pass  # in a container whose own /proc is covered in part: programs do without it
    _mount("none", "/new", flags=_BIND | _REMOUNT | _RDONLY | _NOSUID | _NODEV)
    os.chdir("/new")
    _pivot(".", ".")  # the old root now lies over the new one
    _unmount(".")
    os.chdir("/")
    if os.path.isdir("/old"):
        raise OSError("the old root is still there")


def _take(step: Step) -> None:
    kind, path = step[0], str(step[-1 if step[0] == "link" else 1])
    new = f"/new{path}"
    if kind == "link":
        os.makedirs(os.path.dirname(new), exist_ok=True)
        os.symlink(str(step[1]), new)
    elif kind in ("ro", "rw"):
        old = f"/old{path}"
        if os.path.isdir(old):
            os.makedirs(new, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(new), exist_ok=True)
            os.close(os.open(new, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        _mount(old, new, flags=_BIND | _RECURSIVE)
        _set(new, (_ATTR_RDONLY if kind == "ro" else 0) | _ATTR_NOSUID | _ATTR_NODEV)
    else:
        os.makedirs(new, exist_ok=True)
        size, mode = (int(step[2]), "1777") if kind == "empty" else (4096, "555")
        _mount("tmpfs", new, "tmpfs", _NOSUID | _NODEV, f"size={size},nr_inodes={max(64, size >> 12)},mode={mode}")
        if kind == "hide":
            _read_only(new)


def _devices(folder: str) -> None:
    os.makedirs(folder, exist_ok=True)
    _mount("tmpfs", folder, "tmpfs", _NOSUID, "size=64k,mode=755")
    for name in _DEVICES:
        os.close(os.open(f"{folder}/{name}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o666))
        _mount(f"/old/dev/{name}", f"{folder}/{name}", flags=_BIND)
    for name, target in (("fd", "self/fd"), ("stdin", "self/fd/0"), ("stdout", "self/fd/1"), ("stderr", "self/fd/2")):
        os.symlink(f"/proc/{target}", f"{folder}/{name}")
    _mount("none", folder, flags=_BIND | _REMOUNT | _RDONLY | _NOSUID)


def _mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    filesystem, options = kind.encode() or None, data.encode() or None
    if libc.mount(source.encode(), target.encode(), filesystem, ctypes.c_ulong(flags), options):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target.removeprefix("/new"))


def _read_only(target: str) -> None:
    _set(target, _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV)


def _set(target: str, attributes: int) -> None:
    """For it and all that is mounted below it."""
    wanted = struct.pack("=4Q", attributes, 0, 0, 0)
    path = target.encode()
    if libc.syscall(_SYS_MOUNT_SETATTR, _AT_FDCWD, path, _AT_RECURSIVE, wanted, ctypes.c_size_t(len(wanted))):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target.removeprefix("/new"))


def _pivot(new: str, old: str) -> None:
    if libc.pivot_root(new.encode(), old.encode()):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "pivot_root")


def _unmount(target: str) -> None:
    if libc.umount2(target.encode(), _DETACH):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "umount2")
