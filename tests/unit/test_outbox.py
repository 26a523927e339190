"""What waits to be sent: room is what is really there, also for what is put while something is being sent."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import trio
from trio.testing import wait_all_tasks_blocked

from witsd.rpc.outbox import HIGH_WATER, Outbox


@attrs.define(eq=False)
class Slow:
    """The transport's part that the outbox uses; each send waits until it is let go."""

    batches: bool = False
    unsent: bool = False
    sent: list[bytes] = attrs.field(factory=list)
    go: trio.Semaphore = attrs.field(factory=lambda: trio.Semaphore(0))

    def try_send(self, message: bytes) -> bool:
        return False

    async def send_all(self, messages: Sequence[bytes], *, batch: bool = False, stall_s: float = 30) -> None:
        await self.go.acquire()
        self.sent += messages


async def test_what_is_put_during_a_send_counts() -> None:
    slow = Slow()
    outbox = Outbox(slow, stall_s=60)  # type: ignore[arg-type]
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outbox.run, nursery.cancel_scope)
            outbox.put(b"first")
            await wait_all_tasks_blocked()  # it is being sent
            outbox.put(b"x" * (HIGH_WATER + 1))
            outbox.put(b"last")
            assert outbox.is_full
            slow.go.release()
            await wait_all_tasks_blocked()
            assert slow.sent == [b"first"]
            assert outbox.is_full, "what was put meanwhile has been forgotten"
            for _ in range(3):
                slow.go.release()
            await outbox.wait_room()
            await outbox.wait_empty()
            assert [len(message) for message in slow.sent] == [5, HIGH_WATER + 1, 4]
            assert not outbox.is_full
            nursery.cancel_scope.cancel()
