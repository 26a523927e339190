"""Foreign code that tries to get out, on every way that this machine has; and what it gets done within."""

from __future__ import annotations

import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
import trio

from witsd.supervise.containment import find, sweep
from witsd.supervise.identity import stat_fields
from witsd.supervise.process import Spawner
from witsd.supervise.sandbox import Outcome, Sandboxes
from witsd.supervise.sandbox_ways import WAYS, Sandbox, SandboxError, Way, problem_of
from witsd.values.config import SandboxConfig

TIMEOUT_S = 120
MIB = 1 << 20
PROBLEMS = {way: problem_of(way) for way in WAYS}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    found: Way = request.param
    if PROBLEMS[found]:
        pytest.skip(f"{found} does not work here: {PROBLEMS[found]}")
    return found


@asynccontextmanager
async def sandboxes(
    tmp_path: Path, way: str, *, allow_none: bool = False, hidden: Sequence[Path] = ()
) -> AsyncIterator[Sandboxes]:
    mark = str(tmp_path)
    containment, spawner = find(mark), Spawner()
    try:
        yield Sandboxes(
            spawner=spawner,
            containment=containment,
            mark=mark,
            settings=SandboxConfig(way=cast(Any, way), allow_none=allow_none),
            hidden=hidden,
        )
    finally:
        spawner.close()
        sweep(containment)
        containment.close()


async def run(tmp_path: Path, way: Way, code: str, *, stdin: bytes = b"", **limits: Any) -> Outcome:
    with trio.fail_after(TIMEOUT_S):
        async with sandboxes(tmp_path, way) as it:
            return await it.run(Sandbox(code=code, **limits), stdin)


def names(marker: str) -> list[int]:
    """The live processes with these words in their command line."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                words = Path(f"/proc/{entry}/cmdline").read_bytes()
            except OSError:
                continue
            if marker.encode() in words and (fields := stat_fields(int(entry))) and fields[0] not in "ZX":
                found.append(int(entry))
    return found


async def test_what_it_computes(tmp_path: Path, way: Way) -> None:
    code = "import json, sys\nprint('out', input())\nprint('err', file=sys.stderr)\nsum(n * n for n in range(1, 11))"
    outcome = await run(tmp_path, way, code, stdin=b"given")
    assert outcome == Outcome(status="done", stdout=b"out given\n", stderr=b"err\n", value="385", exit_code=0)


async def test_a_mistake_is_shown_with_its_line(tmp_path: Path, way: Way) -> None:
    outcome = await run(tmp_path, way, "def f():\n    return 1 / 0\nf()\n")
    assert (outcome.status, outcome.exit_code) == ("failed", 1)
    told = outcome.stderr.decode()
    assert told.startswith('Traceback (most recent call last):\n  File "<code>", line 3')
    assert "return 1 / 0" in told
    assert told.endswith("ZeroDivisionError: division by zero\n")
    outcome = await run(tmp_path, way, "if True print(1)")
    assert b"SyntaxError" in outcome.stderr
    outcome = await run(tmp_path, way, "import sys; sys.exit(7)")
    assert (outcome.status, outcome.exit_code) == ("failed", 7)


async def test_files_come_back(tmp_path: Path, way: Way) -> None:
    code = """
import os
os.makedirs("sub/__pycache__")
open("a.txt", "w").write("A"); open("sub/b.bin", "wb").write(bytes(range(256))); open("sub/__pycache__/x", "w")
open("given", "a").write("!")
open("large", "w").write("x" * 3000)
os.symlink("/etc/passwd", "link"); os.mkfifo("pipe")
"""
    outcome = await run(tmp_path, way, code, files={"given": b"G"}, collect_bytes=2000)
    assert outcome.status == "done", outcome
    assert outcome.files == (("a.txt", b"A"), ("sub/b.bin", bytes(range(256))))
    assert outcome.left_out == ("large",)


async def test_a_program(tmp_path: Path, way: Way) -> None:
    with trio.fail_after(TIMEOUT_S):
        async with sandboxes(tmp_path, way) as it:
            done = await it.run(Sandbox(argv=("sh", "-c", "cat; echo $NAME; exit 3"), env={"NAME": "Ada"}), b"in ")
            assert (done.status, done.exit_code, done.stdout) == ("failed", 3, b"in Ada\n")
            missing = await it.run(Sandbox(argv=("no-such-program",)))
            assert (missing.exit_code, missing.stderr) == (127, b"no-such-program: No such file or directory\n")


async def test_granted_folders(tmp_path: Path, way: Way) -> None:
    read, write, other = tmp_path / "read", tmp_path / "write", tmp_path / "other"
    for folder in (read, write, other):
        folder.mkdir()
        (folder / "file").write_text(folder.name)
    code = f"""
