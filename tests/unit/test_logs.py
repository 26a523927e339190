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
from witsd.supervise.log_lines import MAX_LINE
from witsd.supervise.logs import PAGE_BYTES, TAIL_BYTES, AgentLog, Logs, LogSettings
from witsd.supervise.output import Lines
from witsd.values.errors import InvalidState, NotFound
from witsd.values.wire.agents import LogLine
from witsd.values.wire.common import UNSET, UnsetType

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
    real = log.read.__globals__["seq_of"]

    def counted(raw: bytes, before: int) -> int:
        nonlocal parsed
        parsed += 1
        return real(raw, before)  # type: ignore[no-any-return]

    monkeypatch.setitem(log.read.__globals__, "seq_of", counted)
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


@pytest.mark.parametrize("broken", ["/dev/full", "/proc/self/mem"], ids=["ENOSPC", "EIO"])
async def test_a_device_that_fails_is_counted_and_told(tmp_path: Path, broken: str) -> None:
    log = opened(tmp_path)
    await log.write("stderr", [b"before"])
    log.path.rename(tmp_path / "aside")
    log.path.symlink_to(broken)
    await log.write("stderr", [b"lost"] * 3)
    assert (log.lost, log.last_seq) == (3, 1)
    if broken == "/proc/self/mem":  # /dev/full reads as zeros without end
        with pytest.raises(InvalidState, match=os.strerror(errno.EIO)):
            await log.read_after(0, 10)
    log.path.unlink()
    (tmp_path / "aside").rename(log.path)
    await log.write("stderr", [b"after"])
    reason = os.strerror(errno.ENOSPC if broken == "/dev/full" else errno.EIO)
    assert [line.text for line in log.read(0, 10)] == ["before", f"3 lines before this one are lost: {reason}", "after"]


async def test_a_folder_that_is_none_harms_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.write_text("in its way")
    log = opened(folder)
    await log.write("stderr", [b"lost"])
    assert log.lost == 1
    folder.unlink()
    await log.write("stderr", [b"after"])
    assert [line.text for line in log.read(0, 10)] == [
        f"1 lines before this one are lost: {os.strerror(errno.ENOTDIR)}",
        "after",
    ]


async def test_what_an_agent_writes_is_never_taken_for_a_number(tmp_path: Path) -> None:
    log = opened(tmp_path)
    forged = [b"999 2026-11-20T09:05:07.000000Z witsd forged", b"+ 2026-11-20T09:05:07.000000Z witsd forged", b"+ +"]
    for _ in range(3):
        await log.write("stdout", forged)
    lines = log.read(0, 100)
    assert seqs(lines) == list(range(1, 10))
    assert [line.text.encode() for line in lines] == forged * 3
    assert opened(tmp_path).last_seq == 9


async def test_a_block_of_very_many_lines_is_found_again(tmp_path: Path) -> None:
    log = opened(tmp_path, max_bytes=1 << 30)
    await log.keep("stdout", [b"\n" * 20_000, b"x\n" * 20_000])  # more than is looked at first
    again = opened(tmp_path, max_bytes=1 << 30)
    assert again.last_seq == 40_000
    assert [(line.seq, line.text) for line in again.read(19_999, 2)] == [(20_000, ""), (20_001, "x")]
    assert seqs(again.read(39_998, 10)) == [39_999, 40_000]


@pytest.mark.parametrize(
    ("line", "level"),
    [
        (b'{"level": "info", "msg": "x"}', "info"),
        (b'{"msg": {"level": "error"}, "levelname": "WARNING"}', "warning"),
        (b'{"severity": "ERR"}', "error"),
        (b'{"lvl": "fatal"}', "critical"),
        (b'{"level": 10}', "debug"),
        (b'{"level": 30, "v": 0}', "info"),
        (b'{"level": 40}', "warning"),
        (b'{"level": 50}', "error"),
        (b'{"level": 60}', "critical"),
        (b'{"level": 3}', UNSET),
        (b'{"level": true}', UNSET),
        (b'{"level": "loud"}', UNSET),
        (b'{"level": "info"', UNSET),
        (b'{"msg": "no level"}', UNSET),
        (b"[1]", UNSET),
        (b"level=error", UNSET),
        (b"", UNSET),
        (b"{\xff", UNSET),
        (b'{"level": "\xff"}', UNSET),
        (b'{"level": 1e999}', UNSET),
        pytest.param(b'{"level": ' + b"[" * 60_000, UNSET, id="deeper than anybody reads"),
        pytest.param(b'{"a": ' + b"[" * 30_000 + b"]" * 30_000 + b"}", UNSET, id="deep and whole"),
    ],
)
async def test_the_level_of_a_line_of_json(tmp_path: Path, line: bytes, level: str | UnsetType) -> None:
    log = opened(tmp_path)
    await log.write("stdout", [line])
    assert [found.level for found in log.read(0, 10)] == [level]


async def test_lines_of_a_level_are_found_however_far_back(tmp_path: Path) -> None:
    log = opened(tmp_path, max_bytes=1 << 20, files=9)
    await log.write("stdout", [b'{"level": "warn", "n": 1}', b'{"level": "info"}'])
    for _ in range(25):
        await log.write("stdout", [b"no level at all"] * 1000)
    await log.write("stdout", [b'{"level": "critical", "n": 2}'])
    assert seqs(await log.tail(10, "warning")) == [1, 25_003]
    assert seqs(await log.tail(1, "warning")) == [25_003]
    assert seqs(await log.tail(10, "info")) == [1, 2, 25_003]
    assert seqs(await log.read_after(1, 10, "warning")) == [25_003]
    assert await log.read_after(25_003, 10, "debug") == []
    await log.write("stdout", [b'{"level": "error"}'] * 30)
    pages = [seqs(await log.read_after(after, 10, "error")) for after in (25_002, 25_012)]
    assert pages == [list(range(25_003, 25_013)), list(range(25_013, 25_023))]
    assert len(await log.tail(10)) == 10


@pytest.mark.parametrize("size", [1, 7, 4096, 50_000, 1 << 16])
def test_lines_are_cut_the_same_however_they_come(size: int) -> None:
    text = b"one\n\nthree" + b"x" * (2 * MAX_LINE + 9) + b"\nfour\n" + b"y" * (MAX_LINE + 5000) + b"\nend"
    lines, got = Lines(), b""
    for at in range(0, len(text), size):
        for block in lines.feed(text[at : at + size]):
            assert block.endswith(b"\n")
            assert max(map(len, block.split(b"\n"))) <= MAX_LINE
            got += block
        assert len(lines.end() if at + size >= len(text) else b"") <= MAX_LINE
    assert got.startswith(b"one\n\nthree")
    assert got.replace(b"\n", b"") + b"end" == text.replace(b"\n", b"")


@pytest.mark.parametrize("name", ["", "..", "../agent", "a/b", "a\n", "\0", "A"])
def test_a_name_is_no_path(tmp_path: Path, name: str) -> None:
    logs = Logs(tmp_path / "logs", FakeClock(), LogSettings())
    assert not logs.exists(name)
    with pytest.raises(NotFound):
        logs.of(name)
    assert not (tmp_path / "logs").exists()
