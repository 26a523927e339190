"""One JSON-RPC 2.0 connection that asks and answers: under the client and under an agent alike.

Requests, notifications, cancellation and progress go in both directions. Memory is bounded: the outbox
makes ``request`` and ``notify`` wait above a high-water mark, requests in flight are counted in both
directions, and progress that nobody collects is merged.
"""

from __future__ import annotations

import inspect
import itertools
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import msgspec
from msgspec import UNSET, Raw

from witsd_client.errors import (
    ConnectionLost,
    LimitExceeded,
    MethodNotFound,
    Overloaded,
    ProtocolError,
    RequestCancelled,
    Timeout,
    WitsdError,
    error_from_wire,
)
from witsd_client.messages import (
    NO_PARAMS,
    CancelledParams,
    Envelope,
    Pending,
    Progress,
    ProgressParams,
    as_wire_error,
    decode_batch,
    decode_one,
    failure_bytes,
    request_bytes,
    result_bytes,
)
from witsd_client.taskgroups import open_background
from witsd_client.transport import Transport

log = logging.getLogger(__name__)

#: Bytes waiting to be written above which senders wait.
HIGH_WATER = 1 << 20
#: Requests of our own that may be unanswered; the next one waits. The daemon's own limit replaces it.
MAX_IN_FLIGHT = 512
#: Requests of the other side being worked on; the next one is answered ``overloaded``.
MAX_SERVING = 1024


#: Called in the task that waits for the result, in order; may be async.
OnProgress = Callable[[Progress], Awaitable[None] | None]
#: Takes in a request, in the order of arrival and without waiting, and returns what does the work; that
#: runs in a task of its own, in no order. Both may raise ``WitsdError``.
Handler = Callable[[str, Raw], Callable[[], Awaitable[Any]]]
#: Told of a notification, in the reading task: must not wait.
OnNotification = Callable[[str, Raw], None]


