"""Server-sent events, sans I/O: bytes in, events out.

Follows the "event stream" section of WHATWG's HTML standard: lines end in LF, CRLF or CR; one
leading byte order mark is dropped; ``data`` lines of one event are joined by LF; a blank line
ends an event; one without data is none; what is unfinished at the end is dropped.
"""

from __future__ import annotations

import codecs

import attrs


class SseTooLong(Exception):
    """An event grew over the limit; ``args[0]`` is that limit in bytes."""


@attrs.frozen
class SseEvent:
    data: str
    event: str = "message"


class SseParser:
    """Feed it what arrived, in any pieces. Holds at most ``max_bytes`` of one unfinished event."""

    def __init__(self, max_bytes: int = 4 * 1024 * 1024) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._max = max_bytes
        self._line: list[str] = []
        self._line_size = 0
        self._data: list[str] = []
        self._data_size = 0
        self._event = ""
        self._started = False
        self._after_cr = False

    def feed(self, data: bytes) -> list[SseEvent]:
        """The events that these bytes completed. Raises ``SseTooLong``."""
        text = self._decoder.decode(data)
        if not text:
            return []
        if not self._started:
            self._started = True
            text = text.removeprefix("\ufeff")
        if self._after_cr and text:
            self._after_cr = False
            text = text.removeprefix("\n")
        if text.endswith("\r"):
            # Whether an LF belongs to it is only known with the next piece; either way the line ends here.
            self._after_cr = True
        pieces = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        events: list[SseEvent] = []
        for piece in pieces[:-1]:
            self._push(piece)
            line = "".join(self._line)
            self._line.clear()
            self._line_size = 0
            event = self._end_line(line)
            if event is not None:
                events.append(event)
        self._push(pieces[-1])
        return events

    def _push(self, piece: str) -> None:
        if piece:
            self._line.append(piece)
            self._line_size += len(piece)
            if self._line_size + self._data_size > self._max:
                raise SseTooLong(self._max)

    def _end_line(self, line: str) -> SseEvent | None:
        if not line:
            data, event = self._data, self._event
            self._data, self._data_size, self._event = [], 0, ""
            return SseEvent("\n".join(data), event or "message") if data else None
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
            self._data_size += len(value) + 1
        elif field == "event":
            self._event = value
        # A comment has an empty field name; id and retry are for browsers that reconnect.
        return None
