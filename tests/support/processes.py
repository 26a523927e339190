"""Looking at real processes: who carries a daemon's mark, and has this one ended."""

from __future__ import annotations

import os
import select
import time
from pathlib import Path

from witsd.supervise.identity import marked


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
