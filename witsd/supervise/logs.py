"""What agents write, kept line by line in files: ``<seq> <time> <source> <text>``.

``seq`` numbers the lines of an agent for ever, across rotation and restarts. Followers read the files,
so a slow one costs nothing and a fast child is only slowed by its own pipe.
"""

from __future__ import annotations

import logging
import os
import re
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from pathlib import Path

import attrs
import msgspec
import trio

from witsd.journal.event import Event
from witsd.values.clock import Clock, rfc3339
from witsd.values.errors import NotFound
from witsd.values.spec import NAME_PATTERN
from witsd.values.wire.agents import LogLine
from witsd.values.wire.event_types import LogLineData

log = logging.getLogger("witsd.logs")
_encode = msgspec.json.Encoder().encode

#: Names come from callers and become file names.
NAME = re.compile(NAME_PATTERN)
#: As ``rfc3339`` writes it.
_STAMP = re.compile(rb"\d{4}-[01]\d-[0-3]\dT[0-2]\d:[0-5]\d:[0-5]\d\.\d{6}Z")
#: A longer line is kept in pieces of this many bytes.
MAX_LINE = 64 << 10
_CHUNK = 64 << 10
_PAGE = 500
#: Of lines read in one go, counted until it is reached.
PAGE_BYTES = 1 << 20
#: Of the newest lines given in one answer, in characters.
TAIL_BYTES = 2 << 20


@attrs.frozen(kw_only=True)
class LogSettings:
    """Rotation: a file of ``max_bytes``, and ``files`` older ones beside it."""

    max_bytes: int = 10 << 20
    files: int = 4


@attrs.define(eq=False)
class AgentLog:
    """The log of one agent. Everything that touches files runs in a thread, one call at a time."""

    name: str
    path: Path
    _clock: Clock
    _settings: LogSettings
    last_seq: int = 0
    #: Lines that could not be written since the disk began to fail; the next that can says how many.
    lost: int = 0
    _why: str = ""
    _size: int = 0
    _written: trio.Event = attrs.field(factory=trio.Event)
    _lock: trio.Lock = attrs.field(factory=trio.Lock)

    async def write(self, source: str, lines: Sequence[bytes]) -> None:
        """Keep these lines (without newlines), then wake the followers. Never raises for a bad disk."""
        async with self._lock:
            pieces = [
                (source, line[start : start + MAX_LINE].rstrip(b"\r"))
                for line in lines
                for start in range(0, max(1, len(line)), MAX_LINE)
            ]
            lost = self.lost
            if lost:
                pieces.insert(0, ("witsd", b"%d lines before this one are lost: %b" % (lost, self._why.encode())))
            stamp = rfc3339(self._clock.wall_us()).encode()
            out = [
                b"%d %b %b %b\n" % (seq, stamp, origin.encode(), text)
                for seq, (origin, text) in enumerate(pieces, self.last_seq + 1)
            ]
            try:
                await trio.to_thread.run_sync(self._append, b"".join(out))
            except OSError as error:
                if not lost:
                    self._why = error.strerror or str(error)
                    log.error("logs.write_failed agent=%s error=%s", self.name, error)
                self.lost += len(out) - bool(lost)
                return
            if lost:
                log.warning("logs.recovered agent=%s lost=%d", self.name, lost)
            self.lost = 0
            self.last_seq += len(out)
        self._written.set()
        self._written = trio.Event()

    def _append(self, data: bytes) -> None:
        if self._size and self._size + len(data) > self._settings.max_bytes:
            self._rotate()
        # The folder too may have been removed while we ran.
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(self.path, "ab", buffering=0) as file:
            if os.fstat(file.fileno()).st_size == 0:
                os.fchmod(file.fileno(), 0o600)
            start = file.seek(0, os.SEEK_END)
            try:
                written = file.write(data)
                if written != len(data):
                    raise OSError("short write: the disk is full")
            except OSError:
                os.ftruncate(file.fileno(), start)  # no torn line
                raise
            self._size = start + len(data)

    def _rotate(self) -> None:
        for number in range(self._settings.files, 0, -1):
            older = self._segment(number - 1)
            if older.exists():
                os.replace(older, self._segment(number))
        self._size = 0

    def _segment(self, number: int) -> Path:
        return self.path if number == 0 else self.path.with_name(f"{self.path.name}.{number}")

    def load(self) -> None:
        """Find out where the numbering stands. Blocks; called once."""
        for number in range(self._settings.files + 1):
            try:
                data = _tail(self._segment(number))
                if number == 0:
                    self._size = self.path.stat().st_size
            except OSError:
                continue
            if number == 0:
                self._drop_torn(data)
            # The last that is one of ours: somebody may have edited the file.
            seq = next(filter(None, map(_seq, reversed(data.split(b"\n")[:-1]))), 0)
            if seq:
                self.last_seq = seq
                return

    def _drop_torn(self, tail: bytes) -> None:
        """What a power cut has left of a line must not become the beginning of the next one."""
        torn = len(tail) - (tail.rfind(b"\n") + 1)
        if torn and (b"\n" in tail or torn == self._size):
            try:
                os.truncate(self.path, self._size - torn)
                self._size -= torn
            except OSError as error:
                log.error("logs.torn_line_stays agent=%s error=%s", self.name, error)

    def read(self, after_seq: int, limit: int, max_bytes: int = PAGE_BYTES) -> list[LogLine]:
        """Up to ``limit`` lines after ``after_seq``, fewer where they reach ``max_bytes``. Blocks."""
        found: list[LogLine] = []
        size = 0
        for number in range(self._settings.files, -1, -1):
            try:
                with open(self._segment(number), "rb") as file:
                    file.seek(_offset_after(file, after_seq))
                    for raw in file:
                        if not raw.endswith(b"\n"):
                            break  # being written
                        line = _parse(raw)
                        if line.seq <= after_seq:
                            continue
                        after_seq = line.seq
                        found.append(line)
                        size += len(raw)
                        if len(found) == limit or size >= max_bytes:
                            return found
            except FileNotFoundError:
                continue
        return found

    async def read_after(self, after_seq: int, limit: int) -> list[LogLine]:
        async with self._lock:  # a rotation half-way through the files would hide one of them
            return await trio.to_thread.run_sync(self.read, after_seq, limit)

    async def tail(self, count: int) -> list[LogLine]:
        """The newest ``count`` lines; fewer where those would have more than ``TAIL_BYTES``."""
        kept: deque[LogLine] = deque()
        size = 0
        end = self.last_seq
        seq = max(0, end - count)
        while seq < end and (page := await self.read_after(seq, end - seq)):
            seq = page[-1].seq
            for line in page:
                kept.append(line)
                size += len(line.text)
            while size > TAIL_BYTES:
                size -= len(kept.popleft().text)
        return list(kept)

    async def follow(self, after_seq: int | None) -> AsyncGenerator[list[LogLine], None]:
        """Pages of lines after ``after_seq`` (None: from now on), for ever."""
        seq = self.last_seq if after_seq is None else after_seq
        while True:
            written = self._written
            lines = await self.read_after(seq, _PAGE)
            if lines:
                seq = lines[-1].seq
                yield lines
            else:
                await written.wait()