import os
for path in {str(read)!r}, {str(write)!r}, {str(other)!r}:
    for mode in "r", "a":
        try:
            open(path + "/file", mode).write("+") if mode == "a" else print(open(path + "/file").read())
        except OSError:
            print(os.path.basename(path), mode, "refused")
print(os.getcwd())
"""
    outcome = await run(tmp_path, way, code, readable=[read], writable=[write], cwd=write)
    assert outcome.stdout.decode().split("\n")[:6] == [
        "read", "read a refused", "write", "other r refused", "other a refused", str(write.resolve()),
    ]  # fmt: skip
    assert (write / "file").read_text() == "write+"
    assert (read / "file").read_text() == "read"


async def test_what_is_granted_in_vain(tmp_path: Path, way: Way) -> None:
    secret = tmp_path / "project" / "state"
    secret.mkdir(parents=True)
    (secret / "witsd.db").write_text("SECRET")
    with trio.fail_after(TIMEOUT_S):
        async with sandboxes(tmp_path, way, hidden=(secret,)) as it:
            with pytest.raises(SandboxError, match="name folders below /"):
                await it.run(Sandbox(code="1", readable=[Path("/")]))
            with pytest.raises(SandboxError, match="is not there"):
                await it.run(Sandbox(code="1", readable=[tmp_path / "nowhere"]))
            code = f"import os; print(os.listdir({str(secret)!r}))"
            if way == "landlock":
                with pytest.raises(SandboxError, match="cannot be kept from"):
                    await it.run(Sandbox(code=code, readable=[tmp_path / "project"]))
            else:
                outcome = await it.run(Sandbox(code=code, readable=[tmp_path / "project"]))
                assert outcome.stdout == b"[]\n"


# ---- attempts to get out ------------------------------------------------------------------------------------------


async def test_reads_no_private_file(tmp_path: Path, way: Way) -> None:
    key = tmp_path / ".ssh" / "id_ed25519"
    key.parent.mkdir()
    key.write_text("PLANTED-KEY")
    key.chmod(0o644)  # not its mode is to save it
    code = f"""
import os, subprocess
for path in {str(key)!r}, "/proc/1/root{key}", "/proc/{os.getpid()}/root{key}", "/work/../..{key}":
    for attempt in lambda: open(path).read(), lambda: subprocess.check_output(["cat", path], stderr=-3).decode():
        try:
            print("got", attempt())
        except (OSError, subprocess.SubprocessError) as error:
            print(type(error).__name__)
try:
    os.symlink({str(key)!r}, "link"); print("got", open("link").read())
except OSError as error:
    print(type(error).__name__)
try:
    os.link({str(key)!r}, "hard"); print("got", open("hard").read())
except OSError as error:
    print(type(error).__name__)
"""
    outcome = await run(tmp_path, way, code, collect_bytes=MIB)
    assert b"PLANTED" not in outcome.stdout + outcome.stderr
    assert outcome.stdout.count(b"Error") >= 6, outcome
    assert not any(b"PLANTED" in content for _, content in outcome.files)


async def test_writes_nothing_outside(tmp_path: Path, way: Way) -> None:
    victim = tmp_path / "victim"
    victim.write_text("whole")
    victim.chmod(0o666)
    code = f"""
import os
def tries():
    yield lambda: open({str(victim)!r}, "w").write("broken")
    yield lambda: os.truncate({str(victim)!r}, 0)
    yield lambda: os.open({str(victim)!r}, os.O_RDONLY | os.O_TRUNC)
    yield lambda: os.unlink({str(victim)!r})
    yield lambda: os.rename({str(victim)!r}, {str(tmp_path / "moved")!r})
    yield lambda: os.chmod({str(victim)!r}, 0)
    yield lambda: os.utime({str(victim)!r}, (1, 1))
    yield lambda: os.setxattr({str(victim)!r}, "user.x", b"y")
    yield lambda: open({str(tmp_path / "new")!r}, "w")
    for place in "/usr", "/etc", "", "/dev", "/var/tmp":
        yield lambda: open(place + "/witsd-escape", "w")
    yield lambda: open("/proc/sys/kernel/hostname", "w").write("broken")
    yield lambda: os.mknod("disk", 0o60666, os.makedev(254, 0)) or os.open("disk", os.O_RDONLY)
    yield lambda: os.open("/dev/kmsg", os.O_WRONLY)
for one in tries():
    try:
        one(); print("done")
    except OSError:
        print("refused")
