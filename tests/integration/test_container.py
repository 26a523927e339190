"""Real process trees in real containers: what is put in cannot get out, and ends when it is told.

Each test runs once for every mechanism that this machine allows; the others are skipped with the reason.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from tests.support.processes import wait_gone
from witsd.supervise import cgroups
from witsd.supervise.cgroups import hierarchies
from witsd.supervise.container import UNLIMITED, Ceiling, Ceilings, Container, launch
from witsd.supervise.containment import Containment, Mechanism, find, name_of, sweep
from witsd.supervise.identity import MARK, Identity, boot_id, start_time

TIMEOUT_S = 60
ROOT = Path(__file__).parents[2]

#: A tree that does not want to die: prints the pids of a child in the group and of a detached grandchild.
STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
read, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.write(write, b"%d" % os.getpid())
        while True: signal.pause()
    os._exit(0)
os.wait()
detached = int(os.read(read, 20))
child = os.fork()
if child == 0:
    while True: signal.pause()
print(child, detached, flush=True)
if "leave" in sys.argv:
    sys.exit(0)
while True: signal.pause()
"""
#: Forks until it may not, says so, and goes on.
BOMB = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
said = False
while True:
    try:
        if os.fork() == 0:
            os.setsid()
    except OSError:
        if not said: os.write(1, b"refused\\n")
        said = True
        time.sleep(0.01)
