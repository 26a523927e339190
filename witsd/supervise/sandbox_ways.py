"""How foreign code can be walled in on this machine: which ways there are, which works, and how each is started.

``bubblewrap``: a view of the machine of its own, put together by ``bwrap``. ``namespaces``: the same, by ``cage``.
``landlock``: no view of its own; the kernel opens no file that was not granted, seccomp refuses the rest. ``none``:
limits alone, and only where the owner has said so.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import attrs

from witsd.supervise.cage import confine, frames, syscalls

if TYPE_CHECKING:
    from witsd.supervise.cage.namespaces import Step

Way = Literal["bubblewrap", "namespaces", "landlock", "none"]
#: The best first; ``none`` is never chosen by itself.
WAYS: tuple[Way, ...] = ("bubblewrap", "namespaces", "landlock")
#: Where foreign code finds itself, but for ``landlock`` and ``none``.
WORK = "/work"
#: What a program needs to run, where it is there. Nothing of a user, no key, and not all of /etc.
_SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/etc/alternatives",
    "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime",
    "/etc/nsswitch.conf", "/etc/protocols", "/etc/services",
    "/etc/mime.types",
)  # fmt: skip
_NETWORK = (
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/ssl",
    "/etc/pki",
    "/etc/ca-certificates",
)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
#: The import of one package's parts and of nothing else: no site, no environment, no folder of the caller's.
_GUARD = "import sys; sys.path.append({root!r}); from witsd.supervise.cage.guard import main; main()"
_PACKAGE = Path(__file__).parents[1]
_PROBE_S = 20.0
#: Whether code sees that it is walled in; and the least that a program does: a module, a child, a file.
_PROBE = """
import json, subprocess, os
open("probe", "w").write(json.dumps(subprocess.run(["sh", "-c", "echo alive"], capture_output=True, text=True).stdout))
try:
    os.listdir(PRIVATE)
    print("open")
except OSError:
    print("closed", open("probe").read())
"""


class SandboxError(Exception):
    """Foreign code cannot be run; the message says why, for a person."""


@attrs.frozen(kw_only=True)
class Sandbox:
    """What to run, and within what. Either ``argv`` or ``code``, which is Python.

    It starts in ``cwd``, which is a readable or writable folder, or else in an empty one of its own; ``files`` are put
    there first, and what it leaves there comes back where ``collect_bytes`` is not 0. ``memory_bytes`` and ``tasks``
    are of all its processes together, ``output_bytes`` of each of its streams, ``disk_bytes`` of all that it
    writes in its own folders, and of one file elsewhere.
    """

    argv: Sequence[str] = ()
    code: str | None = None
    cwd: Path | None = None
    readable: Sequence[Path] = ()
    writable: Sequence[Path] = ()
    env: Mapping[str, str] = attrs.field(factory=dict)
    files: Mapping[str, bytes] = attrs.field(factory=dict)
    time_s: float = 30.0
    memory_bytes: int = 256 << 20
    tasks: int = 32
    output_bytes: int = 64 << 10
    disk_bytes: int = 64 << 20
    collect_bytes: int = 0
    collect_files: int = 100
    network: bool = False

    def nobody(self, way: Way) -> bool:
        """Root's sandbox is nobody's, who owns nothing, where that leaves it what it needs."""
        if os.geteuid() or way == "none" or self.readable or self.writable:
            return False
        return _for_everybody(above=way == "landlock")


def launch(way: Way, it: Sandbox, stdin: bytes, scratch: str, hidden: Sequence[Path]) -> tuple[list[str], bytes]:
    """The command of a guard, and the request to write to it. ``scratch``: a folder of the machine's, for the ways
    that have none of their own. ``hidden``: never seen, also below what was granted. Raises ``SandboxError``.
    """
    readable, writable = _granted(it.readable, hidden, way), _granted(it.writable, hidden, way)
    walled = way in ("bubblewrap", "namespaces")
    work = WORK if walled else scratch
    cwd = str(it.cwd.resolve()) if it.cwd else work
    plan = [*_plan(it, readable, writable, hidden)] if walled else []
    system = [*_SYSTEM, *interpreter(), *(_NETWORK if it.network else ())]
    request = {
        "way": way,
        "nobody": it.nobody(way),
        "plan": plan if way == "namespaces" else [],
        "readable": [*system, *readable],
        "writable": [work, *writable, *_DEVICES],
        "work": work,
        "watch_work": not walled,
        "cwd": cwd,
        "argv": list(it.argv),
        "code": it.code,
        "env": _environment(it, work),
        "files": dict(it.files),
        "stdin": stdin,
        "time_s": float(it.time_s),
        "memory_bytes": it.memory_bytes,
        "tasks": it.tasks,
        "output_bytes": it.output_bytes,
        "disk_bytes": it.disk_bytes,
        "network": it.network,
        "collect": it.collect_bytes > 0,
        "collect_bytes": it.collect_bytes,
        "collect_files": it.collect_files,
    }
    guard = [os.path.realpath(sys.executable), "-I", "-S", "-c", _GUARD.format(root=str(_PACKAGE.parent))]
    if way == "bubblewrap":
        guard = [*_bubblewrap(it, plan), "--", *guard]
    return guard, frames.request(request)


def _granted(paths: Sequence[Path], hidden: Sequence[Path], way: Way) -> list[str]:
    found = []
    for path in paths:
        real = path.resolve()
        if real == Path("/"):
            raise SandboxError("the whole machine cannot be granted to a sandbox: name folders below /")
        if not real.exists():
            raise SandboxError(f"{path} is granted to the sandbox and is not there")
        below = next((each for each in hidden if each.is_relative_to(real)), None)
        if below is not None and way == "landlock":
            raise SandboxError(f"{below} cannot be kept from a sandbox that is granted {real}: grant a folder below it")
        found.append(str(real))
    return found


def _environment(it: Sandbox, work: str) -> dict[str, str]:
    """Made from nothing: no key of anybody's is in it."""
    folder = os.path.dirname(os.path.realpath(sys.executable))
    path = "/usr/local/bin:/usr/bin:/bin"
    if folder not in path.split(":"):
        path = f"{folder}:{path}"
    tmp = "/tmp" if work == WORK else work  # noqa: S108 - its own
    return {"PATH": path, "HOME": work, "TMPDIR": tmp, "LANG": "C.UTF-8", **it.env}


