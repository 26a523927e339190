"""Writing what a command was asked for into a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from witsd.cli.connect import Failed


@contextmanager
def writing(path: Path | None) -> Iterator[TextIO]:
    """Standard output, or a file that replaces ``path`` only once all is written."""
    if path is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as out:
            yield out
        part.replace(path)
    except OSError as error:
        raise Failed(f"cannot write {path}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
