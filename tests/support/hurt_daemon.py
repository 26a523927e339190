"""The daemon, hurt from inside. The product knows nothing of it: what it needs is wrapped before it runs.

python -m tests.support.hurt_daemon points COUNT TYPES TEXT
    For each line on standard input a daemon that runs until COUNT events of one of TYPES (comma between them) that
    hold TEXT are committed, and is then killed. The line is empty, or FILE:LINE NTH: killed there instead, before
    that line runs the NTH time. Answers with the lines that have run, from the start of its agents on, as
    FILE:LINE each, or with ``killed``.
python -m tests.support.hurt_daemon clock FILE
    Its wall clock is off by the seconds that FILE holds.
python -m tests.support.hurt_daemon plain
    Its agents are held by their process groups, whatever else there is.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from witsd import daemon, wiring
from witsd.journal.event import Event
from witsd.journal.hub import Hub
from witsd.supervise import containment, forking
from witsd.supervise.containment import Containment
from witsd.supervise.in_effect import InEffect
from witsd.values.clock import SystemClock

ROOT = Path(__file__).resolve().parents[2]
#: What runs between the decision to start a process and the commit of who it is.
WATCHED = frozenset(
    str(ROOT / "witsd" / name)
    for name in (
        "journal/journal.py",
        "services/execution.py",
        "supervise/container.py",
        "supervise/container_group.py",
        "supervise/container_plain.py",
        "supervise/forking.py",
        "supervise/living.py",
        "supervise/process.py",
        "supervise/in_effect.py",
        "supervise/supervisor.py",
        "supervise/tree.py",
        "supervise/unit.py",
    )
)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def trace(at: Callable[[str], None]) -> None:
    """Call ``at(point)`` before each watched line on every thread, from the start of the agents on."""
    armed = False

    def call(frame: FrameType, event: str, argument: Any) -> Any:
        return line if armed and frame.f_code.co_filename in WATCHED else None

    def line(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            at(f"{os.path.relpath(frame.f_code.co_filename, ROOT)}:{frame.f_lineno}")
        return line

    begin = InEffect.begin

    def armed_begin(in_effect: InEffect) -> None:
        nonlocal armed
        armed = True
        sys.settrace(call)  # the loop
        begin(in_effect)

    InEffect.begin = armed_begin  # type: ignore[method-assign, assignment]
    threading.settrace(call)  # all others, which begin later


def die_after(count: int, types: str, text: bytes) -> None:
    """Kill it when so many events are committed."""
    publish = Hub.publish

    def counted(hub: Hub, events: Sequence[Event]) -> None:
        nonlocal count
        publish(hub, events)
        count -= sum(1 for event in events if event.type in types.split(",") and text in event.data)
        if count <= 0:
            die()

    Hub.publish = counted  # type: ignore[method-assign, assignment]


def points(count: int, types: str, text: str) -> None:
    """Fork a daemon for each line of standard input: all that is imported is imported once."""
    for asked in sys.stdin:
        point, _, nth = asked.strip().partition(" ")
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            os.dup2(2, 1)  # what it says to people is no answer
            try:
                _one(point, int(nth or 0), writing)
                die_after(count, types, text.encode())
                daemon.main([])
            finally:
                os._exit(70)  # it is to be killed, and has ended
        os.close(writing)
        with os.fdopen(reading) as lines:
            said = lines.read().split()
        _, status = os.waitpid(child, 0)
        said = said if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL else [f"status:{status}"]
        print(*said, flush=True)


def _one(point: str, nth: int, out: int) -> None:
    seen: Counter[str] = Counter()

    def at(here: str) -> None:
        if not point:
            os.write(out, f"{here}\n".encode())
        elif here == point:
            seen[here] += 1
            if seen[here] == nth:
                try:
                    os.write(out, b"killed")
                finally:
                    die()

    trace(at)


def clock(offset: Path) -> None:
    right = SystemClock.wall_us

    def wall_us(it: SystemClock) -> int:
        return right(it) + int(float(offset.read_text()) * 1e6)

    SystemClock.wall_us = wall_us  # type: ignore[method-assign, assignment]


def plain() -> None:
    def find(mark: str) -> Containment:
        return containment.find(mark, allowed=())

    wiring.find = find  # type: ignore[attr-defined, assignment]


def forker() -> None:
    forking._PROGRAM = str(Path(__file__).with_name("hurt_forker.py"))


def main(mode: str, *arguments: str) -> int:
    match mode, *arguments:
        case "points", count, types, text:
            points(int(count), types, text)
            return 0
        case "clock", offset:
            clock(Path(offset))
        case ["forker"]:
            forker()
        case ["plain"]:
            plain()
        case _:
            raise SystemExit(__doc__)
    return daemon.main([])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