@cache
def interpreter() -> tuple[str, ...]:
    """What our own Python is made of, where that is no part of the system, and the guard's few files."""
    program = os.path.realpath(sys.executable)
    found = dict.fromkeys((os.path.realpath(sys.base_prefix), os.path.realpath(sys.base_exec_prefix)))
    if not any(Path(program).is_relative_to(path) for path in (*found, *_SYSTEM)):
        found[program] = None
    ours = [str(_PACKAGE / path) for path in ("__init__.py", "supervise/__init__.py", "supervise/cage")]
    return (*(path for path in found if path != "/" and not any(Path(path).is_relative_to(s) for s in _SYSTEM)), *ours)


@cache
def _for_everybody(*, above: bool) -> bool:
    """Whether our own Python can be read by who owns nothing; ``above``: reached, too, where it is on the machine."""
    paths = {Path(path) for path in interpreter()}
    if above:
        paths |= {folder for path in paths for folder in path.parents}
    return all(path.stat().st_mode & 0o004 for path in paths)


def _plan(it: Sandbox, readable: Sequence[str], writable: Sequence[str], hidden: Sequence[Path]) -> Iterator[Step]:
    """What its file system is made of, in the order in which it is put together."""
    for path in (*_SYSTEM, *(_NETWORK if it.network else ())):
        if os.path.islink(path):
            yield ("link", os.readlink(path), path)
        elif os.path.exists(path):
            yield ("ro", path)
    for path in ("/tmp", "/dev/shm", WORK):  # noqa: S108 - its own
        yield ("empty", path, it.disk_bytes)
    for path in interpreter():
        yield ("ro", path)
    granted = [*(("ro", path) for path in readable), *(("rw", path) for path in writable)]
    # From the outside in, so that none covers another; of two rights to one place the greater comes later.
    yield from sorted(granted, key=lambda step: (len(Path(step[1]).parts), step[0] == "rw"))
    for each in hidden:
        if each.is_dir() and any(each.is_relative_to(path) for _, path in granted):
            yield ("hide", str(each))


