"""The files in ``/proc`` that say what one process uses, kept open and read without waiting.

An open ``/proc/<pid>/stat`` belongs to that process and not to the number: once it has been reaped, reading
fails, so a reused pid is never taken for the one before it. Nothing read here waits for the process, also when it is
stopped or stuck: ``stat``, ``statm``, ``io``, ``children`` and the size of ``fd`` do not take its memory lock, as
``environ`` and ``cmdline`` do. So all of it may be called in the event loop.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import attrs

#: Descriptors change slowly, and the rest only with ``stat``: every so many passes.
_REST_EVERY = 5
#: Only the main thread's children are in one file; those of other threads are looked for every so many passes.
_THREADS_EVERY = 3
#: Bytes of a file in ``/proc``, except for the list of very many children.
_USUAL = 4096
_LONGEST_PID = 12


@attrs.define(eq=False)
class Member:
    """One process. Descriptors are -1 where the budget is spent: then its files are opened each time."""

    pid: int
    stat_fd: int = -1
    statm_fd: int = -1
    io_fd: int = -1
    children_fd: int = -1
    #: As read last: what has not changed is not parsed again.
    stat: bytes = b""
    statm: bytes = b""
    io: bytes = b""
    children: bytes = b""
    state: bytes = b""
    #: Not read since it was opened.
    fresh: bool = True
    start_time: int = 0
    parent: int = 0
    session: int = 0
    own_ticks: int = 0
    #: Of children that it has waited for.
    children_ticks: int = 0
    rss_pages: int = 0
    threads: int = 0
    fds: int = 0
    read_bytes: int = 0
    write_bytes: int = 0

    @property
    def kept(self) -> bool:
        return self.stat_fd >= 0

    @property
    def descriptors(self) -> int:
        return (self.stat_fd >= 0) + (self.statm_fd >= 0) + (self.io_fd >= 0) + (self.children_fd >= 0)


@attrs.define(eq=False)
class Listing:
    """A group's ``cgroup.procs``, kept open where an open one can be read again."""

    path: str
    fd: int = -1
    #: That is so of v2. Of v1 the kernel gives what was read last, for as long as it is read every second.
    rereads: bool | None = None
    #: As read last, and what it says.
    text: bytes = b""
    pids: set[int] = attrs.field(factory=set)


