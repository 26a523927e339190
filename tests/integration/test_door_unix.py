"""The Unix socket: one holder, who is recognised at the other end, and what a path may be."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from tests.support.door import LIMITS, ask_stream, open_house, read_to_end
from witsd.door.http import Deadlines
from witsd.door.identity import UNKNOWN_AGENT, Identifier
from witsd.door.listen import (
    MAX_SOCKET_PATH,
    AlreadyRunning,
    ListenError,
    accept_forever,
    claim_unix,
    open_tcp,
)
from witsd.values.actor import ANONYMOUS, OWNER, Actor, Scope
from witsd.values.ids import AgentName
from witsd.values.spec import Grants

ROOT = Path(__file__).resolve().parents[2]
ECHO = Actor(kind="agent", label="agent:echo", agent=AgentName("echo"), grants=Grants(models=("*",)))

HOLDER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from witsd.door.listen import AlreadyRunning, claim_unix
    sys.stdin.readline()
    try:
        with claim_unix(Path(sys.argv[1])):
            print("up", flush=True)
            sys.stdin.readline()
    except AlreadyRunning as busy:
        print("busy", busy.pid, flush=True)
    """
)


def starter(path: Path) -> subprocess.Popen[str]:
    """A process that claims ``path`` when it is sent a line, and lets go at the next one."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.stdout.close()


# ---- one holder -----------------------------------------------------------------------------------


def test_of_several_starters_one_wins_and_the_others_name_it(tmp_path: Path) -> None:
    path = tmp_path / "run" / "witsd.sock"
    for _ in range(5):  # each round finds the stale socket of the killed winner before it
        starters = [starter(path) for _ in range(4)]
        for process in starters:
            go(process)
        said = [line(process) for process in starters]
        assert said.count("up") == 1, said
        winner = starters[said.index("up")]
        assert sorted(said) == sorted(["up", *[f"busy {winner.pid}"] * 3])
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        for process in starters:
            end(process)
        assert path.is_socket()


def test_modes_and_leaving(tmp_path: Path) -> None:
    path = tmp_path / "run" / "witsd.sock"
    before = os.umask(0)
    try:
        with claim_unix(path) as claimed:
            assert path.parent.stat().st_mode & 0o777 == 0o700
            assert path.stat().st_mode & 0o777 == 0o600
            assert (path.parent / "witsd.sock.lock").stat().st_mode & 0o777 == 0o600
            assert not os.get_inheritable(claimed.socket.fileno())
            with pytest.raises(AlreadyRunning) as busy, claim_unix(path):
                pass
            assert busy.value.pid == os.getpid()
            assert str(os.getpid()) in str(busy.value)
            assert path.is_socket()
    finally:
        os.umask(before)
    assert sorted(p.name for p in path.parent.iterdir()) == ["witsd.sock.lock"]


def test_the_lock_holds_also_where_the_socket_has_gone(tmp_path: Path) -> None:
    path = tmp_path / "witsd.sock"
    with claim_unix(path):
        path.unlink()
        with pytest.raises(AlreadyRunning), claim_unix(path):
            pass
        path.write_text("another's by now")
    assert path.exists()


def test_a_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "witsd.sock"
    with claim_unix(path):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with claim_unix(path):
            pass
    finally:
        child.kill()
        child.wait()


def test_a_socket_that_somebody_answers_on_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "witsd.sock"
    with socket.socket(socket.AF_UNIX) as other:  # not a witsd: it holds no lock
        other.bind(str(path))
        other.listen(0)
        with pytest.raises(AlreadyRunning) as busy, claim_unix(path):
            pass
        assert busy.value.pid == os.getpid()
        clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for client in clients:  # full: it answers nobody now, and is no less alive
            client.setblocking(False)
            try:
                client.connect(str(path))
            except BlockingIOError:
                pass
        with pytest.raises(AlreadyRunning), claim_unix(path):
            pass
        for client in clients:
            client.close()
    with claim_unix(path) as claimed:  # closed, so stale
        assert claimed.path.is_socket()


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "witsd.sock"
    path.write_text("precious")
    with pytest.raises(ListenError, match="no socket"), claim_unix(path):
        pass
    assert path.read_text() == "precious"


def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    room = MAX_SOCKET_PATH - len(str(tmp_path)) - 1
    with claim_unix(tmp_path / ("x" * room)) as longest, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(longest.path))
    path = tmp_path / ("x" * (room + 1))
    with pytest.raises(ListenError) as refused, claim_unix(path):
        pass
    for part in (str(path), str(MAX_SOCKET_PATH + 1), "WITSD_LISTEN_UNIX", "XDG_RUNTIME_DIR"):
        assert part in str(refused.value)


def test_a_folder_others_may_write_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(ListenError, match="chmod 700"), claim_unix(tmp_path / "witsd.sock"):
        pass
    tmp_path.chmod(0o1777)
    with claim_unix(tmp_path / "witsd.sock"):
        pass


# ---- the port -------------------------------------------------------------------------------------


async def test_a_port_that_is_taken() -> None:
    async with open_tcp("127.0.0.1:0") as first:
        port = first.socket.getsockname()[1]
        with pytest.raises(ListenError) as refused:
            open_tcp(f"127.0.0.1:{port}")
        for part in (f"127.0.0.1:{port}", "listen.http", "WITSD_LISTEN_HTTP"):
            assert part in str(refused.value)


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"])
async def test_other_machines_only_when_asked_for(address: str) -> None:
    with pytest.raises(ListenError, match="allow_remote"):
        open_tcp(address)


async def test_remote_when_it_is_asked_for() -> None:
    async with open_tcp("0.0.0.0:0", allow_remote=True) as listener:
        assert listener.socket.getsockname()[1]


@pytest.mark.parametrize("address", ["", "9487", "example.org:1", "127.0.0.1:", "127.0.0.1:70000", "127.0.0.1:-1"])
async def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ListenError, match="HOST:PORT"):
        open_tcp(address)


async def test_running_out_of_descriptors_does_not_end_the_listener(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    import errno

    failures = [OSError(errno.EMFILE, "Too many open files")] * 5 + [OSError(errno.EPERM, "Not permitted")]
    one, _ = trio.testing.memory_stream_pair()

    class Listener:
        async def accept(self) -> object:
            if failures:
                raise failures.pop()
            if taken:
                raise trio.ClosedResourceError
            return one

    taken: list[object] = []
    with caplog.at_level(logging.ERROR):
        await accept_forever(Listener(), taken.append, "unix")  # type: ignore[arg-type]
    assert taken == [one]
    assert len(caplog.records) == 1


# ---- who is there ---------------------------------------------------------------------------------


@contextmanager
def dialled(tmp_path: Path, command: Sequence[str] = (), **env: str) -> Iterator[socket.socket]:
    """The accepted side of a connection made by a child of this process, which lives meanwhile."""
    path = tmp_path / "peer.sock"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(1)
        child = subprocess.Popen(
            [*command, sys.executable, "-c", DIAL, str(path)],
            stdin=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, **env},
        )
        server.settimeout(60)
        accepted, _ = server.accept()
        try:
            with accepted:
                yield accepted
        finally:
            child.kill()
            child.wait()
            assert child.stdin is not None
            child.stdin.close()


DIAL = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.recv(1)
"""