"""
    before = victim.stat()
    outcome = await run(tmp_path, way, code)
    assert set(outcome.stdout.decode().split()) == {"refused"}, outcome
    after = victim.stat()
    assert victim.read_text() == "whole"
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert not (tmp_path / "new").exists()
    assert not any(Path(place, "witsd-escape").exists() for place in ("/usr", "/etc", "/", "/dev", "/var/tmp"))


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[tuple[int, list[socket.socket]]]:
    """A port on loopback, and a Unix socket, as a daemon has them: whoever comes is counted."""
    met: list[socket.socket] = []
    unix, tcp = socket.socket(socket.AF_UNIX), socket.create_server(("127.0.0.1", 0))
    os.chmod(tmp_path, 0o755)
    unix.bind(str(tmp_path / "witsd.sock"))
    os.chmod(tmp_path / "witsd.sock", 0o777)
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind(f"\0witsd-test-{os.getpid()}")
    for each in (unix, abstract):
        each.listen()
    ended = threading.Event()

    def take() -> None:
        import select

        while not ended.is_set():
            ready = select.select([unix, tcp, abstract], [], [], 0.05)[0]
            met.extend(each.accept()[0] for each in ready)

    thread = threading.Thread(target=take)
    thread.start()
    try:
        yield tcp.getsockname()[1], met
    finally:
        ended.set()
        thread.join()
        for each in (unix, tcp, abstract, *met):
            each.close()


async def test_reaches_no_network_and_no_daemon(
    tmp_path: Path, way: Way, listening: tuple[int, list[socket.socket]]
) -> None:
    port, met = listening
    code = f"""
import socket
def tries():
    yield lambda: socket.create_connection(("127.0.0.1", {port}), 5)
    yield lambda: socket.create_connection(("::1", {port}), 5)
    yield lambda: socket.create_connection(("192.0.2.1", 80), 5)
    yield lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", {port}))
    yield lambda: socket.socket(socket.AF_UNIX).connect({str(tmp_path / "witsd.sock")!r})
    yield lambda: socket.socket(socket.AF_UNIX).connect("\\0witsd-test-{os.getpid()}")
    yield lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)
    yield lambda: socket.socket(40, socket.SOCK_STREAM)  # the host of a virtual machine
    yield lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    yield lambda: socket.create_server(("127.0.0.1", 0))
for one in tries():
    try:
        one(); print("done")
    except OSError:
        print("refused")
a, b = socket.socketpair()
a.send(b"within"); print(b.recv(10).decode())
"""
    outcome = await run(tmp_path, way, code, readable=[tmp_path])
    assert outcome.stdout.split() == [b"refused"] * 10 + [b"within"], outcome
    assert not met


async def test_network_where_it_is_granted(tmp_path: Path, way: Way) -> None:
    class Hello(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Hello) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        code = f"from urllib.request import urlopen\nprint(urlopen('http://127.0.0.1:{server.server_port}/').read())"
        outcome = await run(tmp_path, way, code, network=True)
        server.shutdown()
    assert outcome.stdout == b"b'hello'\n", outcome


async def test_a_fork_bomb_is_stopped(tmp_path: Path, way: Way) -> None:
    code = """
import os, time, sys
sys.argv
refused = 0
end = time.monotonic() + 20
while time.monotonic() < end:
    try:
        if os.fork() == 0:
            continue
    except OSError:
        refused += 1
        if refused == 1:
            print("refused", flush=True)
        time.sleep(0.01)
"""
    outcome = await run(tmp_path, way, code, tasks=16, time_s=3)
    assert outcome.status == "stopped", outcome
    assert outcome.limit in ("time", "tasks"), outcome
    assert await gone(lambda: names(str(tmp_path)))


async def gone(look: Any) -> bool:
    """Wait until there is nobody left."""
    with trio.move_on_after(60):
        while look():  # noqa: ASYNC110 - processes of others tell nobody
            await trio.sleep(0.05)
    return not look()


async def test_nobody_outlives_it(tmp_path: Path, way: Way) -> None:
    program = f"import time; time.sleep(1000)  # {tmp_path}"
    code = f"""
