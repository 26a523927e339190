"""Which process a number means. A pid alone may come to mean a stranger; with its start time it cannot."""

from __future__ import annotations

import os
import select
import signal
import time
from functools import cache
from pathlib import Path

import msgspec

#: Set in every agent's environment: says which daemon's it is, also for descendants that went away.
MARK = "WITSD_INSTANCE"
#: Set beside it: which agent's.
AGENT = "WITSD_AGENT"


class Identity(msgspec.Struct, frozen=True):
    """``start_time`` in clock ticks since boot, as ``/proc/<pid>/stat`` gives it."""

    pid: int
    start_time: int
    boot_id: str


@cache
def boot_id() -> str:
    """Changes with every boot of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def stat_fields(pid: int) -> list[str] | None:
    """``/proc/<pid>/stat`` from its third field (state) on; None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The second is the program's name as it chose it, any bytes at all; what follows the last ")" is plain.
    return text[text.rindex(b")") + 2 :].decode("ascii").split()


def start_time(pid: int) -> int | None:
    fields = stat_fields(pid)
    return int(fields[19]) if fields else None


def is_same(identity: Identity) -> bool:
    """Whether that very process is still there, as a zombie or alive."""
    return identity.boot_id == boot_id() and start_time(identity.pid) == identity.start_time


def is_alive(identity: Identity) -> bool:
    """Whether that very process is still there, and no zombie."""
    return is_same(identity) and (fields := stat_fields(identity.pid)) is not None and fields[0] not in "ZX"


def kill_recorded(identity: Identity, *, deadline_s: float = 5.0) -> bool:
    """SIGKILL that very process with its group and wait until it has ended; False when it was not there. Blocks.

    For what an earlier daemon has started and what has since taken off every other sign of it.
    """
    try:
        handle = os.pidfd_open(identity.pid)
    except OSError:
        return False
    try:
        if not is_alive(identity):  # asked once the handle is open: a number given anew would be seen
            return False
        try:
            if os.getpgid(identity.pid) == identity.pid != os.getpgrp():
                os.killpg(identity.pid, signal.SIGKILL)
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        except OSError:
            pass  # gone in the meantime, or of a user whose processes are not ours to end
        return bool(select.select([handle], [], [], deadline_s)[0])
    finally:
        os.close(handle)


def marked(mark: str, agent: str = "") -> list[int]:
    """The pids, zombies excepted, whose environment carries this daemon's mark. Blocks: ~25 us a process.

    With ``agent``, only those of that agent.
    """
    wanted = _wanted(mark, agent)
    me = os.getpid()
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == me:
            continue
        try:
            with open(f"/proc/{entry.name}/environ", "rb") as file:
                environment = file.read(1 << 20)
        except OSError:
            continue
        if wanted <= set(environment.split(b"\0")):
            found.append(int(entry.name))
    return found


def kill_marked(mark: str, agent: str = "", *, deadline_s: float = 5.0) -> int:
    """SIGKILL everything that ``marked`` finds until it finds nothing; returns how many were signalled.

    Each is opened as a pidfd and its mark read again through it, so a reused pid is never hit. Blocks.
    """
    killed: set[int] = set()
    give_up = time.monotonic() + deadline_s
    while pids := marked(mark, agent):
        for pid in pids:
            try:
                handle = os.pidfd_open(pid)
            except OSError:
                continue
            try:
                if pid in marked_among((pid,), mark, agent):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                    killed.add(pid)
            except OSError:
                pass  # gone in the meantime
            finally:
                os.close(handle)
        if time.monotonic() > give_up:
            break
        time.sleep(0.005)  # on a thread: gives the kernel time to take them down
    return len(killed)


def _wanted(mark: str, agent: str) -> set[bytes]:
    wanted = {f"{MARK}={mark}".encode()}
    return wanted | {f"{AGENT}={agent}".encode()} if agent else wanted


def marked_among(pids: tuple[int, ...], mark: str, agent: str = "") -> set[int]:
    """Those of ``pids`` that carry the mark now."""
    wanted = _wanted(mark, agent)
    found = set()
    for pid in pids:
        try:
            if wanted <= set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")):
                found.add(pid)
        except OSError:
            continue
    return found
