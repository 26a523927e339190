"""Where connections come in: the Unix socket, the loopback port, and the loop that accepts.

A Unix socket belongs to whoever holds the lock beside it. The lock dies with its process, so a socket
left by a killed daemon is taken over at once, and one that somebody answers on never is.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import logging
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs
import trio

from witsd.door.identity import peer_credentials

log = logging.getLogger("witsd.door")

#: ``sun_path`` without its final NUL (unix(7)).
MAX_SOCKET_PATH = 107
#: Who connects while one daemon takes over from another waits here. The kernel's net.core.somaxconn may make it less.
_BACKLOG = 4096
#: A lock whose holder has just been seen to end is free within this time.
_LOCK_PAUSE_S = 0.01
#: How long accepting rests after it failed, and how often that is logged.
_REST_S = 0.1
_LOG_EVERY_S = 60.0


class ListenError(Exception):
    """Cannot listen; the message says where, why, and which setting to change."""


class AlreadyRunning(ListenError):
    """Another daemon holds this socket or this database. ``pid`` is None where it could not be found out."""

    def __init__(self, path: Path, pid: int | None) -> None:
        who = f"pid {pid}" if pid else "another process"
        super().__init__(f"witsd is already running: {who} holds {path}")
        self.pid = pid


@attrs.define(eq=False)
class UnixSocket:
    """A listening Unix socket and the right to it."""

    path: Path
    socket: socket.socket
    #: Of the file that is ours to remove; None where it is a service manager's.
    inode: int | None = None
    #: Asked at the end: whether another daemon goes on listening on it, so that the file stays.
    stays: Callable[[], bool] = lambda: False


@contextmanager
def claim_unix(
    path: Path, *, inherited: socket.socket | None = None, ours: bool = False, patience_s: float = 0
) -> Iterator[UnixSocket]:
    """Listen at ``path`` (mode 0600) until the block ends, then remove the socket and give up the lock.

    An ``inherited`` socket, which already listens, still needs the lock; it is not ours to remove unless ``ours``
    says so. ``patience_s``: how long to wait, blocking, for a lock that is about to be given up.
    Raises ``AlreadyRunning`` or ``ListenError``.
    """
    path = path.absolute()
    length = len(os.fsencode(path))
    if "\0" in str(path):
        raise ListenError(f"the socket path {str(path)!r} holds a NUL character")
    if length > MAX_SOCKET_PATH:
        raise ListenError(
            f"the socket path {path} is {length} bytes long and may have {MAX_SOCKET_PATH}: set "
            "WITSD_LISTEN_UNIX (or XDG_RUNTIME_DIR, or WITSD_HOME) to something shorter"
        )
    try:
        _prepare_directory(path.parent)
        lock = _take_lock(path, patience_s)
    except OSError as error:
        raise ListenError(f"cannot use {path.parent} for the socket: {error.strerror}") from error
    try:
        sock = inherited or _bind(path)
        sock.setblocking(False)
        if ours:
            sock.listen(_BACKLOG)  # again, so that clients are told of this process (SO_PEERCRED) and not of the last
        try:
            claimed = UnixSocket(path, sock, None if inherited and not ours else os.lstat(path).st_ino)
        except OSError as error:
            sock.close()
            raise ListenError(f"somebody has removed {path} meanwhile: start again") from error
        try:
            yield claimed
        finally:
            sock.close()
            # Not a stranger's: somebody may have removed ours and made another.
            with suppress(OSError):
                if not claimed.stays() and os.lstat(path).st_ino == claimed.inode:
                    os.unlink(path)
    finally:
        os.close(lock)


@contextmanager
def claim_file(path: Path, *, patience_s: float = 0) -> Iterator[None]:
    """Be the only daemon that uses ``path``, the database: two could be told different sockets.

    Raises ``AlreadyRunning`` or ``ListenError``.
    """
    try:
        lock = _take_lock(path, patience_s)
    except OSError as error:
        raise ListenError(f"cannot use {path.parent}: {error.strerror}") from error
    try:
        yield
    finally:
        os.close(lock)


def _prepare_directory(directory: Path) -> None:
    """Make it (0700) or make sure that nobody else could swap the socket in it."""
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
    info = os.stat(directory)
    if info.st_uid not in (os.getuid(), 0):
        raise ListenError(f"the socket's folder {directory} belongs to another user (uid {info.st_uid})")
    if info.st_mode & 0o022 and not info.st_mode & stat.S_ISVTX:
        raise ListenError(
            f"others may write to the socket's folder {directory}: chmod 700 it, or set WITSD_LISTEN_UNIX "
            "to a path in a folder of your own"
        )


def _take_lock(path: Path, patience_s: float = 0) -> int:
    """The descriptor that holds the lock; it is CLOEXEC, so no child keeps it when the daemon dies."""
    name = path.with_name(path.name + ".lock")
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    give_up = time.monotonic() + patience_s
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= give_up:
                    raise AlreadyRunning(path, _lock_holder(fd)) from None
                time.sleep(_LOCK_PAUSE_S)
    except BaseException:
        os.close(fd)
        raise
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def holder_of(path: Path) -> int | None:
    """The process that holds the lock of the socket at ``path`` now; None where none does. Takes nothing itself."""
    try:
        fd = os.open(path.with_name(path.name + ".lock"), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        return _in_lock_table(fd)
    finally:
        os.close(fd)


def _lock_holder(fd: int) -> int | None:
    """Who holds the lock on ``fd``, from the kernel's table, else as written in the file."""
    holder = _in_lock_table(fd)
    if holder is not None:
        return holder
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else None


