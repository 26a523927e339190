"""The nth write, sync or open fails, for every n: nothing that was told to be committed is lost, what was refused is
not there, facts wait and are written, and SQLite finds its file in order. The same on a disk that is really full."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import apsw
import attrs
import pytest
import trio

from tests.doubles.clock import FakeClock
from tests.support.daemon import Daemon
from tests.support.faulty_vfs import FaultyVfs, faulty_disk
from tests.support.journal import PATIENCE_S, assert_contiguous, events_in_file, note, put_meta, stored, table, text
from tests.support.wire import RpcError, wire
from witsd.journal.event import Event
from witsd.journal.journal import Journal, Ticket, open_journal
from witsd.journal.store import StorageError, open_store
from witsd.values.errors import LimitExceeded

ASKS = 3

#: One transaction can meet several failures of the disk; APSW raises one and gives the others to a hook of Python's.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _try_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("witsd.journal.journal.RETRY_S", 0.002)


@attrs.define
class Told:
    """What the journal has said of each request, and the facts it has taken."""

    committed: list[Event] = attrs.field(factory=list)
    #: name -> the limit that was named.
    refused: dict[str, object] = attrs.field(factory=dict)
    facts: list[Ticket[None]] = attrs.field(factory=list)


async def scenario(journal: Journal, told: Told) -> None:
    """Requests and facts in turn, on two streams; each request with its row."""
    for n in range(ASKS):
        told.facts.append(journal.append_nowait(note("run:a", f"fact {n}"), note("run:b", f"fact {n}")))
        name = f"ask {n}"
        try:
            told.committed += await journal.append(
                note("run:a", name), note("run:b", name), statements=[put_meta(name)]
            )
        except LimitExceeded as error:
            told.refused[name] = error.data["limit"]
        assert journal.hub.pos >= (told.committed[-1].pos if told.committed else 0)


def look_after_a_crash(path: Path, told: Told) -> None:
    """What another process would find if this one died now: the file and its log, without the shared memory."""
    with tempfile.TemporaryDirectory() as folder:
        for name in (path.name, f"{path.name}-wal"):
            if (path.parent / name).exists():
                shutil.copy(path.parent / name, folder)
        events = events_in_file(Path(folder) / path.name)
    found = {e.pos: (e.stream, e.seq, e.data) for e in events}
    for event in told.committed:
        assert found[event.pos] == (event.stream, event.seq, event.data), "told to be committed, and lost"
    assert_contiguous(events)


async def look_in_the_end(journal: Journal, told: Told) -> None:
    """After the disk works again: every fact once, every request as told, the ring the same as the file."""
    with trio.fail_after(PATIENCE_S):
        for fact in told.facts:
            await fact.wait()
        last = await journal.append(note("run:a", "last"))
    assert journal.failing_since is None
    told.committed += last
    events = await stored(journal)
    assert_contiguous(events)
    assert [e.pos for e in events] == list(range(1, len(events) + 1))
    facts = [e for fact in told.facts for e in fact.events]
    assert [text(e) for e in facts] == [f"fact {n}" for n in range(ASKS) for _ in "ab"], "in their order"
    expected = sorted((e.pos, e.stream, e.seq, e.data) for e in (*told.committed, *facts))
    assert [(e.pos, e.stream, e.seq, e.data) for e in events] == expected
    assert [(e.pos, e.data) for e in journal.hub.slice(0, journal.hub.end)] == [(e.pos, e.data) for e in events]
    rows = {key for (key,) in await table(journal, "SELECT key FROM meta")}
    assert rows == {f"ask {n}" for n in range(ASKS)} - told.refused.keys()
    assert not {text(e) for e in events} & told.refused.keys()
    assert {*told.refused.values()} <= {"disk"}


@asynccontextmanager
async def journal_on(path: Path) -> AsyncIterator[Journal]:
    async with open_store(path) as store, open_journal(store, FakeClock(), epoch="e") as journal:
        yield journal


@pytest.mark.parametrize("lasting", [True, False], ids=["lasting", "once"])
@pytest.mark.parametrize("error", [apsw.IOError, apsw.FullError], ids=["io", "full"])
@pytest.mark.parametrize("kind", ["write", "sync", "open"])
async def test_every_nth_operation_fails_while_it_runs(
    tmp_path: Path, kind: str, error: type[apsw.Error], lasting: bool
) -> None:
    reached = refused = 0
    for nth in range(1, 10_000):
        path = tmp_path / f"{nth}.db"
        told = Told()
        with faulty_disk() as disk:
            async with journal_on(path) as journal:
                disk.fail(kind, nth, lasting=lasting, error=error)
                with trio.fail_after(PATIENCE_S):
                    await scenario(journal, told)
                look_after_a_crash(path, told)
                failed = disk.failures
                disk.mend()
                await look_in_the_end(journal, told)
                look_after_a_crash(path, told)
        assert len(events_in_file(path)) == len(told.committed) + 2 * ASKS
        refused += len(told.refused)
        if not failed:
            break
        reached = nth
    if kind != "open":  # what is open stays open; SQLite opens nothing more here
        assert reached >= ASKS
        assert refused >= ASKS


@pytest.mark.parametrize("error", [apsw.IOError, apsw.FullError, apsw.CantOpenError], ids=["io", "full", "cantopen"])
@pytest.mark.parametrize("kind", ["write", "sync", "open"])
async def test_every_nth_operation_fails_while_it_opens(tmp_path: Path, kind: str, error: type[apsw.Error]) -> None:
    """It opens or says why not; either way the next start finds a file it can use."""
    refused = 0
    for nth in range(1, 10_000):
        path = tmp_path / f"{nth}.db"
        with faulty_disk() as disk:
            failed = await _open_on(disk, path, kind, nth, error)
            disk.mend()
            async with journal_on(path) as journal:
                await journal.append(note("run:a"))
        assert len(events_in_file(path)) == 1
        if failed is None:
            break
        refused += failed
    assert refused >= 2


async def _open_on(disk: FaultyVfs, path: Path, kind: str, nth: int, error: type[apsw.Error]) -> bool | None:
    """True where it was refused, False where it opened all the same, None where nothing failed."""
    disk.fail(kind, nth, error=error)
    try:
        async with open_store(path):
            failures = disk.failures
            disk.mend()  # closing is not what this is about
    except StorageError as refused:
        return str(path) in str(refused)
    return False if failures else None


# ---- a disk that is really full -------------------------------------------------------------------------


@attrs.define
class SmallDisk:
    path: Path

    def fill(self) -> None:
        """Leave not a byte."""
        with (self.path / "ballast").open("ab", buffering=0) as file:
            for size in (65_536, 1):
                try:
                    while file.write(b"\0" * size):
                        pass
                except OSError:
                    pass

    def free(self) -> None:
        (self.path / "ballast").unlink()


@pytest.fixture
def small_disk() -> Iterator[SmallDisk]:
    """A file system of 8 MiB on a short path."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    path = Path(tempfile.mkdtemp(prefix="witsd-", dir="/tmp"))
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(path)], capture_output=True)
    if mounted.returncode != 0:
        path.rmdir()
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
        path.rmdir()


