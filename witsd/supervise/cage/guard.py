"""The program around foreign code: builds its walls, starts it, passes on what it writes, and ends it.

``python -I -S -c 'from witsd.supervise.cage.guard import main; main()'``, with a request on standard input and frames
on standard output (see ``frames``). In a process namespace it is the first process, so that nobody in it outlives it.
When the daemon has gone its standard output breaks, and it ends.
"""

from __future__ import annotations

import os
import select
import stat
import sys
import time

from witsd.supervise.cage import confine, frames, namespaces, processes, python_code

TYPE_CHECKING = False  # these modules cost a third of the start, and are for checkers alone
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, NoReturn

#: Output is read and thrown away beyond what is passed on, up to so many times as much.
_FLOOD = 256
_TICK_S = 0.05
#: What was written before the end is waited for as long; more than a moment only where somebody holds a pipe open.
_DRAIN_S = 2.0
_CHUNK = 64 << 10
_DEPTH = 16


class Over(Exception):
    """A limit has been passed: its name, and what to tell a person."""

    def __init__(self, limit: str, message: str) -> None:
        super().__init__(message)
        self.limit = limit


def main() -> NoReturn:
    """Never returns."""
    status = 1
    try:
        request = frames.read_request(0)
        walled = request["way"] == "namespaces"
        status = _enter(request, lambda: _guard(request)) if walled else _guard(request)
    except EOFError:
        pass  # the daemon has gone
    except BrokenPipeError:
        pass  # likewise
    except OSError as error:
        _fault(f"{error.filename or 'the sandbox'}: {error.strerror or error}")
    except BaseException as error:  # noqa: BLE001 - the daemon is told, whatever it was
        _fault(f"{type(error).__name__}: {error}")
    os._exit(status)


def _fault(message: str) -> None:
    try:
        frames.write(1, frames.FAULT, message.encode("utf-8", "backslashreplace"))
    except OSError:
        pass  # nobody is there to be told


def _enter(request: dict[str, Any], then: Callable[[], int]) -> int:
    """Into new namespaces, where a child goes on; we wait for it, and it ends with us."""
    namespaces.leave(network=request["network"], user=os.geteuid() != 0)
    alive, kept = os.pipe()
    pid = os.fork()
    if pid:
        os.close(alive)
        os.close(1)  # the daemon reads until the child has ended
        _, status = os.waitpid(pid, 0)
        os.close(kept)
        return os.waitstatus_to_exitcode(status) & 0xFF
    os.close(kept)
    confine.die_with_parent()
    namespaces.build(request["plan"])
    request["parent"] = alive
    os._exit(then())


def _guard(request: dict[str, Any]) -> int:
    if request["way"] == "landlock" or request["way"] == "none":
        # Whom it leaves behind must be ended by us, so we live until they are.
        confine.die_with_parent(False)
        confine.adopt_orphans()
    if request["nobody"]:
        confine.become_nobody()
        if request["way"] in ("bubblewrap", "namespaces"):
            confine.die_with_parent()  # which becoming another user has taken back
    confine.hide_memory()
    if os.getpid() == 1:
        confine.by_default(confine.SIGINT)  # the first process hears no signal that it does not handle
    for name, content in request["files"].items():
        _put(f"{request['work']}/{name}", content)
    watch = processes.Others() if request["way"] in ("bubblewrap", "namespaces") else processes.Descendants()
    run = _Run(request, watch)
    run.start()
    try:
        ended = run.follow()
    except Over as over:
        frames.write(1, frames.LIMIT, f"{over.limit}\0{over}".encode())
        ended = None
    finally:
        watch.end(run.reaped)
    run.drain()
    if ended is not None:
        frames.write(1, frames.END, (f"signal {-ended}" if ended < 0 else f"code {ended}").encode())
    if request["collect"]:
        _collect(request["work"], request["collect_bytes"], request["collect_files"], set(request["files"]))
    return 0


def _put(path: str, content: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)


