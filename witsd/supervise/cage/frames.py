"""What daemon and guard say to each other through the guard's standard streams.

To the guard: one request, marshalled. Back: frames of a kind (one byte), a length (four bytes, big endian) and so many
bytes. The way back is written beside foreign code, so the daemon reads it as it reads any stranger's bytes.
"""

from __future__ import annotations

import marshal
import os
import struct

TYPE_CHECKING = False  # these modules cost a third of the start, and are for checkers alone
if TYPE_CHECKING:
    from typing import Any

#: Foreign output, the value of the last expression, a file (its name, NUL, its content), a file too large (its name).
STDOUT, STDERR, VALUE, FILE, LEFT_OUT = b"o", b"e", b"v", b"f", b"l"
#: Output was cut (which one), a limit ended it (its name, NUL, a sentence), it ended by itself (b"code 0", or
#: b"signal 9"), and a guard that could not do its work (why).
CUT, LIMIT, END, FAULT = b"c", b"m", b"x", b"!"
_HEAD = struct.Struct("!cI")
#: More than this in one frame is nothing that a guard of ours sends.
MAX_FRAME = 64 << 20


def request(fields: dict[str, Any]) -> bytes:
    """A request as it is written to a guard: marshalled, after its length."""
    data = marshal.dumps(fields)
    return struct.pack("=I", len(data)) + data


def read_request(fd: int) -> dict[str, Any]:
    """The counterpart; leaves what follows. Raises ``EOFError`` if the daemon has gone."""
    fields: dict[str, Any] = marshal.loads(  # noqa: S302 - the daemon's
        _exactly(fd, struct.unpack("=I", _exactly(fd, 4))[0])
    )
    return fields


def _exactly(fd: int, count: int) -> bytes:
    parts = []
    while count:
        part = os.read(fd, min(count, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def write(fd: int, kind: bytes, payload: bytes) -> None:
    """One frame, whole. Blocks while the daemon does not read."""
    data = memoryview(_HEAD.pack(kind, len(payload)) + payload)
    while data:
        data = data[os.write(fd, data) :]


class Reader:
    """Cuts bytes into frames. Raises ``ValueError`` for what is no frame."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, chunk: bytes) -> list[tuple[bytes, bytes]]:
        self._rest += chunk
        found = []
        while len(self._rest) >= _HEAD.size:
            kind, length = _HEAD.unpack_from(self._rest)
            if length > MAX_FRAME:
                raise ValueError(f"a frame of {length} bytes")
            if len(self._rest) < _HEAD.size + length:
                break
            found.append((kind, bytes(self._rest[_HEAD.size : _HEAD.size + length])))
            del self._rest[: _HEAD.size + length]
        return found
