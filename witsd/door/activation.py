"""Sockets that a service manager has opened for us: sd_listen_fds(3).

They arrive as descriptors from 3 on, counted in ``LISTEN_FDS`` and meant for ``LISTEN_PID`` alone. What each
is, the kernel says and not its name: a Unix socket takes the place of our own, a TCP one that of the HTTP port.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path

import attrs
import trio

from witsd.door.listen import ListenError

log = logging.getLogger("witsd.door")

#: SD_LISTEN_FDS_START
FIRST = 3
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
#: More than anybody passes; keeps a wrong number from closing descriptors all over the place.
_MOST = 64


@attrs.define(eq=False)
class Inherited:
    """What was passed, listening and ready for use; None for a kind that was not. Ours to close."""

    unix: socket.socket | None = None
    tcp: socket.socket | None = None
    #: Handed over by an earlier daemon, not lent by a service manager: the file of ``unix`` is ours to remove.
    ours: bool = False

    @property
    def unix_path(self) -> Path | None:
        """Where the Unix socket is bound: there, and not where the settings say, clients have to look."""
        return None if self.unix is None else Path(os.fsdecode(self.unix.getsockname()))

    def tcp_listener(self, *, allow_remote: bool = False) -> trio.SocketListener | None:
        """The TCP socket for trio, which owns it from then on; the rule is ``open_tcp``'s. Raises ``ListenError``."""
        if self.tcp is None:
            return None
        host, port = self.tcp.getsockname()[:2]
        if not _is_loopback(host) and not allow_remote:
            raise ListenError(
                f"the service manager listens on {host}:{port}, which is not a loopback address: other machines "
                "could connect. Change ListenStream= in the .socket unit, or set listen.allow_remote = true"
            )
        sock, self.tcp = self.tcp, None
        sock.setblocking(False)
        return trio.SocketListener(trio.socket.from_stdlib_socket(sock))

    def close(self) -> None:
        """Close what nobody has taken."""
        for sock in (self.unix, self.tcp):
            if sock is not None:
                sock.close()


def take_inherited(env: MutableMapping[str, str], *, pid: int | None = None, first: int = FIRST) -> Inherited:
    """The sockets that were passed to ``pid`` (default: this process), of which no child will inherit one.

    The variables leave ``env`` in any case, so that they are not passed on. Raises ``ListenError`` for what
    was passed and cannot be used; everything passed is closed then. Call it once, before anything is opened.
    """
    given = {name: env.pop(name, "") for name in _VARIABLES}
    if not given["LISTEN_FDS"] or given["LISTEN_PID"] != str(os.getpid() if pid is None else pid):
        return Inherited()
    count = given["LISTEN_FDS"]
    if not (count.isascii() and count.isdigit() and int(count) <= _MOST):
        raise ListenError(f"LISTEN_FDS={count!r} is no number of sockets that could be meant")
    fds = range(first, first + int(count))
    names = given["LISTEN_FDNAMES"].split(":") if given["LISTEN_FDNAMES"] else ["unknown"] * len(fds)
    for fd in fds:
        with suppress(OSError):  # not open: said below, with its name
            os.set_inheritable(fd, False)
    inherited = Inherited()
    try:
        if len(names) != len(fds):
            raise ListenError(f"LISTEN_FDNAMES has {len(names)} names for {len(fds)} sockets")
        for fd, name in zip(fds, names, strict=True):
            _sort_in(inherited, fd, f"descriptor {fd} ({name or 'unnamed'}) from the service manager")
    except ListenError:
        inherited.close()
        for fd in fds:
            with suppress(OSError):
                os.close(fd)
        raise
    return inherited


def _sort_in(inherited: Inherited, fd: int, what: str) -> None:
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise ListenError(f"{what} is no socket: {error.strerror}") from error
    try:
        _check(sock, what)
        if sock.family == socket.AF_UNIX:
            if inherited.unix is not None:
                raise ListenError(f"{what} is a second Unix socket: one can be served")
            _restrict(Path(os.fsdecode(sock.getsockname())), what)
            inherited.unix = sock
        else:
            if inherited.tcp is not None:
                raise ListenError(f"{what} is a second TCP socket: one can be served")
            inherited.tcp = sock
    except ListenError:
        sock.detach()  # closed by number, with the others
        raise
    # A second starter of the same socket unit must not wait in accept for a connection the first one took.
    sock.setblocking(False)


def _check(sock: socket.socket, what: str) -> None:
    if sock.family not in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
        raise ListenError(f"{what} is neither a Unix nor a TCP stream socket")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ListenError(f"{what} does not listen: the .socket unit must have Accept=no")
    if sock.family == socket.AF_UNIX:
        address = sock.getsockname()
        # An abstract name has no owner and no mode: every user of the machine could take it.
        if not os.path.isabs(address):
            raise ListenError(f"{what} is bound to no file: ListenStream= must be an absolute path")


def _restrict(path: Path, what: str) -> None:
    """0600, as our own has: the manager's default lets everybody connect, only to be refused."""
    try:
        mode = os.stat(path, follow_symlinks=False).st_mode
        if mode & 0o077:
            os.chmod(path, 0o600)
    except FileNotFoundError:
        raise ListenError(f"{what} was bound to {path}, which is there no more: restart the .socket unit") from None
    except OSError as error:
        log.warning("door.socket_open_to_others path=%s error=%s hint=SocketMode=0600", path, error.strerror)


def _is_loopback(host: str) -> bool:
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