async def test_a_full_disk_refuses_requests_and_keeps_facts(small_disk: SmallDisk) -> None:
    path = small_disk.path / "j.db"
    told = Told()
    async with journal_on(path) as journal:
        told.committed += await journal.append(note("run:a", "before"))
        small_disk.fill()
        filler = "x" * 100_000
        with trio.fail_after(PATIENCE_S):
            while not told.refused:  # until what SQLite had in reserve is used up
                try:
                    told.committed += await journal.append(note("run:a", filler))
                except LimitExceeded as error:
                    told.refused["full"] = error.data["limit"]
        assert told.refused == {"full": "disk"}
        told.facts.append(journal.append_nowait(note("run:b", filler)))
        with pytest.raises(LimitExceeded):
            await journal.append(note("run:a", filler))
        assert not told.facts[0]._done.is_set()
        assert len(await stored(journal)) == len(told.committed), "what is there can be read"
        look_after_a_crash(path, told)
        small_disk.free()
        with trio.fail_after(PATIENCE_S):
            await told.facts[0].wait()
        told.committed += await journal.append(note("run:a", "after"))
    events = events_in_file(path)
    assert sorted(e.pos for e in (*told.committed, *told.facts[0].events)) == [e.pos for e in events]
    assert_contiguous(events)


def test_the_daemon_lives_through_a_full_disk(small_disk: SmallDisk) -> None:
    daemon = Daemon({"WITSD_HOME": str(small_disk.path)})
    daemon.socket = small_disk.path / "witsd.sock"
    try:
        daemon.start()
        with wire(daemon.socket) as c:
            c.subscribe("session:*")
            kept = [c.call("sessions/create", agent="assistant", title=f"{n}")["session_id"] for n in range(3)]
            small_disk.fill()
            title = "x" * 200
            with pytest.raises(RpcError) as full:  # noqa: PT012 - which of them it is cannot be known
                while len(kept) < 20_000:
                    kept.append(c.call("sessions/create", agent="assistant", title=title)["session_id"])
            assert (full.value.code, full.value.data["limit"]) == (-32008, "disk")
            c.call("ping")
            assert len(c.call("sessions/list", limit=3)["items"]) == 3, "what is there can be read"
            with pytest.raises(RpcError) as again:
                c.call("sessions/create", agent="assistant", title=title)
            assert again.value.code == -32008
            small_disk.free()
            kept.append(c.call("sessions/create", agent="assistant", title="after")["session_id"])
            shown: list[str] = []
            while len(shown) < len(kept):
                event = c.next_event()
                if event["type"] == "session.created":
                    shown.append(event["stream"].removeprefix("session:"))
            assert shown == kept, "subscribers saw what was committed and nothing else"
        daemon.kill()
        daemon.start()
        for session_id in kept:
            daemon.call("sessions/get", session_id=session_id)
        assert daemon.stop() == 0
        assert_contiguous(events_in_file(small_disk.path / "witsd.db"))
    finally:
        daemon.remove_after_showing()
