"""chromadb as a peer, in an environment of its own in the user's cache folder; it is no dependency of ours."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.bench.measure import Program, clean_environment
from tests.bench.memory_data import DIMENSIONS, Invention, Question
from tests.bench.memory_loaded import cache
from tests.bench.programs import __file__ as _programs

VERSION = "1.5.9"
_INSTALL_S = 900


def opened(stack: ExitStack, invention: Invention, questions: Sequence[Question]) -> Program | str:
    """The peer, filled and ready, until ``stack`` is left; or why there is none."""
    python = cache() / f"chromadb-{VERSION}" / "bin" / "python"
    if not python.exists():
        why = _installed(python)
        if why:
            return why
    folder = cache() / f"chromadb-{invention.namespaces}x{invention.each}"
    folder.mkdir(exist_ok=True)
    records = folder / "records"
    records.write_bytes(b"".join(struct.pack("<i", m.namespace) + m.vector for m in invention.memories()))
    form = struct.Struct(f"<i{DIMENSIONS}f")
    asked = folder / "questions"
    asked.write_bytes(b"".join(form.pack(q.namespace, *q.vector) for q in questions))
    script = str(Path(_programs).with_name("search_chroma.py"))
    command = [str(python), script, str(folder / "collection"), str(records), str(asked)]
    environment = {**clean_environment(), "ANONYMIZED_TELEMETRY": "False"}
    child = Program(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    stack.callback(child.communicate)
    stack.callback(child.kill)
    child.expect("ready", _INSTALL_S)
    return child


def _installed(python: Path) -> str:
    """Empty, or why it cannot be."""
    if os.environ.get("WITSD_BENCH_PEERS") == "off":
        return "as WITSD_BENCH_PEERS=off says"
    folder = python.parent.parent
    part = folder.with_name(f"{folder.name}.part")
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(part)], check=True, capture_output=True)
        install = [str(part / "bin" / "python"), "-m", "pip", "install", "-q", f"chromadb=={VERSION}"]
        subprocess.run(install, check=True, capture_output=True, timeout=_INSTALL_S)
    except (OSError, subprocess.SubprocessError) as error:
        return f"which could not be installed: {error}"
    part.rename(folder)
    return ""
