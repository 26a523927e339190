"""A process with all that it starts: whatever goes wrong around it, nobody of it is left."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
import trio

from tests.support.processes import wait_gone
from witsd.supervise.containment import find, sweep
from witsd.supervise.identity import marked, start_time, stat_fields
from witsd.supervise.process import Spawner, SpawnError
from witsd.supervise.surroundings import Surroundings
from witsd.supervise.tree import Tree, open_tree
from witsd.values.spec import AgentSpec

TIMEOUT_S = 120
#: Leaves a child behind that has left its session, tells its pid, and ends.
LEAVES = "setsid sh -c 'echo $$; exec sleep 1000 >/dev/null' & read nothing"
#: Stays, and cannot be told by any encoding what it calls itself.
STRANGE = """
import ctypes, signal
ctypes.CDLL(None).prctl(15, b"\\xff) \\xfe", 0, 0, 0)
print("named", flush=True)
while True: signal.pause()
"""


@asynccontextmanager
async def surroundings(tmp_path: Path, spawner: Spawner) -> AsyncIterator[Surroundings]:
    """What a tree needs of what agents share."""
    containment = find(str(tmp_path))
    nothing = cast(Any, None)
    try:
        yield Surroundings(
            journal=nothing,
            logs=nothing,
            containment=containment,
            watch=nothing,
            spawner=spawner,
            ears=nothing,
            open_link=nothing,
            clock=nothing,
            ids=nothing,
            jitter=lambda: 0,
            mark=str(tmp_path),
            socket=tmp_path / "witsd.sock",
            run_root=tmp_path / "run",
            daemon_env=os.environ,
            commands={},
        )
    finally:
        spawner.close()
        sweep(containment)
        containment.close()


def spec(*command: str) -> AgentSpec:
    return AgentSpec(name="mine", kind="exec", command=command)


async def line(tree: Tree) -> str:
    text = b""
    while not text.endswith(b"\n"):
        text += await tree.process.stdout.receive_some(100)
    return text.decode().strip()


async def test_what_is_left_of_it_goes_also_where_its_owner_is_interrupted(tmp_path: Path) -> None:
    with trio.fail_after(TIMEOUT_S):
        async with surroundings(tmp_path, Spawner()) as shared:
            with trio.CancelScope() as scope:
                async with open_tree(spec("sh", "-c", LEAVES), shared) as tree:
                    left = int(await line(tree))
                    await tree.process.stdin.aclose()
                    await tree.process.watch()
                    assert start_time(left) is not None, "it has outlived the leader"
                    scope.cancel()
                    await tree.end_rest()
            assert scope.cancelled_caught
            assert wait_gone(left, 0), "it is gone when the block has ended"


async def test_who_is_forked_too_late_is_ended(tmp_path: Path) -> None:
    hangs, goes_on = threading.Event(), threading.Event()
    spawner = Spawner(patience_s=TIMEOUT_S)

    def hang() -> None:
        hangs.set()
        goes_on.wait(TIMEOUT_S)

    with trio.fail_after(TIMEOUT_S):
        async with surroundings(tmp_path, spawner) as shared:
            fork = spawner.forker.fork
            forked: list[int] = []

            def slow(*args: Any) -> tuple[int, int]:
                pid, report = fork(*args)
                hang()
                forked.append(pid)
                return pid, report

            async with open_tree(spec("cat"), shared):
                pass  # who forks is there, and so the next is made at once
            spawner.forker.fork = slow  # type: ignore[method-assign, assignment]
            spawner.patience_s = 2
            with pytest.raises(SpawnError, match=r"no process was made within 2 s"):
                async with open_tree(spec("sleep", "1000"), shared):
                    pass
            assert hangs.is_set()
            spawner.forker.fork = fork  # type: ignore[method-assign]
            spawner.patience_s = TIMEOUT_S
            goes_on.set()
            async with open_tree(spec("cat"), shared) as tree:
                assert marked(str(tmp_path)) == [tree.process.pid], "the one of before is ended, and waited for"
            assert not psutil.pid_exists(forked[0])
    used = [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.exists()]
    assert not [name for name in used if "pidfd" in name], "its handles are closed"


async def test_a_name_that_is_no_text_hides_nobody(tmp_path: Path) -> None:
    with trio.fail_after(TIMEOUT_S):
        strange = spec(sys.executable, "-c", STRANGE)
        async with surroundings(tmp_path, Spawner()) as shared, open_tree(strange, shared) as tree:
            assert await line(tree) == "named"
            fields = stat_fields(tree.process.pid)
            assert fields is not None
            assert fields[1] == str(os.getpid())
            assert start_time(tree.process.pid) == tree.process.identity.start_time


#: As somebody who may not signal that process.
_TRIES = """
import os, signal, sys
from witsd.supervise.identity import Identity
from witsd.supervise.process import Process
pid = int(sys.argv[1])
if os.getuid() == 0:
    os.setresuid(65534, 65534, 65534)
try: os.kill(pid, 0)
except PermissionError: print("not ours")
print(Process(Identity(pid, 0, ""), (), os.pidfd_open(pid)).signal_group(signal.SIGCONT))
"""


def test_a_process_that_is_another_users_by_now_is_told_and_no_error() -> None:
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as other:
        try:
            pid = other.pid if os.getuid() == 0 else 1
            done = subprocess.run(
                [sys.executable, "-c", _TRIES, str(pid)], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
            )
        finally:
            other.kill()
    if done.stdout == "True\n":
        pytest.skip("there is no process here that this user may not signal")
    assert (done.stdout, done.stderr) == ("not ours\nFalse\n", "")
