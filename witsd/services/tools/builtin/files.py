"""``file_read``, ``file_list``, ``file_search``, ``file_write``: inside granted folders only (see ``places``)."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from msgspec import Meta, Struct

from witsd.services.tools.beneath import make_folders, open_beneath
from witsd.services.tools.places import place
from witsd.services.tools.tool import ToolContext, ToolFailed, tool

#: What of one file is read, and of one that is searched, in bytes.
MAX_READ, MAX_SEARCHED = 16 << 20, 4 << 20
#: Files that one search looks into, and how long it may take.
MAX_FILES, SEARCH_S = 20_000, 20.0
_LINES = 2000
#: How a file begins that says in which encoding it is.
_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
Path_ = Annotated[str, Meta(min_length=1, max_length=4096, description="absolute, or relative to the working folder")]


class ReadArgs(Struct, frozen=True):
    path: Path_
    start_line: Annotated[int, Meta(ge=1, description="the first line that is wanted")] = 1
    lines: Annotated[int, Meta(ge=1, le=_LINES, description="how many lines at most")] = _LINES
    encoding: Annotated[str, Meta(max_length=40, description="where it is not what the file looks like")] = ""


@tool(read_only=True, parallel=True, output_bytes=256 << 10)
def file_read(context: ToolContext, args: ReadArgs) -> dict[str, object]:
    """Read a text file, or a range of its lines."""
    with place(context, args.path) as where:
        data, size = _content(open_beneath(where.root, where.path, _READ), MAX_READ)
    text, encoding = _decoded(args.path, data, args.encoding)
    lines = text.splitlines(keepends=True)
    wanted = lines[args.start_line - 1 : args.start_line - 1 + args.lines]
    if not wanted and lines:
        raise ToolFailed(f"{args.path} has {len(lines)} lines, and no line {args.start_line}")
    return {
        "path": where.shown,
        "text": "".join(wanted),
        "start_line": args.start_line,
        "lines": len(wanted),
        "total_lines": len(lines),
        "more": args.start_line - 1 + len(wanted) < len(lines) or size > len(data),
        "encoding": encoding,
    }


class ListArgs(Struct, frozen=True):
    path: Path_ = "."
    pattern: Annotated[str, Meta(max_length=200, description="names that fit, as in *.py")] = "*"
    recursive: bool = False
    limit: Annotated[int, Meta(ge=1, le=5000)] = 500


@tool(read_only=True, parallel=True)
def file_list(context: ToolContext, args: ListArgs) -> dict[str, object]:
    """List a folder: names, sizes and times."""
    found: list[dict[str, object]] = []
    more = False
    with place(context, args.path) as where:
        for path, entry, about in _entries(where.root, where.path, recursive=args.recursive):
            if not fnmatchcase(entry, args.pattern):
                continue
            if len(found) >= args.limit:
                more = True
                break
            found.append(
                {
                    "path": path,
                    "kind": _kind(about.st_mode),
                    "bytes": about.st_size,
                    "modified": datetime.fromtimestamp(about.st_mtime, UTC).isoformat(timespec="seconds"),
                }
            )
    return {"path": where.shown, "entries": found, "more": more}


class SearchArgs(Struct, frozen=True):
    text: Annotated[str, Meta(min_length=1, max_length=1000, description="what is looked for, line by line")]
    path: Path_ = "."
    pattern: Annotated[str, Meta(max_length=200, description="names of files that fit, as in *.py")] = "*"
    regex: Annotated[bool, Meta(description="the text is a regular expression")] = False
    ignore_case: bool = False
    limit: Annotated[int, Meta(ge=1, le=1000, description="lines found at most")] = 100


@tool(read_only=True, parallel=True, timeout_s=SEARCH_S + 10)
def file_search(context: ToolContext, args: SearchArgs) -> dict[str, object]:
    """Find the lines of files that hold a text, in a folder and all below it."""
    import regex

    flags = regex.IGNORECASE if args.ignore_case else 0
    try:
        wanted = regex.compile(args.text if args.regex else regex.escape(args.text), flags)
    except regex.error as error:
        raise ToolFailed(f"{args.text!r} is no regular expression: {error}") from None
    found: list[dict[str, object]] = []
    looked = skipped = 0
    ends = time.monotonic() + SEARCH_S
    complete = True
    with place(context, args.path) as where:
        for path, entry, about in _entries(where.root, where.path, recursive=True):
            if not stat.S_ISREG(about.st_mode) or not fnmatchcase(entry, args.pattern):
                continue
            if looked >= MAX_FILES or len(found) >= args.limit or time.monotonic() > ends:
                complete = False
                break
            looked += 1
            inside = path if where.path == "." else os.path.join(where.path, path)
            try:
                data, size = _content(open_beneath(where.root, inside, _READ), MAX_SEARCHED)
            except OSError:
                skipped += 1
                continue
            if b"\0" in data[:8192] and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
                continue
            text, _ = _decoded(path, data, "")
            for number, line in enumerate(text.splitlines(), 1):
                try:
                    if not wanted.search(line[:10_000], timeout=1.0):
                        continue
                except TimeoutError:
                    raise ToolFailed(f"the regular expression takes too long on {path}: make it simpler") from None
                found.append({"path": path, "line": number, "text": line.strip()[:300]})
                if len(found) >= args.limit:
                    break
            complete = complete and size <= len(data)
    return {"path": where.shown, "matches": found, "files": looked, "skipped": skipped, "complete": complete}


class WriteArgs(Struct, frozen=True):
    path: Path_
    text: Annotated[str, Meta(max_length=4 << 20)]
    mode: Annotated[
        Literal["create", "replace", "append"],
        Meta(description="create: it must not be there yet; replace: all of it; append: behind what is there"),
    ] = "create"


@tool(timeout_s=30)
def file_write(context: ToolContext, args: WriteArgs) -> dict[str, object]:
    """Write a text file; folders that are missing are made."""
    data = args.text.encode("utf-8", "surrogateescape")
    with place(context, args.path, write=True) as where:
        folder, name = os.path.split(where.path)
        if name in ("", ".", ".."):
            raise ToolFailed(f"{args.path} is a folder")
        make_folders(where.root, folder)
        if args.mode == "replace":
            _replace(where.root, folder or ".", name, data)
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY
            flags |= os.O_EXCL if args.mode == "create" else os.O_APPEND
            _write(open_beneath(where.root, where.path, flags, 0o644), data)
    return {"path": where.shown, "bytes": len(data), "mode": args.mode}


def _replace(root: int, folder: str, name: str, data: bytes) -> None:
    """The old file or the new one, whatever happens in between; a link is replaced, not followed."""
    parent = open_beneath(root, folder, os.O_RDONLY | os.O_DIRECTORY)
    temporary = f".{name}.{os.getpid()}.{time.monotonic_ns()}"[:250]
    try:
        try:
            mode = stat.S_IMODE(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode) & 0o777
        except FileNotFoundError:
            mode = 0o644
        _write(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode, dir_fd=parent), data)
        try:
            os.replace(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except OSError:
            os.unlink(temporary, dir_fd=parent)
            raise
    finally:
        os.close(parent)


def _write(descriptor: int, data: bytes) -> None:
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ToolFailed("it is no ordinary file")
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
    finally:
        os.close(descriptor)


def _content(descriptor: int, most: int) -> tuple[bytes, int]:
    """At most ``most`` bytes of an ordinary file, and how many it has; closes the descriptor."""
    try:
        about = os.fstat(descriptor)
        if stat.S_ISDIR(about.st_mode):
            raise ToolFailed("it is a folder: file_list shows what is in it")
        if not stat.S_ISREG(about.st_mode):
            raise ToolFailed("it is no ordinary file")
        with os.fdopen(os.dup(descriptor), "rb") as file:
            return file.read(most), about.st_size
    finally:
        os.close(descriptor)


def _decoded(path: str, data: bytes, encoding: str) -> tuple[str, str]:
    """The text and the encoding it was taken for. Raises ``ToolFailed`` for what is no text."""
    if encoding:
        try:
            return data.decode(encoding), encoding
        except LookupError:
            raise ToolFailed(f"there is no encoding {encoding!r}") from None
        except UnicodeDecodeError as error:
            raise ToolFailed(f"{path} is not in {encoding}: {error.reason} at byte {error.start}") from None
    for mark, name in _MARKS:
        if data.startswith(mark):
            return data.decode(name, "replace"), name
    if b"\0" in data[:8192]:
        raise ToolFailed(f"{path} is binary, with {len(data)} bytes: there is no text to read")
    try:
        return data.decode(), "utf-8"
    except UnicodeDecodeError as error:
        if error.start >= len(data) - 3 and len(data) >= MAX_SEARCHED:  # cut in the middle of a character
            return data.decode(errors="ignore"), "utf-8"
        return data.decode("latin-1"), "latin-1"


def _entries(root: int, path: str, *, recursive: bool) -> Iterator[tuple[str, str, os.stat_result]]:
    """``(path below, name, about)`` of all that is in a folder, by name; no link is followed."""
    start = open_beneath(root, path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for here, folders, files, descriptor in os.fwalk(".", dir_fd=start, follow_symlinks=False):
            folders.sort()
            for name in sorted([*folders, *files]):
                try:
                    about = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                except OSError:
                    continue  # gone meanwhile
                yield os.path.normpath(os.path.join(here, name)), name, about
            if not recursive:
                break
    finally:
        os.close(start)


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "folder"
    if stat.S_ISLNK(mode):
        return "link"
    return "file" if stat.S_ISREG(mode) else "other"


TOOLS = (file_read, file_list, file_search, file_write)
