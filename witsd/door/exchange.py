"""``POST /rpc``: one body is answered with one body, over no connection that anything could be sent to later."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import attrs
import trio

from witsd.rpc.call import Call
from witsd.rpc.methods import Method
from witsd.values.actor import Actor
from witsd.values.errors import InvalidState


def without_streams(methods: Mapping[str, Method]) -> dict[str, Method]:
    """The table for ``POST /rpc``, where no connection stays that events could be sent to."""

    async def refuse(call: Call, params: Any) -> NoReturn:
        raise InvalidState(
            f"{call.actor.label}: a subscription needs a connection that stays: use the WebSocket at /ws "
            "or the Unix socket; events/read pages through a stream here",
            state="http",
        )

    streams = ("events/subscribe", "events/unsubscribe")
    return {
        name: attrs.evolve(method, call=refuse) if name in streams else method
        for name, method in methods.items()
    }


@attrs.define(eq=False)
class Exchange:
    """The connection of one HTTP body: it can be answered, and hears nothing else."""

    actor: Actor
    closed: bool = False
    _callbacks: list[Callable[[], None]] = attrs.field(factory=list)

    def set_actor(self, actor: Actor) -> None:
        self.actor = actor

    async def send(self, message: bytes) -> None:
        """Progress, which has nowhere to go: one body is answered with one body."""
        await trio.lowlevel.checkpoint()

    async def send_many(self, messages: Sequence[bytes]) -> None:
        await trio.lowlevel.checkpoint()

    def on_close(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def end(self) -> None:
        self.closed = True
        for callback in self._callbacks:
            callback()
