"""An import that is killed, and one that fills the disk: nothing told to be in is lost, nothing is in twice."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import apsw
import pytest

from tests.support.daemon import PATIENCE_S, Daemon
from tests.support.memory import check as sound
from tests.support.small_disk import fill, small_disk
from tests.support.wire import wire

KILLS = 20
FILES, LINES = 20, 25


def notes(folder: Path, files: int = FILES) -> list[str]:
    """A folder of JSON Lines whose every record has a word of its own; the words. Each file is some transactions."""
    words = []
    for number in range(files):
        with (folder / f"{number:02}.jsonl").open("w") as file:
            for line in range(LINES):
                words.append(f"marker{number}x{line}")
                text = f"The note {words[-1]} is followed by much else. " + "Waves roll in from the sea. " * 280
                file.write(json.dumps({"text": text, "kind": "document"}) + "\n")
    return words


def records(daemon: Daemon) -> int:
    with wire(daemon.socket) as c:
        return int(c.call("memory/stats")["records"])


def check(daemon: Daemon) -> None:
    """The file is sound; no record is there twice."""
    sound(daemon)
    db = apsw.Connection(str(next(daemon.home.rglob("witsd.db"))))
    try:
        twice = "SELECT count(*) FROM memories WHERE part_of IS NULL GROUP BY hash HAVING count(*) > 1"
        assert db.execute(twice).fetchall() == []
    finally:
        db.close()


@pytest.mark.slow
def test_killed_twenty_times_it_goes_on_and_ends_with_each_record_once(daemon: Daemon, tmp_path: Path) -> None:
    words = notes(tmp_path)
    daemon.start()
    command = [sys.executable, "-m", "witsd.cli.main", "memory", "import", "--json", str(tmp_path)]
    for kill in range(KILLS):
        before = records(daemon)
        importing = subprocess.Popen(command, env=daemon.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            # In the midst of it: some of it is in by now, and as a rule not all.
            deadline = time.monotonic() + PATIENCE_S
            while importing.poll() is None and records(daemon) <= before:
                assert time.monotonic() < deadline
            after = records(daemon)
            if kill % 2:
                importing.kill()
            else:
                daemon.kill()
            importing.communicate(timeout=PATIENCE_S)
        finally:
            importing.kill()
            importing.wait()
        if not kill % 2:
            check(daemon)
            daemon.start()
        assert records(daemon) >= after, "what was in is lost"
    done = daemon.cli("memory", "import", "--json", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["added"] + found["known"], found["unreadable"]) == (len(words), [])
    assert records(daemon) == len(words)
    with wire(daemon.socket) as c:
        for word in words:
            hits = c.call("memory/search", query=word, mode="keyword")["items"]
            assert word in hits[0]["text"], word
    assert daemon.stop() == 0
    check(daemon)


def test_a_full_disk_ends_an_import_plainly_and_it_goes_on_where_there_is_room(daemon: Daemon, tmp_path: Path) -> None:
    words = notes(tmp_path, 6)
    with small_disk(daemon.home, 100):
        daemon.user_home.mkdir(exist_ok=True)
        daemon.start()
        filler = daemon.home / "filler"
        first = daemon.cli("memory", "import", "--json", str(tmp_path / "00.jsonl"))
        assert json.loads(first.stdout)["added"] == LINES
        fill(filler)
        full = daemon.cli("memory", "import", str(tmp_path))
        assert full.returncode == 1
        assert "cannot be written" in full.stderr
        assert "free some space" in full.stderr
        assert "run it again to go on" in full.stderr
        filler.unlink()
        again = daemon.cli("memory", "import", "--json", str(tmp_path))
        assert again.returncode == 0, again.stderr
        found = json.loads(again.stdout)
        assert found["known"] >= LINES
        assert records(daemon) == len(words)
        assert daemon.stop() == 0
        check(daemon)
