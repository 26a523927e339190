"""One request being served: who asks, over which connection, and how to say how it is going."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
import trio

from witsd.values.actor import Actor


class Connection(Protocol):
    """What a service may do with its caller's connection, whatever the transport."""

    @property
    def closed(self) -> bool:
        """True once nothing can be sent any more."""

    def set_actor(self, actor: Actor) -> None:
        """From now on this connection speaks for ``actor`` (``initialize`` with a token)."""

    async def send(self, message: bytes) -> None:
        """Send one encoded message. Waits while the outbox is above its high-water mark.

        Raises ``trio.BrokenResourceError`` when the connection is gone.
        """

    async def send_many(self, messages: Sequence[bytes]) -> None:
        """Send a backlog: one write where the framing has lines, one batch array on a WebSocket."""

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call back once, synchronously, when the connection ends."""


class Progress(Protocol):
    """Sends ``notifications/progress`` for one request; does nothing where none was asked for."""

    wanted: bool

    async def __call__(
        self,
        *,
        progress: float | None = None,
        total: float | None = None,
        message: str | None = None,
        delta: str | None = None,
        thought: str | None = None,
    ) -> None: ...


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """What a method is given beside its params."""

    actor: Actor
    connection: Connection
    progress: Progress
    #: Set once the answer to this request is on its way: what must follow the answer waits for it.
    answered: trio.Event = msgspec.field(default_factory=trio.Event)
    meta: dict[str, Any] = msgspec.field(default_factory=dict)
