"""An event, before it is appended (``Entry``) and after (``Event``)."""

from __future__ import annotations

from typing import Any

import msgspec

from witsd.values.clock import rfc3339

_encode = msgspec.json.Encoder().encode


class Entry(msgspec.Struct, frozen=True, gc=False):
    """What is to be appended. ``data`` is the JSON of a type in ``EVENT_TYPES``.

    ``seals`` says that the stream ends here, which lets its deltas be compacted later on.
    """

    stream: str
    type: str
    data: bytes
    seals: bool = False


def entry(stream: str, type: str, data: Any, *, seals: bool = False) -> Entry:  # noqa: A002
    """An ``Entry`` from a value."""
    return Entry(stream, type, _encode(data), seals)


class Event(msgspec.Struct, eq=False, gc=False):
    """A committed event. ``seq`` and ``pos`` are 0 for what is only of the moment; a log line has a ``seq`` alone.

    A struct that the garbage collector does not look at: thousands are made each second, and thousands stay in
    the hub's ring, where each full collection would walk over them. The wire form is made once for all subscribers.
    """

    stream: str
    type: str
    data: bytes
    time_us: int
    seq: int = 0
    pos: int = 0
    first_seq: int | None = None
    _wire: bytes | None = None

    def wire(self) -> bytes:
        """The members of an event object, without its braces: ``"stream":...,"data":...``."""
        if self._wire is None:
            place = b""
            if self.seq:
                place = b'"seq":%d,' % self.seq
            if self.pos:
                place += b'"pos":%d,' % self.pos
            if self.first_seq is not None:
                place += b'"first_seq":%d,' % self.first_seq
            self._wire = b'"stream":%b,%b"time":"%b","type":"%b","data":%b' % (
                _encode(self.stream),
                place,
                rfc3339(self.time_us).encode(),
                self.type.encode(),
                self.data,
            )
        return self._wire

    def __repr__(self) -> str:
        return f"<Event {self.stream} {self.seq} {self.type}>"