import os, subprocess, sys, signal
for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT): signal.signal(n, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        subprocess.Popen([sys.executable, "-I", "-S", "-c", {program!r}], env={{}}, start_new_session=True)
    os._exit(0)
os.wait()
import time
while WAIT: time.sleep(1)
"""
    outcome = await run(tmp_path, way, code.replace("WAIT", "False"))
    assert outcome.status == "done", outcome
    assert await gone(lambda: names(program))
    outcome = await run(tmp_path, way, code.replace("WAIT", "True"), time_s=1.5)
    assert (outcome.status, outcome.limit) == ("stopped", "time"), outcome
    assert outcome.reason == "it was ended after 1.5 s, its limit of time"
    assert await gone(lambda: names(program))


async def test_cancelled_it_is_gone(tmp_path: Path, way: Way) -> None:
    program = f"import time; time.sleep(1000)  # {tmp_path}"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-I', '-S', '-c', {program!r}])"
    with trio.fail_after(TIMEOUT_S):
        async with sandboxes(tmp_path, way) as it, trio.open_nursery() as nursery:
            nursery.start_soon(it.run, Sandbox(code=code, time_s=100))
            while not names(program):  # noqa: ASYNC110 - likewise
                await trio.sleep(0.02)
            nursery.cancel_scope.cancel()
        assert await gone(lambda: names(program))


def test_with_its_daemon_it_goes(tmp_path: Path, way: Way) -> None:
    """A daemon that is killed takes it along, also where no control group does."""
    program = f"import time; time.sleep(1000)  # {tmp_path}"
    code = f"""
import subprocess, sys
subprocess.run([sys.executable, "-I", "-S", "-c", {program!r}], env={{}}, start_new_session=True)
"""
    daemon = f"""
import trio
from witsd.supervise.containment import find
from witsd.supervise.process import Spawner
from witsd.supervise.sandbox import Sandboxes
from witsd.supervise.sandbox_ways import Sandbox
from witsd.values.config import SandboxConfig
mark = {str(tmp_path)!r}
settings = SandboxConfig(way={way!r})
it = Sandboxes(spawner=Spawner(), containment=find(mark, allowed=()), mark=mark, settings=settings)
trio.run(it.run, Sandbox(code={code!r}, time_s=300))
"""
    with subprocess.Popen([sys.executable, "-c", daemon]) as child:
        give_up = time.monotonic() + TIMEOUT_S
        # The guard's request is no argument, so that only the program itself has its words there.
        while not (found := [pid for pid in names(program) if pid != child.pid]):
            assert time.monotonic() < give_up
            assert child.poll() is None
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
    while [pid for pid in found if (fields := stat_fields(pid)) and fields[0] not in "ZX"]:
        assert time.monotonic() < give_up
        time.sleep(0.02)


@pytest.mark.parametrize("place", [".", "/tmp", "/dev/shm", "/work"])
async def test_the_disk_cannot_be_filled(tmp_path: Path, way: Way, place: str) -> None:
    code = f"""
import os
block, written = os.urandom(1 << 20), 0
try:
    for number in range(10_000):
        with open({place!r} + "/" + str(number), "wb") as file:
            for _ in range(4):
                written += file.write(block)
                file.flush()
        print(written >> 20, flush=True)
except OSError as error:
    print(error.errno)
"""
    outcome = await run(tmp_path, way, code, disk_bytes=16 * MIB, time_s=20)
    most = max([int(word) for word in outcome.stdout.split()[:-1]], default=0)
    assert most <= (16 if way != "landlock" else 4000), outcome
    assert outcome.limit == "disk" or outcome.stdout.split()[-1] in (b"28", b"13", b"30", b"2"), outcome
    one = await run(tmp_path, way, "f = open('one', 'wb')\nwhile True: f.write(bytes(1 << 20))", disk_bytes=4 * MIB)
    assert one.limit == "disk" or b"Errno 28" in one.stderr or b"Errno 27" in one.stderr, one


async def test_memory_is_limited(tmp_path: Path, way: Way) -> None:
    greedy = "kept = []\nwhile True: kept.append(bytearray(1 << 20))"
    outcome = await run(tmp_path, way, greedy, memory_bytes=64 * MIB)
    assert b"MemoryError" in outcome.stderr or outcome.limit == "memory", outcome
    # Together, and where no single process passes it.
    code = """
import os, time
for _ in range(6):
    if os.fork() == 0:
        kept = bytearray(os.urandom(1 << 20) * 40)
        time.sleep(60)
time.sleep(60)
"""
    outcome = await run(tmp_path, way, code, memory_bytes=128 * MIB, time_s=50)
    assert (outcome.status, outcome.limit) == ("stopped", "memory"), outcome
    shared = """
import mmap, time
kept = mmap.mmap(-1, 200 << 20)
for at in range(0, len(kept), 4096): kept[at] = 1
time.sleep(60)
"""
    outcome = await run(tmp_path, way, shared, memory_bytes=128 * MIB, time_s=50)
    assert outcome.limit == "memory" or b"MemoryError" in outcome.stderr or b"OSError" in outcome.stderr, outcome


async def test_output_is_bounded(tmp_path: Path, way: Way) -> None:
    outcome = await run(tmp_path, way, "print('x' * 5000)\nprint('end')\n'y' * 3000", output_bytes=1000)
    assert outcome.status == "done", outcome
    assert outcome.stdout == b"x" * 1000
    assert outcome.value == "'" + "y" * 999
    assert outcome.truncated == {"stdout", "value"}
    outcome = await run(tmp_path, way, "import os\nwhile True: os.write(2, b'z' * 65536)", output_bytes=1000)
    assert (outcome.status, outcome.limit, outcome.stderr) == ("stopped", "output", b"z" * 1000), outcome


async def test_time_is_bounded(tmp_path: Path, way: Way) -> None:
    outcome = await run(tmp_path, way, "print('begun')\nwhile True: pass", time_s=0.7)
    assert (outcome.status, outcome.limit, outcome.stdout) == ("stopped", "time", b"begun\n"), outcome


async def test_its_environment_holds_no_key(tmp_path: Path, way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted")
    code = """
import os, glob
print(dict(os.environ))
for path in glob.glob("/proc/*/environ"):
    try:
        print(open(path, "rb").read())
    except OSError:
        pass
"""
    outcome = await run(tmp_path, way, code)
    assert outcome.status == "done", outcome
    assert b"planted" not in outcome.stdout
    assert set(eval(outcome.stdout.splitlines()[0])) <= {"PATH", "HOME", "TMPDIR", "LANG", "LC_CTYPE"}


async def test_leaves_processes_of_the_machine_alone(tmp_path: Path, way: Way) -> None:
    with subprocess.Popen(["sleep", "1000"]) as victim:
        try:
            os.kill(victim.pid, 0)
            code = f"""
import ctypes, os, resource, signal
libc = ctypes.CDLL(None, use_errno=True)
def checked(result):
    if result < 0: raise OSError(ctypes.get_errno(), "")
def tries():
    for pid in {victim.pid}, {os.getpid()}, os.getppid():
        yield lambda: os.kill(pid, signal.SIGKILL) if pid > 1 else checked(-1)
        yield lambda: checked(libc.ptrace(16, pid, 0, 0))
        yield lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE, (0, 0)) if pid > 1 else checked(-1)
        yield lambda: os.setpriority(os.PRIO_PROCESS, pid, 19) if pid > 1 else checked(-1)
        yield lambda: os.sched_setaffinity(pid, [0]) if pid > 1 else checked(-1)
        yield lambda: open(f"/proc/{{pid}}/mem", "rb").read(1)
        yield lambda: signal.pidfd_send_signal(os.pidfd_open(pid), signal.SIGKILL) if pid > 1 else checked(-1)
    yield lambda: checked(libc.unshare(0x10000000))
    yield lambda: checked(libc.setns(0, 0))
    yield lambda: checked(libc.mount(b"none", b"/tmp", b"tmpfs", 0, None))
    yield lambda: checked(libc.syscall(425, 1, 0))
