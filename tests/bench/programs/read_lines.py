"""Floor: a bare trio reader that splits one child's lines: ``read_lines FILE COMMAND...``; prints how many there were.

With a FILE other than ``-`` it also writes each there with its number, a time and a source, as barely as can be.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime

import trio


async def main() -> None:
    child = await trio.lowlevel.open_process(sys.argv[2:], stdout=subprocess.PIPE)
    assert child.stdout is not None
    kept = None if sys.argv[1] == "-" else os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    print("ready", flush=True)
    count, rest = 0, b""
    while data := await child.stdout.receive_some(64 << 10):
        *lines, rest = (rest + data).split(b"\n")
        if kept is not None:
            stamp = datetime.now(UTC).isoformat().encode()
            numbered = [b"%d %b stdout %b\n" % (n, stamp, line) for n, line in enumerate(lines, count + 1)]
            os.write(kept, b"".join(numbered))
        count += len(lines)
    await child.wait()
    print("read", count, flush=True)


trio.run(main)
