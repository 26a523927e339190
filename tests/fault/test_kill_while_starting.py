"""SIGKILL before the lines that run between the decision to start a process and the commit of who it is.

Whatever that leaves is gone before the next daemon starts anything: N processes, never 2N, and none that nobody knows.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import PATIENCE_S, Daemon
from tests.support.processes import of_daemon, wait_for
from tests.support.wire import wire
from witsd.supervise.identity import start_time

AGENTS = ("a", "b", "c")
#: Its whole tree, with one that left its group and ignores SIGTERM, holds a lock as long as any of it is there. Written
#: in shell because that is there within the milliseconds until it is killed.
TREE = """
cd "$0"
if [ "$1" = each ]; then read -r what; fi
exec 9>"$1.lock"
flock -n 9 || { echo "$1 $what" >>doubled; exit 1; }
echo "$1 $what" >>begun
setsid sh -c 'trap "" TERM; exec sleep 1000' <&- >&- 2>&- &
if [ "$1" != each ] || [ "$what" = wait ]; then exec sleep 1000; fi
"""
#: Kills in one test. There are more lines than that: every second or third of them is tried then.
AT_MOST = 60
#: Runs waiting: more than there are kills, each of which uses up one at most.
QUEUED = 100
Left = set[tuple[int, int | None]]


@contextmanager
def daemons(daemon: Daemon, count: int, types: str, text: str) -> Iterator[Callable[[str], list[str]]]:
    """``ask(point)`` runs a daemon until it is killed there; see ``tests/support/hurt_daemon.py``."""
    with (
        daemon.log_path.open("ab") as out,
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.hurt_daemon", "points", str(count), types, text],
            env=daemon.env,
            cwd=daemon.user_home,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=out,
            bufsize=0,
        ) as server,
    ):
        assert server.stdin is not None
        assert server.stdout is not None

        def ask(point: str) -> list[str]:
            assert server.stdin is not None
            assert server.stdout is not None
            server.stdin.write(f"{point}\n".encode())
            return server.stdout.readline().decode().split()

        try:
            yield ask
        finally:
            server.stdin.close()
            server.wait(PATIENCE_S)


def left_by(daemon: Daemon) -> Left:
    return {(pid, start_time(pid)) for pid in of_daemon(daemon.home)}


def lines_of(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def define(daemon: Daemon, name: str, **more: Any) -> None:
    command = ["sh", "-c", TREE, str(daemon.home), name]
    daemon.call("agents/define", spec={"name": name, "kind": "exec", "command": command, **more})


def kill_at_each_step(daemon: Daemon, ask: Callable[[str], list[str]], within: tuple[str, ...]) -> list[str]:
    """A daemon for each of the lines of those files that run from the first fork on; where one was killed."""
    ran = ask("")
    first = next(n for n, point in enumerate(ran) if point.startswith("witsd/supervise/process.py"))
    counts = Counter(point for point in ran[first:] if point.startswith(within))
    assert len(counts) > 50, counts
    # A line that runs for each of the agents is met at the first of them, at the second, at the third, in turn.
    points = [f"{point} {1 + n % min(times, len(AGENTS))}" for n, (point, times) in enumerate(counts.items())]
    points = points[:: 1 + len(points) // AT_MOST]
    killed = []
    before = left_by(daemon)
    for point in points:
        said = ask(point)
        assert said in (["killed"], []), f"{point}: {said}"
        killed += [point] if said else []  # threads differ: not every line runs as often each time
        now = left_by(daemon)
        assert not now & before, f"killed at {point}, it had left running what the daemon before it had started"
        assert len(now) <= 4 * len(AGENTS), f"killed at {point}, it left {len(now)} processes"
        assert lines_of(daemon.home / "doubled") == [], f"killed at {point}"
        before = now
    assert len(killed) > 0.7 * len(points), f"{len(killed)} of {len(points)} lines were met"
    return killed


@pytest.mark.slow
def test_killed_at_every_step_between_fork_and_commit(daemon: Daemon) -> None:
    daemon.start()
    for name in AGENTS:
        define(daemon, name)
    assert daemon.stop() == 0
    with daemons(daemon, len(AGENTS), "agent.state", '"active"') as ask:
        within = ("witsd/supervise/process.py", "witsd/supervise/living.py", "witsd/journal/")
        killed = kill_at_each_step(daemon, ask, within)
    for part in ("supervise/process.py", "journal/journal.py"):
        assert any(part in point for point in killed)
    daemon.start()
    assert wait_for(daemon.home, 2 * len(AGENTS)), "each agent, and what detached itself of each"
    assert lines_of(daemon.home / "doubled") == []
    assert daemon.stop() == 0
    assert of_daemon(daemon.home) == []


@pytest.mark.slow
def test_killed_at_every_step_of_a_run_in_a_process_of_its_own(daemon: Daemon) -> None:
    daemon.start()
    define(daemon, "each", run_per_request=True, limits={"concurrency": 1})
    with wire(daemon.socket) as c:
        c.call("runs/start", agent="each", input="wait\n")
        queued = [c.call("runs/start", agent="each", input=f"{n}\n")["run_id"] for n in range(QUEUED)]
    daemon.kill()
    with daemons(daemon, 1, "run.completed,run.failed", "") as ask:
        killed = kill_at_each_step(
            daemon, ask, ("witsd/supervise/process.py", "witsd/supervise/tree.py", "witsd/services/")
        )
    assert any("execution.py" in point for point in killed)
    daemon.start()
    with wire(daemon.socket) as c:
        for run_id in reversed(queued):
            c.call("runs/cancel", run_id=run_id)
        runs = [c.call("runs/wait", run_id=run_id, timeout_s=PATIENCE_S) for run_id in queued]
    assert {run["status"] for run in runs} >= {"interrupted", "completed"}
    assert {run["status"] for run in runs} <= {"interrupted", "completed", "cancelled"}
    begun = lines_of(daemon.home / "begun")
    assert len(begun) == len({*begun}), "none was executed twice"
    completed = {f"each {run['input']['text']}".strip() for run in runs if run["status"] == "completed"}
    assert completed <= {*begun}
    assert lines_of(daemon.home / "doubled") == []
    assert of_daemon(daemon.home) == []