class ProcFiles:
    """Opens and reads processes; ``kept_fds`` bounds the descriptors that stay open."""

    def __init__(self, kept_fds: int) -> None:
        self._budget = kept_fds
        self._fds_by_size = _fd_folder_has_size()

    def open(self, pid: int, *, children: bool = True) -> Member | None:
        """The process that has this number now, identified; None if there is none or it cannot be opened.

        Without ``children`` it is not going to be asked for them.
        """
        member = Member(pid)
        if self._budget >= 4:
            member.stat_fd = _open_or_not(f"/proc/{pid}/stat")
            if member.kept:
                member.statm_fd = _open_or_not(f"/proc/{pid}/statm")
                member.io_fd = _open_or_not(f"/proc/{pid}/io")
                if children:
                    member.children_fd = _open_or_not(f"/proc/{pid}/task/{pid}/children")
            self._budget -= member.descriptors
        stat = _contents(f"/proc/{pid}/stat") if not member.kept else _contents_of(member.stat_fd)
        if not stat:
            self.close(member)
            return None
        _parse(member, stat)
        return member

    def listed(self, listing: Listing) -> set[int] | None:
        """Who is in the group now; None where that cannot be read. Not to be changed."""
        if listing.rereads is None:
            listing.rereads = os.path.exists(f"{os.path.dirname(listing.path)}/cgroup.events")
        if listing.fd < 0 and listing.rereads and self._budget > 0:
            listing.fd = _open_or_not(listing.path)
            self._budget -= listing.fd >= 0
        try:
            text = os.pread(listing.fd, _USUAL, 0) if listing.fd >= 0 else b""
        except OSError:
            return None
        if listing.fd < 0 or len(text) > _USUAL - _LONGEST_PID:
            return pids_in(listing.path)
        if text != listing.text:
            listing.text, listing.pids = text, {int(pid) for pid in text.split()}
        return listing.pids

    def close_listing(self, listing: Listing) -> None:
        if listing.fd >= 0:
            os.close(listing.fd)
            listing.fd, self._budget = -1, self._budget + 1

    def children(self, member: Member, pass_number: int) -> bytes:
        """The pids of its children as text; those of other threads than the main one only now and then."""
        try:
            listed = os.pread(member.children_fd, _USUAL, 0)
        except OSError:
            listed = b""
        if member.children_fd < 0 or len(listed) == _USUAL:
            path = f"/proc/{member.pid}/task/{member.pid}/children"
            listed = _contents(path) or b""
        if member.threads > 1 and (pass_number + member.pid) % _THREADS_EVERY == 0:
            return b" ".join((listed, *self._children_of_threads(member.pid)))
        return listed

    def _children_of_threads(self, pid: int) -> Iterator[bytes]:
        try:
            threads = os.listdir(f"/proc/{pid}/task")
        except OSError:
            return
        for thread in threads:
            if int(thread) != pid:
                yield _contents(f"/proc/{pid}/task/{thread}/children") or b""

    def close(self, member: Member) -> None:
        self._budget += member.descriptors
        for fd in (member.stat_fd, member.statm_fd, member.io_fd, member.children_fd):
            if fd >= 0:
                os.close(fd)
        member.stat_fd = member.statm_fd = member.io_fd = member.children_fd = -1

    def read(self, member: Member, pass_number: int) -> bool:
        """Bring a member up to date; False if it is gone. What cannot be read now stays as it was.

        A process that has taken no page fault and no clock tick since (``stat`` is the same, byte for byte) has not
        grown either: its other files are read every few passes only.
        """
        pid, fds = member.pid, member.fds
        due = member.fresh or (pass_number + pid) % _REST_EVERY == 0
        if due:
            # By path and before the kept file: if that one can still be read, the number was not reused here.
            fds = self._count_fds(pid)
        try:
            stat = os.pread(member.stat_fd, 1024, 0) if member.stat_fd >= 0 else _contents(f"/proc/{pid}/stat")
        except OSError:
            return False
        if stat is None:
            return True
        if stat != member.stat:
            if not stat or (not member.kept and _start_time(stat) != member.start_time):
                return False
            _parse(member, stat)
        elif not due:
            return True
        member.fds, member.fresh = fds, False
        # The rss in ``stat`` may be short by megabytes on a machine with many processors: it is not summed up.
        statm = self._read_kept(member, member.statm_fd, "statm") or member.statm
        if statm != member.statm:
            member.statm = statm
            member.rss_pages = int(statm.split(b" ", 2)[1])
        io = self._read_kept(member, member.io_fd, "io") or member.io
        if io != member.io:
            member.io = io
            fields = io.split()
            member.read_bytes, member.write_bytes = int(fields[9]), int(fields[11])
        return True

    def _read_kept(self, member: Member, fd: int, name: str) -> bytes | None:
        """A file of this process; None where it cannot be read, as ``io`` of another user's."""
        if not member.kept:
            return _contents(f"/proc/{member.pid}/{name}")
        if fd < 0:
            return None
        try:
            return os.pread(fd, 512, 0)
        except OSError:
            return None

    def _count_fds(self, pid: int) -> int:
        try:
            if self._fds_by_size:
                return os.stat(f"/proc/{pid}/fd").st_size
            return len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:
            return 0  # another user's, or gone


def _contents(path: str) -> bytes | None:
    """The file's content; empty if the process is gone; None if it cannot be read just now."""
    try:
        return _read(path)
    except (FileNotFoundError, ProcessLookupError):
        return b""
    except OSError:
        return None


def _read(path: str) -> bytes:
    """Not with ``Path``, which takes as long as the kernel does and remembers each part of each path."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(handle, 1 << 16):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(handle)


def _contents_of(fd: int) -> bytes | None:
    try:
        return os.pread(fd, _USUAL, 0)
    except OSError:
        return b""


def _parse(member: Member, stat: bytes) -> None:
    """Fields of ``/proc/<pid>/stat``, counted after the name, which may hold anything (proc_pid_stat(5))."""
    member.stat = stat
    fields = stat[stat.rindex(b")") + 2 :].split(b" ", 20)
    member.state = fields[0]
    member.parent = int(fields[1])
    member.session = int(fields[3])
    member.own_ticks = int(fields[11]) + int(fields[12])
    member.children_ticks = int(fields[13]) + int(fields[14])
    member.threads = int(fields[17])
    member.start_time = int(fields[19])


def _start_time(stat: bytes) -> int:
    return int(stat[stat.rindex(b")") + 2 :].split(b" ", 20)[19])


def _open_or_not(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError:
        return -1


def pids_in(file: str) -> set[int] | None:
    try:
        return {int(pid) for pid in _read(file).split()}
    except (OSError, ValueError):
        return None


def _fd_folder_has_size() -> bool:
    """Since Linux 6.2 the size of ``/proc/<pid>/fd`` is the number of descriptors; before it was 0."""
    try:
        return os.stat("/proc/self/fd").st_size > 0
    except OSError:
        return False
