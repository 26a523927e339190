"""The database file: made, migrated, refused untouched, read in one moment, closed."""

from __future__ import annotations

import hashlib
import threading
from contextlib import closing
from pathlib import Path

import apsw
import pytest
import trio

from tests.support.journal import PATIENCE_S, journal_at, note, stored, table
from witsd.journal.migrations import APPLICATION_ID, STEPS, SchemaError, migrate
from witsd.journal.store import StorageError, Store, open_store


def foreign(path: Path, *, version: int = 0, application: int = 0, journal_mode: str = "delete") -> None:
    db = apsw.Connection(str(path))
    db.execute(f"PRAGMA journal_mode = {journal_mode}")
    db.execute("CREATE TABLE precious(a); INSERT INTO precious VALUES (1)")
    db.execute(f"PRAGMA user_version = {version}; PRAGMA application_id = {application}")
    db.close()


def fingerprint(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


async def open_and_close(path: Path) -> None:
    async with open_store(path):
        pass


async def test_a_fresh_file_gets_the_newest_schema(tmp_path: Path) -> None:
    async with open_store(tmp_path / "j.db") as store:
        version = await store.read(lambda db: db.pragma("user_version"))
        application = await store.read(lambda db: db.pragma("application_id"))
        mode = await store.write(lambda db: (db.pragma("journal_mode"), db.pragma("synchronous")))
        tables = await store.read(lambda db: {name for (name,) in db.execute("SELECT name FROM sqlite_schema")})
    assert (version, application, mode) == (len(STEPS), APPLICATION_ID, ("wal", 2))
    assert {"journal", "streams", "events", "runs", "sessions", "messages_fts", "tokens", "agents"} <= tables


@pytest.mark.parametrize(("name", "number"), [("OFF", 0), ("NORMAL", 1), ("FULL", 2), ("EXTRA", 3)])
async def test_synchronous_is_a_setting(tmp_path: Path, name: str, number: int) -> None:
    async with open_store(tmp_path / "j.db", synchronous=name) as store:  # type: ignore[arg-type]
        assert await store.write(lambda db: db.pragma("synchronous")) == number


async def test_an_empty_file_is_a_fresh_one(tmp_path: Path) -> None:
    (tmp_path / "j.db").touch()
    async with journal_at(tmp_path / "j.db") as journal:
        await journal.append(note("run:a"))


async def test_opening_a_second_time_changes_nothing(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "j.db") as journal:
        await journal.append(note("run:a", "kept"))
    before = fingerprint(tmp_path)
    await open_and_close(tmp_path / "j.db")
    assert fingerprint(tmp_path) == before
    async with journal_at(tmp_path / "j.db") as journal:
        assert [e.seq for e in await stored(journal)] == [1]


async def test_steps_are_taken_one_by_one_from_where_the_file_is() -> None:
    steps = ("CREATE TABLE a(x)", "CREATE TABLE b(x); INSERT INTO b VALUES (1)", "ALTER TABLE b ADD COLUMN y")
    with closing(apsw.Connection(":memory:")) as db:
        for upto in range(1, 4):
            migrate(db, "x", steps[:upto])
            assert db.pragma("user_version") == upto
        migrate(db, "x", steps)
        assert db.execute("SELECT x, y FROM b").fetchall() == [(1, None)]


async def test_a_step_that_fails_leaves_the_steps_before_it() -> None:
    steps = ("CREATE TABLE a(x)", "CREATE TABLE b(x); INSERT INTO nowhere VALUES (1)")
    with closing(apsw.Connection(":memory:")) as db:
        with pytest.raises(apsw.SQLError):
            migrate(db, "x", steps)
        assert not db.in_transaction
        assert db.pragma("user_version") == 1
        assert [name for (name,) in db.execute("SELECT name FROM sqlite_schema")] == ["a"]
        migrate(db, "x", (steps[0], "CREATE TABLE b(x)"))
        assert db.pragma("user_version") == 2


async def test_a_newer_version_is_refused_and_its_file_untouched(tmp_path: Path) -> None:
    foreign(tmp_path / "j.db", version=len(STEPS) + 1, application=APPLICATION_ID, journal_mode="wal")
    before = fingerprint(tmp_path)
    with pytest.raises(SchemaError, match=r"newer witsd \(schema \d+, this one knows \d+\).*install that version"):
        await open_and_close(tmp_path / "j.db")
    assert fingerprint(tmp_path) == before


@pytest.mark.parametrize("journal_mode", ["delete", "wal"])
@pytest.mark.parametrize(("version", "application"), [(0, 0), (1, 0), (0, 77), (1, 77)])
async def test_a_foreign_database_is_refused_and_its_file_untouched(
    tmp_path: Path, version: int, application: int, journal_mode: str
) -> None:
    foreign(tmp_path / "j.db", version=version, application=application, journal_mode=journal_mode)
    before = fingerprint(tmp_path)
    with pytest.raises(SchemaError, match="another program: move it away"):
        await open_and_close(tmp_path / "j.db")
    assert fingerprint(tmp_path) == before


async def test_what_is_no_database_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "j.db").write_text("dear diary\n" * 1000)
    before = fingerprint(tmp_path)
    with pytest.raises(SchemaError, match="not a database: move it away"):
        await open_and_close(tmp_path / "j.db")
    assert fingerprint(tmp_path) == before


