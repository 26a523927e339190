"""A progress bar for what takes a while."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from witsd.cli.output import is_tty, note

#: ``(done, total)`` in bytes; total 0 while it is not known.
OnProgress = Callable[[int, int], None]


class Bar:
    """A progress bar in bytes on a terminal; elsewhere one line that says what is going on."""

    def __init__(self, title: str, *, quiet: bool) -> None:
        self._title = title
        self._quiet = quiet
        self._progress: Any = None
        self._task: Any = None

    def __enter__(self) -> OnProgress:
        if self._quiet:
            return lambda done, total: None
        if not is_tty():
            note(self._title)
            return lambda done, total: None
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        note(self._title)
        self._progress = Progress(TextColumn("  "), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._progress.start()
        self._task = self._progress.add_task("", total=None)
        return self._show

    def _show(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total or None)

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()
