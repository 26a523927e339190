"""The key of an encrypted database. Plain APSW cannot encrypt; ``apsw-sqlite3mc``, which takes its place, can."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

import apsw
import attrs

from witsd.journal.migrations import SchemaError

_MAX_KEY_BYTES = 4096
#: For a command that prints the key, in seconds.
_PATIENCE_S = 60
_PLAIN = b"SQLite format 3\0"


@attrs.frozen
class Cipher:
    """A key that no ``repr`` or traceback shows. ``source`` says where it was found."""

    _key: bytes = attrs.field(repr=False)
    source: str

    def unlock(self, db: apsw.Connection) -> None:
        """To be called before the first statement; whether the key fits is seen by that one."""
        db.pragma("hexkey", self._key.hex())

    def lock(self, db: apsw.Connection) -> None:
        """Encrypt a database that is open and plain. It must not be in WAL mode."""
        db.pragma("hexrekey", self._key.hex())


def configured(key_file: str, key_command: Sequence[str], config_dir: Path) -> Cipher | None:
    """The key as the settings have it: in a file (mode 0600, seen from ``config_dir``), or what a command prints, as
    that of a keyring. None where they have none. Blocks.

    Raises ``SchemaError`` and says what to do.
    """
    if not key_file and not key_command:
        return None
    if not hasattr(apsw, "mc_version"):
        raise SchemaError(
            f"journal.{'key_file' if key_file else 'key_command'} is set, and the SQLite here cannot encrypt: put "
            "apsw-sqlite3mc in the place of apsw (pip uninstall apsw; pip install apsw-sqlite3mc), or take it away"
        )
    if key_file:
        path = Path(key_file).expanduser()
        return _from_file(path if path.is_absolute() else config_dir / path)
    return _from_command(key_command)


def _from_file(path: Path) -> Cipher:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise SchemaError(f"the key file {path} is no file")
            # What systemd puts into its folder of credentials is guarded by that folder.
            if info.st_mode & 0o077 and os.environ.get("CREDENTIALS_DIRECTORY") != str(path.parent):
                raise SchemaError(f"others may read the key file {path}: chmod 600 it")
            return _checked(file.read(_MAX_KEY_BYTES + 1), f"the key file {path}")
    except OSError as error:
        raise SchemaError(f"the key file {path} cannot be read: {error.strerror}") from None


def _from_command(command: Sequence[str]) -> Cipher:
    said = f"journal.key_command ({command[0]})"
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE_S, check=False)
    except subprocess.TimeoutExpired:
        raise SchemaError(f"{said} has said nothing in {_PATIENCE_S} s: does it wait for somebody?") from None
    except OSError as error:
        raise SchemaError(f"{said} cannot be run: {error.strerror}") from None
    if done.returncode:
        # What it wrote is not shown: it may hold the key.
        raise SchemaError(f"{said} ended with exit status {done.returncode}: try it by hand")
    return _checked(done.stdout, f"what {said} prints")


def _checked(key: bytes, source: str) -> Cipher:
    if len(key) > _MAX_KEY_BYTES:
        raise SchemaError(f"{source} is too large to be a key")
    if not key.strip():
        raise SchemaError(f"{source} is empty")
    return Cipher(key.strip(), source)


def is_plain(path: Path) -> bool | None:
    """Whether the database there is not encrypted; None where there is none yet."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_PLAIN))
    except OSError:
        return None
    return start == _PLAIN if start else None


def unlocked(db: apsw.Connection, path: str, cipher: Cipher | None) -> None:
    """Give the key, where there is one, and see that it fits. Raises ``SchemaError``."""
    plain = is_plain(Path(path))
    if cipher is not None and plain:
        raise SchemaError(
            f"a key is set, and {path} is not encrypted. To encrypt it: take the setting away, start, "
            "`witsd backup FILE`, stop, set it again and `witsd restore FILE`"
        )
    if cipher is None:
        if plain is False:
            raise SchemaError(
                f"{path} is not a database: move it away and start again; if it is an encrypted one, say where its "
                "key is ([journal] key_file)"
            )
        return
    cipher.unlock(db)
    try:
        db.execute("SELECT count(*) FROM sqlite_schema").fetchall()
    except apsw.NotADBError:
        raise SchemaError(f"{cipher.source} does not open {path}: is it the key it was made with?") from None