def test_one_of_our_own_processes_that_is_no_descendant_is_the_owner(tmp_path: Path) -> None:
    with dialled(tmp_path) as peer:
        assert Identifier(daemon_pid=2**22).identify(peer) is OWNER
    one, two = socket.socketpair(socket.AF_UNIX)
    with one, two:
        assert Identifier().identify(one) is OWNER  # the daemon itself


def test_another_user_is_refused(tmp_path: Path) -> None:
    from witsd.door.identity import Refused

    with dialled(tmp_path) as peer, pytest.raises(Refused, match="uid"):
        Identifier(uid=os.getuid() + 1).identify(peer)


def test_a_descendant_is_its_agent_and_never_the_owner(tmp_path: Path) -> None:
    seen: list[Sequence[int]] = []

    def resolve(pids: Sequence[int]) -> Actor | None:
        seen.append(tuple(pids))
        return ECHO

    # sh is the agent's leader here, and what dials is its child
    with dialled(tmp_path, ["/bin/sh", "-c", '"$0" "$@"; true']) as peer:
        assert Identifier(resolve_agent=resolve).identify(peer) is ECHO
        assert len(seen[0]) == 2
        assert os.getpid() not in seen[0]
        assert Identifier().identify(peer) is UNKNOWN_AGENT


def test_a_descendant_is_named_by_its_mark_or_its_session(tmp_path: Path) -> None:
    def named(name: AgentName) -> Actor | None:
        return ECHO if name == "echo" else None

    with dialled(tmp_path, WITSD_AGENT="echo") as peer:
        assert Identifier(agent_named=named).identify(peer) is ECHO
    with dialled(tmp_path, WITSD_AGENT="gone") as peer:
        assert Identifier(agent_named=named).identify(peer) is UNKNOWN_AGENT
    # Its own session, led by the shell: that of the tests may be led from outside their PID namespace.
    with dialled(tmp_path, ["/bin/sh", "-c", '"$0" "$@"; true'], WITSD_AGENT="gone") as peer:
        walked: list[Sequence[int]] = []

        def by_session(pids: Sequence[int]) -> Actor | None:
            walked.append(tuple(pids))
            return ECHO if len(walked) == 2 else None

        assert Identifier(resolve_agent=by_session).identify(peer) is ECHO
        chain, session = walked
        assert session == (chain[-1],)  # the shell leads both


def test_the_unknown_agent_may_use_nothing() -> None:
    for what in ("tools", "memory", "models", "agents"):
        assert not UNKNOWN_AGENT.granted(what, "anything")
    assert UNKNOWN_AGENT.scopes == frozenset()


