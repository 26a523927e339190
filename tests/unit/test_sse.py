"""Server-sent events: the standard's own rules, in any pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from witsd.services.models.sse import SseEvent, SseParser, SseTooLong


@pytest.mark.parametrize(
    ("text", "events"),
    [
        ("data: a\n\n", [SseEvent("a")]),
        ("data: a\r\n\r\ndata: b\r\rdata: c\n\n", [SseEvent("a"), SseEvent("b"), SseEvent("c")]),
        ("data: a\r\ndata: b\r\n\r\n", [SseEvent("a\nb")]),
        ("data: YHOO\ndata: +2\ndata: 10\n\n", [SseEvent("YHOO\n+2\n10")]),
        (": comment\n\ndata:no blank\n:more\ndata:  two\n\n", [SseEvent("no blank\n two")]),
        ("data\n\ndata\ndata\n\ndata:", [SseEvent(""), SseEvent("\n")]),
        ("event: add\ndata: 1\n\ndata: 2\n\n", [SseEvent("1", "add"), SseEvent("2")]),
        ("event: empty\n\ndata: x\n\n", [SseEvent("x")]),
        ("\ufeffdata: bom\n\n", [SseEvent("bom")]),
        ("id: 1\nretry: 5\nunknown: x\ndata: y\n\n", [SseEvent("y")]),
        ("data: unfinished\n", []),
        ("data: ü€😀\n\n", [SseEvent("ü€😀")]),
    ],
)
@given(data=st.data())
def test_events_do_not_depend_on_how_the_bytes_arrive(
    text: str, events: list[SseEvent], data: st.DataObject
) -> None:
    raw = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    parser = SseParser()
    found: list[SseEvent] = []
    for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        found += parser.feed(raw[start:end])
    assert found == events


@pytest.mark.parametrize("unit", [b"data: " + b"x" * 90 + b"\n", b"x" * 90])
def test_what_is_unfinished_is_bounded(unit: bytes) -> None:
    parser = SseParser(max_bytes=1000)
    for _ in range(10):
        parser.feed(unit)
    with pytest.raises(SseTooLong):
        parser.feed(unit * 2)
