"""An encrypted database, with ``apsw-sqlite3mc`` in the place of ``apsw``: nothing can be read without the key."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemon import Daemon

KEY = "correct-horse-battery-staple-4711"


@pytest.fixture(scope="module")
def cipher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``apsw-sqlite3mc``, to stand before all others; skips where it cannot be had."""
    folder = tmp_path_factory.mktemp("cipher")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), "apsw-sqlite3mc~=3.54.0"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"apsw-sqlite3mc cannot be fetched: {(done.stderr.strip().splitlines() or ['?'])[-1][:200]}")
    return folder


@pytest.fixture
def secret(cipher: Path, stopped_daemon: Daemon, tmp_path: Path) -> Daemon:
    """A daemon to be, with the cipher and a key file."""
    daemon = stopped_daemon
    daemon.env["PYTHONPATH"] = f"{cipher}{os.pathsep}{daemon.env['PYTHONPATH']}"
    key = tmp_path / "key"
    key.write_text(KEY + "\n")
    key.chmod(0o600)
    daemon.env["WITSD_JOURNAL_KEY_FILE"] = str(key)
    return daemon


def refused(daemon: Daemon) -> str:
    with pytest.raises(RuntimeError, match="ended with 1") as error:
        daemon.start()
    said = str(error.value).strip().splitlines()[-1]
    assert said.startswith("witsd: "), said
    assert KEY not in daemon.log()
    return said


def everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("witsd.db*")) if path.is_file())


def test_without_a_cipher_a_key_is_refused_and_not_passed_over(stopped_daemon: Daemon, tmp_path: Path) -> None:
    stopped_daemon.env["WITSD_JOURNAL_KEY_FILE"] = str(tmp_path / "key")
    assert "pip install apsw-sqlite3mc" in refused(stopped_daemon)
    assert not list(stopped_daemon.home.rglob("witsd.db"))


def test_nothing_is_read_without_the_key(secret: Daemon, tmp_path: Path) -> None:
    secret.start()
    secret.call("memory/add", namespace="shared", text="the treasure is under the oak")
    assert b"treasure" not in everything(secret.home), "not in the log either"
    backup = tmp_path / "a.db"
    secret.call("system/backup", path=str(backup))
    assert b"treasure" not in backup.read_bytes()
    assert not backup.read_bytes().startswith(b"SQLite format 3")
    assert KEY not in Path(f"/proc/{secret.pid}/environ").read_text()
    assert KEY not in Path(f"/proc/{secret.pid}/cmdline").read_text()
    assert KEY not in secret.cli("config", "show").stdout
    assert "problem  database" not in secret.cli("doctor").stdout
    other = tmp_path / "other"
    other.write_text("wrong")
    other.chmod(0o600)
    heir = secret.cli("up", "--replace", env={"WITSD_JOURNAL_KEY_FILE": str(other)})
    assert (heir.returncode, "is it the key" in heir.stderr) == (1, True), "and the one that runs goes on"
    secret.restart()
    assert secret.call("memory/search", query="treasure")["items"][0]["text"] == "the treasure is under the oak"
    secret.stop()
    assert KEY not in secret.log()
    assert b"treasure" not in everything(secret.home)
    assert "problem  database" not in secret.cli("doctor").stdout
    key = Path(secret.env.pop("WITSD_JOURNAL_KEY_FILE"))
    assert "key_file" in refused(secret)
    secret.env["WITSD_JOURNAL_KEY_FILE"] = str(key)
    key.write_text("wrong")
    assert "is it the key it was made with" in refused(secret)
    assert "is it the key" in secret.cli("restore", str(backup)).stderr
    key.write_text("")
    assert "is empty" in refused(secret)
    key.write_text(KEY)
    key.chmod(0o644)
    assert "chmod 600" in refused(secret)
    key.chmod(0o600)
    assert secret.cli("restore", str(backup)).returncode == 0
    secret.start()
    assert secret.call("memory/stats")["records"] == 1


def test_a_plain_database_becomes_an_encrypted_one_by_a_backup(secret: Daemon, tmp_path: Path) -> None:
    key = secret.env.pop("WITSD_JOURNAL_KEY_FILE")
    secret.start()
    secret.call("memory/add", namespace="shared", text="the treasure is under the oak")
    backup = tmp_path / "a.db"
    secret.call("system/backup", path=str(backup))
    secret.stop()
    # As from a keyring: what a command prints.
    secret.env["WITSD_JOURNAL_KEY_COMMAND"] = f"cat,{key}"
    assert "is not encrypted" in refused(secret)
    done = secret.cli("restore", str(backup))
    assert done.returncode == 0, done.stderr
    (kept,) = secret.home.rglob("witsd.db.before-restore-*")
    kept.unlink()
    assert b"treasure" not in everything(secret.home)
    secret.start()
    assert secret.call("memory/search", query="oak")["items"]
    secret.stop()
    secret.env["WITSD_JOURNAL_KEY_COMMAND"] = "false"
    assert "exit status 1" in refused(secret)