"""


@attrs.define(eq=False)
class Box:
    """Starts programs in containers of one mechanism, and ends them with the test."""

    containment: Containment
    stack: ExitStack

    def create(self, unit: str = "one", ceilings: Ceilings = UNLIMITED) -> Container:
        return self.containment.create(unit, ceilings)

    def start(self, container: Container, code: str, *arguments: str) -> Child:
        return self.run(container, [sys.executable, "-I", "-S", "-c", code, *arguments])

    def run(self, container: Container, argv: Sequence[str]) -> Child:
        child = Child(
            subprocess.Popen(
                launch(os.getpid(), container.join, argv, setpriv=shutil.which("setpriv"), python=sys.executable),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **container.env, MARK: self.containment.mark},
                start_new_session=True,
            )
        )
        self.stack.callback(child.close)
        self.stack.callback(container.kill)  # first: who has detached holds the pipe
        container.started(Identity(child.pid, start_time(child.pid) or 0, boot_id()))
        return child


@attrs.define(eq=False)
class Child:
    popen: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.popen.pid

    def line(self) -> list[str]:
        assert self.popen.stdout
        return self.popen.stdout.readline().decode().split()

    def pids(self) -> list[int]:
        return [int(word) for word in self.line()]

    def close(self) -> None:
        self.popen.kill()
        self.popen.communicate(timeout=TIMEOUT_S)


def open_box(mechanism: Mechanism, stack: ExitStack, mark: str | None = None) -> Box:
    mark = mark or f"/test/{uuid.uuid4()}"
    allowed: tuple[Mechanism, ...] = () if mechanism == "process group" else (mechanism,)
    containment = find(mark, allowed=allowed)
    stack.callback(assert_no_trace, mark)
    stack.callback(containment.close)
    if containment.name != mechanism:
        pytest.skip(f"no {mechanism} here: {containment.reason}")
    return Box(containment, stack)


def traces(mark: str) -> list[Path]:
    return [path for each in hierarchies(Path("/proc/self")) for path in cgroups.search(each.mount, name_of(mark))]


def assert_no_trace(mark: str) -> None:
    assert traces(mark) == []


MECHANISMS: tuple[Mechanism, ...] = ("cgroup v2", "cgroup v1", "process group")
GROUPS: tuple[Mechanism, ...] = ("cgroup v2", "cgroup v1")


@pytest.fixture(params=MECHANISMS)
def box(request: pytest.FixtureRequest) -> Iterator[Box]:
    with ExitStack() as stack:
        yield open_box(request.param, stack)


@pytest.fixture(params=GROUPS)
def group_box(request: pytest.FixtureRequest) -> Iterator[Box]:
    with ExitStack() as stack:
        yield open_box(request.param, stack)


async def in_thread(fn: Callable[[], object]) -> None:
    await trio.to_thread.run_sync(fn)


# ---- the tree ---------------------------------------------------------------------------------------------


async def test_a_tree_that_detached_and_ignores_sigterm_is_ended_whole(box: Box) -> None:
    container = box.create()
    child = box.start(container, STUBBORN)
    pids = {child.pid, *child.pids()}
    assert len(pids) == 3
    assert container.pids() == pids
    assert container.signal(signal.SIGTERM) == 3
    assert container.pids() == pids
    with trio.fail_after(TIMEOUT_S):
        await in_thread(container.kill)
        await container.wait_empty()
    assert all(wait_gone(pid) for pid in pids)
    child.close()
    assert not container.populated()
    assert container.remove()
    assert not any(Path(path).exists() for path in container.join)


async def test_it_is_empty_when_the_last_is_gone_and_not_when_the_leader_is(box: Box) -> None:
    container = box.create()
    child = box.start(container, STUBBORN, "leave")
    left = set(child.pids())
    assert child.popen.wait(TIMEOUT_S) == 0
    assert container.pids() == left
    emptied = trio.Event()

    async def wait() -> None:
        await container.wait_empty()
        emptied.set()

    with trio.fail_after(TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            for pid in sorted(left):
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert not emptied.is_set()
                os.kill(pid, signal.SIGKILL)
            await emptied.wait()


async def test_waiting_for_an_empty_one_returns_at_once(box: Box) -> None:
    with trio.fail_after(TIMEOUT_S):
        await box.create().wait_empty()


async def test_a_signal_reaches_every_member(box: Box) -> None:
    container = box.create()
    child = box.start(
        container,
        "import os, signal\n"
        "signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b'%d\\n' % os.getpid()))\n"
        "if os.fork() == 0: os.setsid()\n"
        "os.write(1, b'up\\n')\n"
        "while True: signal.pause()\n",
    )
    assert [child.line(), child.line()] == [["up"], ["up"]]
    pids = container.pids()
    assert len(pids) == 2
    assert container.signal(signal.SIGUSR1) == 2
    assert {int(child.line()[0]), int(child.line()[0])} == pids


async def test_a_stopped_tree_is_ended(box: Box) -> None:
    container = box.create()
    child = box.start(container, STUBBORN)
    pids = [child.pid, *child.pids()]
    assert container.signal(signal.SIGSTOP) == 3
    with trio.fail_after(TIMEOUT_S):
        assert await container.end(TIMEOUT_S)
    assert all(wait_gone(pid) for pid in pids)


async def test_a_frozen_tree_is_ended(group_box: Box) -> None:
    container = group_box.create()
    child = group_box.start(container, STUBBORN)
    pids = [child.pid, *child.pids()]
    group = Path(container.join[0])
    if (group / "cgroup.freeze").exists():
        cgroups.write(group / "cgroup.freeze", 1)
    elif (group / "freezer.state").exists():
        cgroups.write(group / "freezer.state", "FROZEN")
    else:
        pytest.skip(f"{group} has no freezer")
    with trio.fail_after(TIMEOUT_S):
        assert await container.end(TIMEOUT_S)
    assert all(wait_gone(pid) for pid in pids)


async def test_one_that_put_itself_into_a_group_below_is_still_inside(group_box: Box) -> None:
    container = group_box.create()
    child = group_box.start(
        container,
        "import os, signal, sys\n"
        "below = sys.argv[1] + '/mine'; os.mkdir(below)\n"
        "open(below + '/cgroup.procs', 'w').write('0')\n"
        "print('in', flush=True); signal.pause()\n",
        container.join[0],
    )
    assert child.line() == ["in"]
    assert container.pids() == {child.pid}
    assert container.populated()
    with trio.fail_after(TIMEOUT_S):
        assert await container.end(TIMEOUT_S)
    assert not Path(container.join[0]).exists()


async def test_one_that_cleared_its_environment_is_known_by_its_session_or_parent() -> None:
    with ExitStack() as stack:
        box = open_box("process group", stack)
        container = box.create()
        child = box.run(
            container,
            ["/bin/sh", "-c", 'env -i sleep 1000 & setsid env -i sleep 1000 & env -i sleep 1000 & echo "$!"; wait'],
        )
        child.line()
        # The children are forked before the line is written; setsid makes no other process of it.
        assert len(container.pids()) == 4
        with trio.fail_after(TIMEOUT_S):
            assert await container.end(TIMEOUT_S)


async def test_none_of_those_forked_while_it_is_ended_gets_away() -> None:
    """Each child leaves the session with no environment, so its parent is all that it is known by."""
    token = f"1000.{uuid.uuid4().int}"
    with ExitStack() as stack:
        box = open_box("process group", stack)
        container = box.create()
        child = box.start(
            container,
            "import os, sys, time\n"
            "for i in range(400):\n"
            "    if os.fork() == 0:\n"
            "        os.setsid(); os.execve('/bin/sleep', ['sleep', sys.argv[1]], {})\n"
            "    if i == 5: print('on', flush=True)\n"
            "    time.sleep(0.003)\n",
            token,
        )
        stack.callback(end_all_with, token)
        assert child.line() == ["on"]
        with trio.fail_after(TIMEOUT_S):
            assert await container.end(TIMEOUT_S)
        assert running_with(token) == []


def running_with(argument: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and argument.encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue  # gone
    return found


def end_all_with(argument: str) -> None:
    for pid in running_with(argument):
        os.kill(pid, signal.SIGKILL)


# ---- joining ----------------------------------------------------------------------------------------------


def test_the_program_is_in_its_groups_before_it_runs(group_box: Box) -> None:
    everything = Ceilings(tasks=50, cpu_percent=300, memory_bytes=1 << 30)
    container = group_box.create("one", everything)
    assert container.set_ceilings(everything) == group_box.containment.controllers
    child = group_box.run(container, ["/bin/cat", "/proc/self/cgroup"])
    assert child.popen.stdout
    where = child.popen.stdout.read().decode()
    assert where.count(f"/{name_of(group_box.containment.mark)}/one.agent\n") == len(container.join)


@pytest.mark.parametrize("setpriv", [shutil.which("setpriv"), None], ids=["setpriv", "python"])
@pytest.mark.parametrize(
    ("of", "group", "code"),
    [("", None, 0), ("another", None, 125), ("", "no/such/group", 126), ("", "full", 126)],
    ids=["joins nothing", "another parent", "no group", "refused"],
)
def test_the_launcher_says_what_went_wrong(
    tmp_path: Path, setpriv: str | None, of: str, group: str | None, code: int
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/cgroup.procs").symlink_to("/dev/full")
    join = [str(tmp_path / group)] if group else []
    parent = os.getpid() + bool(of)
    argv = launch(parent, join, ["/bin/echo", "--", "a b"], setpriv=setpriv, python=sys.executable)
    done = subprocess.run(argv, capture_output=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == code
    assert done.stdout == (b"-- a b\n" if code == 0 else b"")
    assert bool(done.stderr) == (code == 126)


def test_groups_are_made_below_the_daemons_own() -> None:
    unified = next((each for each in hierarchies(Path("/proc/self")) if each.v2), None)
    if unified is None or not os.access(unified.own, os.W_OK) or os.getuid() != 0:
        pytest.skip("no writable cgroup v2 here")
    mark = f"/test/{uuid.uuid4()}"
    service = unified.own / f"witsd-test-{uuid.uuid4()}"
    service.mkdir()
    try:
        done = subprocess.run(
            launch(
                os.getpid(),
                [str(service)],
                [
                    sys.executable,
                    "-c",
                    "import sys\nfrom witsd.supervise.containment import find\n"
                    "found = find(sys.argv[1], allowed=('cgroup v2',)); print(found.home); found.close()",
                    mark,
                ],
                setpriv=shutil.which("setpriv"),
                python=sys.executable,
            ),
            stdout=subprocess.PIPE,
            cwd=ROOT,
            timeout=TIMEOUT_S,
            check=True,
        )
    finally:
        cgroups.wait_empty(service, TIMEOUT_S)
        assert cgroups.remove(service, cgroups.Host())
    assert done.stdout.decode().strip() == str(service / name_of(mark))


def test_a_user_without_rights_gets_a_reason() -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become somebody without rights")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, subprocess\nfrom witsd.supervise.containment import find\n"
            "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            "found = find('/test/nobody'); print(found.name, '|', found.reason)",
        ],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        timeout=TIMEOUT_S,
        check=True,
    )
    name, _, reason = done.stdout.decode().partition(" | ")
    assert name == "process group"
    if any(True for _ in hierarchies(Path("/proc/self"))):
        assert "Permission denied" in reason


# ---- limits -----------------------------------------------------------------------------------------------


def enforcing(box: Box, limit: Ceiling) -> Box:
    if limit not in box.containment.controllers:
        pytest.skip(f"the kernel does not enforce {limit} for us: {box.containment.missing[limit]}")
    return box


@pytest.fixture
def tasks_box(group_box: Box) -> Box:
    return enforcing(group_box, "tasks")


@pytest.fixture
def cpu_box(group_box: Box) -> Box:
    return enforcing(group_box, "cpu")


@pytest.fixture
def memory_box(group_box: Box) -> Box:
    return enforcing(group_box, "memory")


async def test_a_fork_bomb_stays_under_its_limit_and_is_ended(tasks_box: Box) -> None:
    container = tasks_box.create("bomb", Ceilings(tasks=40))
    child = tasks_box.start(container, BOMB)
    assert child.line() == ["refused"]
    tasks = container.usage().tasks
    assert tasks is not None
    assert 1 < tasks <= 40
    assert container.tasks_refused() > 0
    with trio.fail_after(TIMEOUT_S):
        assert await container.end(TIMEOUT_S)
    assert not Path(container.join[0]).exists()


def test_a_limit_set_later_holds_members_that_run(tasks_box: Box) -> None:
    container = tasks_box.create()
    child = tasks_box.start(
        container,
        "import os, sys\nprint('up', flush=True)\nsys.stdin.readline()\n"
        "try:\n    os.fork() or os._exit(0); print('forked', flush=True)\n"
        "except OSError: print('refused', flush=True)\nsys.stdin.readline()\n",
    )
    assert child.line() == ["up"]
    assert container.set_ceilings(Ceilings(tasks=1)) == {"tasks"}
    assert child.popen.stdin
    child.popen.stdin.write(b"\n")
    child.popen.stdin.flush()
    assert child.line() == ["refused"]
    assert container.tasks_refused() == 1


def test_processor_time_is_limited_and_counted(cpu_box: Box) -> None:
    container = cpu_box.create("one", Ceilings(cpu_percent=20))
    # What it is given in a second of its own clock, which the limit does not stretch.
    child = cpu_box.start(
        container,
        "import time\nend = time.monotonic() + 1\nwhile time.monotonic() < end: pass\nprint(time.process_time())",
    )
    assert float(child.line()[0]) < 0.5
    spent = container.usage().cpu_us
    if cpu_box.containment.name == "cgroup v2":
        assert spent is not None
        assert 1_000 < spent < 1_000_000


async def test_who_goes_over_its_memory_is_killed_and_counted(memory_box: Box) -> None:
    container = memory_box.create("one", Ceilings(memory_bytes=50 << 20))
    child = memory_box.start(container, "x = bytearray(200 << 20)\nprint(len(x), flush=True)")
    assert child.line() == []
    assert child.popen.wait(TIMEOUT_S) == -signal.SIGKILL
    assert container.oom_kills() == 1
    assert (container.usage().memory_peak_bytes or 0) >= 40 << 20


# ---- what can go wrong ------------------------------------------------------------------------------------


async def test_a_group_that_vanished_is_an_empty_one(group_box: Box) -> None:
    container = group_box.create("one", Ceilings(tasks=3))
    for path in container.join:
        os.rmdir(path)
    assert container.kill() == 0
    assert container.signal(signal.SIGTERM) == 0
    assert not container.populated()
    assert (container.oom_kills(), container.tasks_refused()) == (0, 0)
    assert container.usage().tasks is None
    with trio.fail_after(TIMEOUT_S):
        await container.wait_empty()
    assert container.remove()
    assert group_box.create("one").join


async def test_a_group_with_a_member_is_not_removed(group_box: Box) -> None:
    container = group_box.create()
    child = group_box.start(container, STUBBORN)
    child.line()
    assert not container.remove()
    assert Path(container.join[0]).exists()
    with trio.fail_after(TIMEOUT_S):
        assert await container.end(TIMEOUT_S)


async def test_without_a_handle_to_spare_nobody_is_taken_for_gone(group_box: Box) -> None:
    container = group_box.create()
    child = group_box.start(container, STUBBORN)
    pids = [child.pid, *child.pids()]
    ended = trio.Event()

    async def end() -> None:
        assert await container.end(TIMEOUT_S)
        ended.set()

    with trio.fail_after(TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            with no_handles():
                with pytest.raises(OSError, match="Too many open files"):
                    container.populated()
                nursery.start_soon(container.wait_empty)
                nursery.start_soon(end)
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert not ended.is_set()
    assert ended.is_set()
    assert all(wait_gone(pid) for pid in pids)


@contextmanager
def no_handles() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# ---- what an earlier daemon left --------------------------------------------------------------------------

DAEMON = """
import os, signal, shutil, subprocess, sys
from witsd.supervise.containment import find
from witsd.supervise.container import launch
mark, allowed, code = sys.argv[1], tuple(filter(None, sys.argv[2].split(","))), sys.argv[3]
containment = find(mark, allowed=allowed)
container = containment.create("left")
program = [sys.executable, "-c", code]
argv = launch(os.getpid(), container.join, program, setpriv=shutil.which("setpriv"), python=sys.executable)
subprocess.Popen(argv, start_new_session=True, env={**os.environ, **container.env, "WITSD_INSTANCE": mark})
signal.pause()
"""


@pytest.mark.parametrize("elsewhere", [False, True], ids=["same group", "another group"])
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_what_a_killed_daemon_left_is_ended_by_the_next(mechanism: Mechanism, elsewhere: bool) -> None:
    with ExitStack() as stack:
        mark = f"/test/{uuid.uuid4()}"
        box = open_box(mechanism, stack, mark)
        scopes: list[Path] = []
        if elsewhere:
            if box.containment.home is None:
                pytest.skip("a process group is nowhere")
            # The earlier daemon ran in a group of its own, as in another login session.
            scope = box.containment.home.parent / f"witsd-test-{uuid.uuid4()}"
            scope.mkdir()
            stack.callback(cgroups.remove, scope, cgroups.Host())
            scopes.append(scope)
        allowed = "" if mechanism == "process group" else mechanism
        daemon = Child(
            subprocess.Popen(
                launch(
                    os.getpid(),
                    [str(scope) for scope in scopes],
                    [sys.executable, "-c", DAEMON, mark, allowed, STUBBORN],
                    setpriv=shutil.which("setpriv"),
                    python=sys.executable,
                ),
                stdout=subprocess.PIPE,
                cwd=ROOT,
            )
        )
        stack.callback(daemon.popen.wait)
        stack.callback(daemon.popen.kill)
        child, detached = daemon.pids()
        daemon.popen.kill()
        daemon.popen.wait(TIMEOUT_S)
        if elsewhere and mechanism == "cgroup v2":
            assert any(path.is_relative_to(scopes[0]) for path in traces(mark))
        swept = sweep(box.containment)
        assert swept.processes >= 1  # the leader has had its death signal
        assert swept.remaining == ()
        assert wait_gone(child)
        assert wait_gone(detached)
        assert all(path == box.containment.home or path in homes(box.containment) for path in traces(mark))
        assert all(not any(entry.is_dir() for entry in path.iterdir()) for path in traces(mark))
        assert box.create("left").join if mechanism != "process group" else True
        assert sweep(box.containment).processes == 0
        assert daemon.popen.stdout
        daemon.popen.stdout.close()


def homes(containment: Containment) -> set[Path]:
    return {place.home for place in containment.places.values()}


def test_a_sweep_does_not_end_the_one_who_sweeps() -> None:
    """A daemon started from inside an agent of its predecessor."""
    with ExitStack() as stack:
        box = open_box("cgroup v2", stack)
        container = box.create()
        child = box.run(
            container,
            [
                "/usr/bin/env",
                f"PYTHONPATH={ROOT}",
                sys.executable,
                "-c",
                "import os, sys\nfrom witsd.supervise.containment import find, sweep\n"
                "if os.fork() == 0: os.execv('/bin/sleep', ['sleep', '1000'])\n"
                "found = find(sys.argv[1], allowed=('cgroup v2',)); print(sweep(found).processes, flush=True)",
                box.containment.mark,
            ],
        )
        assert [int(word) for word in child.line()] == [1]
        assert child.popen.wait(TIMEOUT_S) == 0
