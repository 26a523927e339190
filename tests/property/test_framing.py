"""However the bytes are cut into chunks, the messages are the same."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from witsd.rpc.framing import Framer, Incoming, Oversize

LIMIT = 40

_lines = st.binary(max_size=60).map(lambda line: line.replace(b"\n", b"."))
_bodies = st.binary(max_size=60)
_raw = st.one_of(
    st.binary(max_size=300),
    st.lists(st.sampled_from([b"C", b"Content-Length: ", b"3", b"99", b"\r\n", b"\n", b"[1]", b" "]), max_size=30).map(
        b"".join
    ),
)


def _cut(data: bytes, at: list[int]) -> list[bytes]:
    ends = [0, *sorted(i % (len(data) + 1) for i in at), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(ends) if a < b]


def _messages(chunks: list[bytes], *, newline_only: bool = False) -> list[Incoming]:
    framer = Framer(LIMIT, newline_only=newline_only)
    out: list[Incoming] = []
    for chunk in chunks:
        out += framer.feed(chunk)
        if framer.broken:
            break
        assert len(framer._buffer) <= 8192 + LIMIT
    return out + framer.end()


_cuts = st.lists(st.integers(min_value=0, max_value=10_000), max_size=12)


@given(_raw, _cuts, st.booleans())
def test_any_bytes_in_any_chunks(data: bytes, at: list[int], newline_only: bool) -> None:
    whole = _messages([data] if data else [], newline_only=newline_only)
    assert _messages(_cut(data, at), newline_only=newline_only) == whole


@given(st.lists(_lines, max_size=8), _cuts)
def test_lines_come_out_as_they_went_in(lines: list[bytes], at: list[int]) -> None:
    expected = [Oversize(0) if len(x) > LIMIT else x for x in lines if len(x) > LIMIT or (x and not x.isspace())]
    data = b"".join(line + b"\n" for line in lines)
    assert _messages(_cut(data, at), newline_only=True) == expected


@given(st.lists(_bodies, max_size=8), _cuts)
def test_bodies_come_out_as_they_went_in(bodies: list[bytes], at: list[int]) -> None:
    data = b"".join(b"Content-Length: %d\r\n\r\n%b" % (len(body), body) for body in bodies)
    expected = [Oversize(0) if len(body) > LIMIT else body for body in bodies]
    assert _messages(_cut(data, at)) == expected


@given(st.lists(st.binary(min_size=1, max_size=LIMIT).map(lambda m: b"[" + m.replace(b"\n", b" ")[:-1] + b"]"))
       .filter(lambda ms: all(len(m) <= LIMIT for m in ms)), st.booleans(), _cuts)  # fmt: skip
def test_what_is_framed_is_read_back(messages: list[bytes], headers: bool, at: list[int]) -> None:
    writer = Framer(LIMIT)
    writer.headers = headers
    data = writer.frame(messages) if messages else b""
    assert _messages(_cut(data, at)) == messages
