"""Pipes that nobody has written into yet, all of them heard by one task.

Most agents never say a word on one of their pipes. A task that waits for each would be most of what starting and
stopping an agent costs the loop, and of what it holds in memory.
"""

from __future__ import annotations

import logging
import select
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager

import attrs
import trio

log = logging.getLogger("witsd.supervise")


@attrs.define(eq=False)
class Ears:
    """Made by ``open_ears``."""

    _epoll: select.epoll
    _calls: dict[int, Callable[[], None]] = attrs.field(factory=dict)

    def wait(self, pipe: int, call: Callable[[], None]) -> None:
        """Call once there is something to be read; never, where the other end is closed without a word.

        To be forgotten before it is closed.
        Raises ``OSError`` where the kernel watches no more.
        """
        self._epoll.register(pipe, select.EPOLLIN | select.EPOLLONESHOT)
        self._calls[pipe] = call

    def forget(self, pipe: int) -> bool:
        """Do not call. False when that has been done already, or was not asked for."""
        # The kernel tells of it once at most, and forgets it when it is closed: that costs less than asking it now.
        return self._calls.pop(pipe, None) is not None

    async def run(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for pipe, events in self._epoll.poll(0):
                if (call := self._calls.pop(pipe, None)) is not None and events != select.EPOLLHUP:
                    call()


def not_silent(pipes: Collection[int]) -> set[int]:
    """Those that have something to be read or ever may; the others are read to their end, and no other end is open."""
    look = select.poll()
    for pipe in pipes:
        look.register(pipe, select.POLLIN)
    return {*pipes} - {pipe for pipe, events in look.poll(0) if events == select.POLLHUP}


@asynccontextmanager
async def open_ears() -> AsyncIterator[Ears]:
    with select.epoll() as epoll:
        ears = Ears(epoll)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ears.run)
            try:
                yield ears
            finally:
                nursery.cancel_scope.cancel()
