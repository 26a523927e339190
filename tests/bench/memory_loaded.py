"""Databases full of invented memories, made once and kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.measure import ROOT, clean_environment
from tests.bench.memory_data import Memory
from tests.support.daemon import Daemon
from witsd.services.memory import store
from witsd.services.memory.records import TRUST

#: What a database depends on: of another version of these, another one is made.
_MADE_BY = (
    "tests/bench/memory_data.py",
    "tests/bench/memory_loaded.py",
    "tests/bench/programs/load_memory.py",
    "witsd/journal/migrations.py",
    "witsd/services/memory/hashing.py",
    "witsd/services/memory/index.py",
    "witsd/services/memory/store.py",
    "witsd/services/memory/vectors.py",
    "witsd/services/memory/words.py",
)


def cache() -> Path:
    """The folder for what is made once."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "witsd-bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def new(number: int, memory: Memory) -> store.New:
    """An invented memory as what ``memory/add`` makes of it."""
    return store.New(
        memory_id=f"mem_{number:026d}",
        namespace=f"agent:a{memory.namespace}",
        kind="turn",
        text=memory.text,
        author=memory.speaker,
        trust=TRUST["person"],
        metadata='{"starred":true}' if memory.starred else None,
        speaker=memory.speaker,
        session_id=memory.session,
        vector=memory.vector,
        dedupe=False,
    )


def database(namespaces: int, each: int) -> Path:
    """``each`` memories in each of the namespaces ``agent:a0``, ``agent:a1`` ... Not to be written to."""
    folder = cache()
    state = hashlib.sha256(b"".join((ROOT / path).read_bytes() for path in _MADE_BY)).hexdigest()[:12]
    stem = f"memory-{namespaces}x{each}-"
    path = folder / f"{stem}{state}.db"
    if not path.exists():
        for old in folder.glob(f"{stem}*"):
            old.unlink()
        _load(path, namespaces, each)
    return path


def _load(path: Path, namespaces: int, each: int) -> None:
    part = path.with_suffix(".part")
    command = [sys.executable, "-m", "tests.bench.programs.load_memory", str(part), str(namespaces), str(each)]
    with subprocess.Popen(command, env=clean_environment(), cwd=ROOT, stdout=subprocess.PIPE, text=True) as loading:
        assert loading.stdout is not None
        try:
            for line in loading.stdout:
                print(f"\r{path.name}: {int(line):,} of {namespaces * each:,}", end="", file=sys.stderr, flush=True)
        finally:
            print(file=sys.stderr)
            loading.kill()
        if loading.wait():
            raise RuntimeError("it could not be made")
    part.rename(path)


@contextmanager
def remembering(path: Path) -> Iterator[Daemon]:
    """A daemon, not started yet, with a copy of this database."""
    it = Daemon({"WITSD_DAEMON_LOG_LEVEL": "warning"})
    it.env.pop("PYTHONDONTWRITEBYTECODE", None)
    try:
        shutil.copyfile(path, it.home / "witsd.db")
        (it.home / "witsd.db").chmod(0o600)
        yield it
    finally:
        it.remove()
