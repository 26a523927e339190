"""Agents' logs: files of numbered lines that rotate, are read from anywhere, and survive what happens to files."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import pytest
import trio

from tests.doubles.clock import FakeClock
from tests.support.small_disk import fill, small_disk
from witsd.supervise.logs import MAX_LINE, PAGE_BYTES, TAIL_BYTES, AgentLog, Logs, LogSettings
from witsd.values.errors import NotFound
from witsd.values.wire.agents import LogLine

PATIENCE_S = 60


def opened(folder: Path, max_bytes: int = 10 << 20, files: int = 4) -> AgentLog:
    """The log as a daemon that has just started has it."""
    return Logs(folder, FakeClock(), LogSettings(max_bytes=max_bytes, files=files)).of("agent")


def seqs(lines: Sequence[LogLine]) -> list[int]:
    return [line.seq for line in lines]


def everything(log: AgentLog) -> list[LogLine]:
    found: list[LogLine] = []
    while page := log.read(found[-1].seq if found else 0, 1000):
        found += page
    return found


async def test_lines_are_numbered_stamped_and_private(tmp_path: Path) -> None:
    log = opened(tmp_path / "logs")
    await log.write("stderr", [b"one", b"", b"three \xff\r"])
    await log.write("stdout", [b"four"])
    time = "2026-11-20T09:05:07.000000Z"
    assert log.read(0, 10) == [
        LogLine(seq=1, time=time, source="stderr", text="one"),
        LogLine(seq=2, time=time, source="stderr", text=""),
        LogLine(seq=3, time=time, source="stderr", text="three \ufffd"),
        LogLine(seq=4, time=time, source="stdout", text="four"),
    ]
    assert seqs(log.read(1, 2)) == [2, 3]
    assert log.path.stat().st_mode & 0o777 == 0o600


async def test_rotation_tears_no_line_and_numbering_goes_on(tmp_path: Path) -> None:
    log = opened(tmp_path, max_bytes=4096, files=3)
    for n in range(1, 501):
        await log.write("stderr", [b"line %d " % n + b"x" * (n % 90)])
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["agent.log", "agent.log.1", "agent.log.2", "agent.log.3"]
    assert all(file.stat().st_size <= 4096 for file in files)
    assert all(file.read_bytes().endswith(b"\n") for file in files)
    kept = everything(log)
    assert seqs(kept) == list(range(kept[0].seq, 501)), "no gap among what is kept"
    assert kept[0].seq > 1
    assert all(line.text.startswith(f"line {line.seq} ") for line in kept)
    again = opened(tmp_path, max_bytes=4096, files=3)
    assert again.last_seq == 500
    await again.write("stderr", [b"after a restart"])
    assert seqs(again.read(499, 10)) == [500, 501]


async def test_numbering_is_found_also_where_the_newest_file_is_empty_or_gone(tmp_path: Path) -> None:
    log = opened(tmp_path, max_bytes=1024)
    for _ in range(40):
        await log.write("stderr", [b"x" * 50])
    newest = log.read(0, 1000)[-1].seq
    in_older = int((tmp_path / "agent.log.1").read_bytes().splitlines()[-1].split()[0])
    log.path.write_bytes(b"")
    assert opened(tmp_path).last_seq == in_older
    log.path.unlink()
    assert opened(tmp_path).last_seq == in_older < newest == 40


async def test_reading_begins_in_the_middle_of_a_big_file(tmp_path: Path) -> None:
    log = opened(tmp_path, max_bytes=1 << 30)
    count = 30_000
    for start in range(1, count, 1000):
        await log.write("stderr", [b"%d " % n + b"y" * (n % 200) for n in range(start, start + 1000)])
    assert log.path.stat().st_size > 3 << 20, "too small to be bisected"
    for after in (0, 1, 2, 999, 12_345, count - 2, count - 1):
        page = log.read(after, 3)
        assert seqs(page) == list(range(after + 1, min(after + 4, count + 1)))
        assert page[0].text.split()[0] == str(after + 1)
    assert log.read(count, 10) == []
    assert log.read(10 * count, 10) == []


async def test_reading_from_the_end_reads_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = opened(tmp_path, max_bytes=1 << 30)
    for _ in range(30):
        await log.write("stderr", [b"z" * 100] * 3000)
    parsed = 0
    real = log.read.__globals__["_parse"]

    def counted(raw: bytes) -> LogLine:
        nonlocal parsed
        parsed += 1
        return real(raw)  # type: ignore[no-any-return]

    monkeypatch.setitem(log.read.__globals__, "_parse", counted)
    assert seqs(log.read(89_990, 100)) == list(range(89_991, 90_001))
    assert parsed < 5000, "it has read the file from its beginning"


async def test_a_huge_line_is_kept_in_pieces(tmp_path: Path) -> None:
    log = opened(tmp_path, max_bytes=1 << 30)
    huge = bytes(97 + n % 26 for n in range(5 * MAX_LINE + 7))
    await log.write("stdout", [b"before", huge, b"after"])
    lines = everything(log)
    assert len(lines) == 8
    assert "".join(line.text for line in lines[1:-1]).encode() == huge
    assert opened(tmp_path).last_seq == 8
    again = opened(tmp_path)
    await again.write("stdout", [huge])
    assert opened(tmp_path).last_seq == 14, "found behind a line as long as lines get"


async def test_what_is_read_at_once_is_bounded_in_bytes(tmp_path: Path) -> None:
    log = opened(tmp_path, max_bytes=1 << 30)
    for _ in range(10):
        await log.write("stdout", [b"w" * MAX_LINE] * 10)
    page = log.read(0, 1000)
    assert PAGE_BYTES <= sum(len(line.text) for line in page) < PAGE_BYTES + 2 * MAX_LINE
    assert seqs(everything(log)) == list(range(1, 101))
    newest = await log.tail(90)
    assert newest[-1].seq == 100, "of too much, the newest is given"
    assert seqs(newest) == list(range(newest[0].seq, 101))
    assert TAIL_BYTES - MAX_LINE <= sum(len(line.text) for line in newest) <= TAIL_BYTES
    assert seqs(await log.tail(3)) == [98, 99, 100]
    assert await log.tail(0) == []


async def test_a_follower_gets_each_line_once_through_rotations(tmp_path: Path) -> None:
    log = opened(tmp_path, max_bytes=2048, files=50)
    count = 600
    got: list[LogLine] = []

    async def follow() -> None:
        async with aclosing(log.follow(0)) as pages:
            async for page in pages:
                got.extend(page)
                if got[-1].seq == count:
                    return

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            for n in range(1, count + 1):
                await log.write("stderr", [b"line %d" % n])
    assert seqs(got) == list(range(1, count + 1))
    assert all(line.text == f"line {line.seq}" for line in got)


async def test_two_writers_share_one_numbering(tmp_path: Path) -> None:
    log = opened(tmp_path)

    async def speak(source: str) -> None:
        for n in range(100):
            await log.write(source, [f"{source} {n}".encode()] * 3)

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(speak, "stdout")
            nursery.start_soon(speak, "stderr")
    lines = everything(log)
    assert seqs(lines) == list(range(1, 601))
    for source in ("stdout", "stderr"):
        assert [line.text for line in lines if line.source == source] == [
            f"{source} {n}" for n in range(100) for _ in range(3)
        ]


async def test_files_removed_under_it(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    log = opened(folder)
    await log.write("stderr", [b"one", b"two"])
    log.path.unlink()
    assert log.read(0, 10) == []
    await log.write("stderr", [b"three"])
    assert seqs(log.read(0, 10)) == [3], "the numbering goes on"
    log.path.unlink()
    folder.rmdir()
    await log.write("stderr", [b"four"])
    assert seqs(log.read(0, 10)) == [4]
    assert log.lost == 0


async def test_a_line_torn_by_a_power_cut_spoils_no_other(tmp_path: Path) -> None:
    log = opened(tmp_path)
    await log.write("stderr", [b"one", b"two"])
    for torn in (b"3 2026-11-20T09:05:07.000000Z stderr thr", b"3", b"3 2026"):
        with log.path.open("ab") as file:
            file.write(torn)
        again = opened(tmp_path)
        assert again.last_seq == 2
    await again.write("stderr", [b"three"])
    assert [(line.seq, line.text) for line in again.read(0, 10)] == [(1, "one"), (2, "two"), (3, "three")]
    log.path.write_bytes(b"1 2026")
    assert opened(tmp_path).last_seq == 0
    assert log.path.read_bytes() == b""


async def test_lines_of_somebody_else_in_the_file_do_no_harm(tmp_path: Path) -> None:
    log = opened(tmp_path)
    await log.write("stderr", [b"one", b"two"])
    with log.path.open("ab") as file:
        file.write(b"a note\n\n99999999999999999999999 x y z\n12 when who what\n")
    again = opened(tmp_path)
    assert again.last_seq in (2, 12)
    await again.write("stderr", [b"three"])
    assert "three" in [line.text for line in again.read(2, 10)]


async def test_a_disk_that_fails_is_counted_and_told_when_it_is_over(tmp_path: Path) -> None:
    log = opened(tmp_path)
    await log.write("stderr", [b"before"])
    log.path.rename(tmp_path / "aside")
    log.path.mkdir()  # what cannot be opened for writing
    await log.write("stderr", [b"lost", b"lost"])
    await log.write("stderr", [b"lost"])
    assert (log.lost, log.last_seq) == (3, 1)
    log.path.rmdir()
    (tmp_path / "aside").rename(log.path)
    await log.write("stderr", [b"after"])
    assert log.lost == 0
    assert [(line.seq, line.source, line.text) for line in log.read(0, 10)] == [
        (1, "stderr", "before"),
        (2, "witsd", f"3 lines before this one are lost: {os.strerror(errno.EISDIR)}"),
        (3, "stderr", "after"),
    ]


async def test_a_full_disk_leaves_no_torn_line(tmp_path: Path) -> None:
    with small_disk(tmp_path, 1):
        log = opened(tmp_path)
        await log.write("stderr", [b"before"])
        ballast = tmp_path / "ballast"
        fill(ballast)
        with ballast.open("ab") as file:
            file.truncate(ballast.stat().st_size - 8192)  # room for some of it
        await log.write("stderr", [b"v" * 40_000])
        assert log.lost == 1
        assert log.path.read_bytes().endswith(b"before\n"), "nothing of what did not fit is left"
        ballast.unlink()
        await log.write("stderr", [b"after"])
        assert [line.text.partition(":")[0] for line in log.read(0, 10)] == [
            "before",
            "1 lines before this one are lost",
            "after",
        ]


@pytest.mark.parametrize("name", ["", "..", "../agent", "a/b", "a\n", "\0", "A"])
def test_a_name_is_no_path(tmp_path: Path, name: str) -> None:
    logs = Logs(tmp_path / "logs", FakeClock(), LogSettings())
    assert not logs.exists(name)
    with pytest.raises(NotFound):
        logs.of(name)
    assert not (tmp_path / "logs").exists()
