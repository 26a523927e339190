"""Backups of a daemon at work, and putting one back: whole, private, never in the place of something by accident."""

from __future__ import annotations

import json
import os
import shutil
import stat
import threading
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.support.daemon import Daemon
from tests.support.small_disk import fill, small_disk
from tests.support.wire import RpcError, Wire, wire


def database(daemon: Daemon) -> Path:
    return next(daemon.home.rglob("witsd.db"))


def put(c: Wire, count: int, first: int = 0, size: int = 0) -> None:
    items = [
        {"namespace": "shared", "text": f"note {first + n} {'x' * size}", "kind": "turn", "key": f"k{first + n}"}
        for n in range(count)
    ]
    for start in range(0, count, 50):
        c.call("memory/import", items=items[start : start + 50])


def records(daemon: Daemon) -> int:
    return int(daemon.call("memory/stats")["records"])


def test_a_backup_is_of_one_moment_while_others_write(daemon: Daemon, tmp_path: Path) -> None:
    with wire(daemon.socket) as c:
        put(c, 1500, size=1500)
    stop = threading.Event()
    written: list[int] = []

    def write() -> None:
        with wire(daemon.socket) as c:
            while not stop.is_set():
                put(c, 1, first=10_000 + len(written))
                written.append(1)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        file = tmp_path / "a.db"
        before = len(written)
        done = daemon.cli("backup", "--json", str(file))
        during = len(written) - before
    finally:
        stop.set()
        writer.join()
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert (made["path"], made["bytes"]) == (str(file), file.stat().st_size)
    assert during > 0, "writers go on"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["a.db"]
    db = apsw.Connection(str(file), flags=apsw.SQLITE_OPEN_READONLY)
    assert db.pragma("journal_mode") == "delete"
    # Of one moment: counters and rows agree.
    assert db.execute("SELECT records FROM memory_namespaces").get == db.execute("SELECT count(*) FROM memories").get
    assert 1500 <= db.execute("SELECT count(*) FROM memories").get <= 1500 + len(written)
    db.close()
    assert records(daemon) == 1500 + len(written)


def test_where_a_backup_cannot_go(daemon: Daemon, tmp_path: Path) -> None:
    there = tmp_path / "there.db"
    there.write_text("precious")
    (tmp_path / "link").symlink_to(database(daemon))
    with wire(daemon.socket) as c:

        def refused(path: object, **more: Any) -> RpcError:
            with pytest.raises(RpcError) as error:
                c.call("system/backup", path=str(path), **more)
            return error.value

        assert refused(there).code == -32009
        assert there.read_text() == "precious"
        for path in ("a.db", tmp_path, tmp_path / "no" / "a.db", there / "a.db", tmp_path / ("n" * 300)):
            assert refused(path, force=True).data["path"] == "params.path", path
        for path in (database(daemon), f"{database(daemon)}-wal", tmp_path / "link"):
            assert refused(path, force=True).code == -32602, path
        c.call("system/backup", path=str(there), force=True)
        assert there.read_bytes().startswith(b"SQLite format 3")
    said = daemon.cli("backup", str(there))
    assert said.returncode == 1
    assert "--force" in said.stderr
    assert sorted(os.listdir(tmp_path)) == ["link", "there.db"]


