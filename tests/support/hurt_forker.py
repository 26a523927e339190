"""``witsd/supervise/forker.py``, killed each second time between having forked and saying so.

The first it forks is told of, the second is not; then another forker is started, as for each that ended.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

_FORKER = Path(__file__).resolve().parents[2] / "witsd/supervise/forker.py"


def main() -> None:
    found = importlib.util.spec_from_file_location("forker", _FORKER)
    assert found is not None
    assert found.loader is not None
    forker = importlib.util.module_from_spec(found)
    found.loader.exec_module(forker)
    send = forker.send
    told = 0

    def sometimes(sock: socket.socket, message: Any, fds: tuple[int, ...] = ()) -> None:
        nonlocal told
        told += 1
        if told == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        send(sock, message, fds)

    forker.send = sometimes  # type: ignore[attr-defined]
    forker.main(int(sys.argv[1]), int(sys.argv[2]))


if __name__ == "__main__":
    main()
