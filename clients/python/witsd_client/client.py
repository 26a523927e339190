"""The client: typed calls, subscriptions that go on by themselves, and a connection that comes back."""

from __future__ import annotations

import logging
import os
import random
import weakref
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar, overload

import anyio
import anyio.abc
import msgspec
from msgspec import Raw

from witsd_client import __version__
from witsd_client.answer import Answer, RunStream
from witsd_client.connection import Connection, OnProgress, open_connection
from witsd_client.errors import (
    ClientError,
    ConnectionLost,
    InvalidParams,
    PermissionDenied,
    ProtocolError,
    Unauthenticated,
)
from witsd_client.generated import (
    PROTOCOL_VERSION,
    Api,
    Event,
    InitializeResult,
    LaggedNotification,
    PromptResult,
    RunStarted,
)
from witsd_client.subscription import Subscription
from witsd_client.taskgroups import open_background
from witsd_client.transport import Transport, dial

T = TypeVar("T")
log = logging.getLogger(__name__)

#: Pause before the nth attempt to reconnect: up to ``FIRST * 2**n``, never over ``LONGEST``.
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0
#: How long a call waits for a connection that is being made again.
RECONNECT_TIMEOUT_S = 30.0
#: How long the daemon may take to answer `initialize`. While it is being replaced connections wait in the
#: backlog for as long as runs may still go on (`daemon.grace_s`, 10 s by default) and its agents take to stop.
INITIALIZE_TIMEOUT_S = 60.0
#: Answers after which trying again is no use.
_FINAL = (Unauthenticated, PermissionDenied, ProtocolError, InvalidParams)


class _AddressedEvent(Event, frozen=True, kw_only=True):
    subscription_id: str

    def __repr__(self) -> str:
        # To whoever iterates it is an event; how it found its way is ours.
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in Event.__struct_fields__)
        return f"Event({fields})"


_event = msgspec.json.Decoder(_AddressedEvent)
_lagged = msgspec.json.Decoder(LaggedNotification)


