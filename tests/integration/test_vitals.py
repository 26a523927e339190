"""The sampler beside real processes: the whole tree, nobody else, and nothing twice."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import msgspec
import psutil
import pytest

from tests.support.processes import wait_gone
from tests.support.trees import Obedient, identity
from witsd.supervise.sample import Sample
from witsd.supervise.vitals import Sampler

#: One tick of the processor clock for each process that is asked, twice.
_TICKS_S = 0.06


@pytest.fixture
def sampler() -> Iterator[Sampler]:
    before = len(os.listdir("/proc/self/fd"))
    it = Sampler()
    yield it
    it.close()
    assert len(os.listdir("/proc/self/fd")) == before, "descriptors were left open"


def as_psutil_has_it(*pids: int) -> tuple[int, int, int, int]:
    """rss, fds, threads, processes."""
    them = [psutil.Process(pid) for pid in pids]
    return (
        sum(it.memory_info().rss for it in them),
        sum(it.num_fds() for it in them),
        sum(it.num_threads() for it in them),
        len(them),
    )


def gauges(sample: Sample) -> tuple[int, int, int, int]:
    return sample.rss_bytes, sample.fds, sample.threads, sample.processes


def cpu_seconds(samples: list[Sample]) -> float:
    """What the samples after the first say was used, in all."""
    return sum(after.cpu_percent / 100 * (after.at - before.at) for before, after in pairwise(samples))


@pytest.mark.parametrize("kept_fds", [1000, 0], ids=["kept open", "opened each time"])
def test_a_tree_of_three_is_counted_whole(kept_fds: int) -> None:
    sampler = Sampler(kept_fds=kept_fds)
    with Obedient() as leader:
        # Each says so once it does nothing but wait: until then its memory still grows.
        has_a_child = (
            "import subprocess, sys; p = subprocess.Popen(['sh', '-c', 'echo; read x'], stdin=-1, stdout=-1); "
            "p.stdout.readline(); print(p.pid, flush=True); sys.stdin.read()"
        )
        told = leader.do(
            f"p = subprocess.Popen([sys.executable, '-ISc', {has_a_child!r}], stdin=-1, stdout=-1); "
            "say(p.pid); say(p.stdout.readline().decode().strip())"
        )
        child, grandchild = map(int, told)
        sampler.add("a", leader.identity)
        sample = sampler.sample_all()["a"]
        assert set(sampler.pids("a")) == {leader.pid, child, grandchild}
        assert gauges(sample) == as_psutil_has_it(leader.pid, child, grandchild)
    sampler.close()


def test_a_process_that_ends_between_two_samples_is_gone_from_the_second(sampler: Sampler) -> None:
    with Obedient() as leader:
        child = leader.start_sleeper()
        sampler.add("a", leader.identity)
        assert sampler.sample_all()["a"].processes == 2
        leader.do("children['sleeper'].kill(); children['sleeper'].wait()")
        sample = sampler.sample_all()["a"]
        assert sampler.pids("a") == (leader.pid,)
        assert sample.processes == 1
        assert child not in sampler.pids("a")
        leader.end()
        assert gauges(sampler.sample_all()["a"]) == (0, 0, 0, 0)


def test_cpu_of_children_is_counted_once_whether_they_were_seen_or_not(sampler: Sampler) -> None:
    """A child that was sampled, one that lived between two samples, and what the leader does itself."""
    with Obedient() as leader:
        sampler.add("a", leader.identity)
        samples = [sampler.sample_all()["a"]]
        me = psutil.Process(leader.pid)
        before = sum(me.cpu_times()[:4])
        burner = "import time\nwhile time.process_time() < 0.4: pass\nprint(flush=True)\ninput()"
        leader.do(
            f"p = subprocess.Popen([sys.executable, '-ISc', {burner!r}], stdin=subprocess.PIPE, stdout=-1);"
            "p.stdout.readline()"
        )
        samples.append(sampler.sample_all()["a"])  # it is seen with what it has used
        assert samples[-1].processes == 2
        leader.do("p.communicate(b'\\n')")  # and now all of it is in its parent's account, too
        leader.do(f"subprocess.run([sys.executable, '-ISc', {burner!r}], input=b'\\n')")
        leader.do("burn(0.2)")
        samples.append(sampler.sample_all()["a"])
        samples.append(sampler.sample_all()["a"])
        used = sum(me.cpu_times()[:4]) - before
        assert used > 0.9
        assert cpu_seconds(samples) == pytest.approx(used, abs=_TICKS_S)


def test_an_idle_process_uses_nothing(sampler: Sampler) -> None:
    with Obedient() as leader:
        leader.do("burn(0.1)")
        sampler.add("a", leader.identity)
        sampler.sample_all()
        begun = sampler.sample_all()["a"].at
        leader.do("time.sleep(0.2)")
        sample = sampler.sample_all()["a"]
        assert sample.cpu_percent * (sample.at - begun) <= 100 * 0.03


def test_a_pid_that_means_somebody_else_by_now_is_not_counted(sampler: Sampler) -> None:
    with Obedient() as stranger:
        recorded = msgspec.structs.replace(stranger.identity, start_time=stranger.identity.start_time - 1)
        sampler.add("a", recorded)
        assert sampler.sample_all()["a"].processes == 0
        assert sampler.sample_all()["a"].processes == 0
        sampler.add("a", stranger.identity)
        assert sampler.sample_all()["a"].processes == 1


def test_a_child_that_another_thread_started_is_found(sampler: Sampler) -> None:
    with Obedient() as leader:
        leader.do(
            "ready = threading.Event(); go = threading.Event(); exec('def body():\\n children[0] = "
            'subprocess.Popen(["sleep", "1000"])\\n ready.set()\\n go.wait()\'); '
            "threading.Thread(target=body, daemon=True).start(); ready.wait()"
        )
        sampler.add("a", leader.identity)
        samples = [sampler.sample_all()["a"] for _ in range(4)]
        assert (samples[-1].processes, samples[-1].threads) == (2, 3)


@contextmanager
def subreaper() -> Iterator[None]:
    prctl = ctypes.CDLL(None).prctl
    prctl(36, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(36, 0, 0, 0, 0)


@pytest.mark.parametrize("kept_fds", [1000, 0], ids=["kept open", "opened each time"])
def test_orphans_stay_in_the_tree(kept_fds: int) -> None:
    """One whose parent had ended before the first sample, and one that was seen and then left its session."""
    sampler = Sampler(kept_fds=kept_fds)
    with ExitStack() as stack:
        stack.enter_context(subreaper())
        leader = stack.enter_context(Obedient())
        bystander = stack.enter_context(Obedient())
        early = int(
            leader.do("say(subprocess.check_output(['sh', '-c', 'sleep 1000 >&2 & echo $!']).decode().strip())")[0]
        )
        stack.callback(_end_orphan, early)
        detaches = "import os, sys; print(flush=True); input(); os.setsid(); print(os.getpid(), flush=True); input()"
        late = int(
            leader.do(
                f"p = subprocess.Popen(['sh', '-c', {_FORKS!r}, sys.executable, {detaches!r}],"
                " stdin=subprocess.PIPE, stdout=subprocess.PIPE); say(p.stdout.readline().decode().strip()); "
                "p.stdout.readline()"
            )[0]
        )
        stack.callback(_end_orphan, late)
        sampler.add("a", leader.identity)
        assert sampler.sample_all()["a"].processes == 4  # the leader, the early one, the shell, the late one
        leader.do("p.kill(); p.wait(); p.stdin.write(b'\\n'); p.stdin.flush(); p.stdout.readline()")
        assert os.getsid(late) == late
        assert psutil.Process(late).ppid() == os.getpid()
        sampler.sample_all()
        assert set(sampler.pids("a")) == {leader.pid, early, late}
        assert bystander.pid not in sampler.pids("a")
    sampler.close()


#: A shell that leaves a Python in the background with the shell's own stdin.
_FORKS = 'exec 3<&0; "$0" -ISc "$1" <&3 & echo $!; wait'


def _end_orphan(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass  # it is somebody else's to reap, who has done so
    assert wait_gone(pid)


def test_a_container_says_who_belongs(sampler: Sampler, tmp_path: Path) -> None:
    """Whoever is listed counts, whatever its parent; who is listed no more does not."""
    with Obedient() as leader, Obedient() as detached:
        child = leader.start_sleeper()
        procs = tmp_path / "cgroup.procs"
        procs.write_text(f"{leader.pid}\n{detached.pid}\n{child}\n")
        sampler.add("a", leader.identity, str(procs))
        assert sampler.sample_all()["a"].processes == 3
        procs.write_text(f"{leader.pid}\n{child}\n")
        assert sampler.sample_all()["a"].processes == 2
        assert set(sampler.pids("a")) == {leader.pid, child}
        procs.unlink()
        assert sampler.sample_all()["a"].processes == 2, "who was known goes on being counted"


def test_cpu_in_a_container_is_counted_once_also_for_a_zombie(sampler: Sampler, tmp_path: Path) -> None:
    """A real cgroup lists no zombie; what it used is still its parent's once it is waited for."""
    burner = "import time\nwhile time.process_time() < 0.4: pass\nprint(flush=True)\ninput()"
    with Obedient() as leader:
        child = int(
            leader.do(
                f"p = subprocess.Popen([sys.executable, '-ISc', {burner!r}], stdin=subprocess.PIPE, stdout=-1);"
                "p.stdout.readline(); say(p.pid)"
            )[0]
        )
        procs = tmp_path / "cgroup.procs"
        procs.write_text(f"{leader.pid}\n{child}\n")
        sampler.add("a", leader.identity, str(procs))
        first = sampler.sample_all()["a"]
        leader.do("p.stdin.close(); os.waitid(os.P_PID, p.pid, os.WEXITED | os.WNOWAIT)")
        procs.write_text(f"{leader.pid}\n")
        second = sampler.sample_all()["a"]
        assert second.processes == 2
        leader.do("p.wait()")
        third = sampler.sample_all()["a"]
        assert third.processes == 1
        assert cpu_seconds([first, second, third]) <= _TICKS_S


