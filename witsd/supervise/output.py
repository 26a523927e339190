"""What a process writes, from its pipe into its log: cut into lines, at most as fast as its limit allows.

Nothing is dropped and nothing piles up: what is not read yet waits in the pipe, and then so does the process.
"""

from __future__ import annotations

import fcntl
import math
import os
import struct
import termios
from collections.abc import Callable, Iterator
from contextlib import suppress

import attrs
import trio

from witsd.supervise.log_lines import MAX_LINE, block
from witsd.supervise.logs import AgentLog
from witsd.values.clock import Clock

_CHUNK = 64 << 10
#: The pipe of a process that has filled its own: fewer, larger writes, and it goes on writing while we write.
_FLOOD_PIPE = 512 << 10
#: Who is heard of again so soon writes one line after the other: they are kept together, so long apart.
_BUSY_S, _GATHER_S = 0.005, 0.002
#: Of a flood, what is kept in one write.
_FLOOD_BATCH = 256 << 10


@attrs.define(eq=False)
class Lines:
    """Cuts chunks into blocks of whole lines. Holds less than ``MAX_LINE`` bytes: a longer line comes in pieces."""

    _rest: bytes = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """What is complete now, each block ended with a newline."""
        end = chunk.rfind(b"\n") + 1
        if not end:
            self._rest += chunk
            if len(self._rest) < MAX_LINE:
                return []
            return [block([self.end()])]
        done, self._rest = self._rest + chunk[:end], chunk[end:]
        if done.find(b"\n", 0, MAX_LINE + 1) < 0:  # only the first line may have begun in an earlier chunk
            return [block(done[:-1].split(b"\n"))]
        return [done]

    def end(self) -> bytes:
        """What came after the last newline."""
        rest, self._rest = self._rest, b""
        return rest


@attrs.define(eq=False)
class Pace:
    """A token bucket for all pipes of one process: ``rate()`` bytes a second, as many at once. 0: no limit.

    ``slowed(bytes a second)`` is called each time that it makes somebody wait.
    """

    rate: Callable[[], float]
    _clock: Clock
    slowed: Callable[[float], None]
    #: Since when the bucket has not been full, and what was taken since.
    _since: float = 0.0
    _taken: float = 0.0
    _lifted: trio.Event = attrs.field(factory=trio.Event)

    @property
    def chunk(self) -> int:
        """How much to read at once: at a low rate little, often, and not a minute's worth now and then."""
        rate = self._rate()
        return max(512, min(_CHUNK, int(rate / 4))) if rate else _CHUNK

    @property
    def limited(self) -> bool:
        """Whether what waits is to wait with the process, and so in a pipe that holds little."""
        return self._rate() > 0

    def _rate(self) -> float:
        return 0.0 if self._lifted.is_set() else self.rate()

    def lift(self) -> None:
        """The process is gone: what it has left in its pipes comes at once."""
        self._lifted.set()

    async def take(self, count: int, waiting: Callable[[], int]) -> None:
        """Wait until so many bytes more may come. ``waiting()``: how many are in the pipe beside them."""
        rate = self._rate()
        if not rate:
            return
        now = self._clock.monotonic()
        if self._taken <= (now - self._since) * rate:  # it has been full in the meantime
            self._since, self._taken = now, 0.0
        self._taken += count
        missing = self._taken - (now - self._since + 1) * rate
        if missing > 0:
            # Over at least a second: how fast a burst is says nothing.
            self.slowed((self._taken + waiting()) / max(1.0, now - self._since))
            with trio.move_on_after(missing / rate):
                await self._lifted.wait()


async def copy(
    stream: trio.lowlevel.FdStream,
    sink: AgentLog,
    source: str,
    *,
    pace: Pace | None = None,
    heard: Callable[[bytes], None] = lambda chunk: None,
    kept: Callable[[bytes], None] = lambda text: None,
) -> None:
    """Keep every line of a pipe until it ends or is closed. ``heard`` is told of each chunk, ``kept`` of blocks."""
    lines, widened, kept_at = Lines(), False, -math.inf
    try:
        while chunk := await stream.receive_some(pace.chunk if pace else _CHUNK):
            heard(chunk)
            count, blocks = len(chunk), lines.feed(chunk)
            if count == _CHUNK:
                for more in _at_hand(stream):
                    heard(more)
                    count += len(more)
                    blocks += lines.feed(more)
            if blocks:
                await sink.keep(source, blocks)
                for text in blocks:
                    kept(text)
            if pace is not None:
                await pace.take(count, lambda: _waiting(stream))
            busy, kept_at = trio.current_time() - kept_at < _BUSY_S, trio.current_time()
            if busy:
                if not widened and not (pace is not None and pace.limited):
                    widened = True
                    _widen(stream)
                if count < _CHUNK:
                    # It goes on writing meanwhile: a thousand lines kept one by one cost as much as a megabyte.
                    await trio.sleep(_GATHER_S)
    except (trio.ClosedResourceError, trio.BrokenResourceError):
        pass
    if rest := lines.end():
        await sink.write(source, [rest])
        kept(rest)


def _at_hand(stream: trio.lowlevel.FdStream) -> Iterator[bytes]:
    """What can be read at once beyond a full chunk: a flood costs few writes."""
    for _ in range(_FLOOD_BATCH // _CHUNK - 1):
        try:
            chunk = os.read(stream.fileno(), _CHUNK)  # never waits: trio has made it so
        except OSError:
            return
        if not chunk:
            return
        yield chunk


def _waiting(stream: trio.lowlevel.FdStream) -> int:
    """Bytes in the pipe."""
    try:
        found: int = struct.unpack("i", fcntl.ioctl(stream.fileno(), termios.FIONREAD, b"\0" * 4))[0]
    except (OSError, trio.ClosedResourceError):
        return 0
    return found


def _widen(stream: trio.lowlevel.FdStream) -> None:
    with suppress(OSError):  # this user has as many pipes as it may: it stays as it is
        fcntl.fcntl(stream.fileno(), fcntl.F_SETPIPE_SZ, _FLOOD_PIPE)


__all__ = ["Lines", "Pace", "copy"]