class _Run:
    """The foreign process, and its pipes."""

    def __init__(self, request: dict[str, Any], watch: processes.Others | processes.Descendants) -> None:
        self.request, self.watch = request, watch
        self.pid = 0
        self.reaped: dict[int, int] = {}
        self._kinds: dict[int, bytes] = {}
        self._written = {frames.STDOUT: 0, frames.STDERR: 0, frames.VALUE: 0}
        self._cut: set[bytes] = set()
        self._poll = select.poll()

    def start(self) -> None:
        request = self.request
        stdin = os.memfd_create("stdin", os.MFD_CLOEXEC)
        with open(stdin, "wb", closefd=False) as file:
            file.write(request["stdin"])
        os.lseek(stdin, 0, os.SEEK_SET)
        pipes = [os.pipe() for _ in range(3)]
        # Its walls stand before it runs; what fails on the way is read from here.
        told, tell = os.pipe()
        self._deadline = time.monotonic() + request["time_s"]
        self.pid = os.fork()
        if not self.pid:
            os.close(told)
            _become(request, stdin, [write for _, write in pipes], tell)
        os.close(tell)
        os.close(stdin)
        for (read, write), kind in zip(pipes, (frames.STDOUT, frames.STDERR, frames.VALUE), strict=True):
            os.close(write)
            os.set_blocking(read, False)
            self._kinds[read] = kind
        failed = os.read(told, 4096)
        os.close(told)
        if failed:
            raise RuntimeError(failed.decode("utf-8", "replace"))

    def follow(self) -> int:
        """Until it ends: its exit code, or minus its signal. Raises ``Over``."""
        pidfd = os.pidfd_open(self.pid)
        self._poll.register(pidfd, select.POLLIN)
        self._poll.register(1, 0)  # only whether the daemon still reads
        if "parent" in self.request:
            self._poll.register(self.request["parent"], 0)
        for fd in self._kinds:
            self._poll.register(fd, select.POLLIN)
        next_look = 0.0
        while True:
            now = time.monotonic()
            if now >= self._deadline:
                raise Over("time", f"it was ended after {self.request['time_s']:g} s, its limit of time")
            if now >= next_look:
                self._look()
                next_look = now + _TICK_S
            for fd, _ in self._poll.poll(1000 * min(_TICK_S, self._deadline - now) + 1):
                if fd == pidfd:
                    os.close(pidfd)
                    self._poll.unregister(pidfd)
                    return self._status()
                if fd in self._kinds:
                    self._read(fd)
                else:
                    raise BrokenPipeError

    def drain(self) -> None:
        """What is still in the pipes, once all writers are gone."""
        give_up = time.monotonic() + _DRAIN_S
        while self._kinds and time.monotonic() < give_up:
            ready = select.select(list(self._kinds), [], [], 0.1)[0]
            for fd in ready:
                try:
                    self._read(fd)
                except Over:
                    self._forget(fd)

    def _status(self) -> int:
        if self.pid not in self.reaped:
            _, status = os.waitpid(self.pid, 0)
            self.reaped[self.pid] = os.waitstatus_to_exitcode(status)
        return self.reaped[self.pid]

    def _look(self) -> None:
        request = self.request
        tasks, memory = self.watch.usage(request["memory_bytes"])
        if tasks > request["tasks"]:
            raise Over("tasks", f"it had {tasks} processes and threads; its limit is {request['tasks']}")
        if memory > request["memory_bytes"]:
            limit = request["memory_bytes"] >> 20
            raise Over("memory", f"it used {memory >> 20} MiB of memory; its limit is {limit} MiB")
        if request["watch_work"] and (used := _size(request["work"])) > request["disk_bytes"]:
            raise Over("disk", f"it wrote {used >> 20} MiB of files; its limit is {request['disk_bytes'] >> 20} MiB")

    def _read(self, fd: int) -> None:
        try:
            chunk = os.read(fd, _CHUNK)
        except BlockingIOError:
            return
        if not chunk:
            self._forget(fd)
            return
        kind, most = self._kinds[fd], self.request["output_bytes"]
        room = most - self._written[kind]
        self._written[kind] += len(chunk)
        if room > 0:
            frames.write(1, kind, chunk[:room])
        if len(chunk) > room and kind not in self._cut:
            self._cut.add(kind)
            frames.write(1, frames.CUT, kind)
        if self._written[kind] > _FLOOD * most:
            raise Over("output", f"it wrote more than {_FLOOD} times the {most} bytes that are kept of its output")

    def _forget(self, fd: int) -> None:
        try:
            self._poll.unregister(fd)
        except KeyError:
            pass  # never watched: the process had ended before
        os.close(fd)
        del self._kinds[fd]