def test_a_process_that_has_gone_is_nobody(tmp_path: Path) -> None:
    path = tmp_path / "peer.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(1)
        code = "import socket,sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
        child = subprocess.Popen([sys.executable, "-c", code, str(path)])
        assert child.wait() == 0
        accepted, _ = server.accept()
        with accepted:
            assert Identifier().identify(accepted) is ANONYMOUS
            assert Identifier(daemon_pid=2**22).identify(accepted) is ANONYMOUS
            # Not even when its pid is another process's by now.
            proc = fake_proc(tmp_path, {child.pid: (1, 900), 1: (0, 0)})
            assert Identifier(daemon_pid=2**22, proc=proc).identify(accepted) is ANONYMOUS


def fake_proc(tmp_path: Path, parents: dict[int, tuple[int, int]]) -> Path:
    proc = tmp_path / "proc"
    for pid, (parent, born) in parents.items():
        (proc / str(pid)).mkdir(parents=True)
        rest = " ".join(["0"] * 15)
        (proc / str(pid) / "stat").write_text(f"{pid} (a) b) (c) S {parent} 0 0 {rest} {born} 0 0")
    return proc


def test_chains_that_are_endless_broken_or_impossible(tmp_path: Path) -> None:
    me = os.getpid()
    one, two = socket.socketpair(socket.AF_UNIX)

    def who(name: str, parents: dict[int, tuple[int, int]]) -> Actor:
        proc = fake_proc(tmp_path / name, {me: (100, 900), **parents})
        return Identifier(daemon_pid=7, proc=proc).identify(one)

    with one, two:
        assert who("plain", {100: (1, 50), 1: (0, 0)}) is OWNER
        assert who("daemon", {100: (7, 50)}) is UNKNOWN_AGENT
        assert who("endless", {100: (101, 50), 101: (100, 50)}) is UNKNOWN_AGENT
        assert who("broken", {}) is ANONYMOUS
        # A parent younger than its child: the real one is dead and its pid given away.
        assert who("reused", {100: (1, 901), 1: (0, 0)}) is ANONYMOUS


# ---- together -------------------------------------------------------------------------------------


async def test_the_owner_and_an_agent_over_the_socket(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house, await trio.open_unix_socket(str(house.door.unix)) as stream:
        answer = await ask_stream(stream, "initialize")
        assert answer["result"]["label"] == "owner"
        assert "result" in await ask_stream(stream, "auth/ticket")
    # The daemon of this door is somebody else's child: whoever dials descends from it.
    agent = Identifier(resolve_agent=lambda pids: ECHO, daemon_pid=os.getppid())
    async with open_house(tmp_path, identifier=agent) as house:
        token = (await house.token(*Scope)).token
        async with await trio.open_unix_socket(str(house.door.unix)) as stream:
            assert (await ask_stream(stream, "initialize"))["result"]["label"] == "agent:echo"
            assert (await ask_stream(stream, "auth/ticket"))["error"]["code"] == -32003
            # nor with a token that it has got hold of
            answer = await ask_stream(stream, "initialize", {"token": token})
            assert answer["error"]["code"] == -32003
            assert (await ask_stream(stream, "initialize"))["result"]["kind"] == "agent"


async def test_a_token_narrows_what_a_program_of_the_owner_may_do(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        made = await house.token(Scope.CHAT)
        async with await trio.open_unix_socket(str(house.door.unix)) as stream:
            answer = await ask_stream(stream, "initialize", {"token": made.token})
            assert answer["result"]["scopes"] == ["chat"]
            assert (await ask_stream(stream, "auth/ticket"))["error"]["code"] == -32003


async def test_nobody_has_little_time(tmp_path: Path) -> None:
    nobody = Identifier(daemon_pid=2**22, proc=tmp_path / "empty")
    async with (
        open_house(tmp_path, identifier=nobody, deadlines=Deadlines(authenticate_s=0.3)) as house,
        await trio.open_unix_socket(str(house.door.unix)) as stream,
    ):
        assert (await ask_stream(stream, "ping"))["error"]["code"] == -32004
        assert await read_to_end(stream) == b""


async def test_a_socket_of_another_user_is_closed_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_house(tmp_path, identifier=Identifier(uid=os.getuid() + 1)) as house:
        async with await trio.open_unix_socket(str(house.door.unix)) as stream:
            assert await read_to_end(stream) == b""
        assert (await house.ask("GET", "/healthz")).status == 200
    assert "door.refused" in caplog.text


async def test_too_many_connections(tmp_path: Path) -> None:
    async with open_house(tmp_path, limits=msgspec.structs.replace(LIMITS, connections=2)) as house:
        path = str(house.door.unix)
        async with await trio.open_unix_socket(path) as one, await trio.open_unix_socket(path) as two:
            await ask_stream(one, "ping")
            await ask_stream(two, "ping")
            async with await trio.open_unix_socket(path) as three:
                assert b'"code":-32001' in await read_to_end(three)
            assert "result" in await ask_stream(one, "ping")
        with trio.fail_after(60):
            while house.door.connections:
                await trio.lowlevel.checkpoint()
        async with await trio.open_unix_socket(path) as stream:
            assert "result" in await ask_stream(stream, "ping")
