"""The supervisor's line to a native agent: a peer over the agent's stdin and stdout."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import attrs
import trio

from witsd.rpc.dispatch import Dispatcher
from witsd.rpc.framing import ByteStreamMessages
from witsd.rpc.peer import Peer
from witsd.values.actor import Actor
from witsd.values.wire.system import LimitsInfo

T = TypeVar("T")


@attrs.define(eq=False)
class _Link:
    _peer: Peer
    _ended: trio.Event = attrs.field(factory=trio.Event)

    async def request(
        self, method: str, params: object, result: type[T], timeout_s: float | None = None
    ) -> T:
        return await self._peer.request(method, params, result, timeout_s)

    def notify(self, method: str, params: object) -> None:
        if not self._peer.closed:
            self._peer.notify(method, params)

    async def wait_closed(self) -> None:
        await self._ended.wait()

    async def serve(self) -> None:
        try:
            await self._peer.serve()
        finally:
            self._ended.set()


@attrs.define(eq=False)
class AgentLinks:
    """Opens links. The dispatcher is set once it exists: it serves methods that need the supervisor.

    ``settle`` is awaited with the agent's name after each read of what it says.
    """

    _limits: LimitsInfo
    dispatcher: Dispatcher | None = None
    settle: Callable[[str], Awaitable[None]] | None = None

    @asynccontextmanager
    async def open(
        self,
        stream: trio.abc.Stream,
        actor: Actor,
        on_rubbish: Callable[[bytes], None],
        pace: Callable[[], Awaitable[None]],
    ) -> AsyncIterator[_Link]:
        """Serve the agent on ``stream`` for as long as the block lasts."""
        assert self.dispatcher is not None, "agents are started after the dispatcher is built"
        settle = self.settle

        async def paced() -> None:
            await pace()
            if settle is not None and actor.agent is not None:
                await settle(actor.agent)

        messages = ByteStreamMessages(stream, limit=self._limits.message_bytes, newline_only=True)
        peer = Peer(
            messages,
            self.dispatcher,
            actor,
            self._limits,
            is_agent_stdio=True,
            on_rubbish=on_rubbish,
            pace=paced,
        )
        link = _Link(peer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.serve)
            yield link
            nursery.cancel_scope.cancel()