def _become(request: dict[str, Any], stdin: int, writers: list[int], tell: int) -> NoReturn:
    """In the child: take everything away, then run it."""
    status = 126
    try:
        confine.hide_memory(False)
        os.setsid()
        for number, fd in enumerate((stdin, *writers[:2])):
            os.dup2(fd, number)
        value, told = os.dup2(writers[2], 100), os.dup2(tell, 101)
        os.closerange(3, 100)
        os.closerange(102, 4096)
        os.dup2(value, 3)
        os.close(value)
        os.set_inheritable(3, False)
        os.set_inheritable(told, False)
        _confine(request)
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        if request["code"] is None:
            _exec(request["argv"], request["env"], told)
        os.close(told)
        status = python_code.run(request["code"], 3, request["output_bytes"])
    except BaseException as error:  # noqa: BLE001 - a copy of the guard must not go on, whatever happened
        text = f"{error.filename or 'it'}: {error.strerror}" if isinstance(error, OSError) else repr(error)
        try:
            os.write(101, text.encode("utf-8", "backslashreplace"))
        except OSError:
            pass  # the code itself runs already
    os._exit(status)


def _confine(request: dict[str, Any]) -> None:
    alone = request["way"] in ("bubblewrap", "namespaces")
    tasks = request["tasks"]
    if request["way"] == "none":
        confine.limit(**_limits(request, 0))
        return
    if alone and request["nobody"]:
        try:
            # Processes of one number are counted together on the whole machine, but for those in a namespace.
            namespaces.own_user(confine.NOBODY, confine.NOBODY)
        except OSError:
            tasks = 0  # then the guard counts them, and the control group
    elif not alone:
        tasks += processes.tasks_of(os.geteuid())
    confine.limit(**_limits(request, tasks))
    confine.drop_capabilities()
    if not alone:
        confine.landlock(readable=request["readable"], writable=request["writable"], network=request["network"])
    confine.filter_calls(network=request["network"], alone=alone)


def _limits(request: dict[str, Any], tasks: int) -> dict[str, int]:
    return {
        "cpu_s": int(request["time_s"] * request["tasks"]) + 1,
        "file_bytes": request["disk_bytes"],
        "memory_bytes": request["memory_bytes"],
        "tasks": tasks,
    }


def _exec(argv: list[str], env: dict[str, str], told: int) -> NoReturn:
    confine.by_default(confine.SIGPIPE, confine.SIGXFSZ, confine.SIGINT)
    try:
        os.execvpe(argv[0], argv, env)  # noqa: S606 - it is what we are for
    except OSError as error:
        # Told as its own failure, as a shell would: there is nothing wrong with the sandbox.
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
    os._exit(127)


def _size(folder: str, depth: int = _DEPTH) -> int:
    """What the files below take on the disk."""
    total = 0
    try:
        for entry in os.scandir(folder):
            try:
                if entry.is_dir(follow_symlinks=False):
                    total += 4096 + (_size(entry.path, depth - 1) if depth else 0)
                else:
                    total += max(4096, entry.stat(follow_symlinks=False).st_blocks * 512)
            except OSError:
                continue  # gone in the meantime
    except OSError:
        pass  # likewise
    return total


def _collect(work: str, most_bytes: int, most_files: int, given: set[str]) -> None:
    """Send the regular files below the work folder that were not there before; links are not followed."""
    top = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    left = [most_bytes, most_files]
    for name, fd in _files(top, "", _DEPTH):
        try:
            size = os.fstat(fd).st_size
            if name in given:
                continue
            shown = os.fsencode(name)
            if size > left[0] or left[1] <= 0:
                if left[1] > -most_files:  # of thousands of files the names alone would be a flood
                    frames.write(1, frames.LEFT_OUT, shown)
                    left[1] -= left[1] <= 0
                continue
            content = b""
            while len(content) < size and (chunk := os.read(fd, size - len(content))):
                content += chunk
            left[0] -= len(content)
            left[1] -= 1
            frames.write(1, frames.FILE, shown + b"\0" + content)
        finally:
            os.close(fd)


def _files(folder: int, before: str, depth: int) -> Iterator[tuple[str, int]]:
    """Names, from the top, and an open handle each, of regular files."""
    for name in sorted(os.listdir(folder)):
        try:
            info = os.stat(name, dir_fd=folder, follow_symlinks=False)
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            if stat.S_ISDIR(info.st_mode) and depth and name != "__pycache__":
                below = os.open(name, flags | os.O_DIRECTORY, dir_fd=folder)
                try:
                    yield from _files(below, f"{before}{name}/", depth - 1)
                finally:
                    os.close(below)
            elif stat.S_ISREG(info.st_mode):
                yield f"{before}{name}", os.open(name, flags, dir_fd=folder)
        except OSError:
            continue  # not ours to read, or gone: nobody writes any more, but modes may be anything


if __name__ == "__main__":
    sys.exit("start it as witsd does: see the first lines of this file")
