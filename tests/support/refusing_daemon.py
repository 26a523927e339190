"""``python -m tests.support.refusing_daemon clone3|siblings``: a daemon to which the kernel refuses ways of forking.

By seccomp, as a service manager or a container does it: for the daemon, the process that forks for it, and agents.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
import sys

from witsd import daemon
from witsd.supervise import forker

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2
_LOAD, _IF_EQUAL, _IF_SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF_0000, 0x0005_0000
_NUMBER, _FIRST_ARGUMENT = 0, 16
_CLONE3, _CLONE_PARENT = 435, 0x8000


def refuse(what: str) -> None:
    """From here on ``clone3`` is unknown; for ``siblings`` a child of one's own parent is not allowed either."""
    clone = forker._SYS_CLONE.get(platform.machine()) if what == "siblings" else None
    steps = [(_LOAD, 0, 0, _NUMBER), (_IF_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    if clone is not None:
        steps += [
            (_IF_EQUAL, 0, 3, clone),
            (_LOAD, 0, 0, _FIRST_ARGUMENT),
            (_IF_SET, 0, 1, _CLONE_PARENT),
            (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        ]
    steps.append((_RETURN, 0, 0, _ALLOW))
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    whole = struct.pack("@HP", len(steps), ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    nothing = ctypes.c_ulong(0)
    done = libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), nothing, nothing, nothing) or libc.prctl(
        _PR_SET_SECCOMP, ctypes.c_ulong(_FILTER), whole, nothing, nothing
    )
    if done != 0:
        number = ctypes.get_errno()
        raise OSError(number, errno.errorcode.get(number, "?"))


if __name__ == "__main__":
    refuse(sys.argv[1])
    sys.exit(daemon.main([]))
