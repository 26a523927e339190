"""Sockets passed by a service manager: which are taken, which are refused, and what is left behind."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from witsd.door.activation import Inherited, take_inherited
from witsd.door.listen import ListenError

#: Where the passed descriptors are put: far from what pytest itself has open.
FIRST = 200
PID = 4242


class Passing:
    """Puts sockets where a service manager would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0

    def put(self, sock: socket.socket) -> None:
        fd = FIRST + self.count
        os.dup2(sock.fileno(), fd, inheritable=True)
        sock.close()
        self.count += 1

    def unix(self, name: str = "sock", *, listen: bool = True) -> Path:
        path = self.folder / name
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(str(path))
        path.chmod(0o666)
        if listen:
            sock.listen()
        self.put(sock)
        return path

    def tcp(self, host: str = "127.0.0.1", *, family: int = socket.AF_INET) -> None:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.bind((host, 0))
        sock.listen()
        self.put(sock)

    def env(self, **more: str) -> dict[str, str]:
        return {"LISTEN_PID": str(PID), "LISTEN_FDS": str(self.count), "OTHER": "kept", **more}

    def take(self, **more: str) -> Inherited:
        env = self.env(**more)
        try:
            return take_inherited(env, pid=PID, first=FIRST)
        finally:
            assert env == {"OTHER": "kept"}

    def open_still(self) -> list[int]:
        found = []
        for fd in range(FIRST, FIRST + self.count):
            with suppress(OSError):
                fcntl.fcntl(fd, fcntl.F_GETFD)
                found.append(fd)
        return found


@pytest.fixture
def passing(tmp_path: Path) -> Iterator[Passing]:
    it = Passing(tmp_path)
    yield it
    for fd in it.open_still():
        os.close(fd)


def test_nothing_was_passed() -> None:
    env = {"OTHER": "kept"}
    taken = take_inherited(env)
    assert (taken.unix, taken.tcp, taken.unix_path) == (None, None, None)
    assert taken.tcp_listener() is None
    assert env == {"OTHER": "kept"}


async def test_a_unix_and_a_tcp_socket_that_no_child_inherits(passing: Passing) -> None:
    passing.tcp()
    path = passing.unix()
    taken = passing.take(LISTEN_FDNAMES="http:unix")
    assert taken.unix is not None
    assert taken.tcp is not None
    assert taken.unix_path == path
    assert [os.get_inheritable(fd) for fd in (FIRST, FIRST + 1)] == [False, False]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with trio.fail_after(60):
        listener = taken.tcp_listener()
        assert listener is not None
        client = await trio.open_tcp_stream(*listener.socket.getsockname()[:2])
        async with listener, client, await listener.accept() as server:
            await client.send_all(b"x")
            assert await server.receive_some(1) == b"x"
    taken.close()
    assert passing.open_still() == []


def test_what_is_meant_for_another_process_is_left_alone(passing: Passing) -> None:
    passing.tcp()
    env = passing.env(LISTEN_PID="1")
    taken = take_inherited(env, pid=PID, first=FIRST)
    assert taken.tcp is None
    assert env == {"OTHER": "kept"}
    assert passing.open_still() == [FIRST]
    assert os.get_inheritable(FIRST)


def test_a_dual_stack_port_counts_as_remote(passing: Passing) -> None:
    passing.tcp("::", family=socket.AF_INET6)
    taken = passing.take()
    with pytest.raises(ListenError, match=r"not a loopback address.*ListenStream="):
        taken.tcp_listener()
    taken.close()


@pytest.mark.parametrize("host", ["::1", "::ffff:127.0.0.1"])
async def test_loopback_in_version_6(passing: Passing, host: str) -> None:
    try:
        passing.tcp(host, family=socket.AF_INET6)
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    listener = passing.take().tcp_listener()
    assert listener is not None
    await listener.aclose()


async def test_a_remote_port_if_that_is_wanted(passing: Passing) -> None:
    passing.tcp("0.0.0.0")
    listener = passing.take().tcp_listener(allow_remote=True)
    assert listener is not None
    await listener.aclose()


def refused(passing: Passing, says: str, **more: str) -> None:
    with pytest.raises(ListenError, match=says):
        passing.take(**more)
    assert passing.open_still() == []


def test_what_cannot_be_used_is_refused_and_closed(passing: Passing, tmp_path: Path) -> None:
    passing.unix()
    fd = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
    os.dup2(fd, FIRST + 1, inheritable=True)
    os.close(fd)
    passing.count += 1
    refused(passing, rf"descriptor {FIRST + 1} \(second\).* is no socket", LISTEN_FDNAMES="first:second")


def test_a_socket_that_does_not_listen(passing: Passing) -> None:
    passing.unix(listen=False)
    refused(passing, "does not listen.*Accept=no")


def test_a_datagram_socket(passing: Passing) -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    passing.put(sock)
    refused(passing, "neither a Unix nor a TCP")


def test_two_of_a_kind(passing: Passing) -> None:
    passing.unix("one")
    passing.unix("two")
    refused(passing, "second Unix socket")


def test_two_ports(passing: Passing) -> None:
    passing.tcp()
    passing.tcp()
    refused(passing, "second TCP socket")


def test_an_abstract_socket_belongs_to_nobody(passing: Passing) -> None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(f"\0witsd-test-{os.getpid()}")
    sock.listen()
    passing.put(sock)
    refused(passing, "bound to no file")


def test_a_socket_whose_file_was_removed(passing: Passing) -> None:
    passing.unix().unlink()
    refused(passing, "there no more")


def test_names_that_do_not_match(passing: Passing) -> None:
    passing.tcp()
    refused(passing, "2 names for 1 socket", LISTEN_FDNAMES="a:b")


@pytest.mark.parametrize("count", ["x", "-1", "1000000", "٣"])
def test_a_count_that_is_none(passing: Passing, count: str) -> None:
    with pytest.raises(ListenError, match="LISTEN_FDS"):
        passing.take(LISTEN_FDS=count)