def _in_lock_table(fd: int) -> int | None:
    """Who holds a lock on ``fd`` according to proc_locks(5)."""
    info = os.fstat(fd)
    mark = f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}:{info.st_ino}"
    with suppress(OSError), open("/proc/locks") as lines:
        for line in lines:
            fields = line.split()
            if len(fields) > 5 and fields[1] == "FLOCK" and fields[5] == mark:
                return int(fields[4])
    return None


def _bind(path: Path) -> socket.socket:
    """Bind beside ``path`` and rename: the socket appears already listening, in place of a stale one."""
    _refuse_if_in_use(path)
    # As long as the name itself, so that the limit on the path stays one limit.
    temporary = path.with_name((":" if path.name[0] == "." else ".") + path.name[1:])
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        # Before bind, so that the file is never there with a wider mode; no umask, which threads share.
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(str(temporary))
        sock.listen(_BACKLOG)
        os.rename(temporary, path)
    except OSError as error:
        sock.close()
        with suppress(OSError):
            os.unlink(temporary)
        raise ListenError(f"cannot listen on {path}: {error.strerror}; set WITSD_LISTEN_UNIX") from error
    return sock


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """Another way to write ``path`` that fits into a socket address, however deep its folder is. Raises ``OSError``."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _refuse_if_in_use(path: Path) -> None:
    """Raise unless nothing is at ``path`` or only a socket that nobody answers on. Call under the lock."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ListenError(f"{path} is there and is no socket: move it away, or set WITSD_LISTEN_UNIX")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return
        except BlockingIOError:  # its backlog is full: somebody is there, if only busy
            raise AlreadyRunning(path, None) from None
        raise AlreadyRunning(path, peer_credentials(probe).pid or None)


def open_tcp(address: str, *, allow_remote: bool = False) -> trio.SocketListener:
    """Listen on ``HOST:PORT``; port 0 takes a free one. Raises ``ListenError``."""
    return trio.SocketListener(trio.socket.from_stdlib_socket(bind_tcp(address, allow_remote=allow_remote)))


def bind_tcp(address: str, *, allow_remote: bool = False) -> socket.socket:
    """The same as a plain socket that listens and does not block, for where no loop runs."""
    host, port = parse_address(address)
    if not host.is_loopback and not allow_remote:
        raise ListenError(
            f"listen.http = {address!r} is not a loopback address: other machines could connect. "
            "Use 127.0.0.1, or set listen.allow_remote = true if that is what you want"
        )
    family = socket.AF_INET6 if host.version == 6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((str(host), port))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        why = "something else listens there" if error.errno == errno.EADDRINUSE else error.strerror
        raise ListenError(
            f"cannot listen on {address}: {why}. Set listen.http in witsd.toml, or WITSD_LISTEN_HTTP, "
            'to another address; port 0 takes a free one, "" turns HTTP off'
        ) from error
    sock.setblocking(False)
    return sock


def parse_address(address: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    """``127.0.0.1:9487``, ``[::1]:9487`` or ``localhost:9487``. Raises ``ListenError``."""
    name, colon, port = address.rpartition(":")
    name = name.removeprefix("[").removesuffix("]") if name.startswith("[") else name
    try:
        host = ipaddress.ip_address("127.0.0.1" if name == "localhost" else name)
        if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ValueError
    except ValueError:
        raise ListenError(
            f"listen.http = {address!r} is no address: write HOST:PORT, such as 127.0.0.1:9487"
        ) from None
    return host, int(port)


async def accept_forever(
    listener: trio.SocketListener, take: Callable[[trio.SocketStream], None], where: str
) -> None:
    """Hand each connection to ``take``, which must not block. Ends only when the listener is closed."""
    logged = -_LOG_EVERY_S
    while True:
        try:
            stream = await listener.accept()
        except trio.ClosedResourceError:
            return
        except OSError as error:
            if trio.current_time() - logged >= _LOG_EVERY_S:
                logged = trio.current_time()
                log.error("door.cannot_accept listener=%s error=%s", where, error.strerror)
            # Mostly EMFILE or ENFILE: connections that end give back what is missing (accept(2)).
            await trio.sleep(_REST_S)
            continue
        take(stream)