def _unified() -> Path | None:
    for root in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")):
        if (root / "cgroup.procs").exists() and os.access(root, os.W_OK):
            return root
    return None


def test_in_a_real_cgroup_nobody_gets_away(sampler: Sampler) -> None:
    root = _unified()
    if root is None:
        pytest.skip("no writable cgroup v2")
    folder = root / f"witsd-test-vitals-{os.getpid()}"
    folder.mkdir()
    try:
        with subreaper(), Obedient() as leader:
            (folder / "cgroup.procs").write_text(str(leader.pid))
            away = int(
                leader.do(
                    "say(subprocess.check_output(['setsid', 'sh', '-c', 'sleep 1000 >&2 & echo $!']).decode().strip())"
                )[0]
            )
            try:
                assert os.getsid(away) != leader.pid
                sampler.add("a", leader.identity, str(folder / "cgroup.procs"))
                sampler.sample_all()
                assert set(sampler.pids("a")) == {leader.pid, away}
            finally:
                _end_orphan(away)
    finally:
        folder.rmdir()


def test_bytes_to_storage_are_totals_that_never_fall(sampler: Sampler, tmp_path: Path) -> None:
    """Written by the leader, by a child that is seen, and by one that lives between two samples."""
    write = f"import os; f = os.open({str(tmp_path / 'f')!r}, os.O_WRONLY | os.O_CREAT); "
    write += "os.write(f, bytes(1 << 20)); os.fsync(f); os.close(f)"
    with Obedient() as leader:
        me = psutil.Process(leader.pid)
        leader.do(write)
        if me.io_counters().write_bytes < 1 << 20:
            pytest.skip(f"what is written to {tmp_path} is in nobody's account")
        sampler.add("a", leader.identity)
        totals = [sampler.sample_all()["a"].write_bytes]
        leader.do(
            f"p = subprocess.Popen([sys.executable, '-ISc', {write + '; print(flush=True); input()'!r}],"
            " stdin=subprocess.PIPE, stdout=-1); p.stdout.readline()"
        )
        totals.append(sampler.sample_all()["a"].write_bytes)
        assert totals[1] - totals[0] >= 1 << 20
        leader.do("p.communicate(b'\\n')")
        totals.append(sampler.sample_all()["a"].write_bytes)
        leader.do(f"subprocess.run([sys.executable, '-ISc', {write!r}])")
        totals.append(sampler.sample_all()["a"].write_bytes)
        assert totals[0] <= totals[1] <= totals[2] <= totals[3]
        assert totals[3] == me.io_counters().write_bytes  # which has what its children wrote


