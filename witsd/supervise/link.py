"""How the supervisor talks to a native agent without knowing the protocol's machinery above it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar

import trio

from witsd.values.actor import Actor

T = TypeVar("T")


class AgentLink(Protocol):
    """A JSON-RPC connection over an agent's stdin and stdout."""

    async def request(self, method: str, params: object, result: type[T], timeout_s: float | None = None) -> T:
        """Ask and wait. Raises a ``WitsdError``, or ``trio.BrokenResourceError`` when the agent is gone."""

    def notify(self, method: str, params: object) -> None:
        """Tell, without an answer."""

    async def wait_closed(self) -> None:
        """Return when the agent's stdout has ended and all of it has been dealt with."""


#: ``open_link(stream, actor, on_rubbish, pace)``: serve the agent on that stream for as long as the block lasts.
OpenLink = Callable[
    [trio.abc.Stream, Actor, Callable[[bytes], None], Callable[[], Awaitable[None]]],
    AbstractAsyncContextManager[AgentLink],
]
__all__ = ["AgentLink", "OpenLink"]
