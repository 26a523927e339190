"""Work that blocks, on a thread; and what to do where the machine has no thread to give."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def in_thread(fn: Callable[[*Ts], T], *args: *Ts) -> T:
    """``fn(*args)`` on a worker thread, not cancellable once begun.

    At a limit of processes and threads it is run here instead: the loop then waits for a file or a signal, which is
    better than an agent that is ended by half or a line that is lost.
    """
    try:
        return await trio.to_thread.run_sync(fn, *args)
    except RuntimeError as error:
        if "can't start new thread" not in str(error):
            raise
    return fn(*args)
