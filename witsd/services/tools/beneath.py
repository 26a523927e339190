"""Opening files inside a folder so that no ``..`` and no symbolic link leads out of it.

``openat2`` with ``RESOLVE_BENEATH`` where the kernel has it (Linux 5.6), which decides while it resolves, so that
nothing can be swapped in between; else a walk, component by component, that follows no link at all.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_OPENAT2 = 437
_NO_MAGICLINKS, _BENEATH = 0x02, 0x08
#: What says that there is no openat2 here: an old kernel, or a filter that does not know it.
_MISSING = (errno.ENOSYS, errno.EPERM)
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Outside(OSError):
    """The path leads out of the folder."""


def open_beneath(root: int, path: str, flags: int, mode: int = 0o666, *, walk: bool = False) -> int:
    """A descriptor of ``path`` beneath the folder ``root`` (a descriptor). Blocking.

    Raises ``Outside``, and ``OSError`` as ``os.open`` does. ``walk``: as on a kernel without openat2.
    """
    flags |= os.O_CLOEXEC
    if not walk:
        try:
            return _openat2(root, path, flags, mode)
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise Outside(errno.EXDEV, "it leads out of the folder", path) from None
            if error.errno not in _MISSING:
                raise
    return _walk(root, path, flags, mode)


@contextmanager
def folder(path: Path) -> Iterator[int]:
    """A descriptor of a folder that is granted: where it is reached by links, they are followed."""
    descriptor = os.open(path, _FOLDER)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def make_folders(root: int, path: str) -> None:
    """The folders of ``path``, those that are missing made. Raises as ``open_beneath``."""
    done = ""
    for part in Path(path).parts:
        done = os.path.join(done, part)
        try:
            os.close(open_beneath(root, done, _FOLDER))
        except FileNotFoundError:
            parent = open_beneath(root, os.path.dirname(done) or ".", _FOLDER)
            try:
                os.mkdir(part, dir_fd=parent)
            finally:
                os.close(parent)


def _openat2(root: int, path: str, flags: int, mode: int) -> int:
    import ctypes

    libc: Any = ctypes.CDLL(None, use_errno=True)
    # struct open_how: flags, mode (only where a file may be made), resolve (openat2(2)).
    how = struct.pack("=QQQ", flags, mode if flags & os.O_CREAT else 0, _BENEATH | _NO_MAGICLINKS)
    found: int = libc.syscall(
        ctypes.c_long(_OPENAT2), ctypes.c_int(root), ctypes.c_char_p(os.fsencode(path)), how, ctypes.c_size_t(len(how))
    )
    if found < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return found


def _walk(root: int, path: str, flags: int, mode: int) -> int:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts:
        raise Outside(errno.EXDEV, "it leads out of the folder", path)
    if not parts:
        return os.open(".", flags, dir_fd=root)
    here = os.dup(root)
    try:
        for part in parts[:-1]:
            deeper = _without_links(part, _FOLDER, 0, here, path)
            os.close(here)
            here = deeper
        return _without_links(parts[-1], flags, mode, here, path)
    finally:
        os.close(here)


def _without_links(name: str, flags: int, mode: int, folder: int, path: str) -> int:
    try:
        return os.open(name, flags | os.O_NOFOLLOW, mode, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP or (error.errno == errno.ENOTDIR and _is_link(name, folder)):
            raise Outside(errno.EXDEV, "it goes through a symbolic link", path) from None
        raise


def _is_link(name: str, folder: int) -> bool:
    try:
        os.readlink(name, dir_fd=folder)
    except OSError:
        return False
    return True
