"""The daemon with nothing to spare: it says what it cannot do, goes on with the rest, and recovers by itself."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fault.test_killed_daemon import MODULES
from tests.integration.test_agents import ECHO, ask, define, python
from tests.support.daemon import PATIENCE_S, Daemon
from tests.support.gate import gate
from tests.support.processes import children, no_zombies, of_daemon, peak_rss_bytes, wait_for, wait_gone
from tests.support.wire import RpcError, Wire, wire
from witsd.supervise.cgroups import hierarchies
from witsd.supervise.identity import start_time

NEVER: dict[str, Any] = {"restart": {"policy": "never"}}
#: Of the daemon's, those that stay: the loop, one for each of three connections to the database, and who forks.
THREADS = 5
#: Forks until it may not, and never more than two hundred times.
BOMB = """
import os, time
for n in range(200):
    try:
        if os.fork() == 0: break
    except OSError:
        print("refused", flush=True)
        break
time.sleep(1000)
"""


_FORKS_AT_ITS_LIMIT = """
import os, resource
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
try: os.fork()
except OSError: os._exit(1)
"""


@contextmanager
def descriptors_left(pid: int, count: int) -> Iterator[None]:
    """That process can open so many more."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    limit = 0
    while limit - len([fd for fd in used if fd < limit]) < count or limit in used:
        limit += 1
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@contextmanager
def no_more_tasks(pid: int) -> Iterator[None]:
    """The daemon, and the process that forks for it, can make neither a process nor a thread.

    Skips where nothing can see to that.
    """
    pids = [pid, *(child for child in children(pid) if b"forker" in Path(f"/proc/{child}/cmdline").read_bytes())]
    if os.geteuid() != 0:
        if (
            subprocess.run([sys.executable, "-I", "-S", "-c", _FORKS_AT_ITS_LIMIT], check=False, timeout=60).returncode
            == 0
        ):
            pytest.skip("no limit of processes holds here for this user: it is root outside of its namespace")
        before = {each: resource.prlimit(each, resource.RLIMIT_NPROC) for each in pids}
        for each, (_, hard) in before.items():
            resource.prlimit(each, resource.RLIMIT_NPROC, (1, hard))
        try:
            yield
        finally:
            for each, limits in before.items():
                if start_time(each) is not None:
                    resource.prlimit(each, resource.RLIMIT_NPROC, limits)
        return
    own = next((each.own for each in hierarchies(Path("/proc/self")) if "pids" in each.controllers), None)
    if own is None or not os.access(own, os.W_OK):
        pytest.skip("root is under no limit of processes, and there is no pids controller of v1 to set one with")
    group = own / f"witsd-test-{pid}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no group can be made to set a limit of processes with: {error}")
    try:
        for each in pids:
            (group / "cgroup.procs").write_text(str(each))
        (group / "pids.max").write_text("1")
        yield
    finally:
        (group / "pids.max").write_text("max")
        for member in (group / "cgroup.procs").read_text().split():
            (own / "cgroup.procs").write_text(member)
        group.rmdir()


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


@pytest.fixture
def running(daemon: Daemon) -> Daemon:
    daemon.start()
    return daemon


def test_without_a_descriptor_it_says_so_and_recovers(running: Daemon) -> None:
    with wire(running.socket) as c:
        define(c, "echo", python(ECHO), health={"interval_s": 0})
        define(c, "later", ["sleep", "1000"], kind="exec", start="manual", **NEVER)
        assert ask(c, "echo", "x")["output"] == "x"
        started = 0
        # Whichever of the descriptors that a start needs is the one that is not to be had.
        for spare in range(14):
            with descriptors_left(running.pid, spare):
                try:
                    c.call("agents/start", name="later")
                    started += 1
                except RpcError as error:
                    said = (error.code, "Too many open files" in str(error))
                    assert (*said, c.call("agents/get", name="later")["state"]) == (-32007, True, "failed")
                assert ask(c, "echo", f"spare {spare}")["output"] == f"spare {spare}", "who is up goes on"
            c.call("agents/stop", name="later")
            assert wait_for(running.home, 1), "nobody is left of what could not be started"
        assert 0 < started < 14
        assert c.call("agents/start", name="later")["state"] == "active"
    assert no_zombies(running.pid)


