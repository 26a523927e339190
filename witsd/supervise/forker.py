"""The program that forks: ``python -I -S forker.py SOCKET DAEMON``, small, single-threaded, a child of the daemon.

It gives birth to agents as *siblings* (``CLONE_PARENT``): their parent is the daemon, which waits for them. It is there
because ``clone3`` starts a process inside its control group. One that is moved there instead makes the kernel wait for
all processors, 10 ms after a pause, and the daemon cannot fork by itself with threads around.

Of the standard library alone, and without imports from the package: what is in its memory each fork copies.
A request is ``(argv, env, cwd, groups, open_files)``, marshalled, with the three standard descriptors, a pipe to report
to, and the v2 group to be born in, if there is one; ``groups`` are those to join. The answer, ``(pid, errno)``, does
not wait for the child: that reports ``errno step`` if it fails, and when it has become the program the pipe ends.
"""

import ctypes
import errno
import gc
import marshal
import os
import platform
import resource
import signal
import socket
import struct
import sys
from typing import Any, NoReturn

_SET_PDEATHSIG, _SET_DUMPABLE = 1, 4
_CLONE_PARENT, _CLONE_INTO_CGROUP = 0x8000, 0x2_0000_0000
_SYS_CLONE3 = 435
#: At most, with one message.
_HANDLES = 5
#: Where seccomp hides clone3, as a service manager does that restricts namespaces.
_SYS_CLONE = {"x86_64": 56, "aarch64": 220, "riscv64": 220}
_libc = ctypes.PyDLL(None, use_errno=True)  # keeps the GIL: the child is to have it
_long = ctypes.c_long
#: Programs expect these as they are by default; Python has changed them for itself.
_RESTORED = (signal.SIGPIPE, signal.SIGXFSZ)


def receive(sock: socket.socket) -> tuple[Any, list[int]] | None:
    """A message with its descriptors; None at the end."""
    # Not ``socket.recv_fds``, which forgets its flags: an agent would inherit them all.
    head, ancillary, _, _ = sock.recvmsg(4, socket.CMSG_SPACE(4 * _HANDLES), socket.MSG_CMSG_CLOEXEC)
    fds = [fd for _, _, data in ancillary for fd in struct.unpack(f"{len(data) // 4}i", data)]
    if not head:
        return None
    while len(head) < 4:
        head += sock.recv(4 - len(head))
    left, parts = struct.unpack("=I", head)[0], []
    while left:
        part = sock.recv(min(left, 1 << 20))
        if not part:
            return None
        parts.append(part)
        left -= len(part)
    return marshal.loads(b"".join(parts)), fds  # noqa: S302 - from the other end of a private pair


def send(sock: socket.socket, message: Any, fds: tuple[int, ...] = ()) -> None:
    """The counterpart."""
    data = marshal.dumps(message)
    head = struct.pack("=I", len(data))
    if fds:
        socket.send_fds(sock, [head], fds)
    else:
        sock.sendall(head)
    sock.sendall(data)


def clone(group: int) -> int:
    """Fork a child of our parent's; in the v2 group of that descriptor, unless it is -1. Raises ``OSError``."""
    flags = _CLONE_PARENT | (_CLONE_INTO_CGROUP if group >= 0 else 0)
    arguments = struct.pack("=11Q", flags, *[0] * 9, max(group, 0))
    return _checked(_libc.syscall(_long(_SYS_CLONE3), arguments, _long(len(arguments))))


def clone_plainly() -> int:
    """The same where there is no clone3, and without a group."""
    number = _SYS_CLONE.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    flags = _CLONE_PARENT | signal.SIGCHLD
    return _checked(_libc.syscall(_long(number), _long(flags), _long(0), _long(0), _long(0), _long(0)))


def _checked(pid: int) -> int:
    if pid < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return pid


def serve(sock: socket.socket, daemon: int) -> None:
    """Fork what is asked for until the daemon has closed its end."""
    while (message := receive(sock)) is not None:
        request, fds = message
        joins: tuple[bytes, ...] = ()
        try:
            try:
                pid = clone(fds[4] if len(fds) > 4 else -1)
            except OSError:  # no clone3, no such flag: then it joins by itself, and says why if it cannot
                pid = clone_plainly()
                joins = tuple(b"/proc/self/fd/%d" % fd for fd in fds[4:])
            if pid == 0:
                become(request, fds, joins, daemon)
            answer = (pid, 0)
        except OSError as error:
            answer = (0, error.errno or errno.EAGAIN)
        for fd in fds:
            os.close(fd)
        send(sock, answer)


def become(request: Any, fds: list[int], joins: tuple[bytes, ...], daemon: int) -> NoReturn:
    """In the child: take on what was asked for, or report what fails and at which step."""
    report = fds[3]
    argv, env, cwd, groups, open_files = request
    step = b"fork"
    try:
        _libc.prctl(_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != daemon:
            os._exit(125)  # it had died before the death signal was set
        os.setsid()
        for number, fd in enumerate(fds[:3]):
            os.dup2(fd, number)
        step = b"join"
        for group in (*joins, *groups):
            procs = os.open(group + b"/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
            os.write(procs, b"0")
        for number in _RESTORED:
            signal.signal(number, signal.SIG_DFL)
        if open_files:
            step = b"open_files"
            resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))
        step = b"cwd"
        os.chdir(cwd)
        step = b"exec"
        try:
            os.execve(argv[0], argv, env)  # noqa: S606 - it is what we are for
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
            # A script that does not say whose: as a shell runs it.
            os.execve(b"/bin/sh", [b"/bin/sh", *argv], env)  # noqa: S606
    except BaseException as error:  # noqa: BLE001 - a copy of the forker must not go on, whatever happened
        os.write(report, b"%d %b" % (getattr(error, "errno", None) or errno.EINVAL, step))
    os._exit(127)


def main(fd: int, daemon: int) -> None:
    _libc.prctl(_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != daemon:
        return
    os.set_inheritable(fd, False)  # no agent is to ask for others
    _libc.prctl(_SET_DUMPABLE, 0)  # an agent of the same user is not to look into it, or to lead it
    gc.collect()
    gc.freeze()
    gc.disable()
    with socket.socket(fileno=fd) as sock:
        serve(sock, daemon)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