class Connection:
    """See ``open_connection``."""

    def __init__(
        self,
        transport: Transport,
        tasks: anyio.abc.TaskGroup,
        handler: Handler | None,
        on_notification: OnNotification | None,
    ) -> None:
        self._transport = transport
        self._tasks = tasks
        self._handler = handler
        self._on_notification = on_notification
        self._ids = itertools.count(1)
        self._pending: dict[int, Pending] = {}
        self._in_flight = 0
        self._max_in_flight = MAX_IN_FLIGHT
        self._freed = anyio.Event()
        self._max_message: int | None = None
        self._serving: dict[bytes, anyio.CancelScope] = {}
        self._served = anyio.Event()
        self._outbox: deque[bytes] = deque()
        self._outbox_bytes = 0
        self._filled = anyio.Event()
        self._drained = anyio.Event()
        self._closed = anyio.Event()
        #: Why the connection ended, once it has.
        self.reason = ""
        #: What the other side said to nobody in particular (an error with a null id), for the reason.
        self.parting_error: WitsdError | None = None

    # ---- what the two sides use -----------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    async def wait_closed(self) -> None:
        """Return once the connection has ended, whoever ended it."""
        await self._closed.wait()

    def set_limits(self, *, message_bytes: int | None = None, in_flight: int | None = None) -> None:
        """Keep to what the other side announced, so that it never has to refuse."""
        self._max_message = message_bytes
        if in_flight:
            self._max_in_flight = in_flight

    async def request(
        self,
        method: str,
        params: Any = None,
        result_type: Any = Any,
        *,
        progress: OnProgress | None = None,
        timeout_s: float | None = None,
        on_answer: Callable[[Raw], None] | None = None,
    ) -> Any:
        """Ask, and return the result decoded as ``result_type``.

        Raises the ``WitsdError`` that was answered, ``ConnectionLost`` when the connection ends first,
        and ``Timeout`` after ``timeout_s``. A caller that is cancelled, or whose ``progress`` raises,
        cancels the request at the other side too. ``on_answer`` sees the raw result while the reader
        stands still, before anything that follows it.
        """
        with anyio.move_on_after(timeout_s) as scope:
            while self._in_flight >= self._max_in_flight and not self.closed:
                if self._freed.is_set():
                    self._freed = anyio.Event()
                await self._freed.wait()
            self._in_flight += 1
            try:
                raw = await self._exchange(method, params, progress, on_answer)
            finally:
                self._in_flight -= 1
                self._freed.set()
            try:
                return msgspec.json.decode(raw, type=result_type)
            except (msgspec.ValidationError, msgspec.DecodeError) as error:
                raise ProtocolError(f"the result of {method} has another shape: {error}") from error
        if scope.cancelled_caught:
            raise Timeout(f"{method} was not answered within {timeout_s:g} s")
        raise AssertionError("unreachable")

    async def notify(self, method: str, params: Any = None) -> None:
        """Tell, without an answer. Waits while much is unsent. Raises ``ConnectionLost``."""
        await self._room()
        self._post(request_bytes(method, params))
        # A loop that only ever tells must let the writer write, and see that it is cancelled.
        await anyio.lowlevel.checkpoint()

    def notify_nowait(self, method: str, params: Any = None) -> None:
        """Tell without waiting; for the few messages that must go out in order whatever happens."""
        if not self.closed:
            self._post(request_bytes(method, params))

    async def flush(self) -> None:
        """Return when everything posted so far has been written, or the connection has ended."""
        while self._outbox_bytes and not self.closed:
            await self._drained.wait()

    async def wait_served(self) -> None:
        """Return when no request of the other side is being worked on."""
        while self._serving and not self.closed:
            self._served = anyio.Event()
            await self._served.wait()

    def close(self, reason: str) -> None:
        """End the connection: requests in flight fail with ``ConnectionLost``, served ones are cancelled."""
        if self.closed:
            return
        self.reason = f"{reason}: {self.parting_error}" if self.parting_error else reason
        self._closed.set()
        lost = ConnectionLost(f"the connection ended ({self.reason})")
        for pending in self._pending.values():
            pending.settle(lost)
        for scope in self._serving.values():
            scope.cancel()
        for event in (self._freed, self._drained, self._filled, self._served):
            event.set()

    # ---- asking ---------------------------------------------------------------------------------------

    async def _exchange(
        self,
        method: str,
        params: Any,
        progress: OnProgress | None,
        on_answer: Callable[[Raw], None] | None,
    ) -> Raw:
        await self._room()
        request_id = next(self._ids)
        if progress is not None:
            fields = dict(params) if isinstance(params, Mapping) else msgspec.to_builtins(params or {})
            params = {**fields, "_meta": {"progress_token": request_id}}
        message = request_bytes(method, params, request_id)
        if self._max_message is not None and len(message) > self._max_message:
            # The daemon would answer with a null id, which leads back to nobody.
            raise LimitExceeded(
                f"{method}: {len(message)} bytes are more than the {self._max_message} a message may have",
                {"limit": "message_bytes", "value": self._max_message},
            )
        pending = self._pending[request_id] = Pending(method, on_answer)
        try:
            self._post(message)
            while True:
                while pending.progress and progress is not None:
                    waits = progress(pending.progress.popleft())
                    if inspect.isawaitable(waits):
                        await waits
                if pending.done:
                    break
                await pending.changed.wait()
                if not pending.done:
                    pending.changed = anyio.Event()
        except BaseException:
            if not pending.done:
                self.notify_nowait("notifications/cancelled", {"request_id": request_id})
            raise
        finally:
            del self._pending[request_id]
        if isinstance(pending.answer, Exception):
            raise pending.answer
        assert pending.answer is not None
        return pending.answer

    # ---- writing --------------------------------------------------------------------------------------

    async def _room(self) -> None:
        """Wait while the outbox is above its high-water mark."""
        if self.closed:
            raise ConnectionLost(f"the connection ended ({self.reason})")
        while self._outbox_bytes > HIGH_WATER:
            await self._drained.wait()
            if self.closed:
                raise ConnectionLost(f"the connection ended ({self.reason})")

    def _post(self, message: bytes) -> None:
        self._outbox.append(message)
        self._outbox_bytes += len(message)
        self._filled.set()

    async def write_all(self) -> None:
        """The writing task."""
        try:
            while not self.closed:
                if not self._outbox:
                    self._filled = anyio.Event()
                    await self._filled.wait()
                    continue
                batch = list(self._outbox)
                self._outbox.clear()
                await self._transport.send(batch)
                self._outbox_bytes -= sum(map(len, batch))
                drained, self._drained = self._drained, anyio.Event()
                drained.set()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError) as error:
            self.close(str(error) or "it broke while writing")

    # ---- reading --------------------------------------------------------------------------------------

    async def read_all(self) -> None:
        """The reading task."""
        reason = "the other side closed it"
        try:
            while (messages := await self._transport.receive()) is not None:
                for message in messages:
                    self._take(message)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError, ProtocolError) as error:
            reason = str(error) or "it broke"
        finally:
            self.close(reason)

    def _take(self, message: bytes) -> None:
        try:
            if message.lstrip()[:1] == b"[":
                for one in decode_batch(message):
                    self._take(bytes(one))
            else:
                self._dispatch(decode_one(message))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            log.warning("ignored what is no JSON-RPC message: %s (%r)", error, message[:200])

    def _dispatch(self, envelope: Envelope) -> None:
        if envelope.method is not UNSET:
            params = NO_PARAMS if envelope.params is UNSET else envelope.params
            if envelope.id is UNSET:
                self._notified(envelope.method, params)
            else:
                self._asked(envelope.id, envelope.method, params)
            return
        key = b"null" if envelope.id is UNSET else bytes(envelope.id)
        pending = self._pending.get(int(key)) if key.isdigit() else None
        error = envelope.error
        if error is not UNSET and error is not None:
            failure = error_from_wire(error.code, error.message, error.data)
            if pending is not None:
                pending.settle(failure)
            elif key == b"null":
                self.parting_error = failure
                log.warning("the other side says: %s", failure)
        elif pending is not None and not pending.done:
            result = Raw(b"null") if envelope.result is UNSET else envelope.result
            if pending.on_answer is not None:
                try:
                    pending.on_answer(result)
                except msgspec.MsgspecError as broken:
                    pending.settle(
                        ProtocolError(f"the result of {pending.method} has another shape: {broken}")
                    )
                    return
            pending.settle(result)

    def _notified(self, method: str, params: Raw) -> None:
        if method == "notifications/cancelled":
            which = msgspec.json.decode(params, type=CancelledParams)
            key = which.requestId if which.request_id is UNSET else which.request_id
            scope = None if key is UNSET else self._serving.get(bytes(key))
            if scope is not None:
                scope.cancel()
        elif method == "notifications/progress":
            news = msgspec.json.decode(params, type=ProgressParams)
            token = news.progress_token
            pending = self._pending.get(token) if isinstance(token, int) else None
            if pending is not None:
                pending.add_progress(
                    Progress(
                        progress=news.progress,
                        total=news.total,
                        message=news.message,
                        delta=news.delta,
                        thought=news.thought,
                    )
                )
        elif self._on_notification is not None:
            self._on_notification(method, params)

    # ---- answering ------------------------------------------------------------------------------------

    def _asked(self, request_id: Raw, method: str, params: Raw) -> None:
        key = bytes(request_id)
        if len(self._serving) >= MAX_SERVING:
            busy = Overloaded("too many requests at once", {"retry_after_ms": 100})
            self._post(failure_bytes(request_id, busy))
        elif self._handler is None:
            self._post(failure_bytes(request_id, MethodNotFound(f"nothing here answers {method}")))
        else:
            try:
                work = self._handler(method, params)
            except Exception as error:  # noqa: BLE001 - the boundary: the others must go on
                self._post(failure_bytes(request_id, as_wire_error(method, error)))
                return
            scope = self._serving[key] = anyio.CancelScope()
            self._tasks.start_soon(self._answer, request_id, key, scope, method, work)

    async def _answer(
        self,
        request_id: Raw,
        key: bytes,
        scope: anyio.CancelScope,
        method: str,
        work: Callable[[], Awaitable[Any]],
    ) -> None:
        answer = failure_bytes(request_id, RequestCancelled("cancelled as asked"))
        try:
            with scope:
                try:
                    result = await work()
                    answer = result_bytes(request_id, result)
                except Exception as error:  # noqa: BLE001 - the boundary: the others must go on
                    answer = failure_bytes(request_id, as_wire_error(method, error))
        finally:
            if self._serving.get(key) is scope:
                del self._serving[key]
        if not self.closed:
            self._post(answer)
        self._served.set()


@asynccontextmanager
async def open_connection(
    transport: Transport,
    handler: Handler | None = None,
    on_notification: OnNotification | None = None,
) -> AsyncIterator[Connection]:
    """Run a connection over ``transport``, which it owns, for as long as the block lasts.

    The block is not ended when the connection is: use ``wait_closed``.
    """
    try:
        async with open_background() as tasks:
            connection = Connection(transport, tasks, handler, on_notification)
            tasks.start_soon(connection.read_all)
            tasks.start_soon(connection.write_all)
            try:
                yield connection
            finally:
                connection.close("it was closed here")
    finally:
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + 2):
            await transport.aclose()
