"""Who runs in a sandbox beside its guard: how many, how much memory they use, and ending them all."""

from __future__ import annotations

import os
import time

from witsd.supervise.cage import confine

TYPE_CHECKING = False  # these modules cost a third of the start, and are for checkers alone
if TYPE_CHECKING:
    from collections.abc import Iterator

_PAGE = os.sysconf("SC_PAGE_SIZE")
_END_S = 5.0
#: More than this many are too many in every sandbox; the rest is not looked at.
_ENOUGH = 5000


class Others:
    """Everybody in a process namespace whose first process the guard is."""

    def usage(self, memory_bytes: int) -> tuple[int, int]:
        """Tasks, and bytes of memory: exactly, once they are more than ``memory_bytes``."""
        return _usage((pid for pid in _all() if pid != 1), memory_bytes)

    def end(self, reaped: dict[int, int]) -> None:
        """SIGKILL for all at once: the kernel lets nobody fork away from it. Waits until they are gone.

        ``reaped`` gains the exit codes of who has ended.
        """
        try:
            os.kill(-1, confine.SIGKILL)
        except ProcessLookupError:
            pass  # nobody is left
        give_up = time.monotonic() + _END_S
        while _reap(reaped) and time.monotonic() < give_up:
            time.sleep(0.001)


class Descendants:
    """Where there is no namespace: the guard's children and theirs; it adopts whoever has lost a parent."""

    def usage(self, memory_bytes: int) -> tuple[int, int]:
        return _usage(_below(os.getpid()), memory_bytes)

    def end(self, reaped: dict[int, int]) -> None:
        """Stopped first, and round after round: who is stopped forks no more."""
        give_up = time.monotonic() + _END_S
        while _reap(reaped) and time.monotonic() < give_up:
            for number in (confine.SIGSTOP, confine.SIGKILL):
                for pid in list(_below(os.getpid())):
                    try:
                        os.kill(pid, number)
                    except (ProcessLookupError, PermissionError):
                        continue
            time.sleep(0.001)


def tasks_of(uid: int) -> int:
    """Processes and threads of this user on the whole machine."""
    count = 0
    for pid in _all():
        try:
            if os.stat(f"/proc/{pid}").st_uid == uid:
                count += int(_stat(pid)[17])
        except (OSError, IndexError):
            continue
    return count


def _reap(reaped: dict[int, int]) -> bool:
    """Collect who has ended; False once there is nobody left."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if not pid:
            return True
        reaped[pid] = os.waitstatus_to_exitcode(status)


def _usage(pids: Iterator[int], memory_bytes: int) -> tuple[int, int]:
    tasks, rough, seen = 0, 0, []
    for pid in pids:
        try:
            fields = _stat(pid)
            if fields[0] in (b"Z", b"X"):
                continue
            tasks += int(fields[17])
            rough += int(fields[21]) * _PAGE
            seen.append(pid)
        except (OSError, IndexError):
            continue  # gone in the meantime
        if tasks > _ENOUGH:
            return tasks, 0
    # What several share counts in each: only where that is too much it is worth looking closer.
    return tasks, rough if rough <= memory_bytes else sum(map(_own, seen))


def _own(pid: int) -> int:
    """Bytes that are in no file, with its share of what it shares; 0 for one that has gone."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith((b"Pss_Anon:", b"Pss_Shmem:")))


def _below(pid: int) -> Iterator[int]:
    children: dict[int, list[int]] = {}
    for other in _all():
        try:
            children.setdefault(int(_stat(other)[1]), []).append(other)
        except (OSError, IndexError):
            continue
    waiting = list(children.get(pid, ()))
    while waiting:
        found = waiting.pop()
        yield found
        waiting += children.get(found, ())


def _all() -> Iterator[int]:
    try:
        names = os.listdir("/proc")
    except OSError:
        return
    for name in names:
        if name.isdigit():
            yield int(name)


def _stat(pid: int) -> list[bytes]:
    """From its third field (state) on."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        text = file.read()
    return text[text.rindex(b")") + 2 :].split()