def test_without_descriptors_it_stays_as_it_was_and_recovers() -> None:
    sampler = Sampler(kept_fds=0)
    with Obedient() as known, Obedient() as newcomer:
        sampler.add("a", known.identity)
        sampler.add("b", newcomer.identity)
        before = sampler.sample_all()["a"]
        sampler.remove("b")
        sampler.add("b", newcomer.identity)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            during = sampler.sample_all()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert gauges(during["a"]) == gauges(before)
        assert during["b"].processes == 0
        assert {agent: sample.processes for agent, sample in sampler.sample_all().items()} == {"a": 1, "b": 1}


def test_agents_come_and_go_while_a_sweep_is_under_way(sampler: Sampler) -> None:
    with _sleepers(100) as pids:
        for pid in pids:
            sampler.add("many", identity(pid))
        sampler.add("last", identity(pids[0]))
        sweep = sampler.sweep()
        assert next(sweep) is None, "a hundred processes are more than a slice"
        sampler.remove("many")
        sampler.add("new", identity(pids[1]))
        rest = [done for done in sweep if done is not None]
        assert [agent for agent, _ in rest] == ["last"]
        assert set(sampler.sample_all()) == {"last", "new"}


def test_an_agent_with_several_roots_goes_with_the_last(sampler: Sampler) -> None:
    with _sleepers(2) as (one, two):
        sampler.add("a", identity(one))
        sampler.add("a", identity(two))
        assert sampler.sample_all()["a"].processes == 2
        sampler.remove("a", one)
        assert "a" in sampler.sample_all()
        sampler.remove("a", two)
        assert sampler.sample_all() == {}


@contextmanager
def _sleepers(number: int) -> Iterator[list[int]]:
    sleepers = [subprocess.Popen(["sleep", "1000"]) for _ in range(number)]
    try:
        yield [it.pid for it in sleepers]
    finally:
        for it in sleepers:
            it.kill()
        for it in sleepers:
            it.wait()


def test_two_hundred_processes_cost_a_fraction_of_psutil(sampler: Sampler) -> None:
    with _sleepers(200) as pids:
        for pid in pids:
            sampler.add(f"a{pid}", identity(pid))
        floor = [psutil.Process(pid) for pid in pids]
        ours, theirs = [], []
        for _ in range(10):
            begun = time.process_time()
            samples = sampler.sample_all()
            ours.append(time.process_time() - begun)
            begun = time.process_time()
            for it in floor:
                with it.oneshot():
                    it.cpu_times(), it.memory_info(), it.num_threads(), it.num_fds(), it.io_counters()
            theirs.append(time.process_time() - begun)
        assert len(samples) == 200
        print(f"sampling: {min(ours) / 200 * 1e6:.1f} us a process; psutil {min(theirs) / 200 * 1e6:.1f}")
        assert min(ours) < min(theirs) / 2
