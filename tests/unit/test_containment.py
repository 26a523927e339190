"""Where containers are made, and what is written there, on machines of every layout."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.doubles.cgroups import FakeCgroups
from witsd.supervise import cgroups
from witsd.supervise.cgroups import Host
from witsd.supervise.container import CONTAINER_MARK, Ceilings, Container, ContainerError
from witsd.supervise.containment import Containment, find, name_of

MARK = "/home/somebody/witsd.db"
HOME = name_of(MARK)
ALL = {"memory", "cpu", "tasks"}


def told(found: Containment) -> tuple[str, Path | None, set[str]]:
    return found.name, found.home, set(found.controllers)


@pytest.fixture
def kernel(tmp_path: Path) -> FakeCgroups:
    return FakeCgroups(tmp_path)


def test_a_service_with_delegate_steps_down_and_enforces_every_limit(kernel: FakeCgroups) -> None:
    own = kernel.v2("/system.slice/witsd.service", "cpuset cpu io memory pids")
    found = find(MARK, host=kernel.host)
    assert told(found) == ("cgroup v2", own / HOME, ALL)
    assert (own / "daemon/cgroup.procs").read_text().split() == [str(os.getpid())]
    assert cgroups.words(own / "cgroup.subtree_control") == {"cpu", "memory", "pids"}
    assert not found.missing
    assert not (own / HOME / "probe").exists()


def test_a_daemon_already_in_its_subgroup_stays_there(kernel: FakeCgroups) -> None:
    own = kernel.v2("/system.slice/witsd.service/daemon", "cpu memory pids")
    found = find(MARK, host=kernel.host)
    assert told(found) == ("cgroup v2", own.parent / HOME, ALL)
    assert (own / "cgroup.procs").read_text().split() == [str(os.getpid())]


def test_a_scope_shared_with_others_is_not_rearranged(kernel: FakeCgroups) -> None:
    own = kernel.v2("/user.slice/session-3.scope", "cpu memory pids")
    (own / "cgroup.procs").write_text(f"1\n{os.getpid()}\n")
    found = find(MARK, host=kernel.host)
    assert told(found) == ("cgroup v2", own / HOME, set())
    assert not (own / "daemon").exists()
    assert set(found.missing) == ALL


def test_the_top_of_v2_needs_no_step_down(kernel: FakeCgroups) -> None:
    own = kernel.v2("/", "cpu memory pids")
    found = find(MARK, host=kernel.host)
    assert told(found) == ("cgroup v2", own / HOME, ALL)
    assert not (own / "daemon").exists()


def test_in_a_hybrid_layout_v1_enforces_what_v2_cannot(kernel: FakeCgroups) -> None:
    unified = kernel.v2("/system.slice/witsd.service")
    kernel.v1("name=systemd", "/system.slice/witsd.service")
    memory = kernel.v1("memory", "/system.slice/witsd.service")
    kernel.v1("cpu,cpuacct", "/")
    found = find(MARK, host=kernel.host)
    assert (found.name, found.home) == ("cgroup v2", unified / HOME)
    assert found.controllers == {"memory", "cpu"}
    assert found.places["memory"].home == memory / HOME
    assert "pids" in found.missing["tasks"]


def test_a_controller_somebody_else_put_us_into_is_left_alone(kernel: FakeCgroups) -> None:
    kernel.v2("/")
    memory = kernel.v1("memory", "/jobs/17")
    kernel.v1("pids", "/")
    found = find(MARK, host=kernel.host)
    assert found.controllers == {"tasks"}
    assert "belongs to whoever has put the daemon there" in found.missing["memory"]
    assert [entry.name for entry in memory.iterdir() if entry.is_dir()] == []


def test_without_v2_the_freezer_holds_the_tree(kernel: FakeCgroups) -> None:
    kernel.v1("pids")
    freezer = kernel.v1("freezer")
    found = find(MARK, host=kernel.host)
    assert told(found) == ("cgroup v1", freezer / HOME, {"tasks"})
    assert "no cgroup v2 is mounted" in found.reason


def test_without_a_freezer_pids_holds_the_tree_and_its_limit_in_one_group(kernel: FakeCgroups) -> None:
    pids = kernel.v1("pids")
    found = find(MARK, host=kernel.host)
    assert (found.name, found.home) == ("cgroup v1", pids / HOME)
    container = found.create("one", Ceilings(tasks=7))
    assert container.join == (str(pids / HOME / "one.agent"),)
    assert (pids / HOME / "one.agent/pids.max").read_text() == "7\n"


def test_where_nothing_can_be_made_it_says_why(kernel: FakeCgroups) -> None:
    own = kernel.v2("/user.slice/user-1000.slice")
    freezer = kernel.v1("freezer")
    kernel.read_only += [own, freezer]
    found = find(MARK, host=kernel.host)
    assert told(found) == ("process group", None, set())
    assert f"{own / HOME}: Permission denied" in found.reason
    assert f"{freezer / HOME}: Permission denied" in found.reason
    assert "Delegate=yes" in found.reason


def test_without_proc_it_says_so(tmp_path: Path) -> None:
    assert find(MARK, host=Host(proc=tmp_path / "none")).name == "process group"


def test_v2_without_cgroup_kill_is_not_taken_for_v2(kernel: FakeCgroups) -> None:
    kernel.v2("/")
    freezer = kernel.v1("freezer")
    host = kernel.host

    def old_kernel(group: Path) -> None:
        kernel.mkdir(group)
        (group / "cgroup.kill").unlink(missing_ok=True)

    found = find(MARK, host=Host(proc=host.proc, write=host.write, mkdir=old_kernel, rmdir=host.rmdir))
    assert (found.name, found.home) == ("cgroup v1", freezer / HOME)
    assert "cgroup.kill is not there" in found.reason


@pytest.mark.parametrize(
    ("root", "path", "inside"),
    [("/", "/", ""), ("/", "/a/b", "a/b"), ("/docker/1", "/docker/1", ""), ("/docker/1", "/docker/1/x", "x")],
)
def test_our_own_group_is_found_in_a_mount_of_a_part(kernel: FakeCgroups, root: str, path: str, inside: str) -> None:
    own = kernel.v2(path, root=root)
    (hierarchy,) = cgroups.hierarchies(kernel.host.proc)
    assert (hierarchy.own, hierarchy.at_top) == (own, not inside)
    assert hierarchy.own == hierarchy.mount / inside


@pytest.mark.parametrize(("root", "path"), [("/docker/1", "/docker/12"), ("/docker/1", "/"), ("/", "/../outside")])
def test_a_group_outside_the_mount_is_not_ours(tmp_path: Path, root: str, path: str) -> None:
    (tmp_path / "mountinfo").write_text(f"41 31 0:38 {root} /mnt rw - cgroup2 cgroup2 rw\n")
    (tmp_path / "cgroup").write_text(f"0::{path}\n")
    assert cgroups.hierarchies(tmp_path) == ()


def test_a_mount_point_with_a_space_is_read(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text("41 31 0:38 / /a\\040b rw shared:3 - cgroup2 none rw\n")
    (tmp_path / "cgroup").write_text("0::/\n")
    assert [h.mount for h in cgroups.hierarchies(tmp_path)] == [Path("/a b")]


# ---- containers -------------------------------------------------------------------------------------------


def group_of(container: Container, part: str = "") -> Path:
    return next(Path(path) for path in container.join if part in path)


def test_limits_are_written_for_v2_and_lifted_again(kernel: FakeCgroups) -> None:
    kernel.v2("/", "cpu memory pids")
    container = find(MARK, host=kernel.host).create("one", Ceilings(memory_bytes=1 << 20, cpu_percent=150, tasks=9))
    (path,) = container.join
    names = ("memory.max", "memory.swap.max", "memory.oom.group", "cpu.max", "pids.max")
    assert [(Path(path) / name).read_text().strip() for name in names] == ["1048576", "0", "1", "150000 100000", "9"]
    assert container.set_ceilings(Ceilings(tasks=9)) == {"tasks"}
    assert [(Path(path) / name).read_text().strip() for name in names] == ["max", "max", "0", "max 100000", "9"]


def test_limits_are_written_for_v1_in_an_order_the_kernel_takes(kernel: FakeCgroups) -> None:
    kernel.v2("/")
    kernel.v1("memory")
    kernel.v1("cpu")
    container = find(MARK, host=kernel.host).create("one", Ceilings(memory_bytes=1 << 20, cpu_percent=0.1))
    memory, cpu = group_of(container, "/memory/"), group_of(container, "/cpu/")

    def figures() -> list[int | None]:
        return [cgroups.number(memory / f"memory.{each}limit_in_bytes") for each in ("", "memsw.")]

    assert figures() == [1 << 20] * 2
    assert (cpu / "cpu.cfs_period_us").read_text().strip() == "100000"
    assert (cpu / "cpu.cfs_quota_us").read_text().strip() == "1000"
    for size in (1 << 22, 1 << 19):  # up, then down
        container.set_ceilings(Ceilings(memory_bytes=size))
        assert figures() == [size] * 2
    assert (cpu / "cpu.cfs_quota_us").read_text().strip() == "-1"


def test_only_hierarchies_with_a_limit_are_joined(kernel: FakeCgroups) -> None:
    kernel.v2("/")
    kernel.v1("memory")
    kernel.v1("pids")
    containment = find(MARK, host=kernel.host)
    assert len(containment.create("none").join) == 1
    container = containment.create("some", Ceilings(tasks=3, cpu_percent=10))
    assert [Path(path).parts[-3] for path in container.join] == ["unified", "pids"]
    assert container.set_ceilings(Ceilings(tasks=3, cpu_percent=10)) == {"tasks"}


@pytest.mark.parametrize("v2", [True, False])
def test_counters_are_read(kernel: FakeCgroups, v2: bool) -> None:
    kernel.v2("/", "memory pids" if v2 else "")
    if not v2:
        kernel.v1("memory")
        kernel.v1("pids")
    container = find(MARK, host=kernel.host).create("one", Ceilings(memory_bytes=1 << 20, tasks=3))
    memory, pids = Path(container.join[-2 if not v2 else 0]), Path(container.join[-1])
    assert (container.oom_kills(), container.tasks_refused()) == (0, 0)
    if v2:
        (memory / "memory.events").write_text("low 0\noom 9\noom_kill 2\noom_group_kill 1\n")
    else:
        (memory / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    (pids / "pids.events").write_text("max 5\n")
    assert (container.oom_kills(), container.tasks_refused()) == (2, 5)
    usage = container.usage()
    assert (usage.memory_bytes, usage.memory_peak_bytes, usage.cpu_us, usage.tasks) == (4096, 8192, 1500, 0)


def test_a_limit_that_the_kernel_refuses_leaves_no_group(kernel: FakeCgroups) -> None:
    own = kernel.v2("/")
    kernel.v1("pids")
    host = kernel.host

    def refuse(file: Path, value: object) -> None:
        raise PermissionError(13, "Permission denied", str(file))

    containment = find(MARK, host=Host(proc=host.proc, write=refuse, mkdir=host.mkdir, rmdir=host.rmdir))
    with pytest.raises(ContainerError, match=r"limits could not be set: .*Permission denied"):
        containment.create("one", Ceilings(tasks=3))
    assert [p.name for p in (own / HOME).iterdir() if p.is_dir()] == []


def test_a_group_that_cannot_be_made_is_an_error_with_a_reason(kernel: FakeCgroups) -> None:
    own = kernel.v2("/")
    containment = find(MARK, host=kernel.host)
    kernel.read_only.append(own)
    with pytest.raises(ContainerError, match=r"control group could not be made: .*Permission denied"):
        containment.create("one")


def test_a_home_that_was_tidied_away_is_made_again(kernel: FakeCgroups) -> None:
    own = kernel.v2("/", "pids")
    containment = find(MARK, host=kernel.host)
    kernel.rmdir(own / HOME)
    (path,) = containment.create("one", Ceilings(tasks=3)).join
    assert (Path(path) / "pids.max").read_text() == "3\n"


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "a\nb", "a" * 200])
def test_a_name_that_could_lead_elsewhere_is_refused(kernel: FakeCgroups, name: str) -> None:
    kernel.v2("/")
    with pytest.raises(ContainerError):
        find(MARK, host=kernel.host).create(name)


def test_an_agent_may_be_called_like_a_file_of_the_kernel(kernel: FakeCgroups) -> None:
    kernel.v2("/")
    assert Path(find(MARK, host=kernel.host).create("cgroup.procs").join[0]).is_dir()


def test_a_group_that_is_left_over_does_not_keep_the_agent_down(kernel: FakeCgroups) -> None:
    kernel.v2("/")
    containment = find(MARK, host=kernel.host)
    first = Path(containment.create("one").join[0])
    (first / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    second = containment.create("one")
    assert Path(second.join[0]).name == "one~1.agent"
    assert second.env[CONTAINER_MARK] == f"{HOME}/one~1.agent"
    (first / "cgroup.events").write_text("populated 0\nfrozen 0\n")
    (first / "leftover").touch()
    third = Path(containment.create("one").join[0])
    assert third == first  # empty, so it is made anew
    assert not (third / "leftover").exists()


def test_removal_goes_on_while_the_kernel_is_busy_but_not_for_ever(kernel: FakeCgroups) -> None:
    kernel.v2("/")
    containment = find(MARK, host=kernel.host)
    container = containment.create("one")
    kernel.busy = 3
    assert container.remove()
    assert not Path(container.join[0]).exists()
    assert container.remove()  # again: no error
    other = containment.create("two")
    kernel.busy = -1
    before = time.monotonic()
    assert not other.remove()
    assert time.monotonic() - before < 30


def test_closing_leaves_nothing_of_ours(kernel: FakeCgroups) -> None:
    own, pids = kernel.v2("/"), kernel.v1("pids")
    containment = find(MARK, host=kernel.host)
    assert (own / HOME).is_dir()
    assert (pids / HOME).is_dir()
    containment.close()
    assert not (own / HOME).exists()
    assert not (pids / HOME).exists()
