"""Which files an import takes: what was named, and in folders what looks like text meant to be read."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

#: By the end of the name: how a file is read. ``json`` is found to be a chat or is not read.
FORMATS = {
    ".md": "markdown", ".markdown": "markdown", ".mdx": "markdown",
    ".txt": "text", ".text": "text", ".rst": "text", ".org": "text", ".adoc": "text", ".asciidoc": "text",
    ".html": "html", ".htm": "html", ".xhtml": "html",
    ".pdf": "pdf",
    ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".json": "chat",
}  # fmt: skip
#: Folders of what programs have made or fetched; those that begin with a dot are passed over anyway.
JUNK = frozenset({"node_modules", "bower_components", "__pycache__", "site-packages", "venv", "__MACOSX"})
#: Files of more bytes are not read whole; JSON Lines are read line by line and may be larger.
MAX_BYTES = 256 << 20


class Unreadable(Exception):
    """A file, or a place in one, that cannot be taken, and why."""


class OfAnotherKind(Exception):
    """A file of a folder that, opened, turns out to be none of those that are taken, and which kind it is."""


@attrs.frozen
class File:
    """A file to be read. ``path`` is absolute, which is its name in memory, too; ``named``: and not its folder."""

    path: Path
    form: str
    size: int
    #: When it was last changed, seconds since 1970.
    changed: float
    named: bool = True


@attrs.define
class Found:
    """All that was found, what cannot be read and what was passed over, by reason."""

    files: list[File] = attrs.field(factory=list)
    unreadable: list[tuple[str, str]] = attrs.field(factory=list)
    passed_over: Counter[str] = attrs.field(factory=Counter)


def find(paths: Sequence[Path], form: str) -> Found:
    """The files under ``paths``, in the order of their names, each once. ``form``: a format for all, or ``auto``."""
    found = Found()
    seen: set[tuple[int, int]] = set()
    for path in paths:
        try:
            info = path.stat()  # a link that was named is followed
        except OSError as error:
            found.unreadable.append((str(path), error.strerror or str(error)))
            continue
        if stat.S_ISDIR(info.st_mode):
            for inner in _walk(path, found):
                _take(inner, form, found, seen, named=False)
        else:
            _take(path, form, found, seen, named=True)
    return found


def _walk(folder: Path, found: Found) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        found.unreadable.append((str(folder), error.strerror or str(error)))
        return
    for entry in listed:
        if entry.is_symlink():
            found.passed_over["links"] += 1
        elif entry.name.startswith("."):
            found.passed_over["hidden"] += 1
        elif entry.is_dir():
            if entry.name in JUNK:
                found.passed_over["folders of programs"] += 1
            else:
                yield from _walk(Path(entry.path), found)
        else:
            yield Path(entry.path)


def _take(path: Path, form: str, found: Found, seen: set[tuple[int, int]], *, named: bool) -> None:
    try:
        info = path.stat()
        name = str(path.absolute())
        name.encode()
    except OSError as error:
        found.unreadable.append((str(path), error.strerror or str(error)))
        return
    except UnicodeEncodeError:
        found.unreadable.append((repr(str(path)), "its name is no Unicode text"))
        return
    if (info.st_dev, info.st_ino) in seen:
        return
    seen.add((info.st_dev, info.st_ino))
    if not stat.S_ISREG(info.st_mode):
        if named:
            found.unreadable.append((name, "this is no file"))
        else:
            found.passed_over["no files"] += 1
        return
    by_name = FORMATS.get(path.suffix.lower())
    if form == "auto" and by_name is None and not named:
        found.passed_over["other kinds of files"] += 1
        return
    chosen = form if form != "auto" else by_name or "text"
    if info.st_size > MAX_BYTES and chosen != "jsonl":
        found.unreadable.append((name, f"{info.st_size >> 20} MB are too many for one file ({MAX_BYTES >> 20})"))
        return
    found.files.append(File(Path(name), chosen, info.st_size, info.st_mtime, named))