def test_callers_wait_while_there_is_no_descriptor_and_are_served_afterwards(running: Daemon) -> None:
    with wire(running.socket) as c:
        assert c.call("ping") == {}
        with descriptors_left(running.pid, 0), closing(socket.socket(socket.AF_UNIX)) as waiting:
            waiting.settimeout(PATIENCE_S)
            waiting.connect(str(running.socket))
            waiting.sendall(b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n')
            for _ in range(20):
                assert c.call("ping") == {}
        assert running.call("ping") == {}
        assert c.call("ping") == {}


def test_without_a_process_or_thread_to_be_had_it_goes_on_and_recovers(running: Daemon) -> None:
    with wire(running.socket) as c, gate(running.home) as word:
        c.subscribe("agent:*", "log:chatty")
        chat = 'exec 3<"$0"; echo up; head -c 1 <&3; echo " is what it said"; exec sleep 1000'
        define(c, "chatty", ["sh", "-c", chat, word.path], kind="exec")
        c.until("log.line")
        chatty = c.call("agents/get", name="chatty")["pid"]
        define(c, "echo", python(ECHO), restart={"backoff_s": 0.2, "max_restarts": 1000})
        define(c, "later", ["sleep", "1000"], kind="exec", start="manual", **NEVER)
        echo = c.call("agents/start", name="echo")["pid"]
        with no_more_tasks(running.pid):
            with pytest.raises(RpcError) as refused:
                c.call("agents/start", name="later")
            assert refused.value.code == -32007
            assert "could not be started" in str(refused.value)
            assert ask(c, "echo", "x")["output"] == "x"
            # Threads that were idle for ten seconds end: from then on there is none for what waits for a file.
            give_up = time.monotonic() + PATIENCE_S
            while threads(running.pid) > THREADS and time.monotonic() < give_up:
                assert not wait_gone(running.pid, 0.1)
            assert threads(running.pid) <= THREADS
            os.kill(echo, 9)
            gone = c.until("agent.state", where=lambda d: d["name"] == "echo" and d["state"] == "backoff")
            assert gone["data"]["reason"] == "was killed by SIGKILL"
            word.let()
            assert c.call("ping") == {}
        c.until("agent.state", where=lambda d: d["name"] == "echo" and d["state"] == "active")
        assert ask(c, "echo", "back")["output"] == "back"
        assert c.call("agents/start", name="later")["state"] == "active"
        while ". is what it said" not in [line["text"] for line in c.call("agents/logs", name="chatty")["lines"]]:
            assert c.call("agents/get", name="chatty")["pid"] == chatty
        assert wait_for(running.home, 3)
    assert no_zombies(running.pid)


@pytest.mark.parametrize("how", MODULES)
def test_a_fork_bomb_under_a_limit_of_tasks_harms_nobody(daemon: Daemon, how: str) -> None:
    module, arguments = MODULES[how]
    daemon.start(*arguments, module=module)
    with wire(daemon.socket) as c:
        c.subscribe("agent:bomb", "log:bomb")
        define(c, "echo", python(ECHO))
        sibling = c.call("agents/start", name="echo")["pid"]
        define(c, "bomb", python(BOMB), kind="exec", limits={"tasks": 30}, **NEVER)
        while True:  # refused by the kernel, or ended for what the samples show
            event = c.next_event()
            if event["data"].get("text") == "refused":
                assert len(of_daemon(daemon.home)) <= 31
                break
            if event["data"].get("state") == "failed":
                assert "tasks" in event["data"]["reason"], event
                break
        assert ask(c, "echo", "unharmed")["output"] == "unharmed"
        assert c.call("agents/get", name="echo")["pid"] == sibling
        c.call("agents/stop", name="bomb")
        assert wait_for(daemon.home, 1) == [sibling]
    assert no_zombies(daemon.pid)


def test_a_line_without_end_takes_no_memory(running: Daemon) -> None:
    size = 256 << 20
    endless = f"head -c {size} /dev/zero | tr '\\0' x; echo; echo over"
    with wire(running.socket) as c:
        c.subscribe("agent:endless")
        before = peak_rss_bytes(running.pid)
        define(c, "endless", ["sh", "-c", endless], kind="exec", **NEVER)
        c.until("agent.state", where=lambda d: d["state"] == "inactive")
        assert peak_rss_bytes(running.pid) - before < 32 << 20
        assert c.call("agents/logs", name="endless", tail=1)["lines"][0]["text"] == "over"


def numbers(connection: Wire) -> Iterator[int]:
    while True:
        text = connection.until("log.line")["data"]["text"]
        yield int(text.split()[0])


def test_a_follower_that_does_not_read_holds_up_nobody(running: Daemon) -> None:
    count = 5000
    writes = f"for n in range({count}): print(n, 'x' * 4000)"
    with wire(running.socket) as slow, wire(running.socket) as fast:
        for each in (slow, fast):
            each.subscribe("log:writes", since={"log:writes": 0})
        fast.subscribe("agent:writes")
        before = peak_rss_bytes(running.pid)
        define(fast, "writes", python(writes), kind="exec", **NEVER)
        seen: list[int] = []
        done = False
        while not done or len(seen) < count:
            event = fast.next_event()
            if event["type"] == "log.line":
                seen.append(int(event["data"]["text"].split()[0]))
            done = done or event["data"].get("state") == "inactive"
        assert seen == list(range(count)), "who reads gets every line in order"
        assert peak_rss_bytes(running.pid) - before < 48 << 20
        late = numbers(slow)
        assert [next(late) for _ in range(count)] == list(range(count)), "and so does who reads later"
