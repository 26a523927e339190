"""Pipes that nobody has written into yet, all of them heard by one task.

Most agents never say a word on one of their pipes. A task that waits for each would be most of what starting and
stopping an agent costs the loop, and of what it holds in memory.
"""

from __future__ import annotations

import logging
import select
from collections.abc import AsyncIterator, Callable
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
        """Call once, soon after it can be read or its other end is closed; ``forget`` it before it is closed.

        Raises ``OSError`` where the kernel watches no more.
        """
        self._epoll.register(pipe, select.EPOLLIN)
        self._calls[pipe] = call

    def forget(self, pipe: int) -> bool:
        """Do not call. False when that has been done already, or was not asked for."""
        if self._calls.pop(pipe, None) is None:
            return False
        self._epoll.unregister(pipe)
        return True

    async def run(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for pipe, _ in self._epoll.poll(0):
                call = self._calls.get(pipe)
                if call is not None:  # else forgotten by one that was called before
                    self.forget(pipe)
                    call()


def says_something(pipe: int) -> bool:
    """Whether there is something to read or ever may be; False once all is read and no other end is open."""
    look = select.poll()
    look.register(pipe, select.POLLIN)
    return look.poll(0) != [(pipe, select.POLLHUP)]


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
