"""Which folders a caller of the file tools may use, and where in them a path is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from witsd.services.tools.beneath import Outside, folder
from witsd.services.tools.tool import ToolContext, ToolFailed
from witsd.values.actor import Scope


@attrs.frozen
class Place:
    """An open folder, and a path beneath it."""

    root: int
    path: str
    #: As it is shown.
    shown: str


def roots(context: ToolContext, *, write: bool) -> tuple[Path, ...]:
    """The folders: all there is for the owner; else what grants and ``options.roots`` name."""
    if context.agent is None and Scope.ADMIN in context.actor.scopes:
        return (Path("/"),)
    named = list(context.options.get("write_roots" if write else "roots", ()))
    if context.agent is not None:
        named += context.agent.grants.files_write
        named += () if write else context.agent.grants.files
    return tuple(Path(os.path.abspath(Path(str(name)).expanduser())) for name in named)


def _is_home(context: ToolContext) -> bool:
    """Whether the working folder is one of those that the caller may use."""
    cwd = context.cwd
    every = {*roots(context, write=False), *roots(context, write=True)}
    return cwd is not None and any(root == cwd or root in cwd.parents for root in every)


@contextmanager
def place(context: ToolContext, given: str, *, write: bool = False) -> Iterator[Place]:
    """``given`` in the first folder that it is beneath. Raises ``ToolFailed`` for one that is in none, and for what
    the file system says inside the block.
    """
    path = Path(given).expanduser()
    if not path.is_absolute():
        path = (context.cwd or Path("/")) / path
    path = Path(os.path.normpath(path))
    granted = roots(context, write=write)
    root = next((root for root in granted if path == root or root in path.parents), None)
    relative = not Path(given).is_absolute() and not given.startswith("~")
    if root is None and relative and not _is_home(context):
        # Its working folder is none that it may use: relative paths start in the first that it may.
        root = next(iter(granted), None)
        path = Path(os.path.normpath(root / given)) if root is not None else path
        if root is not None and path != root and root not in path.parents:
            root = None
    if root is None:
        what = "write to" if write else "read"
        named = ", ".join(map(str, granted)) or "no folder"
        raise ToolFailed(f"{given} is outside of what may be {what.split(maxsplit=1)[0]}: granted is {named}")
    try:
        with folder(root) as descriptor:
            yield Place(descriptor, os.path.relpath(path, root), str(path))
    except Outside as error:
        raise ToolFailed(f"{given}: {error.strerror}, which is all that is granted") from None
    except OSError as error:
        raise ToolFailed(f"{given}: {(error.strerror or 'it cannot be used').lower()}") from None