for one in tries():
    try:
        one(); print("done")
    except OSError:
        print("refused")
"""
            before = os.getpriority(os.PRIO_PROCESS, victim.pid)
            outcome = await run(tmp_path, way, code)
            assert victim.poll() is None
            assert os.getpriority(os.PRIO_PROCESS, victim.pid) == before
            assert set(outcome.stdout.split()) == {b"refused"}, outcome
        finally:
            victim.kill()


async def test_its_guard_is_left_alone(tmp_path: Path, way: Way) -> None:
    """Code that ends whom it can, and its parent first, is told of as what it did, and nothing else hangs."""
    code = """
import os, signal
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP):
    try:
        os.kill(os.getppid(), number)
    except OSError:
        pass
print("still here")
os.kill(-1, signal.SIGKILL) if os.getppid() == 1 else os.kill(os.getpid(), signal.SIGKILL)
"""
    outcome = await run(tmp_path, way, code)
    assert (outcome.status, outcome.stdout) in {("failed", b"still here\n"), ("done", b"still here\n")}, outcome


async def test_where_nothing_walls_it_in_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with trio.fail_after(TIMEOUT_S):
        async with sandboxes(tmp_path, "nothing of the kind") as it:
            with pytest.raises(SandboxError, match="so it is not run"):
                await it.run(Sandbox(code="1"))
        async with sandboxes(tmp_path, "nothing of the kind", allow_none=True) as it:
            assert (await it.run(Sandbox(code="1 + 1"))).value == "2"
            assert (await it.found()).way == "none"
            limited = attrs.evolve(Sandbox(code="while True: pass"), time_s=0.5)
            assert (await it.run(limited)).limit == "time"