def test_a_backup_comes_back_and_what_was_is_kept(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "a.db"
    with wire(daemon.socket) as c:
        put(c, 3)
        assert daemon.cli("backup", str(file)).returncode == 0
        put(c, 2, first=3)
        epoch = c.call("initialize", protocol_version="1")["epoch"]
    up = daemon.cli("restore", str(file))
    assert up.returncode == 1
    assert "witsd down" in up.stderr
    assert records(daemon) == 5
    daemon.stop()
    done = daemon.cli("restore", "--json", str(file))
    assert done.returncode == 0, done.stderr
    kept = Path(json.loads(done.stdout)["kept"])
    daemon.start()
    assert records(daemon) == 3
    assert daemon.call("initialize", protocol_version="1")["epoch"] != epoch
    assert {hit["text"].split()[1] for hit in daemon.call("memory/search", query="note")["items"]} == {"0", "1", "2"}
    daemon.stop()
    assert stat.S_IMODE(database(daemon).stat().st_mode) == 0o600
    assert daemon.cli("restore", str(kept)).returncode == 0
    daemon.start()
    assert records(daemon) == 5


def test_what_is_no_sound_backup_is_refused_and_nothing_changes(daemon: Daemon, tmp_path: Path) -> None:
    good = tmp_path / "good.db"
    with wire(daemon.socket) as c:
        put(c, 200, size=500)
        c.call("system/backup", path=str(good))
    daemon.stop()
    before = database(daemon).read_bytes()
    names = sorted(os.listdir(database(daemon).parent))
    cut, wrong, text, foreign, newer, empty = (
        tmp_path / name for name in ("cut", "wrong", "text", "foreign", "newer", "empty")
    )
    data = good.read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    shutil.copy(good, wrong)
    text.write_text("not a database at all, and long enough to be read as one")
    empty.touch()
    shutil.copy(good, newer)
    for path, sql in (
        (foreign, "CREATE TABLE t(x)"),
        (newer, "PRAGMA user_version = 999"),
        (wrong, "PRAGMA ignore_check_constraints = ON; UPDATE journal SET one = 2"),
    ):
        db = apsw.Connection(str(path))
        db.execute(sql)
        db.close()
    for path, why in (
        (cut, "damaged"), (wrong, "damaged"), (text, "not a database"), (foreign, "another program"),
        (newer, "newer witsd"), (empty, "empty"), (tmp_path / "missing", "no file"), (tmp_path, "no file"),
        (database(daemon), "the database itself"),
    ):  # fmt: skip
        done = daemon.cli("restore", str(path))
        assert done.returncode == 1, path
        assert why in done.stderr, done.stderr
        assert str(path) in done.stderr
        assert "Traceback" not in done.stderr
    assert database(daemon).read_bytes() == before
    assert sorted(os.listdir(database(daemon).parent)) == names


def test_a_broken_database_is_kept_with_its_log(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "a.db"
    with wire(daemon.socket) as c:
        put(c, 3)
        c.call("system/backup", path=str(file))
    daemon.kill()
    log = Path(f"{database(daemon)}-wal").read_bytes()
    database(daemon).write_bytes(b"garbage" * 1000)
    done = daemon.cli("restore", "--json", str(file))
    assert done.returncode == 0, done.stderr
    kept = Path(json.loads(done.stdout)["kept"])
    assert kept.read_bytes() == b"garbage" * 1000
    assert log, "it was killed with something in its log"
    assert Path(f"{kept}-wal").read_bytes() == log
    daemon.start()
    assert records(daemon) == 3


def test_a_delete_tells_of_the_backups_that_still_have_it(daemon: Daemon, tmp_path: Path) -> None:
    with wire(daemon.socket) as c:
        ids = [c.call("memory/add", namespace="shared", text=f"secret {n}")["memory_id"] for n in range(2)]
        for name in ("a.db", "b.db"):
            c.call("system/backup", path=str(tmp_path / name))
        (tmp_path / "a.db").unlink()
        done = c.call("memory/delete", memory_id=ids[0])
        assert [backup["path"] for backup in done["backups"]] == [str(tmp_path / "b.db")]
    assert "not touched: the backup of" in daemon.cli("memory", "rm", ids[1]).stderr


def test_no_room_for_a_backup_leaves_nothing_behind(daemon: Daemon, tmp_path: Path) -> None:
    with wire(daemon.socket) as c, small_disk(tmp_path, 2):
        put(c, 500, size=3000)
        with pytest.raises(RpcError) as error:
            c.call("system/backup", path=str(tmp_path / "a.db"))
        assert error.value.data["limit"] == "disk"
        assert os.listdir(tmp_path) == []
        fill(tmp_path / "filler")
        with pytest.raises(RpcError) as error:
            c.call("system/backup", path=str(tmp_path / "a.db"))
        assert error.value.code in (-32008, -32602)
        assert os.listdir(tmp_path) == ["filler"]
        put(c, 1, first=1000)
    assert records(daemon) == 501
