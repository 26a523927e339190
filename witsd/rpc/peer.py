"""One end of a JSON-RPC connection: it serves requests and makes them, side by side, in both directions.

One task reads, one writes (see ``outbox``), and each request has a task of its own; requests begin in the
order they came. Everything that can grow is bounded: requests in flight by the announced limit, the outbox
by a high-water mark above which nothing more is read, so a client that never reads is not served further.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from typing import TypeVar

import attrs
import msgspec
import trio
from msgspec import Raw

from witsd.rpc import codec
from witsd.rpc.call import Call
from witsd.rpc.codec import ABSENT, NULL, BadMessage, Envelope
from witsd.rpc.dispatch import NO_PROGRESS, BatchAnswer, Dispatcher, bounded, check_batch, too_big
from witsd.rpc.framing import MessageStream, Oversize, Refused, Truncated
from witsd.rpc.outbox import Outbox
from witsd.rpc.requests import RemoteError, Requests
from witsd.values.actor import Actor
from witsd.values.errors import (
    InvalidRequest,
    Overloaded,
    ParseError,
    RequestCancelled,
)
from witsd.values.wire.system import LimitsInfo

__all__ = ["Peer", "RemoteError"]

_T = TypeVar("_T")

#: Messages taken before the tasks they started get their turn.
_TURN = 64
#: How often a half-closed connection is asked whether anybody is still there.
_HANG_UP_POLL_S = 1.0
_CLOSE_S = 1.0
_RETRY_AFTER_MS = 100

_log = logging.getLogger("witsd.rpc")
_NO_SCOPE = nullcontext()


class _Cancel(msgspec.Struct, gc=False):
    request_id: Raw = ABSENT
    requestId: Raw = ABSENT  # noqa: N815  (MCP's spelling)


_read_cancel = msgspec.json.Decoder(_Cancel).decode


@attrs.define(eq=False)
class _Job:
    """A request being served; ``batch`` and ``index`` say where its answer goes, if it came in one."""

    envelope: Envelope
    key: object
    batch: BatchAnswer | None
    index: int
    #: None where it is served without a task: it is over before a cancellation can be read.
    scope: trio.CancelScope | None = None
    answered: trio.Event = attrs.field(factory=trio.Event)


class Peer:
    """A connection; also the ``Connection`` that services see. ``serve`` runs it until it is over.

    ``on_rubbish`` is given what an agent writes to its stdout that is no JSON-RPC; ``pace`` is awaited
    after each read, and so slows down a peer that says more than can be dealt with.
    """

    def __init__(
        self,
        messages: MessageStream,
        dispatcher: Dispatcher,
        actor: Actor,
        limits: LimitsInfo,
        *,
        is_agent_stdio: bool = False,
        send_timeout_s: float = 30,
        on_rubbish: Callable[[bytes], None] | None = None,
        pace: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.actor = actor
        self._messages = messages
        self._dispatcher = dispatcher
        self._limits = limits
        self._is_agent_stdio = is_agent_stdio
        self._on_rubbish = on_rubbish
        self._pace = pace
        self._outbox = Outbox(messages, send_timeout_s)
        self._requests = Requests(self._outbox)
        self._nursery: trio.Nursery | None = None
        self._closed = False
        self._callbacks: list[Callable[[], None]] = []
        self._notify_call = self._call_for_notifications()
        # Requests being served, by id. A null id names nothing: those stand under keys of their own.
        self._in_flight: dict[object, _Job] = {}
        # Admitted, not yet begun. trio starts tasks in no fixed order: each takes the oldest.
        self._to_begin: deque[_Job] = deque()
        self._idle = trio.Event()
        #: While several messages that came together are being taken.
        self._crowded = False

    # ---- Connection -------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        return self._closed

    def set_actor(self, actor: Actor) -> None:
        self.actor = actor
        self._notify_call = self._call_for_notifications()

    async def send(self, message: bytes) -> None:
        await self._outbox.wait_room()
        self._outbox.put(message)

    async def send_many(self, messages: Sequence[bytes]) -> None:
        await self._outbox.wait_room()
        self._outbox.put_many(messages)

    def on_close(self, callback: Callable[[], None]) -> None:
        if self._closed:
            callback()
        else:
            self._callbacks.append(callback)

    # ---- asking the other side --------------------------------------------------------------------------

    async def request(self, method: str, params: object, result_type: type[_T], timeout_s: float | None = None) -> _T:
        """Call a method of the other side.

        Raises the ``WitsdError`` of the answered code (``RemoteError`` for a code that is none of ours,
        or a result that is no ``result_type``), ``Timeout`` after ``timeout_s``, and
        ``trio.BrokenResourceError`` when the connection ends first. Giving up, by time-out or
        cancellation, tells the other side so.
        """
        return await self._requests.ask(method, params, result_type, timeout_s)

    def notify(self, method: str, params: object) -> None:
        """Send a notification without waiting.

        Raises ``trio.BrokenResourceError`` when the connection is over.
        """
        if self._closed:
            raise trio.BrokenResourceError("the connection is over")
        self._outbox.put(codec.notification(method, params))

    # ---- life -------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Run the connection; returns when it is over, closed, and everything it ran has ended."""
        try:
            async with trio.open_nursery() as self._nursery:
                scope = self._nursery.cancel_scope
                self._nursery.start_soon(self._outbox.run, scope)
                try:
                    await self._read_loop()
                    await self._linger()
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass  # gone: what runs for it is cancelled below
                finally:
                    self._messages.hurry()
                scope.cancel()
        finally:
            self._over()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_S):
                try:
                    await self._messages.aclose()
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass

    def close(self) -> None:
        """End the connection now; ``serve`` returns soon after."""
        if self._nursery is not None:
            self._messages.hurry()
            self._nursery.cancel_scope.cancel()

    async def close_when_flushed(self) -> None:
        """Send what is waiting, then end the connection; bounded by ``send_timeout_s``."""
        await self._outbox.wait_empty()
        self.close()

    def _over(self) -> None:
        self._closed = True
        self._outbox.end()
        self._requests.end()
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback()
            except Exception:  # noqa: BLE001  (one who watches must not keep the others from knowing)
                _log.exception("rpc.on_close_failed actor=%s", self.actor.label)

    async def _read_loop(self) -> None:
        receive, outbox = self._messages.receive, self._outbox
        while (incoming := await receive()) is not None:
            self._crowded = len(incoming) > 1
            for count, message in enumerate(incoming, 1):
                await self._take(message)
                if not count % _TURN:
                    await self._turn()
            self._crowded = False
            if outbox.is_full:
                await outbox.wait_room()
            if self._pace is not None:
                await self._pace()

    async def _turn(self) -> None:
        """Let what was admitted run, and the other side read, before more is taken."""
        await trio.lowlevel.checkpoint()
        if len(self._in_flight) >= self._limits.in_flight:
            await trio.lowlevel.checkpoint()  # trio may run us before what we started, but not twice
        await self._outbox.wait_room()

    async def _linger(self) -> None:
        """The other side has said all. It may still listen: finish what it asked for, then close."""
        self._requests.end()  # no answer can come any more
        while self._in_flight or self._callbacks:
            if self._messages.hung_up():
                break
            with trio.move_on_after(_HANG_UP_POLL_S):
                await self._idle.wait()
        # Also where no more can be read: why is still to be told. One who has gone ends the sending.
        await self._outbox.wait_empty()

    # ---- what comes in ----------------------------------------------------------------------------------

    async def _take(self, message: bytes | Oversize | Truncated | Refused) -> None:
        if not isinstance(message, bytes):
            self._take_unreadable(message)
            return
        try:
            read = codec.decode_any(message, self._limits.depth)
        except BadMessage as bad:
            self._take_bad(message, bad)
            return
        if isinstance(read, list):
            await self._take_batch(read)
            return
        if len(self._in_flight) >= self._limits.in_flight:
            await self._turn()  # what needs no waiting is over by then
        taken = self._take_one(read)
        if isinstance(taken, _Job):
            await self._begin(taken)
        elif taken is not None:
            self._outbox.put(taken)

    async def _take_batch(self, elements: list[bytes]) -> None:
        wrong = check_batch(elements, self._limits)
        if wrong is not None:
            self._outbox.put(wrong)
            return
        batch = BatchAnswer(len(elements))
        for index, element in enumerate(elements):
            if len(self._in_flight) >= self._limits.in_flight or not (index + 1) % _TURN:
                await self._turn()
            try:
                taken = self._take_one(codec.decode_element(element), batch, index)
            except BadMessage as bad:
                taken = codec.error(bad.id, bad.error)
            if isinstance(taken, _Job):
                await self._begin(taken)
            else:
                batch.answers[index] = taken
        self._finish_batch(batch, None)

    def _take_one(self, envelope: Envelope, batch: BatchAnswer | None = None, index: int = 0) -> bytes | _Job | None:
        """Take a message in the order it came; returns the request to begin, or what answers it at once."""
        if not envelope.method:
            self._requests.take(envelope)
            return None
        if not envelope.id and not self._dispatcher.has(envelope.method):
            if envelope.method == "notifications/cancelled":
                self._cancel(envelope.params)
            else:
                self._dispatcher.notify(self._notify_call, envelope, from_agent=self._is_agent_stdio)
            return None
        try:
            return self._admit(envelope, batch, index)
        except (InvalidRequest, Overloaded) as refused:
            return codec.error(envelope.id, refused) if envelope.id else None

    def _take_bad(self, message: bytes, bad: BadMessage) -> None:
        if not self._is_agent_stdio:
            self._outbox.put(codec.error(bad.id, bad.error))
        elif self._on_rubbish is not None:
            self._on_rubbish(message)

    def _take_unreadable(self, message: Oversize | Truncated | Refused) -> None:
        if isinstance(message, Oversize):
            shown = b"%b... (more than %d bytes)" % (message.head, self._limits.message_bytes)
            self._take_bad(shown, BadMessage(too_big(self._limits)))
        elif isinstance(message, Refused):
            self._take_bad(b"", BadMessage(InvalidRequest(f"Invalid Request: {message.reason}")))
        else:
            self._take_bad(b"", BadMessage(ParseError(f"Parse error: {message.reason}")))

    def _cancel(self, params: Raw) -> None:
        try:
            read = _read_cancel(params)
            job = self._in_flight.get(codec.id_key(read.request_id or read.requestId))
        except (msgspec.DecodeError, ValueError):
            return  # a notification is not answered, not even a wrong one
        if job is not None and job.scope is not None:
            job.scope.cancel()

    # ---- serving ----------------------------------------------------------------------------------------

    def _admit(self, envelope: Envelope, batch: BatchAnswer | None, index: int) -> _Job:
        """Enter a request in the table. Raises ``InvalidRequest`` or ``Overloaded``."""
        key: object = object() if not envelope.id or envelope.id == NULL else codec.id_key(envelope.id)
        if key in self._in_flight:
            raise InvalidRequest("Invalid Request: a request with this id is being served")
        if len(self._in_flight) >= self._limits.in_flight:
            raise Overloaded(
                f"{self._limits.in_flight} requests are in flight on this connection: wait for answers",
                retry_after_ms=_RETRY_AFTER_MS,
            )
        job = self._in_flight[key] = _Job(envelope, key, batch, index)
        if batch is not None:
            batch.open += 1
        return job

    async def _begin(self, job: _Job) -> None:
        """Serve in a task of its own, or here and now where that takes no waiting."""
        self._to_begin.append(job)
        if len(self._to_begin) == 1 and self._dispatcher.is_quick(job.envelope, self.actor):
            await self._serve_oldest()
        else:
            job.scope = trio.CancelScope()
            assert self._nursery is not None
            self._nursery.start_soon(self._serve_oldest)

    async def _serve_oldest(self) -> None:
        job = self._to_begin.popleft()
        envelope = job.envelope
        answer = None
        try:
            with job.scope or _NO_SCOPE:
                answer = await self._dispatcher.handle(envelope, self.actor, self, job.answered)
        finally:
            del self._in_flight[job.key]
            if not self._in_flight:
                self._idle.set()
                self._idle = trio.Event()
        if answer is None:
            answer = codec.error(envelope.id or NULL, RequestCancelled("cancelled by the caller"))
        answer = bounded(answer, envelope.id or NULL, self._limits)
        if job.batch is not None:
            job.batch.answers[job.index] = answer if envelope.id else None
            self._finish_batch(job.batch, job.answered)
            return
        if envelope.id:
            self._outbox.put(answer, alone=not self._in_flight and not self._crowded)
        job.answered.set()

    def _finish_batch(self, batch: BatchAnswer, answered: trio.Event | None) -> None:
        """One of those a batch waits for is done: its elements, or the reader's way through them."""
        batch.open -= 1
        if answered is not None:
            batch.answered.append(answered)
        if not batch.open:
            array = batch.array()
            if array is not None:
                self._outbox.put(array)
            for event in batch.answered:
                event.set()

    def _call_for_notifications(self) -> Call:
        return Call(actor=self.actor, connection=self, progress=NO_PROGRESS)
