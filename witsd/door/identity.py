"""Who is at the other end of a Unix socket: the owner, one of the agents, or nobody we can name.

The kernel names the peer (``SO_PEERCRED``); /proc says from whom it descends. What descends from the
daemon is an agent's and never becomes the owner, also when it cannot be told which agent's.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import attrs
import msgspec

from witsd.values.actor import ANONYMOUS, OWNER, Actor
from witsd.values.ids import AgentName

#: Not in Python's ``socket``; Linux 6.5 and later (``include/uapi/asm-generic/socket.h``).
_SO_PEERPIDFD = getattr(socket, "SO_PEERPIDFD", 77)
_UCRED = struct.Struct("iII")

#: How many parents are looked at before a chain counts as endless.
MAX_CHAIN = 64
#: Walks tried while parents die under it.
_WALKS = 3
#: How much of a process's environment is searched for the mark.
_ENVIRON_BYTES = 256 * 1024
#: Every agent is started with this in its environment; its children inherit it.
AGENT_MARK = "WITSD_AGENT"

#: A descendant of the daemon that no agent can be named for. "?" is no agent's name: nothing is granted.
UNKNOWN_AGENT = Actor(kind="agent", label="agent:?", agent=AgentName("?"))


class Refused(Exception):
    """This peer may not connect at all; the message is for the log."""


class HasOptions(Protocol):
    """The part of a socket that is read here, of Python's own or of trio's."""

    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


class PeerCredentials(msgspec.Struct, frozen=True, kw_only=True):
    """What the kernel says about a peer. ``pid`` is 0 for one in a pid namespace that is not ours to see."""

    pid: int
    uid: int
    gid: int


class Identifier(msgspec.Struct, frozen=True, kw_only=True):
    """Turns a connected Unix socket into an actor.

    ``resolve_agent`` is given pids, nearest first, and answers with the actor of the agent that one of
    them leads (or led: a session keeps its leader's pid); ``agent_named`` with the actor of the agent
    of that name. Both answer None where there is none.
    """

    resolve_agent: Callable[[Sequence[int]], Actor | None] = lambda _pids: None
    agent_named: Callable[[AgentName], Actor | None] = lambda _name: None
    daemon_pid: int = msgspec.field(default_factory=os.getpid)
    uid: int = msgspec.field(default_factory=os.getuid)
    proc: Path = Path("/proc")

    def identify(self, sock: HasOptions) -> Actor:
        """The actor at the other end. A few short reads in /proc, which never wait for a disk.

        Raises ``Refused`` for a peer of another user and ``OSError`` when the socket is gone.
        """
        peer = peer_credentials(sock)
        if peer.uid != self.uid:
            raise Refused(f"uid {peer.uid} (pid {peer.pid}) is not the daemon's user {self.uid}")
        if peer.pid == 0:
            return ANONYMOUS
        with _pinned(sock, peer.pid) as is_same:
            actor = self._descent(peer.pid)
            # Ended and reaped meanwhile: what was read may be of another process that got its pid.
            return actor if is_same() else ANONYMOUS

    def _descent(self, pid: int) -> Actor:
        if pid == self.daemon_pid:
            return OWNER
        for _ in range(_WALKS):
            walk = self._walk(pid)
            if walk is not None:
                return self._name_agent(walk) if walk.under_daemon else OWNER
        # A family that changes faster than it can be read is nobody's.
        return ANONYMOUS

    def _walk(self, pid: int) -> _Walk | None:
        """From ``pid`` up to the daemon or to the top; None when a link changed under the walk."""
        chain: list[int] = []
        session, born = 0, 0
        current = pid
        while current != self.daemon_pid:
            if len(chain) == MAX_CHAIN:
                return _Walk(chain, session, under_daemon=True)
            stat = _read_stat(self.proc, current)
            # A parent is never younger than its child: this pid has been given to another process.
            if stat is None or (chain and stat.start_time > born):
                return None
            chain.append(current)
            session = session or stat.session
            born = stat.start_time
            if stat.ppid == 0:
                return _Walk(chain, session, under_daemon=False)
            current = stat.ppid
        return _Walk(chain, session, under_daemon=True)

    def _name_agent(self, walk: _Walk) -> Actor:
        found = self.resolve_agent(walk.chain)
        if found is None and walk.session:
            # Reparented to the daemon because its leader died: the session still has the leader's pid.
            found = self.resolve_agent([walk.session])
        for pid in () if found else walk.chain:
            if name := _agent_mark(self.proc, pid):
                found = self.agent_named(AgentName(name))
                break
        return UNKNOWN_AGENT if found is None else found


@attrs.frozen
class _Walk:
    chain: Sequence[int]
    session: int
    under_daemon: bool = attrs.field(kw_only=True)


class _Stat(msgspec.Struct, frozen=True):
    ppid: int
    session: int
    start_time: int


def peer_credentials(sock: HasOptions) -> PeerCredentials:
    """Who connected, as the kernel saw it at that moment."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(raw)
    return PeerCredentials(pid=pid, uid=uid, gid=gid)


@contextmanager
def _pinned(sock: HasOptions, pid: int) -> Iterator[Callable[[], bool]]:
    """Yield a test of whether ``pid`` is still the process that connected.

    Where the kernel has no ``SO_PEERPIDFD`` the process is pinned from now on only: one that ended
    before this call, and whose pid has been given away since, is not noticed.
    """
    try:
        pidfd = struct.unpack("i", sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4))[0]
    except OSError as error:
        pidfd = -1
        if error.errno == errno.ENOPROTOOPT:  # an older kernel; anything else means that it is gone
            with suppress(OSError):
                pidfd = os.pidfd_open(pid)
        if pidfd < 0:
            yield lambda: False
            return
    try:
        yield lambda: _not_reaped(pidfd)
    finally:
        os.close(pidfd)


def _not_reaped(pidfd: int) -> bool:
    """Whether the process still has its pid, as a zombie or alive (pidfd_send_signal(2), signal 0)."""
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is there, with rights that are not ours
    return True


def _read_stat(proc: Path, pid: int) -> _Stat | None:
    try:
        text = (proc / str(pid) / "stat").read_bytes()
    except OSError:
        return None
    # proc_pid_stat(5): the name stands in parentheses and may itself hold any character.
    fields = text[text.rindex(b")") + 2 :].split()
    return _Stat(ppid=int(fields[1]), session=int(fields[3]), start_time=int(fields[19]))


def _agent_mark(proc: Path, pid: int) -> str:
    """The agent's name in the environment a process was started with; "" where there is none to read."""
    try:
        with open(proc / str(pid) / "environ", "rb") as file:
            environ = file.read(_ENVIRON_BYTES)
    except OSError:
        return ""
    mark = AGENT_MARK.encode() + b"="
    for entry in environ.split(b"\0"):
        if entry.startswith(mark):
            return entry[len(mark) :].decode("ascii", "replace")
    return ""
