"""Many agents at once: their definitions, requests to all of them, and their processes as the kernel shows them."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.bench.measure import PATIENCE_S
from tests.support.daemon import Daemon

_DEFINITION = """\
name = "{name}"
kind = "exec"
command = {command}
start = "manual"
{more}
"""
#: Between two looks at the processes: what a figure may be too high by, for a tenth of a core meanwhile.
LOOK_EVERY_S = 0.000_2


def sleep_command() -> list[str]:
    program = shutil.which("sleep")
    assert program is not None, "the rows about processes run `sleep`"
    return [program, "100000"]


def define(witsd: Daemon, names: Iterable[str], command: Sequence[str], more: str = "") -> None:
    """Write the definitions, to be read when the daemon starts; ``more`` is further TOML."""
    folder = witsd.home / "agents"
    folder.mkdir(exist_ok=True)
    for name in names:
        text = _DEFINITION.format(name=name, command=json.dumps(list(command)), more=more)
        (folder / f"{name}.toml").write_text(text)


@contextmanager
def asking(witsd: Daemon, method: str, names: Sequence[str], *, wait: bool) -> Iterator[None]:
    """Ask the same of every agent in one go; all of them have been answered at the end of the block."""
    lines = [
        json.dumps(
            {"jsonrpc": "2.0", "id": number, "method": method, "params": {"name": name, "wait": wait, "timeout_s": 120}}
        )
        for number, name in enumerate(names)
    ]
    with socket.socket(socket.AF_UNIX) as sock, sock.makefile("rb") as answers:
        sock.settimeout(PATIENCE_S)
        sock.connect(str(witsd.socket))
        sock.sendall("".join(f"{line}\n" for line in lines).encode())
        yield
        for _ in names:
            answer = json.loads(answers.readline())
            assert "result" in answer, answer


def children(pid: int) -> set[int]:
    """The processes that any thread of this one has forked."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found.update(map(int, (task / "children").read_text().split()))
        except OSError:
            continue  # a thread that has just ended
    return found


def running(pid: int, program: str) -> set[int]:
    """Those of its children that have become ``program``."""
    return {child for child in children(pid) if _runs(child, program)}


def _runs(pid: int, program: str) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text() == f"{program}\n"
    except OSError:
        return False


def wait_run(
    pid: int, program: str, count: int, *, besides: Iterable[int] = (), look_every_s: float = LOOK_EVERY_S
) -> None:
    """Return once ``count`` children of ``pid`` other than ``besides`` have become ``program``."""
    known, deadline = set(besides), time.monotonic() + PATIENCE_S
    there = 0
    while there < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{there} of {count} processes run {program}")
        fresh = children(pid) - known
        if len(fresh) >= count - there:  # before that they need not be looked at
            for child in fresh:
                if _runs(child, program):
                    known.add(child)
                    there += 1
        if there < count:
            time.sleep(look_every_s)
