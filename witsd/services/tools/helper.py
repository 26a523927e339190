"""A program of ours in a process of its own, for what foreign bytes might make slow or large: bytes in, bytes out."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import trio

from witsd.services.tools.tool import ToolFailed

#: What it may use: seconds of a core, and bytes of memory.
_CPU_S, _MEMORY = 20, 1 << 30


async def run_helper(module: str, data: bytes, *, timeout_s: float, most_bytes: int = 16 << 20) -> bytes:
    """``python -m module`` with ``data`` on its stdin; what it printed. Ended when we are cancelled.

    Raises ``ToolFailed`` where it fails, or takes or prints too much.
    """
    process: subprocess.Popen[bytes] | None = None

    def work() -> tuple[int, bytes]:
        nonlocal process
        # Nothing of our environment: what it reads is not to be trusted. It ends with its input, or with its limit.
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONPATH": str(Path(__file__).parents[3])},
            cwd="/",
            start_new_session=True,
        )
        resource.prlimit(process.pid, resource.RLIMIT_CPU, (_CPU_S, _CPU_S))
        resource.prlimit(process.pid, resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        with process:
            try:
                out, _ = process.communicate(data, timeout=timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                raise ToolFailed(f"it took more than {timeout_s:g} s to read") from None
        return process.returncode, out

    try:
        status, out = await trio.to_thread.run_sync(work, abandon_on_cancel=True)
    except trio.Cancelled:
        if process is not None and process.poll() is None:
            process.kill()
        raise
    if status != 0 or len(out) > most_bytes:
        raise ToolFailed("it cannot be read: it is broken, or too large")
    return out
