"""Handing the listening sockets over: from a running daemon to its successor (``witsd up --replace``).

Beside the socket lies a second one, ``witsd.sock.next``, on which the running daemon waits for its successor.
They talk in lines::

    successor                               running daemon
    {"version", "pid", "database"}     ->
                                       <-   {"version", "pid", "sockets", ...} with the descriptors, or {"error"}
    go                                 ->   (stops accepting, then everything else, in order)
                                       <-   end of file: its locks are given up

Until ``go`` nothing has happened, so a successor that finds something in its way just hangs up. From the moment it has
the descriptors the kernel keeps the sockets open for it: whoever connects meanwhile waits in their queue.
"""

from __future__ import annotations

import array
import logging
import os
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs
import msgspec
import trio
from trio import TaskStatus  # type: ignore[attr-defined, unused-ignore]

from witsd.door.activation import Inherited
from witsd.door.identity import HasOptions, Refused, peer_credentials
from witsd.door.listen import ListenError, UnixSocket, accept_forever, holder_of, short_path
from witsd.values.actor import Actor

log = logging.getLogger("witsd.door")

#: How long either side may take for its part of the talk before ``go``.
_TALK_S = 30.0
_MAX_TALKS = 16
_MAX_LINE = 64 * 1024
_GO = b"go\n"


class Ask(msgspec.Struct):
    """What a successor says of itself. Other versions talk to this one: fields are only ever added."""

    version: str
    pid: int
    database: str


class Answer(msgspec.Struct, omit_defaults=True):
    """``sockets`` names the descriptors in their order; ``inode`` is the Unix socket's file, as bound."""

    version: str = ""
    pid: int = 0
    error: str = ""
    sockets: tuple[str, ...] = ()
    inode: int = 0
    grace_s: float = 0


class HandoverError(ListenError):
    """Nobody hands over; the message says why and what to do. The running daemon, if there is one, goes on."""


def meeting_place(unix: Path) -> Path:
    return unix.with_name(unix.name + ".next")


# ---- the running daemon --------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Heir:
    """Who takes over, once somebody does. Its connection is closed last, when every lock has been given up."""

    _connection: socket.socket | None = None

    def accept(self, connection: socket.socket) -> None:
        self._connection = connection

    @property
    def named(self) -> bool:
        return self._connection is not None

    @property
    def waits(self) -> bool:
        """Whether it is there, and still is: one that has died gets nothing."""
        if self._connection is None:
            return False
        try:
            return self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False


@contextmanager
def no_heir_yet() -> Iterator[Heir]:
    """Open it before any lock is taken, so that it ends after the last one is given up."""
    heir = Heir()
    try:
        yield heir
    finally:
        if heir._connection is not None:
            heir._connection.close()


