"""While the disk fails requests are refused and facts are kept; when it works again nothing is missing or twice."""

from __future__ import annotations

import logging
from pathlib import Path

import apsw
import pytest
import trio

from tests.doubles.clock import FakeClock
from tests.support.faulty_vfs import faulty_disk
from tests.support.journal import (
    PATIENCE_S,
    assert_contiguous,
    events_in_file,
    journal_at,
    meta_work,
    note,
    put_meta,
    stored,
    text,
)
from witsd.journal.journal import Ticket, Tx, open_journal
from witsd.journal.store import open_store
from witsd.values.errors import LimitExceeded


@pytest.fixture(autouse=True)
def _try_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("witsd.journal.journal.RETRY_S", 0.01)


@pytest.mark.parametrize("error", [apsw.FullError, apsw.IOError, apsw.ReadOnlyError])
async def test_requests_are_refused_and_facts_are_kept(tmp_path: Path, error: type[apsw.Error]) -> None:
    clock = FakeClock()
    with faulty_disk() as disk:
        async with journal_at(tmp_path / "j.db", clock=clock) as journal:
            await journal.append(note("run:a", "before"))
            assert journal.failing_since is None
            disk.fail("write", error=error)
            facts = [journal.append_nowait(note("run:a", f"fact {n}")) for n in range(3)]
            with trio.fail_after(PATIENCE_S):
                for refused in (
                    lambda: journal.append(note("run:a", "refused")),
                    lambda: journal.append(note("run:a", "refused")),
                    lambda: journal.write(meta_work("refused")),
                ):
                    with pytest.raises(LimitExceeded) as caught:
                        await refused()
                    assert (caught.value.code, caught.value.data["limit"]) == (-32008, "disk")
            assert journal.failing_since == clock.mono
            assert not any(fact._done.is_set() for fact in facts)
            assert journal.hub.pos == 1, "nothing is shown that is not committed"
            assert [text(e) for e in await stored(journal)] == ["before"], "what is there can be read"
            later = journal.append_nowait(note("run:b", "fact 3"))
            disk.mend()
            with trio.fail_after(PATIENCE_S):
                for fact in (*facts, later):
                    await fact.wait()
            assert journal.failing_since is None
            await journal.append(note("run:a", "after"), statements=[put_meta("k")])
            events = await stored(journal)
            assert [text(e) for e in events] == ["before", "fact 0", "fact 1", "fact 2", "fact 3", "after"]
            assert [e.pos for e in journal.hub.slice(0, journal.hub.end)] == [1, 2, 3, 4, 5, 6]
            assert assert_contiguous(events) == {"run:a": 5, "run:b": 1}


async def test_append_and_write_with_keep_wait_for_the_disk(tmp_path: Path) -> None:
    with faulty_disk() as disk:
        async with journal_at(tmp_path / "j.db") as journal:
            await journal.append(note("run:a"))
            disk.fail("sync")
            got: list[object] = []

            async def keep_appending() -> None:
                (event,) = await journal.append(note("run:a", "kept"), keep=True)
                got.append(event.seq)

            async def keep_writing() -> None:
                got.append(await journal.write(meta_work("kept"), keep=True))

            with trio.fail_after(PATIENCE_S):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(keep_appending)
                    nursery.start_soon(keep_writing)
                    while disk.failures < 3:
                        with pytest.raises(LimitExceeded):
                            await journal.append(note("run:a", "refused"))
                    assert got == []
                    disk.mend()
            assert sorted(got, key=str) == [2, "kept"]


async def test_a_request_without_facts_is_refused_at_once_each_time(tmp_path: Path) -> None:
    """Nobody waits for the next try when nothing is to be kept."""
    with faulty_disk() as disk:
        async with journal_at(tmp_path / "j.db") as journal:
            await journal.append(note("run:a"))
            disk.fail("write")
            with trio.fail_after(PATIENCE_S):
                for n in range(1, 6):
                    with pytest.raises(LimitExceeded):
                        await journal.append(note("run:a", "refused"))
                    assert disk.failures == n
            disk.mend()
            (event,) = await journal.append(note("run:a"))
            assert (event.seq, event.pos) == (2, 2)


