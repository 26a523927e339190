"""Looking at real processes: who carries a daemon's mark, and has this one ended."""

from __future__ import annotations

import os
import select
import time
from pathlib import Path

from witsd.supervise.identity import marked, stat_fields


def of_daemon(home: Path) -> list[int]:
    """The live processes that a daemon with this ``WITSD_HOME`` has started, and their descendants."""
    return marked(str((home / "witsd.db").resolve()))


def wait_gone(pid: int, timeout_s: float = 60.0) -> bool:
    """Wait until that process has ended; True at once for one that is gone already."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], timeout_s)[0])
    finally:
        os.close(pidfd)


def wait_for(home: Path, count: int, timeout_s: float = 60.0) -> list[int]:
    """Wait until exactly so many are ``of_daemon``: their pids; empty when that was not to be had in time."""
    give_up = time.monotonic() + timeout_s
    while len(found := of_daemon(home)) != count:
        if time.monotonic() > give_up:
            return []
        time.sleep(0.01)
    return found


def children(pid: int) -> list[int]:
    """The direct children of that process, zombies included."""
    return [int(word) for file in Path(f"/proc/{pid}/task").glob("*/children") for word in file.read_text().split()]


def no_zombies(pid: int, timeout_s: float = 60.0) -> bool:
    """Wait until none of its children is a zombie."""
    give_up = time.monotonic() + timeout_s
    while any((fields := stat_fields(child)) and fields[0] == "Z" for child in children(pid)):
        if time.monotonic() > give_up:
            return False
        time.sleep(0.01)
    return True


def cpu_s(pid: int) -> float:
    """Processor time that it has used so far, in seconds."""
    fields = stat_fields(pid)
    assert fields is not None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_bytes(pid: int) -> int:
    """Memory that it holds now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_rss_bytes(pid: int) -> int:
    """The most memory that it has held at once so far."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmHWM in its status")
