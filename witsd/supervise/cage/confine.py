"""What a process takes from itself before it runs foreign code: rights, capabilities, calls, all beyond its share."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import struct

from witsd.supervise.cage import syscalls

TYPE_CHECKING = False  # these modules cost a third of the start, and are for checkers alone
if TYPE_CHECKING:
    from collections.abc import Iterable

libc = ctypes.CDLL(None, use_errno=True)
_SET_PDEATHSIG, _SET_DUMPABLE, _SET_NO_NEW_PRIVS, _SET_CHILD_SUBREAPER, _CAPBSET_DROP = 1, 4, 38, 36, 24
#: Not of the module ``signal``, whose enumerations take milliseconds to make.
SIGINT, SIGKILL, SIGPIPE, SIGSTOP, SIGXFSZ = 2, 9, 13, 19, 25
_SYS_CAPSET = {"x86_64": 126}.get(os.uname().machine, 91)
_CAPABILITIES_V3 = 0x20080522
#: Nobody's, on every Linux. For a daemon that runs as root.
NOBODY = 65534

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446  # the same number everywhere
_READ = 1 << 0 | 1 << 2 | 1 << 3  # execute, read a file, read a folder
#: What concerns a file and not what is in a folder: execute, write, read, truncate, ioctl of a device.
_OF_FILES = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15
#: How many rights there are, since which version.
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_TCP, _SCOPES = 0b11, 0b11
#: From these versions: emptying a file is a right, signals and abstract sockets stay inside.
TRUNCATES, SCOPED = 3, 6


def prctl(option: int, value: int) -> None:
    if libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def die_with_parent(alive: bool = True) -> None:
    """SIGKILL when the thread that forked us ends; ``alive=False`` takes it back. Lost when becoming another user."""
    prctl(_SET_PDEATHSIG, SIGKILL if alive else 0)


def hide_memory(hidden: bool = True) -> None:
    """Nobody of this user may look into our memory or environment, or lead us."""
    prctl(_SET_DUMPABLE, 0 if hidden else 1)


def by_default(*numbers: int) -> None:
    """These signals do again what they do by default; Python has changed some for itself."""
    for number in numbers:
        libc.signal(number, None)


def adopt_orphans() -> None:
    prctl(_SET_CHILD_SUBREAPER, 1)


def become_nobody() -> None:
    """As root: a user who owns nothing."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def drop_capabilities() -> None:
    """All of them, for ever: also programs that would bring some have none."""
    prctl(_SET_NO_NEW_PRIVS, 1)
    for number in range(64):
        if libc.prctl(_CAPBSET_DROP, number, 0, 0, 0):
            break  # beyond the last, or not ours to drop: with no new privileges the set is empty all the same
    if libc.syscall(_SYS_CAPSET, struct.pack("=Ii", _CAPABILITIES_V3, 0), struct.pack("=6I", *[0] * 6)):
        raise OSError(ctypes.get_errno(), "capset")


def limit(*, cpu_s: int, file_bytes: int, memory_bytes: int, tasks: int) -> None:
    """Of each process; ``tasks`` of all of this user (in this user namespace). 0 tasks: as it is."""
    wanted = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_DATA, memory_bytes),
        # What is reserved and never used counts here: threads and allocators reserve much.
        (resource.RLIMIT_AS, 4 * memory_bytes + (1 << 30)),
        (resource.RLIMIT_MEMLOCK, 64 << 10),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_NOFILE, 256),
    ]
    if tasks:
        wanted.append((resource.RLIMIT_NPROC, tasks))
    for number, value in wanted:
        hard = resource.getrlimit(number)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (value, value))


def filter_calls(*, network: bool, alone: bool) -> None:
    """Refuse what ``syscalls`` lists. ``alone``: others cannot be seen, as there are namespaces."""
    if not syscalls.known():
        return  # the ways that cannot do without it are not offered then
    abi = landlock_abi()
    syscalls.install(
        libc,
        syscalls.program(
            network=network,
            shared=not alone,
            signals=not alone and abi < SCOPED,
            truncates=not alone and abi < TRUNCATES,
        ),
    )


def landlock_abi() -> int:
    """Landlock's version here; 0: there is none."""
    found: int = libc.syscall(_CREATE, None, ctypes.c_size_t(0), 1)
    return max(found, 0)


def landlock(*, readable: Iterable[str], writable: Iterable[str], network: bool) -> None:
    """From here on no file is opened but those at and below these, and no TCP without ``network``.

    Paths that are not there are left out. Raises ``OSError``.
    """
    abi = landlock_abi()
    rights = (1 << _RIGHTS.get(abi, 16)) - 1
    attributes = struct.pack("=QQQ", rights, _TCP if abi >= 4 and not network else 0, _SCOPES if abi >= SCOPED else 0)
    size = 24 if abi >= SCOPED else 16 if abi >= 4 else 8
    ruleset = _checked(libc.syscall(_CREATE, attributes, ctypes.c_size_t(size), 0), "landlock")
    try:
        for paths, granted in ((readable, _READ), (writable, rights)):
            for path in paths:
                _grant(ruleset, path, granted & rights)
        prctl(_SET_NO_NEW_PRIVS, 1)
        _checked(libc.syscall(_RESTRICT, ruleset, 0), "landlock")
    finally:
        os.close(ruleset)


def _grant(ruleset: int, path: str, rights: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EACCES):
            return
        raise
    try:
        if not os.path.isdir(path):
            rights &= _OF_FILES
        _checked(libc.syscall(_ADD_RULE, ruleset, 1, struct.pack("=Qi", rights, handle), 0), path)
    finally:
        os.close(handle)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result
