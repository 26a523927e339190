"""Where messages begin and end, and what becomes of what is too long."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.support.rpc import socket_pair
from witsd.rpc.framing import ByteStreamMessages, Framer, Incoming, Oversize, Truncated


def fed(framer: Framer, *chunks: bytes) -> list[Incoming]:
    return [message for chunk in chunks for message in framer.feed(chunk)] + framer.end()


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b'{"a":1}\n{"b":2}\n', [b'{"a":1}', b'{"b":2}']),
        (b'{"a":1}\r\n\r\n  \n{"b":2}', [b'{"a":1}\r', b'{"b":2}']),
        (b"\n \n", []),
        (b"Content-Length: 2\r\n\r\n{}content-length:3\r\nX-Y: z\r\n\r\n[1]", [b"{}", b"[1]"]),
        (b" \r\nContent-Length: 0\r\n\r\nContent-Length: 1\r\n\r\n1", [b"", b"1"]),
        (b"Content-Length: 5\r\n\r\n{}", [Truncated("the input ended within a message")]),
        (b"Content-Len", [Truncated("the input ended within a message")]),
        (b"Content-Length: +5\r\n\r\n{}", [Truncated("a head without a valid Content-Length")]),
        (b"Content-Type: x\r\n\r\n{}", [Truncated("a head without a valid Content-Length")]),
        (b"C" * 9000, [Truncated("a head longer than 8192 bytes")]),
        (b"x" * 33 + b"\n[1]\n", [Oversize(33), b"[1]"]),
        (b"x" * 33, [Oversize(33)]),
        (b"x" * 32 + b"\n", [b"x" * 32]),
        (b"Content-Length: 33\r\n\r\n" + b"x" * 33 + b"Content-Length: 1\r\n\r\n1", [Oversize(33), b"1"]),
    ],
)
def test_messages(sent: bytes, expected: list[Incoming]) -> None:
    assert fed(Framer(32), sent) == expected
    assert fed(Framer(32), *(sent[i : i + 1] for i in range(len(sent)))) == expected


def test_agents_never_write_headers() -> None:
    assert fed(Framer(100, newline_only=True), b"Connecting...\n[1]\n") == [b"Connecting...", b"[1]"]


def test_answers_are_framed_like_requests() -> None:
    lines, headers = Framer(100), Framer(100)
    lines.feed(b"[1]\n")
    headers.feed(b"Content-Length: 2\r\n\r\n{}")
    assert lines.frame([b"[1]", b'{"a":\n 1}']) == b'[1]\n{"a":  1}\n'
    assert headers.frame([b"[1]", b"[]"]) == b"Content-Length: 3\r\n\r\n[1]Content-Length: 2\r\n\r\n[]"


def test_what_is_too_long_is_not_kept() -> None:
    framer = Framer(1000)
    assert framer.feed(b"x" * 2000) == [Oversize(2000)]
    for _ in range(100):
        assert framer.feed(b"x" * 100_000) == []
    assert len(framer._buffer) == 0
    assert framer.feed(b"x\n[1]\n") == [b"[1]"]


async def test_a_part_sent_at_once_goes_before_the_rest() -> None:
    mine, its = await socket_pair()
    async with mine, its:
        messages = ByteStreamMessages(its, limit=100)
        big = b'"' + b"x" * 4_000_000 + b'"'
        assert messages.try_send(big)
        assert messages.unsent
        assert not messages.try_send(b"[1]")
        received = bytearray()

        async def read() -> None:
            while len(received) < len(big) + 5:
                received.extend(await mine.receive_some())

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await messages.send_all([b"[1]"])
        assert bytes(received) == big + b"\n[1]\n"


async def test_a_send_that_does_not_move_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    mine, its = await socket_pair()
    async with mine, its:
        started = trio.current_time()
        with pytest.raises(trio.TooSlowError):
            await ByteStreamMessages(its, limit=100).send_all([b"x" * 4_000_000], stall_s=7)
        assert trio.current_time() - started == pytest.approx(7)


async def test_hung_up_tells_half_closed_from_gone() -> None:
    mine, its = await socket_pair()
    async with its:
        messages = ByteStreamMessages(its, limit=100)
        await mine.send_eof()
        assert await messages.receive() is None
        assert not messages.hung_up()
        await mine.aclose()
        assert messages.hung_up()