def _tail(path: Path) -> bytes:
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 2 * MAX_LINE))
        return file.read()


def _seq(line: bytes) -> int:
    head = line.split(b" ", 1)[0]
    return int(head) if head.isdigit() and len(head) < 19 else 0


def _parse(raw: bytes) -> LogLine:
    parts = raw.rstrip(b"\n").split(b" ", 3)
    if len(parts) < 4 or not _seq(raw) or not _STAMP.fullmatch(parts[1]):  # somebody edited the file
        return LogLine(seq=0, time="", source="witsd", text=raw.decode(errors="replace").rstrip())
    seq, time, source, text = parts
    return LogLine(
        seq=int(seq), time=time.decode(), source=source.decode(errors="replace"), text=text.decode(errors="replace")
    )


def _offset_after(file: object, seq: int) -> int:
    """Where in a file of numbered lines to begin reading for what comes after ``seq``, by bisection."""
    from io import BufferedReader

    assert isinstance(file, BufferedReader)
    low, high = 0, file.seek(0, os.SEEK_END)
    while high - low > 4 * _CHUNK:
        middle = (low + high) // 2
        file.seek(middle)
        file.readline()
        start = file.tell()
        line = file.readline()
        if not line or _seq(line) > seq:
            high = middle
        else:
            low = start
    return low


@attrs.define(eq=False)
class Logs:
    """All agents' logs, opened as they are needed."""

    folder: Path
    _clock: Clock
    _settings: LogSettings
    _open: dict[str, AgentLog] = attrs.field(factory=dict)

    def exists(self, name: str) -> bool:
        return name in self._open or (NAME.fullmatch(name) is not None and (self.folder / f"{name}.log").exists())

    def of(self, name: str) -> AgentLog:
        """The log of an agent; finds its numbering at first use (one short read)."""
        found = self._open.get(name)
        if found is None:
            if NAME.fullmatch(name) is None:
                raise NotFound(f"there is no agent {name!r}", kind="agent", id=name)
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            found = AgentLog(name, self.folder / f"{name}.log", self._clock, self._settings)
            found.load()
            self._open[name] = found
        return found

    def last_seq(self, stream: str) -> int:
        return self.of(stream.removeprefix("log:")).last_seq

    async def follow(self, stream: str, after_seq: int | None) -> AsyncGenerator[list[Event], None]:
        """``log:<agent>`` as events, for ``events/subscribe``."""
        followed = self.of(stream.removeprefix("log:")).follow(after_seq)
        try:
            async for lines in followed:
                yield [_as_event(stream, line) for line in lines]
        finally:
            await followed.aclose()


def _as_event(stream: str, line: LogLine) -> Event:
    try:
        moment = int(datetime.fromisoformat(line.time).timestamp() * 1e6)
    except ValueError:  # edited into a day that there is not
        moment = 0
    data = _encode(LogLineData(source=line.source, text=line.text))
    return Event(stream, "log.line", data, moment, seq=line.seq)
