"""An agent's samples, kept in three rings of fixed size: fine for the last minutes, coarse for half a day.

All in all 22 KB an agent, once they are full after half a day; a ring grows as its rows come. Rows are packed into one
``bytearray`` a ring, which is as small as arrays by column and takes one call a row. A row of a coarse ring has the
mean and the peak of its time, weighted by its number of samples, so that neither is lost when it replaces many.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence

import msgspec

from witsd.supervise.sample import Sample

#: Resolution in seconds and number of rows. The first keeps samples as they come: one a second, unless set otherwise.
RESOLUTIONS = ((1, 120), (10, 120), (300, 144))

_SECOND_S = RESOLUTIONS[1][0]
#: at (tenths of a second), read_bytes, write_bytes, then the gauges: cpu_percent, rss KiB, fds, threads, processes.
_FINE = struct.Struct("<IQQfIIII")
#: The same with means for gauges, then the number of samples and the five peaks.
_COARSE = struct.Struct("<IQQfIIIIIfIIII")
_U32, _U64 = (1 << 32) - 1, (1 << 64) - 1
#: What a ``float`` of four bytes holds.
_F32 = 3.0e38


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """``average`` and ``peak`` are of each figure by itself; the byte counts are totals, and the latest in all three.

    A peak need not have been reached by all figures at the same time.
    """

    current: Sample
    average: Sample
    peak: Sample


class _Row:
    """One or many samples: the sum and peak of their gauges, and the latest totals."""

    __slots__ = ("at", "count", "peaks", "read_bytes", "sums", "write_bytes")

    def __init__(self) -> None:
        self.at = 0.0
        self.count = self.read_bytes = self.write_bytes = 0
        self.sums = [0.0] * 5
        self.peaks = [0.0] * 5

    def add(self, other: _Row) -> None:
        self.at, self.read_bytes, self.write_bytes = other.at, other.read_bytes, other.write_bytes
        self.count += other.count
        self.sums = [a + b for a, b in zip(self.sums, other.sums, strict=True)]
        self.peaks = [max(a, b) for a, b in zip(self.peaks, other.peaks, strict=True)]

    def add_sample(self, sample: Sample) -> None:
        self.at, self.read_bytes, self.write_bytes = sample.at, sample.read_bytes, sample.write_bytes
        self.count += 1
        sums, peaks = self.sums, self.peaks
        for index, gauge in enumerate(_gauges(sample)):
            sums[index] += gauge
            if gauge > peaks[index]:
                peaks[index] = gauge

    def means(self) -> list[float]:
        return [total / max(1, self.count) for total in self.sums]

    def sample(self, gauges: Sequence[float]) -> Sample:
        cpu, rss, fds, threads, processes = gauges
        return Sample(
            self.at,
            cpu,
            round(rss * 1024),
            round(fds),
            round(threads),
            round(processes),
            self.read_bytes,
            self.write_bytes,
        )


class _Ring:
    """The last ``rows`` rows of one resolution."""

    __slots__ = ("_form", "_kept", "_next", "_rows", "_space")

    def __init__(self, form: struct.Struct, rows: int) -> None:
        self._form, self._rows = form, rows
        self._space = bytearray()  # grows to so many rows
        self._next = self._kept = 0

    def put(self, at: float, read_bytes: int, write_bytes: int, *gauges: float) -> None:
        offset = self._next * self._form.size
        if offset == len(self._space):
            self._space += bytes(self._form.size)
        try:
            self._form.pack_into(self._space, offset, int(at * 10), read_bytes, write_bytes, *gauges)
        except (struct.error, OverflowError):
            tenths, read_bytes, write_bytes = min(int(at * 10), _U32), min(read_bytes, _U64), min(write_bytes, _U64)
            held = (min(gauge, _F32 if index % 6 == 0 else _U32) for index, gauge in enumerate(gauges))
            self._form.pack_into(self._space, offset, tenths, read_bytes, write_bytes, *held)
        self._next = (self._next + 1) % self._rows
        self._kept = min(self._kept + 1, self._rows)

    def put_row(self, row: _Row) -> None:
        cpu, *means = row.means()
        peak, *peaks = row.peaks
        self.put(row.at, row.read_bytes, row.write_bytes, cpu, *map(round, means), row.count, peak, *map(round, peaks))

    def reaches(self, at: float) -> bool:
        """Whether nothing since then has been overwritten."""
        if self._kept < self._rows:
            return True
        oldest: int = self._form.unpack_from(self._space, self._next * self._form.size)[0]
        return oldest <= math.floor(at * 10)

    def since(self, at: float) -> Iterator[_Row]:
        """Rows later than ``at``, oldest first."""
        start = math.floor(at * 10)
        for back in range(self._kept, 0, -1):
            index = (self._next - back) % self._rows
            tenths, read_bytes, write_bytes, *rest = self._form.unpack_from(self._space, index * self._form.size)
            if tenths <= start:
                continue
            row = _Row()
            row.at, row.read_bytes, row.write_bytes = tenths / 10, read_bytes, write_bytes
            row.count = rest[5] if self._form is _COARSE else 1
            row.sums = [mean * row.count for mean in rest[:5]]
            row.peaks = rest[6:] if self._form is _COARSE else rest[:5]
            yield row


class Rings:
    """The samples of one agent. Add them in order of time."""

    __slots__ = ("_current", "_open", "_rings")

    def __init__(self) -> None:
        self._rings = tuple(_Ring(_COARSE if number else _FINE, rows) for number, (_, rows) in enumerate(RESOLUTIONS))
        #: What each coarse ring gets as its next row.
        self._open = [_Row() for _ in RESOLUTIONS[1:]]
        self._current: Sample | None = None

    @property
    def current(self) -> Sample | None:
        return self._current

    def add(self, sample: Sample) -> None:
        self._current = sample
        self._rings[0].put(sample.at, sample.read_bytes, sample.write_bytes, *_gauges(sample))
        pending = self._open[0]
        if pending.count and pending.at // _SECOND_S != sample.at // _SECOND_S:
            self._close(0)
            pending = self._open[0]
        pending.add_sample(sample)

    def _close(self, level: int) -> None:
        """A coarse row is complete: it goes into its ring, and into the next coarser row."""
        row, self._open[level] = self._open[level], _Row()
        self._rings[level + 1].put_row(row)
        if level + 1 < len(self._open):
            coarser, resolution_s = self._open[level + 1], RESOLUTIONS[level + 2][0]
            if coarser.count and coarser.at // resolution_s != row.at // resolution_s:
                self._close(level + 1)
            self._open[level + 1].add(row)

    def samples(self, window_s: float, now: float) -> list[Sample]:
        """The last ``window_s`` seconds before ``now`` (as ``Sample.at`` counts), oldest first.

        In the finest resolution that still has all of them, otherwise in the coarsest; a coarse sample is a mean, its
        time is that of its last one, and the first may begin before the window.
        """
        return [row.sample(row.means()) for row in self._since(now - window_s)]

    def summary(self, window_s: float, now: float) -> Summary | None:
        """Current, average and peak of that window; None if it has no sample."""
        total = _Row()
        for row in self._since(now - window_s):
            total.add(row)
        if not total.count or self._current is None:
            return None
        return Summary(current=self._current, average=total.sample(total.means()), peak=total.sample(total.peaks))

    def _since(self, start: float) -> list[_Row]:
        level = next((n for n, ring in enumerate(self._rings) if ring.reaches(start)), len(self._rings) - 1)
        rows = list(self._rings[level].since(start))
        last = _Row()
        for pending in reversed(self._open[:level]):
            if pending.count and pending.at > start:
                last.add(pending)
        return [*rows, last] if last.count else rows


def _gauges(sample: Sample) -> tuple[float, int, int, int, int]:
    return sample.cpu_percent, sample.rss_bytes >> 10, sample.fds, sample.threads, sample.processes
