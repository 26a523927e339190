"""Putting a backup in the place of the database while no daemon runs: a composition root, for ``witsd restore``.

``python -m witsd.restore FILE`` prints what was done as JSON; exit status 1 and a line on standard error where it
could not. Until the very last step, which is one rename, nothing is changed but what is told.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import apsw
import msgspec
from witsd_client.paths import Paths

from witsd.door.listen import ListenError, claim_file
from witsd.journal.backup import remove, settled, sync
from witsd.journal.cipher import Cipher, configured, is_plain, unlocked
from witsd.journal.migrations import SchemaError
from witsd.values.clock import SystemClock, rfc3339
from witsd.values.config import ConfigError, load


def restore(backup: Path, env: Mapping[str, str], *, now_us: int) -> dict[str, Any]:
    """``{restored, bytes, kept, encrypted}``; ``kept`` is where the database that was is now, or null.

    Raises ``ListenError`` while a daemon runs, ``SchemaError`` for a file that is no sound backup, ``ConfigError``, and
    ``OSError``; nothing has changed then.
    """
    paths = Paths.from_environment(env)
    settings = load(paths.config_file, env).settings.journal
    cipher = configured(settings.key_file, settings.key_command, paths.config_dir)
    database = paths.database
    paths.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with claim_file(database):
        fresh = database.with_name(f".{database.name}.restoring")
        try:
            _bring(backup, database, fresh, cipher)
            kept = _put_aside(database, now_us, cipher)
            os.replace(fresh, database)
            sync(database.parent)
        except apsw.Error as error:
            raise SchemaError(f"{backup} cannot be restored: {error}") from error
        finally:
            remove(fresh)
    return {
        "restored": str(backup),
        "bytes": database.stat().st_size,
        "kept": None if kept is None else str(kept),
        "encrypted": cipher is not None,
    }


def _bring(backup: Path, database: Path, fresh: Path, cipher: Cipher | None) -> None:
    """Copy, look through and prepare. A plain backup is encrypted where a key is set."""
    if not backup.is_file():
        raise SchemaError(f"{backup} is no file")
    if database.exists() and os.path.samefile(backup, database):
        raise SchemaError(f"{backup} is the database itself")
    remove(fresh)
    for end in ("", "-wal"):  # a log is there where somebody copied a database without our help
        if os.path.exists(f"{backup}{end}"):
            os.close(os.open(f"{fresh}{end}", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            shutil.copyfile(f"{backup}{end}", f"{fresh}{end}")
    plain = bool(is_plain(fresh))
    try:
        settled(fresh, None if plain else cipher)
    except SchemaError as error:
        raise SchemaError(str(error).replace(str(fresh), str(backup))) from None
    db = apsw.Connection(str(fresh))
    try:
        unlocked(db, str(fresh), None if plain else cipher)
        # Another history begins: who followed the one that was must not take this for its continuation.
        db.execute("DELETE FROM meta WHERE key = 'epoch'")
        if plain and cipher is not None:
            cipher.lock(db)
    finally:
        db.close(True)
    sync(fresh)


def _put_aside(database: Path, now_us: int, cipher: Cipher | None) -> Path | None:
    """Give the database that is there another name as well, under which it is whole. None where there is none."""
    if not database.exists():
        return None
    stamp = rfc3339(now_us)[:19].replace(":", "").replace("-", "")
    kept = database.with_name(f"{database.name}.before-restore-{stamp}")
    number = 1
    while kept.exists():
        number += 1
        kept = database.with_name(f"{database.name}.before-restore-{stamp}-{number}")
    try:
        db = apsw.Connection(str(database))
        try:
            unlocked(db, str(database), None if is_plain(database) else cipher)
            db.execute("PRAGMA journal_mode = DELETE").fetchall()  # brings in what stands in its log
        finally:
            db.close(True)
    except (apsw.Error, SchemaError):
        # It is broken, which may be why a backup is wanted: its log stays with it.
        if os.path.exists(f"{database}-wal"):
            os.replace(f"{database}-wal", f"{kept}-wal")
    with suppress(FileNotFoundError):
        os.unlink(f"{database}-shm")
    os.link(database, kept)
    sync(database.parent)
    return kept


def main() -> int:
    os.umask(0o077)
    try:
        done = restore(Path(sys.argv[1]), os.environ, now_us=SystemClock().wall_us())
    except (ListenError, SchemaError, ConfigError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"{error.filename or sys.argv[1]}: {error.strerror}; nothing was changed\n")
        return 1
    sys.stdout.write(msgspec.json.encode(done).decode() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