def _bubblewrap(it: Sandbox, plan: Sequence[Step]) -> list[str]:
    program = shutil.which("bwrap")
    if program is None:
        raise SandboxError("bwrap is not installed")
    argv = [program, "--unshare-ipc", "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try", "--as-pid-1"]
    argv += ["--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    if not it.network:
        argv.append("--unshare-net")
    late: list[str] = []
    if os.geteuid() == 0:
        late = ["--ro-bind", "/proc/sys", "/proc/sys"]
        if it.nobody("bubblewrap"):
            argv += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        argv.append("--unshare-user")
    made = set[str]()
    for kind, *rest in plan:
        # As everybody may enter them, which is not what bwrap does of itself.
        for folder in [str(path) for path in reversed(Path(str(rest[-1] if kind == "link" else rest[0])).parents)][1:]:
            if folder not in made:
                made.add(folder)
                argv += ["--perms", "0755", "--dir", folder]
        match kind, rest:
            case "link", [target, path]:
                argv += ["--symlink", str(target), str(path)]
            case "ro", [path]:
                argv += ["--ro-bind", str(path), str(path)]
            case "rw", [path]:
                argv += ["--bind", str(path), str(path)]
            case "empty", [path, size]:
                argv += ["--perms", "1777", "--size", str(size), "--tmpfs", str(path)]
            case "hide", [path]:
                argv += ["--perms", "0555", "--size", "4096", "--tmpfs", str(path)]
                late += ["--remount-ro", str(path)]
        if kind == "empty" and rest[0] == "/tmp":  # noqa: S108
            argv += ["--dev", "/dev", "--proc", "/proc"]  # below it comes /dev/shm
    return [*argv, *late, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/"]


# ---- which one ----------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Found:
    """The way that is used, None where none works; and why each better one is not."""

    way: Way | None
    problems: Mapping[str, str] = attrs.field(factory=dict)

    @property
    def why_not(self) -> str:
        return "; ".join(f"{way}: {problem}" for way, problem in self.problems.items())

    @property
    def lacks(self) -> str:
        """What this way does not do, for a person; empty for one that does all."""
        if self.way == "landlock":
            return (
                "names and sizes of files can be seen, modes and times of its own files cannot be changed, and disk "
                "space is looked at 20 times a second"
            )
        if self.way == "none":
            return "code that runs can read, change and send whatever this user can"
        return ""


def find(wanted: str, *, allow_none: bool) -> Found:
    """Try ``wanted`` (``auto``: each, the best first) by running something. Blocks: some tens of milliseconds."""
    problems: dict[str, str] = {}
    _compile()
    for way in WAYS if wanted == "auto" else tuple(way for way in WAYS if way == wanted):
        problem = problem_of(way)
        if not problem:
            return Found(way=way, problems=problems)
        problems[way] = problem
    return Found(way="none" if allow_none else None, problems=problems)


def _compile() -> None:
    """The guard's modules, which can write nothing where they run and would be compiled anew each time."""
    try:
        import importlib.util
        import py_compile
    except ImportError:
        return  # who looks may not read Python's own files: then nothing works, which is told of each way

    for file in (_PACKAGE / "supervise" / "cage").glob("*.py"):
        compiled = Path(importlib.util.cache_from_source(str(file)))
        try:
            if not compiled.exists() or compiled.stat().st_mtime < file.stat().st_mtime:
                py_compile.compile(str(file), quiet=2)
        except OSError:
            return  # not ours to write: it is slower then


def problem_of(way: Way) -> str:
    """Why a way does not work here; empty for one that does. Blocks."""
    if way == "bubblewrap" and shutil.which("bwrap") is None:
        return "bwrap is not installed"
    if way == "landlock" and not confine.landlock_abi():
        return "this kernel has no Landlock, or hides it"
    if not syscalls.known():
        return f"there is no filter of system calls for {platform.machine()}"
    try:
        import tempfile  # not for every daemon's memory
    except ImportError as error:
        return f"Python's own files cannot be read: {error}"
    with tempfile.TemporaryDirectory(prefix="witsd-private-") as private:
        try:
            return _try(way, private)
        except (OSError, SandboxError, ValueError) as error:
            return str(error)
        except subprocess.TimeoutExpired:
            return f"nothing came of it within {_PROBE_S:g} s"


def _try(way: Way, private: str) -> str:
    it = Sandbox(code=_PROBE.replace("PRIVATE", repr(private)), time_s=_PROBE_S / 2)
    with scratch(way, it) as folder:
        argv, request = launch(way, it, b"", folder, ())
        done = subprocess.run(argv, input=request, capture_output=True, timeout=_PROBE_S, env={}, cwd="/")
    said = dict[bytes, bytes]()
    for kind, payload in frames.Reader().feed(done.stdout):
        said[kind] = said.get(kind, b"") + payload
    if frames.FAULT in said:
        return said[frames.FAULT].decode("utf-8", "replace")
    if said.get(frames.STDOUT) == b'closed "alive\\n"\n' and said.get(frames.END) == b"code 0":
        return ""
    told = said.get(frames.STDERR) or done.stderr or said.get(frames.STDOUT) or b"it ended without a word"
    return told.decode("utf-8", "replace").strip().splitlines()[-1]


class scratch:  # noqa: N801 - used as a function
    """A folder of the machine's for foreign code, gone at the end; empty where the way has one of its own. Blocks."""

    def __init__(self, way: Way, it: Sandbox) -> None:
        self._needed, self._nobody = way in ("landlock", "none"), it.nobody(way)
        self._path = ""

    def __enter__(self) -> str:
        if self._needed:
            import tempfile

            self._path = os.path.realpath(tempfile.mkdtemp(prefix="witsd-sandbox-"))
            if self._nobody:
                os.chown(self._path, confine.NOBODY, confine.NOBODY)
        return self._path

    def __exit__(self, *_: object) -> None:
        if self._path:
            shutil.rmtree(self._path, ignore_errors=True)
