"""What agents write, kept line by line in files (``log_lines`` says how).

``seq`` numbers the lines of an agent for ever, across rotation and restarts. Followers read the files,
so a slow one costs nothing and a fast child is only slowed by its own pipe.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from datetime import datetime
from io import BufferedReader
from pathlib import Path

import attrs
import msgspec
import trio

from witsd.journal.event import Event
from witsd.supervise.log_lines import MAX_LINE, at_least, block, last_seq, numbered, parse, seq_of
from witsd.supervise.threads import in_thread
from witsd.values.clock import Clock, rfc3339
from witsd.values.errors import InvalidState, NotFound
from witsd.values.spec import NAME_PATTERN
from witsd.values.wire.agents import LogLevel, LogLine
from witsd.values.wire.event_types import LogLineData

log = logging.getLogger("witsd.logs")
_encode = msgspec.json.Encoder().encode

#: Names come from callers and become file names.
NAME = re.compile(NAME_PATTERN)
_CHUNK = 64 << 10
_PAGE = 500
#: Lines under one number: so many may have to be counted to find a line.
_BLOCK = 500
#: Lines that are looked through in one go for those of a level.
_LEVEL_BLOCK = 10_000
#: Of lines read in one go, counted until it is reached.
PAGE_BYTES = 1 << 20
#: Of the newest lines given in one answer, in characters.
TAIL_BYTES = 2 << 20


class LogSettings(msgspec.Struct, frozen=True, kw_only=True):
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
        if lines:
            await self.keep(source, [block(lines[at : at + _BLOCK]) for at in range(0, len(lines), _BLOCK)])

    async def keep(self, source: str, blocks: Sequence[bytes]) -> None:
        """The same for blocks of whole lines, each ended with a newline and none longer than ``MAX_LINE``."""
        async with self._lock:
            lost, seq = self.lost, self.last_seq + 1
            stamp = rfc3339(self._clock.wall_us())
            data: list[bytes] = []
            if lost:
                note = f"{lost} lines before this one are lost: {self._why}\n".encode()
                data += numbered(seq, stamp, "witsd", note)
                seq += 1
            count = 0
            for text in blocks:
                data += numbered(seq + count, stamp, source, text)
                count += text.count(b"\n")
            try:
                await in_thread(self._append, data)
            except OSError as error:
                if not lost:
                    self._why = error.strerror or str(error)
                    log.error("logs.write_failed agent=%s error=%s", self.name, error)
                self.lost += count
                return
            if lost:
                log.warning("logs.recovered agent=%s lost=%d", self.name, lost)
            self.lost = 0
            self.last_seq = seq + count - 1
        self._written.set()
        self._written = trio.Event()

    def _append(self, data: list[bytes]) -> None:
        size = sum(map(len, data))
        if self._size and self._size + size > self._settings.max_bytes:
            self._rotate()
        file = self._open()
        try:
            start = os.fstat(file).st_size
            try:
                if os.writev(file, data) != size:
                    raise OSError(errno.ENOSPC, "short write: the disk is full")
            except OSError:
                with suppress(OSError):  # that of the write says what is wrong
                    os.ftruncate(file, start)  # no torn line
                raise
            self._size = start + size
        finally:
            os.close(file)

    def _open(self) -> int:
        """Opened for each write: whoever removes or moves the file meanwhile frees its space, and finds a new one."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        try:
            return os.open(self.path, flags, 0o600)
        except FileNotFoundError:  # the folder too may have been removed while we ran
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            return os.open(self.path, flags, 0o600)

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
            seq = last_seq(data[: data.rfind(b"\n") + 1])
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
                    seq = 0
                    for raw in file:
                        if not raw.endswith(b"\n"):
                            break  # being written
                        own = seq_of(raw, seq)
                        seq = own or seq  # somebody may have edited the file
                        if own <= after_seq:
                            continue
                        after_seq = own
                        found.append(parse(raw, own))
                        size += len(raw)
                        if len(found) == limit or size >= max_bytes:
                            return found
            except FileNotFoundError:
                continue
        return found

    async def read_after(self, after_seq: int, limit: int, level: LogLevel | None = None) -> list[LogLine]:
        """Up to ``limit`` lines after ``after_seq``, fewer where they get long; with ``level`` those at least so grave.

        Empty only where there are no more. Raises ``InvalidState`` where the file cannot be read.
        """
        width = limit if level is None else max(limit, _LEVEL_BLOCK)
        while page := await self._page(after_seq, width):
            found = page if level is None else at_least(page, level)
            if found:
                return found[:limit]
            after_seq = page[-1].seq
        return []

    async def _page(self, after_seq: int, limit: int) -> list[LogLine]:
        async with self._lock:  # a rotation half-way through the files would hide one of them
            try:
                return await in_thread(self.read, after_seq, limit)
            except OSError as error:
                raise InvalidState(
                    f"the log {self.path} cannot be read ({error.strerror}): see who owns it, and its disk",
                    state="unreadable",
                ) from error

    async def tail(self, count: int, level: LogLevel | None = None) -> list[LogLine]:
        """The newest ``count`` lines; fewer where those would have more than ``TAIL_BYTES``.

        With ``level`` the newest that are at least so grave, block by block back to the oldest line.
        """
        kept: deque[LogLine] = deque()
        end, size = self.last_seq, 0
        width = count if level is None else max(count, _LEVEL_BLOCK)
        while end > 0 and len(kept) < count:
            start = seq = max(0, end - width)
            block: deque[LogLine] = deque()
            while seq < end and (page := await self._page(seq, end - seq)):
                seq = page[-1].seq
                for line in page if level is None else at_least(page, level):
                    if line.seq <= end:
                        block.append(line)
                        size += len(line.text)
                while size > TAIL_BYTES and block:
                    size -= len(block.popleft().text)
            kept.extendleft(reversed(block))
            if level is None or size > TAIL_BYTES:
                break
            end = start
        return list(kept)[-count:] if count else []

    async def follow(self, after_seq: int | None) -> AsyncGenerator[list[LogLine], None]:
        """Pages of lines after ``after_seq`` (None: from now on), for ever. Raises as ``read_after``."""
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
    """The end of the file, as far back as a line with a number of its own."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        width = 2 * MAX_LINE
        while True:
            file.seek(max(0, size - width))
            data = file.read(width)
            # What it begins with may be the rest of a line that only looks like one.
            whole = data if width >= size else data[data.find(b"\n") + 1 :]
            if width >= size or last_seq(whole[: whole.rfind(b"\n") + 1]):
                return whole
            width *= 4


def _offset_after(file: BufferedReader, seq: int) -> int:
    """Where in a file of numbered lines to begin reading for what comes after ``seq``, by bisection."""
    low, high = 0, os.fstat(file.fileno()).st_size
    while high - low > 4 * _CHUNK:
        middle = (low + high) // 2
        file.seek(middle)
        file.readline()
        start, found = file.tell(), 0
        while start < high and not (found := seq_of(line := file.readline(), 0)):
            start += len(line)
            if not line:
                break
        if not found or found > seq:
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
    data = _encode(LogLineData(source=line.source, text=line.text, level=line.level))
    return Event(stream, "log.line", data, moment, seq=line.seq)
