"""The text of a PDF, each page under a heading of its own.

``python -m witsd.cli.reading.pdf FILE`` prints it as JSON: in a process of its own, for a broken or a hostile file may
make any reader of PDF work for ever or take all memory.
"""

from __future__ import annotations

import json
import logging
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from witsd.cli.reading.found import Unreadable

#: For one file, in seconds and bytes of address space.
_PATIENCE_S = 300
_MEMORY = 2 << 30


def title_and_text(path: Path) -> tuple[str, str]:
    """Raises ``Unreadable``: broken, encrypted, nothing but pictures, or too much for the time and memory it has."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(path)], stdin=subprocess.DEVNULL, capture_output=True,
            timeout=_PATIENCE_S, check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unreadable(f"reading this PDF takes more than {_PATIENCE_S} s") from None
    try:
        said: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise Unreadable(f"reading this PDF failed: {last[:200]}") from None
    if "error" in said:
        raise Unreadable(said["error"])
    return said["title"], said["text"]


def _read(path: str) -> dict[str, str]:
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    try:
        reader = PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            return {"error": "this PDF wants a password"}
        pages = [page.extract_text() for page in reader.pages]
        title = str((reader.metadata and reader.metadata.title) or "")
    except MemoryError:
        return {"error": f"reading this PDF takes more than {_MEMORY >> 30} GB of memory"}
    except (PyPdfError, RecursionError, OSError, ValueError, TypeError, KeyError, AttributeError, IndexError,
            NotImplementedError, AssertionError, ArithmeticError) as error:  # fmt: skip
        return {"error": f"this PDF cannot be read: {type(error).__name__}: {str(error)[:150]}"}
    if not any(page.strip() for page in pages):
        return {"error": "this PDF has no text: are its pages pictures?"}
    text = "\n\n".join(f"## Page {n}\n\n{page.strip()}" for n, page in enumerate(pages, 1) if page.strip())
    return {"title": " ".join(title.split()), "text": text.replace("\0", "")}


def main() -> int:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    logging.disable()
    # Surrogates a PDF may hold are no Unicode text: they come out as question marks.
    said = {name: text.encode("utf-8", "replace").decode() for name, text in _read(sys.argv[1]).items()}
    sys.stdout.buffer.write(json.dumps(said).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
