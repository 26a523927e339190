"""Pages of the journal, and whether a cursor can go on from where it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.support.journal import journal_at, note, text
from witsd.journal.journal import Journal
from witsd.journal.reading import Backlog, bounds, plan, position, read_all, read_stream, seq_at
from witsd.journal.upkeep import trim_due
from witsd.values.errors import ResyncRequired


async def planned(
    journal: Journal, patterns: Sequence[str], since: Mapping[str, int] | None = None, pos: int | None = None
) -> tuple[dict[str, int], int | None, bool]:
    backlog, resync = await journal.store.read(lambda db: plan(db, patterns, since, pos))
    assert backlog.empty is (not backlog.cursors and backlog.after_pos is None)
    return backlog.cursors, backlog.after_pos, resync


async def trim(journal: Journal, count: int) -> None:
    """Delete exactly the ``count`` oldest events."""
    (size,) = [
        row[0]
        for row in await journal.store.read(
            lambda db: db.execute(
                "SELECT sum(length(data)) FROM (SELECT data FROM events ORDER BY pos LIMIT ?)", (count,)
            ).fetchall()
        )
    ]
    total = await journal.store.read(lambda db: db.execute("SELECT bytes FROM journal").get)
    assert await journal.write(lambda tx: trim_due(tx, 0, total - size)) == count


async def test_pages_of_a_stream_and_of_everything(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "j.db") as journal:
        for n in range(1, 11):
            await journal.append(note("session:a", n), note("session:b", -n))
        read = journal.store.read
        assert [text(e) for e in await read(lambda db: read_stream(db, "session:a", 3, 99, 4))] == [4, 5, 6, 7]
        assert [text(e) for e in await read(lambda db: read_stream(db, "session:a", 3, 10, 99))] == [4, 5]
        assert await read(lambda db: read_stream(db, "session:none", 0, 99, 99)) == []
        assert [e.pos for e in await read(lambda db: read_all(db, 17, 2))] == [18, 19]
        assert [e.pos for e in await read(lambda db: read_all(db, 17, 99))] == [18, 19, 20]
        assert await read(position) == (20, 0)
        assert (await read(lambda db: bounds(db, "session:b"))).last_seq == 10
        for pos, seq in ((0, 0), (1, 1), (2, 1), (3, 2), (20, 10), (99, 10)):
            assert await read(lambda db, p=pos: seq_at(db, "session:a", p)) == seq  # type: ignore[misc]
        assert await read(lambda db: seq_at(db, "session:none", 5)) == 0


async def test_since_by_stream(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "j.db") as journal:
        await journal.append(*(note("session:a", n) for n in range(5)), note("session:b"))
        assert await planned(journal, ["session:a"]) == ({}, None, False)
        assert await planned(journal, ["session:a"], {"session:a": 0}) == ({"session:a": 0}, None, False)
        assert await planned(journal, ["session:a"], {"session:a": 5}) == ({"session:a": 5}, None, False)
        assert await planned(journal, ["session:*"], {"session:a": 2, "session:b": 1, "run:x": 0}) == (
            {"session:a": 2, "session:b": 1},
            None,
            False,
        ), "a stream that is not asked for is not replayed"
        assert await planned(journal, ["run:new"], {"run:new": 0}) == ({"run:new": 0}, None, False)


async def test_since_by_position(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "j.db") as journal:
        for n in range(5):
            await journal.append(note("session:a", n), note("session:b", n))
        assert await planned(journal, ["session:*"], pos=0) == ({}, 0, False)
        assert await planned(journal, ["session:*"], pos=10) == ({}, 10, False)
        assert await planned(journal, ["session:a", "run:*"], pos=7) == ({}, 7, False)
        assert await planned(journal, ["session:a", "session:b", "run:new"], pos=3) == (
            {"session:a": 2, "session:b": 1, "run:new": 0},
            None,
            False,
        ), "streams by name need not read what others wrote"


@pytest.mark.parametrize(
    ("since", "pos", "stream"),
    [({"session:a": 6}, None, "session:a"), ({"session:new": 1}, None, "session:new"), (None, 8, None)],
)
async def test_beyond_what_was_ever_written_is_refused(
    tmp_path: Path, since: Mapping[str, int] | None, pos: int | None, stream: str | None
) -> None:
    async with journal_at(tmp_path / "j.db") as journal:
        await journal.append(*(note("session:a", n) for n in range(5)), note("session:b"), note("session:b"))
        with pytest.raises(ResyncRequired) as refused:
            await planned(journal, ["session:*"], since, pos)
        assert (refused.value.code, refused.value.data["first_seq"]) == (-32010, 1)
        assert refused.value.data.get("stream") == stream


async def test_before_what_is_kept_is_a_resync(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "j.db") as journal:
        for n in range(5):
            await journal.append(note("session:a", n))  # pos 1 to 5
        await journal.append(note("session:b"))  # pos 6
        await trim(journal, 3)
        for seq, gone in ((0, True), (2, True), (3, False), (4, False), (5, False)):
            assert (await planned(journal, ["session:a"], {"session:a": seq}))[2] is gone
            assert (await planned(journal, ["session:*"], {"session:a": seq, "session:b": 0}))[2] is gone
            assert (await planned(journal, ["session:*"], pos=seq))[2] is gone
            assert (await planned(journal, ["session:a"], pos=seq))[2] is gone
        assert await planned(journal, ["session:b"], pos=1) == ({"session:b": 0}, None, False), "b lost nothing"


async def test_trimmed_to_the_last_and_beyond_the_cursor(tmp_path: Path) -> None:
    """Nothing of the stream up to the cursor's position is left, so what went after it cannot be known."""
    async with journal_at(tmp_path / "j.db") as journal:
        for n in range(10):
            await journal.append(note("session:a", n))
        await trim(journal, 8)
        assert (await planned(journal, ["session:a"], pos=5))[2]
        assert await planned(journal, ["session:a"], pos=8) == ({"session:a": 8}, None, False)
        assert await planned(journal, ["session:a"], pos=9) == ({"session:a": 9}, None, False)


async def test_a_stream_trimmed_whole(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "j.db") as journal:
        await journal.append(note("session:a"), note("session:a"), note("session:b"), note("session:b"))
        await trim(journal, 3)
        kept = await journal.store.read(lambda db: bounds(db, "session:a"))
        assert (kept.first_seq, kept.last_seq) == (3, 2)
        assert await planned(journal, ["session:a"], {"session:a": 2}) == ({"session:a": 2}, None, False)
        assert (await planned(journal, ["session:a"], {"session:a": 1}))[2]
        (event,) = await journal.append(note("session:a"))
        assert event.seq == 3


def test_an_empty_backlog_is_empty() -> None:
    assert Backlog({}, None).empty
    assert not Backlog({}, 0).empty
    assert not Backlog({"run:a": 0}, None).empty