async def test_a_bad_statement_and_then_a_failing_disk(tmp_path: Path) -> None:
    """A batch is taken apart because of one bad statement, and half way through the disk fails: what has been
    committed by then counts, is shown, and is not written a second time."""
    with faulty_disk() as disk:
        async with journal_at(tmp_path / "j.db") as journal:
            await journal.append(note("run:a", "0"))
            disk.fail("sync", 2, error=apsw.FullError)  # the batch taken apart: the first is written, then no more
            first = journal.append_nowait(note("run:a", "1"), keep=False)
            bad = journal.append_nowait(note("run:a", "bad"), statements=[("NOT SQL", ())])
            refused = journal.append_nowait(note("run:a", "refused"), keep=False)
            fact = journal.append_nowait(note("run:a", "2"))
            with trio.fail_after(PATIENCE_S):
                await first.wait()
                with pytest.raises(apsw.Error):
                    await bad.wait()
                with pytest.raises(LimitExceeded):
                    await refused.wait()
                assert disk.failures
                disk.mend()
                await fact.wait()
            events = await stored(journal)
            assert [text(e) for e in events] == ["0", "1", "2"]
            assert [e.pos for e in journal.hub.slice(0, journal.hub.end)] == [1, 2, 3]
            assert assert_contiguous(events) == {"run:a": 3}


async def test_an_outcome_of_a_try_that_the_disk_undid_does_not_stick(tmp_path: Path) -> None:
    """Kept work that raised in a failed try is tried again, and what counts is the last try."""
    with faulty_disk() as disk:
        async with journal_at(tmp_path / "j.db") as journal:
            await journal.append(note("run:a"))
            tries = 0

            def work(tx: Tx) -> str:
                nonlocal tries
                tries += 1
                if tries == 1:
                    raise LookupError("not yet")
                return meta_work("k")(tx)  # type: ignore[no-any-return]

            disk.fail("sync", lasting=False)
            fact = journal.append_nowait(note("run:a", "fact"))
            kept = journal._submit(Ticket((), (), work, True))
            with trio.fail_after(PATIENCE_S):
                await fact.wait()
                assert await kept.wait() == "k"
            assert tries == 2


async def test_it_is_said_once_and_again_when_it_is_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "witsd.journal")
    with faulty_disk() as disk:
        async with journal_at(tmp_path / "j.db") as journal:
            await journal.append(note("run:a"))
            disk.fail("write")
            for _ in range(3):
                with pytest.raises(LimitExceeded):
                    await journal.append(note("run:a"))
            disk.mend()
            await journal.append(note("run:a"))
    said = [record.getMessage().split()[0] for record in caplog.records]
    assert said == ["journal.disk_failed", "journal.recovered"]


async def test_closing_while_the_disk_fails_ends(tmp_path: Path) -> None:
    """Facts that cannot be written do not keep the daemon from stopping; whoever waits for them is told."""
    with faulty_disk() as disk, trio.fail_after(PATIENCE_S):
        async with open_store(tmp_path / "j.db") as store:
            async with open_journal(store, FakeClock(), epoch="e") as journal:
                await journal.append(note("run:a", "committed"))
                disk.fail("write", error=apsw.FullError)
                fact = journal.append_nowait(note("run:a", "lost"))
                with pytest.raises(LimitExceeded):
                    await journal.append(note("run:a", "refused"))
            with pytest.raises(LimitExceeded):
                await fact.wait()
            # SQLite gets by without its checkpoint at the end; an exception of our VFS would come through.
            disk.mend()
    assert [text(e) for e in events_in_file(tmp_path / "j.db")] == ["committed"]