async def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing" / "j.db"):
        with pytest.raises(StorageError, match=f"cannot open the database {path}"):
            await open_and_close(path)


async def test_no_connection_stays_open_behind(tmp_path: Path) -> None:
    """An open connection would keep its thread, and the daemon, alive; a leftover WAL shows one."""
    before = {*threading.enumerate()}
    await open_and_close(tmp_path / "j.db")
    foreign(tmp_path / "other.db")
    with pytest.raises(SchemaError):
        await open_and_close(tmp_path / "other.db")
    assert {p.name for p in tmp_path.iterdir()} == {"j.db", "other.db"}
    for thread in {*threading.enumerate()} - before:
        if "trio" not in thread.name.lower():  # its pool ends by itself
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), thread


async def test_a_read_sees_one_moment(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "j.db") as journal:
        await journal.append(note("run:a"))
        begun, go_on = threading.Event(), threading.Event()

        def look(db: apsw.Connection) -> list[int]:
            counts = [db.execute("SELECT count(*) FROM events").get]
            begun.set()
            assert go_on.wait(PATIENCE_S)
            return [*counts, db.execute("SELECT count(*) FROM events").get]

        async def read() -> None:
            assert await journal.store.read(look) == [1, 1]

        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                assert await trio.to_thread.run_sync(begun.wait, PATIENCE_S)
                await journal.append(note("run:a"))
                go_on.set()
        assert await table(journal, "SELECT count(*) FROM events") == [(2,)]


async def test_a_reader_cannot_write(tmp_path: Path) -> None:
    async with open_store(tmp_path / "j.db") as store:
        with pytest.raises(apsw.ReadOnlyError):
            await store.read(lambda db: db.execute("DELETE FROM journal"))


async def test_a_query_ends_with_whoever_asked_and_its_connection_is_good_again(tmp_path: Path) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"

    async def ask_and_give_up(store: Store) -> None:
        with trio.move_on_after(0.05) as scope:
            await store.read(lambda db: db.execute(endless).get)
        assert scope.cancelled_caught

    async with open_store(tmp_path / "j.db", readers=1) as store:
        with trio.fail_after(PATIENCE_S):
            for _ in range(3):
                await ask_and_give_up(store)
                assert await store.read(lambda db: db.execute("SELECT last_pos FROM journal").get) == 0


async def test_what_a_reader_raises_leaves_it_usable(tmp_path: Path) -> None:
    async with open_store(tmp_path / "j.db", readers=1) as store:
        for _ in range(3):
            with pytest.raises(LookupError), trio.fail_after(PATIENCE_S):
                await store.read(_raise)


def _raise(db: apsw.Connection) -> None:
    db.execute("SELECT * FROM journal").fetchone()
    raise LookupError


async def test_more_reads_than_readers_wait_their_turn(tmp_path: Path) -> None:
    async with open_store(tmp_path / "j.db", readers=2) as store:
        results: list[int] = []

        async def read(number: int) -> None:
            results.append(await store.read(lambda db: db.execute("SELECT ?", (number,)).get))

        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                for number in range(30):
                    nursery.start_soon(read, number)
        assert sorted(results) == list(range(30))
