"""A kernel's control groups as plain files in a folder, with the rules that decide where groups can be made."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import attrs

from witsd.supervise import cgroups
from witsd.supervise.cgroups import Host

_V1_FILES = {
    "memory": {
        "memory.limit_in_bytes": "9223372036854771712",
        "memory.memsw.limit_in_bytes": "9223372036854771712",
        "memory.usage_in_bytes": "4096",
        "memory.max_usage_in_bytes": "8192",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 0",
    },
    "cpu": {"cpu.cfs_period_us": "50000", "cpu.cfs_quota_us": "-1"},
    "pids": {"pids.max": "max", "pids.current": "0", "pids.events": "max 0"},
    "freezer": {"freezer.state": "THAWED"},
    "name=systemd": {},
}
_V2_FILES = {
    "memory": {
        "memory.max": "max",
        "memory.swap.max": "max",
        "memory.oom.group": "0",
        "memory.current": "4096",
        "memory.peak": "8192",
        "memory.events": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0",
    },
    "cpu": {"cpu.max": "max 100000"},
    "pids": {"pids.max": "max", "pids.current": "0", "pids.events": "max 0"},
}


@attrs.define(eq=False)
class FakeCgroups:
    """``v1`` and ``v2`` mount a hierarchy with the daemon at a path in it; ``host`` is what to find it through."""

    folder: Path
    #: Folders in which no group may be made.
    read_only: list[Path] = attrs.field(factory=list)
    #: How many times removing is answered with EBUSY; -1 is for ever.
    busy: int = 0
    _mounts: list[str] = attrs.field(factory=list)
    _paths: list[str] = attrs.field(factory=list)
    _v1: dict[Path, str] = attrs.field(factory=dict)
    _top: Path | None = None

    @property
    def host(self) -> Host:
        (self.folder / "mountinfo").write_text("\n".join(self._mounts) + "\n")
        (self.folder / "cgroup").write_text("\n".join(self._paths) + "\n")
        return Host(proc=self.folder, mkdir=self.mkdir, rmdir=self.rmdir, write=self.write)

    def v1(self, controllers: str, path: str = "/", root: str = "/") -> Path:
        """Returns the daemon's own group."""
        mount = self.folder / controllers
        self._mounts.append(f"31 23 0:29 {root} {mount} rw,relatime - cgroup cgroup rw,xattr,{controllers}")
        self._paths.append(f"{len(self._paths) + 1}:{controllers}:{path}")
        self._v1[mount] = controllers
        return self._grow(mount, path.removeprefix(root.rstrip("/")))

    def v2(self, path: str = "/", controllers: str = "", root: str = "/") -> Path:
        mount = self.folder / "unified"
        self._mounts.append(f"41 31 0:38 {root} {mount} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate")
        self._paths.append(f"0::{path}")
        self._top = mount
        own = self._grow(mount, path.removeprefix(root.rstrip("/")))
        for group in (mount, *(p for p in mount.rglob("*") if p.is_dir())):
            (group / "cgroup.controllers").write_text(controllers)
        return own

    def _grow(self, mount: Path, inside: str) -> Path:
        self._make(mount)
        group = mount
        for part in filter(None, inside.split("/")):
            group = group / part
            self._make(group)
        (group / "cgroup.procs").write_text(f"{os.getpid()}\n")
        return group

    def _make(self, group: Path) -> None:
        os.mkdir(group)
        (group / "cgroup.procs").touch()
        for mount, controllers in self._v1.items():
            if group.is_relative_to(mount):
                for controller in controllers.split(","):
                    self._fill(group, _V1_FILES.get(controller, {}))
                return
        handed = "" if group == self._top else (group.parent / "cgroup.subtree_control").read_text()
        self._fill(group, {"cgroup.controllers": handed, "cgroup.subtree_control": ""})
        if group != self._top:
            self._fill(group, {"cgroup.events": "populated 0\nfrozen 0", "cgroup.kill": "", "cgroup.freeze": "0"})
            self._fill(group, {"cpu.stat": "usage_usec 1500\nuser_usec 1000"})
            for controller in handed.split():
                self._fill(group, _V2_FILES[controller])

    @staticmethod
    def _fill(group: Path, files: dict[str, str]) -> None:
        for name, text in files.items():
            (group / name).write_text(f"{text}\n" if text else "")

    def mkdir(self, group: Path) -> None:
        if any(group.is_relative_to(folder) for folder in self.read_only):
            raise PermissionError(errno.EACCES, "Permission denied", str(group))
        self._make(group)

    def rmdir(self, group: Path) -> None:
        if self.busy:
            self.busy -= 1
            raise OSError(errno.EBUSY, "Device or resource busy", str(group))
        if not group.exists():
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(group))
        shutil.rmtree(group)

    def write(self, file: Path, value: object) -> None:
        group, text = file.parent, str(value)
        if file.name == "cgroup.subtree_control":
            if group != self._top and (group / "cgroup.procs").read_text().strip():
                raise OSError(errno.EBUSY, "no internal processes", str(file))
            controller = text.removeprefix("+")
            if controller not in (group / "cgroup.controllers").read_text().split():
                raise OSError(errno.ENOENT, "not there", str(file))
            file.write_text(f"{file.read_text().strip()} {controller}\n")
            for below in (each for each in group.iterdir() if each.is_dir()):
                self._fill(below, _V2_FILES[controller])
                with (below / "cgroup.controllers").open("a") as controllers:
                    controllers.write(f" {controller}")
            return
        if file.name == "cgroup.procs" and (home := group.parent / "cgroup.procs").exists():
            home.write_text("".join(f"{pid}\n" for pid in home.read_text().split() if pid != text))
        if file.name.startswith("memory.") and file.name.endswith("limit_in_bytes"):
            self._check_memory(group, file.name, int(text))
        cgroups.write(file, f"{text}\n")

    @staticmethod
    def _check_memory(group: Path, name: str, value: int) -> None:
        limits = {
            each: cgroups.number(group / each) or 1 << 63
            for each in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
        }
        limits[name] = 1 << 63 if value < 0 else value
        if limits["memory.limit_in_bytes"] > limits["memory.memsw.limit_in_bytes"]:
            raise OSError(errno.EINVAL, "memory with swap may not be less than memory", str(group / name))