class Client(Api):
    """A connection to the daemon. Made by ``connect``.

    ``client.agents.list()`` and its like are the daemon's methods, typed; ``call`` reaches any by its name.
    Requests in flight when the connection drops raise ``ConnectionLost``: whether they were carried out is
    not known, so repeat those that are safe to repeat (``idempotency_key`` makes them so). Calls made while
    the connection is being made again wait for it.
    """

    def __init__(
        self,
        target: str | os.PathLike[str] | None,
        token: str | None,
        client_name: str,
        client_version: str,
        reconnect_timeout_s: float,
    ) -> None:
        super().__init__(self.call)
        self._target = target
        self._token = token
        self._client_info = {"name": client_name, "version": client_version}
        self._reconnect_timeout_s = reconnect_timeout_s
        self._tasks: anyio.abc.TaskGroup | None = None
        self._connection: Connection | None = None
        self._changed = anyio.Event()
        self._over: ClientError | None = None
        self._feeds: dict[str, weakref.ref[Subscription]] = {}
        self._ended: set[str] = set()
        #: What the daemon said of itself at the latest connection.
        self.server: InitializeResult | None = None

    # ---- calls ----------------------------------------------------------------------------------------

    @overload
    async def call(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        progress: OnProgress | None = None,
        timeout_s: float | None = None,
    ) -> Any: ...
    @overload
    async def call(
        self,
        method: str,
        params: Mapping[str, Any] | None,
        result_type: type[T],
        *,
        progress: OnProgress | None = None,
        timeout_s: float | None = None,
    ) -> T: ...
    async def call(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        result_type: Any = Any,
        *,
        progress: OnProgress | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """Call any method by name and decode its result as ``result_type``.

        ``progress`` is called, and awaited where it is async, for each piece of progress. ``timeout_s``
        bounds the wait for the answer. A caller that is cancelled cancels the call in the daemon too.
        """
        connection = await self._ready()
        return await connection.request(
            method, params or {}, result_type, progress=progress, timeout_s=timeout_s
        )

    # ---- events ---------------------------------------------------------------------------------------

    def subscribe(
        self,
        streams: str | Sequence[str],
        since: Mapping[str, int] | None = None,
        types: Sequence[str] | None = None,
        snapshot: bool = False,
        *,
        epoch: str | None = None,
    ) -> Subscription:
        """Follow streams (patterns such as ``run:*``), from now on or from ``since``.

        ``since`` is ``{"pos": n}`` or ``{stream: seq}``; with a cursor kept from an earlier process give its
        ``epoch`` too. With ``snapshot`` the first thing yielded is a ``Resync`` with the present state.
        """
        names = [streams] if isinstance(streams, str) else list(streams)
        return Subscription(self, names, since, epoch, types, snapshot)

    def stream_run(self, run_id: str) -> RunStream:
        """Every event of a run from its beginning to its end."""
        return RunStream(self, run_id)

    def ask(
        self,
        agent: str,
        text: str,
        cwd: str | None = None,
        session_id: str | None = None,
    ) -> Answer:
        """Ask an agent, and iterate over the text of its answer as it is produced.

        With ``session_id`` it is a turn of that conversation. The work begins when iteration does.
        """

        async def begin() -> str:
            if session_id is not None:
                params: dict[str, Any] = {"session_id": session_id, "text": text}
                if cwd is not None:
                    params["cwd"] = cwd
                return (await self.call("sessions/prompt", params, PromptResult)).run_id
            given = {"text": text} if cwd is None else {"text": text, "cwd": cwd}
            return (await self.call("runs/start", {"agent": agent, "input": given}, RunStarted)).run_id

        return Answer(self, begin)

    # ---- the connection -------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether a call made now would go out at once."""
        return self._connection is not None

    @property
    def epoch(self) -> str:
        """Which database the daemon serves: a cursor is good for one epoch only."""
        return self.server.epoch if self.server else ""

    async def wait_connected(self) -> None:
        """Return when there is a connection, however long it takes.

        Raises the daemon's refusal when trying again is no use, and ``ConnectionLost`` once closed.
        """
        await self._wait_connection()

    async def _wait_connection(self) -> Connection:
        while True:
            if self._over is not None:
                raise self._over
            if self._connection is not None and not self._connection.closed:
                return self._connection
            await self._changed.wait()

    async def _ready(self) -> Connection:
        if self._connection is not None and not self._connection.closed:
            return self._connection
        with anyio.move_on_after(self._reconnect_timeout_s):
            return await self._wait_connection()
        raise ConnectionLost(f"no connection to the daemon for {self._reconnect_timeout_s:g} s")

    def _set(self, connection: Connection | None) -> None:
        self._connection = connection
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    async def serve(
        self,
        transport: Transport,
        tasks: anyio.abc.TaskGroup,
        *,
        task_status: anyio.abc.TaskStatus[ClientError | None],
    ) -> None:
        """Keep a connection for as long as the client lives. ``started`` tells how the first one went."""
        self._tasks = tasks
        first = True
        attempt = 0
        next_transport: Transport | None = transport
        while True:
            try:
                if next_transport is None:
                    next_transport = await dial(self._target)
                opened, next_transport = next_transport, None
                async with open_connection(opened, on_notification=self._notified) as connection:
                    await self._initialize(connection)
                    attempt = 0
                    self._set(connection)
                    if first:
                        first = False
                        task_status.started(None)
                    await connection.wait_closed()
            except (ClientError, OSError) as error:
                failure = error if isinstance(error, ClientError) else ConnectionLost(str(error))
                if first:
                    task_status.started(failure)
                    return
                if isinstance(failure, _FINAL):
                    self._over = failure
                    self._lose()
                    return
                log.debug("not connected: %s", failure)
            self._lose()
            pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt)
            attempt = min(attempt + 1, 16)
            await anyio.sleep(random.uniform(0, pause))  # noqa: S311 - spreads clients, keeps no secret

    async def _initialize(self, connection: Connection) -> None:
        params: dict[str, Any] = {
            "protocol_version": PROTOCOL_VERSION,
            "client_info": self._client_info,
            "capabilities": {},
        }
        if self._token is not None:
            params["token"] = self._token
        try:
            result = await connection.request(
                "initialize", params, InitializeResult, timeout_s=INITIALIZE_TIMEOUT_S
            )
        except ConnectionLost:
            if connection.parting_error is not None:
                raise connection.parting_error from None
            raise
        connection.set_limits(
            message_bytes=result.limits.message_bytes, in_flight=result.limits.in_flight
        )
        self.server = result

    def _lose(self) -> None:
        self._set(None)
        feeds, self._feeds, self._ended = self._feeds, {}, set()
        for ref in feeds.values():
            if (feed := ref()) is not None:
                feed.disconnected()

    def close(self) -> None:
        """Nothing works after this."""
        self._over = self._over or ConnectionLost("this client is closed")
        self._lose()

    # ---- for subscriptions ----------------------------------------------------------------------------

    async def subscribe_call(self, params: Mapping[str, Any], on_answer: Callable[[Raw], None]) -> None:
        """``events/subscribe``; ``on_answer`` runs before any event of the subscription is handled."""
        connection = await self._wait_connection()
        await connection.request("events/subscribe", params, on_answer=on_answer)

    def add_feed(self, wire_id: str, feed: Subscription) -> None:
        self._feeds[wire_id] = weakref.ref(feed)

    def forget_feed(self, wire_id: str) -> None:
        self._feeds.pop(wire_id, None)
        self._ended.add(wire_id)

    def drop_feed(self, wire_id: str) -> None:
        """Forget a subscription and have the daemon end it, without waiting."""
        self.forget_feed(wire_id)
        if self._connection is not None and self._tasks is not None:
            self._tasks.start_soon(self._unsubscribe, wire_id)

    async def _unsubscribe(self, wire_id: str) -> None:
        try:
            await self.call("events/unsubscribe", {"subscription_id": wire_id})
        except ClientError:
            pass  # it has ended by itself, or with its connection
        self._ended.discard(wire_id)

    def _notified(self, method: str, params: Raw) -> None:
        if method == "notifications/event":
            event = _event.decode(params)
            ref = self._feeds.get(event.subscription_id)
            feed = ref() if ref is not None else None
            if feed is not None:
                feed.put(event, len(params))
            elif event.subscription_id not in self._ended:
                # Nobody iterates any more, or whoever subscribed was cancelled before the answer came.
                self.drop_feed(event.subscription_id)
        elif method == "notifications/lagged":
            lagged = _lagged.decode(params)
            ref = self._feeds.pop(lagged.subscription_id, None)
            feed = ref() if ref is not None else None
            if feed is not None:
                feed.lagged(lagged.pos)


@asynccontextmanager
async def connect(
    target: str | os.PathLike[str] | None = None,
    *,
    token: str | None = None,
    client_name: str = "witsd-client",
    client_version: str = __version__,
    reconnect_timeout_s: float = RECONNECT_TIMEOUT_S,
) -> AsyncIterator[Client]:
    """Connect to the daemon for as long as the block lasts, again after each drop.

    ``target`` is a socket's path or a ``ws://127.0.0.1:9487/ws`` URL; None means this machine's daemon. A
    ``token`` is needed over a WebSocket and goes in the first message, never into the URL.

    Raises ``DaemonNotRunning`` when nobody answers at first, and what the daemon answers to `initialize`.
    """
    transport = await dial(target)
    client = Client(target, token, client_name, client_version, reconnect_timeout_s)
    async with open_background() as tasks:
        failure = await tasks.start(client.serve, transport, tasks)
        if failure is not None:
            raise failure
        try:
            yield client
        finally:
            client.close()