@attrs.define(eq=False, kw_only=True)
class Offer:
    """What this daemon would hand over, to whom, and what happens then."""

    version: str
    unix: UnixSocket
    #: The descriptor of the HTTP port; None where HTTP is off.
    tcp: int | None
    database: Path
    grace_s: float
    #: Why it cannot be replaced, for a person; empty when it can.
    refusal: str
    identify: Callable[[HasOptions], Actor]
    #: Whether a stop has been asked for already.
    stopping: Callable[[], bool]
    heir: Heir
    #: Called once the successor has said ``go``.
    on_taken: Callable[[], None]
    _candidate: int = 0
    _talks: int = 0

    async def wait(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer successors until cancelled. Where the meeting place cannot be made it is logged, and that is all."""
        path = meeting_place(self.unix.path)
        try:
            listener = _listen(path)
        except OSError as error:
            log.warning("handover.not_offered path=%s error=%s", path, error.strerror)
            task_status.started()
            return
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                await accept_forever(listener, lambda stream: self._take(nursery, stream), "handover")
        finally:
            listener.socket.close()
            with suppress(OSError):
                os.unlink(path)

    def _take(self, nursery: trio.Nursery, stream: trio.SocketStream) -> None:
        if self._talks == _MAX_TALKS:
            stream.socket.close()
            return
        self._talks += 1
        nursery.start_soon(self._talk, stream)

    async def _talk(self, stream: trio.SocketStream) -> None:
        mine = False
        try:
            async with stream:
                with trio.move_on_after(_TALK_S):
                    actor = self.identify(stream.socket)
                    ask = msgspec.json.decode(await _line(stream), type=Ask)
                    problem = self._problem(ask, actor)
                    if problem:
                        log.warning("handover.refused pid=%d reason=%s", ask.pid, problem)
                        await stream.send_all(_encode(Answer(version=self.version, pid=os.getpid(), error=problem)))
                        return
                    mine, self._candidate = True, ask.pid
                    await self._hand_over(stream, ask)
        except (OSError, trio.BrokenResourceError, Refused, msgspec.MsgspecError) as error:
            log.warning("handover.failed error=%s", error)
        finally:
            self._talks -= 1
            if mine and not self.heir.named:
                self._candidate = 0

    def _problem(self, ask: Ask, actor: Actor) -> str:
        if actor.kind != "owner":
            return f"only the user who runs it can replace it, and this is {actor.label}"
        if self.refusal:
            return self.refusal
        if ask.database != str(self.database.resolve()):
            return f"it uses another database: {self.database.resolve()}, and the new one would use {ask.database}"
        if self._candidate:
            return f"another daemon (pid {self._candidate}) is taking over from it at this moment"
        if self.stopping():
            return "it is stopping: start anew with `witsd up` once it is gone"
        return ""

    async def _hand_over(self, stream: trio.SocketStream, ask: Ask) -> None:
        sockets = {"unix": self.unix.socket.fileno(), **({} if self.tcp is None else {"http": self.tcp})}
        answer = Answer(
            version=self.version,
            pid=os.getpid(),
            sockets=tuple(sockets),
            inode=self.unix.inode or 0,
            grace_s=self.grace_s,
        )
        fds = array.array("i", sockets.values())
        await stream.socket.sendmsg([_encode(answer)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        if await _line(stream) != _GO:
            return  # it has found something in its way
        log.info("handover.begins to_pid=%d to_version=%s", ask.pid, ask.version)
        self.heir.accept(socket.socket(fileno=os.dup(stream.socket.fileno())))
        self.on_taken()


def _listen(path: Path) -> trio.SocketListener:
    with suppress(FileNotFoundError):
        os.unlink(path)  # of a daemon that was killed: the lock is ours
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(sock.fileno(), 0o600)
        with short_path(path) as short:
            sock.bind(short)
        sock.listen(8)
    except BaseException:
        sock.close()
        raise
    sock.setblocking(False)
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


async def _line(stream: trio.SocketStream) -> bytes:
    """One line with its end; what there was when the other side has hung up."""
    line = b""
    while not line.endswith(b"\n") and len(line) < _MAX_LINE:
        more = await stream.receive_some(_MAX_LINE)
        if not more:
            break
        line += bytes(more)
    return line


def _encode(message: Ask | Answer) -> bytes:
    return msgspec.json.encode(message) + b"\n"


# ---- its successor -------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Predecessor:
    """A running daemon that has shown its sockets and goes on serving until ``go``. Made by ``meet``; all blocks."""

    pid: int
    version: str
    grace_s: float
    #: Its sockets, now ours as well; ``unix`` is None where its file has been removed.
    inherited: Inherited
    _connection: socket.socket

    def go(self) -> None:
        """It stops now: the point of no return. Raises ``HandoverError`` when it has gone away instead."""
        try:
            self._connection.sendall(_GO)
        except OSError as error:
            raise HandoverError(f"pid {self.pid} has gone away in the middle ({error.strerror}): try again") from error

    def gone(self, within_s: float) -> bool:
        """Wait until it has given up its locks, or has died."""
        if not select.select([self._connection], [], [], within_s)[0]:
            return False
        with suppress(OSError):
            self._connection.recv(1)
        return True

    def close(self) -> None:
        """Hang up, and close the sockets that nobody has taken."""
        self._connection.close()
        self.inherited.close()


def meet(unix: Path, database: Path, version: str) -> Predecessor | None:
    """Ask the daemon that listens at ``unix`` for its sockets; None when none runs there.

    Raises ``HandoverError`` when one runs and does not hand over.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(_TALK_S)
    try:
        with short_path(meeting_place(unix)) as short:
            connection.connect(short)
    except OSError as error:
        connection.close()
        if holder := holder_of(unix):
            raise HandoverError(
                f"a daemon (pid {holder}) holds {unix} and does not hand over: it is starting, stopping, or too old "
                "for it. Try again in a moment, or stop it first: witsd down"
            ) from error
        if holder := holder_of(database):
            raise HandoverError(
                f"the daemon (pid {holder}) that uses {database} listens elsewhere than at {unix}: set "
                "WITSD_LISTEN_UNIX to where it does, or stop it first"
            ) from error
        return None
    try:
        if (uid := peer_credentials(connection).uid) != os.getuid():
            raise PermissionError(f"uid {uid} listens on {meeting_place(unix)}")  # in a folder where others may write
        connection.sendall(_encode(Ask(version=version, pid=os.getpid(), database=str(database.resolve()))))
        answer, fds = _receive(connection)
    except TimeoutError as error:
        pid = peer_credentials(connection).pid
        connection.close()
        raise HandoverError(
            f"the running daemon (pid {pid}) has not answered within {_TALK_S:g} s: it hangs, or somebody has stopped "
            f"it (kill -CONT {pid} has it go on). To start anew without it: kill -9 {pid}, then witsd up"
        ) from error
    except (OSError, msgspec.MsgspecError) as error:
        connection.close()
        raise HandoverError(f"what answers in the place of the running daemon is not as expected: {error}") from error
    inherited = Inherited(ours=True)
    for name, fd in zip(answer.sockets, fds, strict=False):
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        if name == "unix" and _is_at(unix, answer.inode):
            inherited.unix = sock
        elif name == "http":
            inherited.tcp = sock
        else:
            sock.close()
    found = Predecessor(answer.pid, answer.version, answer.grace_s, inherited, connection)
    if answer.error:
        found.close()
        raise HandoverError(f"the running daemon (pid {answer.pid}) goes on: {answer.error}")
    return found


def _receive(connection: socket.socket) -> tuple[Answer, list[int]]:
    """The answer and the descriptors that came with it, which no child inherits."""
    line, fds, _, _ = socket.recv_fds(connection, _MAX_LINE, 4, socket.MSG_CMSG_CLOEXEC)
    try:
        while not line.endswith(b"\n"):
            more = connection.recv(_MAX_LINE)
            if not more:
                raise ConnectionError("it has hung up")
            line += more
        return msgspec.json.decode(line, type=Answer), fds
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def _is_at(path: Path, inode: int) -> bool:
    """Whether the file is still the one that was bound: clients find the socket by it."""
    try:
        return os.lstat(path).st_ino == inode
    except OSError:
        return False
