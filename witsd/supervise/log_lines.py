"""Lines of an agent's log, as they are written and as they are read.

``<seq> <time> <source> <text>`` begins a block, that is what came at once; ``+ <time> <source> <text>`` is the line
numbered next. An agent cannot write either by itself: each of its lines gets such a beginning.

The level of a line that is JSON is found when it is read: most lines are never read, and a flood is written at the
speed of its pipe.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, get_args

import msgspec

from witsd.values.wire.agents import LogLevel, LogLine
from witsd.values.wire.common import UNSET, UnsetType

#: A longer line is kept in pieces of this many bytes.
MAX_LINE = 64 << 10
#: What a line of the file begins with; the time is as ``rfc3339`` writes it.
_OURS = re.compile(rb"(\d{1,18}|\+) \d{4}-[01]\d-[0-3]\dT[0-2]\d:[0-5]\d:[0-5]\d\.\d{6}Z \S+ ")
LEVELS: tuple[LogLevel, ...] = get_args(LogLevel)
_NAMES: dict[str, LogLevel] = {
    **{level: level for level in LEVELS},
    **dict.fromkeys(("trace", "verbose", "fine"), "debug"),
    **dict.fromkeys(("information", "notice"), "info"),
    **dict.fromkeys(("warn",), "warning"),
    **dict.fromkeys(("err",), "error"),
    **dict.fromkeys(("fatal", "crit", "alert", "emerg", "emergency", "panic"), "critical"),
}


class _Levelled(msgspec.Struct):
    """Where programs that log JSON put the level; the rest of the line is skipped, not built."""

    level: Any = None
    levelname: Any = None
    severity: Any = None
    lvl: Any = None


_decode = msgspec.json.Decoder(_Levelled).decode


def level_of(text: bytes | str) -> LogLevel | UnsetType:
    """The level that a line of JSON names; none for any other line.

    Names are those of Python, syslog and zap; numbers those of pino and bunyan (10 trace to 60 fatal).
    """
    if not text or text[0] not in ("{", 0x7B):
        return UNSET
    try:
        found = _decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):  # whatever it is, it is a line like any other
        return UNSET
    for named in (found.level, found.levelname, found.severity, found.lvl):
        if isinstance(named, str):
            return _NAMES.get(named.lower(), UNSET)
        if isinstance(named, int | float) and not isinstance(named, bool):
            return LEVELS[min(4, max(0, int(named) // 10 - 2))] if named >= 10 else UNSET
    return UNSET


def block(lines: Sequence[bytes]) -> bytes:
    """Lines without newlines as the text they are of; those that are too long in pieces."""
    if max(map(len, lines), default=0) > MAX_LINE:
        lines = [line[at : at + MAX_LINE] for line in lines for at in range(0, max(1, len(line)), MAX_LINE)]
    return b"".join(part for line in lines for part in (line, b"\n"))


def numbered(first: int, stamp: str, source: str, text: bytes) -> tuple[bytes, ...]:
    """A block of lines as the file has it, to be written piece by piece; its first line is number ``first``.

    One ``replace`` for the whole block takes a tenth of what a number on each line would.
    """
    head = f"{stamp} {source} ".encode()
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n")
    return b"%d %b" % (first, head), text[:-1].replace(b"\n", b"\n+ " + head), b"\n"


def seq_of(raw: bytes, before: int) -> int:
    """The number of a line of the file after the line numbered ``before``; 0 if it is none of ours.

    A line that has a number of its own is told by ``seq_of(raw, 0)``.
    """
    found = _OURS.match(raw)
    if found is None:
        return 0
    if found[1] != b"+":
        return int(found[1])
    return before + 1 if before else 0


def last_seq(raw: bytes) -> int:
    """The number of the last line in a stretch of a file; 0 where no line in it has a number of its own."""
    after = 0
    for line in reversed(raw.splitlines()):
        seq = seq_of(line, 0)
        if seq:
            return seq + after
        after += seq_of(line, 1) == 2
    return 0


def parse(raw: bytes, seq: int) -> LogLine:
    """A line of the file that has this number."""
    _, time, source, text = raw.rstrip(b"\n").split(b" ", 3)
    return LogLine(
        seq=seq,
        time=time.decode(),
        source=source.decode(errors="replace"),
        text=text.decode(errors="replace"),
        level=level_of(text),
    )


def at_least(lines: Sequence[LogLine], level: LogLevel) -> list[LogLine]:
    """Those of this level or a graver one; a line without a level is none of them."""
    wanted = LEVELS[LEVELS.index(level) :]
    return [line for line in lines if line.level in wanted]
