"""``events/*``: snapshot, cursor and tail in one call, and what keeps each subscriber gap-free.

A subscription first replays what its cursor has missed, page by page from the database, then walks the
hub's ring. It waits for its own connection only: when the ring overtakes it, the subscriber is told
(``notifications/lagged``), the subscription ends, and it comes back with the ``pos`` it got.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Protocol

import apsw
import attrs
import msgspec
import trio

from witsd.journal.event import Event
from witsd.journal.hub import Hub
from witsd.journal.journal import Journal
from witsd.journal.reading import (
    Backlog,
    bounds,
    is_exact,
    matches_any,
    plan,
    position,
    read_all,
    read_stream,
)
from witsd.values.actor import Actor
from witsd.values.clock import rfc3339
from witsd.values.errors import InvalidParams, LimitExceeded, NotFound, PermissionDenied, ResyncRequired
from witsd.values.ids import Ids, SubscriptionId
from witsd.values.wire import events as wire
from witsd.values.wire.common import UNSET, Empty

log = logging.getLogger("witsd.events")

#: Events read from the database, or sent in one go.
PAGE = 500
#: The same in bytes of event data, counted until it is reached: a single event may have megabytes.
PAGE_BYTES = 1 << 20
#: Subscriptions one connection may hold.
MAX_SUBSCRIPTIONS = 64
#: Stream names a subscription remembers as matching or not.
_REMEMBERED = 10_000

_encode = msgspec.json.Encoder().encode


class Subscriber(Protocol):
    """The part of a connection that a subscription needs."""

    async def send(self, message: bytes) -> None: ...
    async def send_many(self, messages: Sequence[bytes]) -> None: ...
    def on_close(self, callback: Callable[[], None]) -> None: ...


class LogSource(Protocol):
    """Where ``log:<agent>`` lines come from: files, not the journal."""

    def follow(self, stream: str, after_seq: int | None) -> AsyncGenerator[Sequence[Event], None]:
        """Yield lines after ``after_seq`` (None: from now on), for ever."""

    def last_seq(self, stream: str) -> int:
        """The number of the newest line."""


TakeSnapshot = Callable[[apsw.Connection, Sequence[str], Actor], wire.Snapshot]
#: The last one is a database to look into where that may be waited for.
MayRead = Callable[[Actor, str, apsw.Connection | None], bool]


@attrs.define(eq=False)
class _Subscription:
    id: SubscriptionId
    patterns: tuple[str, ...]
    types: frozenset[str] | None
    visible: Callable[[str], bool]
    #: The patterns that name one stream, which was found to be readable.
    named: frozenset[str]
    prefix: bytes
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    #: The last event looked at, for ``lagged``, and the position to come back with. While several streams are
    #: replayed one after the other that is where the subscription began; by seqs, 0: these alone lead back.
    last: tuple[str, int, int] = ("", 0, 0)
    _known: dict[str, bool] = attrs.field(factory=dict)

    def wants(self, event: Event) -> bool:
        wanted = self._known.get(event.stream)
        if wanted is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            wanted = event.stream in self.named or (
                matches_any(event.stream, self.patterns) and self.visible(event.stream)
            )
            self._known[event.stream] = wanted
        return wanted and (self.types is None or event.type in self.types)

    def message(self, event: Event) -> bytes:
        return b"%b%b}}" % (self.prefix, event.wire())


@attrs.define(eq=False)
class Events:
    """The service. Made by ``open_events``, whose nursery runs the subscriptions."""

    _journal: Journal
    _ids: Ids
    _logs: LogSource
    _snapshot: TakeSnapshot
    _may_read: MayRead
    _nursery: trio.Nursery
    _held: dict[Subscriber, dict[SubscriptionId, _Subscription]] = attrs.field(factory=dict)

    async def subscribe(
        self,
        actor: Actor,
        params: wire.EventsSubscribeParams,
        connection: Subscriber,
        answered: trio.Event,
    ) -> wire.EventsSubscribeResult:
        """Start a subscription; its events follow once ``answered`` is set."""
        if params.epoch is not None and params.epoch != self._journal.epoch:
            raise ResyncRequired("that cursor comes from another database: subscribe without 'since'", first_seq=1)
        if len(self._held.get(connection, ())) >= MAX_SUBSCRIPTIONS:
            raise LimitExceeded(
                "too many subscriptions on one connection: end one with events/unsubscribe",
                limit="subscriptions",
                value=MAX_SUBSCRIPTIONS,
            )
        logs = tuple(p for p in params.streams if p.startswith("log:"))
        if any(not is_exact(p) for p in logs):
            raise InvalidParams("name the log to follow, as in log:NAME", path="params.streams")
        patterns = tuple(p for p in params.streams if not p.startswith("log:"))
        if actor.agent is not None and not all(map(is_exact, patterns)):
            raise PermissionDenied(
                f"{actor.label} names each stream it reads: a pattern would show others' too", needs="stream"
            )
        since, since_pos = _since(params)
        log_since = {p: since[p] for p in logs if since and p in since}

        def look(db: apsw.Connection) -> tuple[Backlog, bool, int, dict[str, int], wire.Snapshot | None]:
            for pattern in filter(is_exact, params.streams):
                self._check(actor, pattern, db)
            backlog, resync = plan(db, patterns, since, since_pos)
            snapshot = self._snapshot(db, patterns, actor) if params.snapshot or resync else None
            named = {*filter(is_exact, patterns), *backlog.cursors}
            ends = {name: bounds(db, name).last_seq for name in named}
            return backlog, resync, position(db)[0], ends, snapshot

        backlog, resync, pos, cursors, snapshot = await self._journal.store.read(look)
        cursors |= {p: self._logs.last_seq(p) for p in logs}
        subscription_id = SubscriptionId(self._ids.new("sub"))
        subscription = _Subscription(
            id=subscription_id,
            patterns=patterns,
            types=None if params.types is None else frozenset(params.types),
            visible=lambda stream: self._may_read(actor, stream, None),
            named=frozenset(filter(is_exact, patterns)),
            prefix=(
                b'{"jsonrpc":"2.0","method":"notifications/event","params":{"subscription_id":%b,'
                % _encode(subscription_id)
            ),
        )
        if connection not in self._held:
            self._held[connection] = {}
            connection.on_close(lambda: self._drop(connection))
        self._held[connection][subscription_id] = subscription
        if resync:
            backlog = Backlog({}, None)
        subscription.last = ("", 0, _resume_at(backlog, since_pos, pos))
        self._nursery.start_soon(
            self._serve, connection, subscription, backlog, pos, dict(cursors), answered, logs, log_since
        )
        return wire.EventsSubscribeResult(
            subscription_id=subscription_id,
            cursors=cursors,
            pos=pos,
            resync=resync,
            epoch=self._journal.epoch,
            snapshot=UNSET if snapshot is None else snapshot,
        )

    async def unsubscribe(self, actor: Actor, params: wire.EventsUnsubscribeParams, connection: Subscriber) -> Empty:
        held = self._held.get(connection, {})
        subscription = held.get(SubscriptionId(params.subscription_id))
        if subscription is None:
            raise NotFound(
                f"this connection has no subscription {params.subscription_id!r}",
                kind="subscription",
                id=params.subscription_id,
            )
        subscription.scope.cancel()
        return Empty()

    async def read(self, actor: Actor, params: wire.EventsReadParams) -> wire.EventsReadResult:
        """A page of one stream. Raises ``ResyncRequired`` when it would begin before what is kept."""

        def look(db: apsw.Connection) -> list[Event]:
            self._check(actor, params.stream, db)
            kept = bounds(db, params.stream)
            if params.after_seq + 1 < kept.first_seq or params.after_seq > kept.last_seq:
                raise ResyncRequired(
                    f"{params.stream} holds {kept.first_seq} to {kept.last_seq}: "
                    f"read with after_seq from {kept.first_seq - 1}",
                    stream=params.stream,
                    first_seq=kept.first_seq,
                )
            return read_stream(db, params.stream, params.after_seq, position(db)[0], params.limit, PAGE_BYTES)

        events = await self._journal.store.read(look)
        return wire.EventsReadResult(
            events=tuple(_as_wire(event) for event in events),
            next_seq=events[-1].seq if events else params.after_seq,
        )

    def _check(self, actor: Actor, stream: str, db: apsw.Connection) -> None:
        if not self._may_read(actor, stream, db):
            raise PermissionDenied(f"{actor.label} may not read {stream}", needs=f"stream:{stream}")

    def _drop(self, connection: Subscriber) -> None:
        for subscription in self._held.pop(connection, {}).values():
            subscription.scope.cancel()

    # ---- one task a subscription ----------------------------------------------------------------------

    async def _serve(
        self,
        connection: Subscriber,
        subscription: _Subscription,
        backlog: Backlog,
        pos: int,
        ends: dict[str, int],
        answered: trio.Event,
        logs: tuple[str, ...],
        log_since: dict[str, int],
    ) -> None:
        try:
            with subscription.scope:
                await answered.wait()
                async with trio.open_nursery() as nursery:
                    for stream in logs:
                        nursery.start_soon(self._follow_log, connection, subscription, stream, log_since.get(stream))
                    if subscription.patterns and not await self._live(connection, subscription, backlog, pos, ends):
                        await self._say_lagged(connection, subscription)
                        nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the connection is gone, and with it whoever would want to know
        except* Exception:  # the boundary: a disk that cannot be read ends this subscription and no other
            log.exception("events.subscription_failed subscription=%s", subscription.id)
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._say_lagged(connection, subscription)
        finally:
            held = self._held.get(connection)
            if held is not None:
                held.pop(subscription.id, None)

    async def _live(
        self,
        connection: Subscriber,
        subscription: _Subscription,
        backlog: Backlog,
        pos: int,
        ends: dict[str, int],
    ) -> bool:
        """Replay, then follow the ring. Returns False when the subscriber has been overtaken.

        ``ends`` says where each stream stood at ``pos``.
        """
        hub = self._journal.hub
        if backlog.after_pos is not None:
            pos = backlog.after_pos
        alone = len(backlog.cursors) == 1
        for stream, seq in backlog.cursors.items():
            if not await self._replay_stream(connection, subscription, stream, seq, pos, ends[stream], alone):
                return False
        subscription.last = (*subscription.last[:2], pos)
        place = await self._replay_all(connection, subscription, pos)
        if place is None:
            return False
        index, pos = place
        while True:
            if index == hub.end:
                await hub.wait()
            if index < hub.start:
                return False
            end = min(hub.end, index + PAGE)
            out = []
            size = 0
            wants, message = subscription.wants, subscription.message
            for event in hub.slice(index, end):
                index += 1
                if event.pos and event.pos <= pos:
                    continue  # read from the database before it was published
                if wants(event):
                    out.append(message(event))
                    if event.pos:  # what is only of the moment leads nowhere
                        subscription.last = (event.stream, event.seq, event.pos)
                    size += len(event.data)
                    if size >= PAGE_BYTES:
                        break
            if out:
                await connection.send_many(out)

    async def _replay_stream(
        self,
        connection: Subscriber,
        subscription: _Subscription,
        stream: str,
        seq: int,
        pos: int,
        end: int,
        alone: bool,
    ) -> bool:
        """Send what of one stream lies after ``seq`` and not beyond ``pos``, where its last seq was ``end``."""
        while True:
            page = await self._journal.store.read(
                lambda db, after=seq: read_stream(db, stream, after, pos, PAGE, PAGE_BYTES)  # type: ignore[misc]
            )
            if not page:
                # Short of the end: the rest has been folded into an event beyond `pos`.
                return seq >= end
            for event in page:
                if (event.first_seq or event.seq) > seq + 1:
                    return False  # retention has overtaken the replay
                seq = event.seq
            out = [subscription.message(event) for event in page if subscription.wants(event)]
            if out:
                await connection.send_many(out)
            subscription.last = (stream, seq, page[-1].pos if alone else subscription.last[2])

    async def _replay_all(
        self, connection: Subscriber, subscription: _Subscription, after_pos: int
    ) -> tuple[int, int] | None:
        """Replay by position until the ring takes over; returns the slot and the position to go on from.

        None: retention has overtaken the replay.
        """

        def look(db: apsw.Connection) -> tuple[list[Event], int, int]:
            return read_all(db, after_pos, PAGE, PAGE_BYTES), *position(db)

        at_end = True
        while True:
            # The ring takes over only where all that the database had has been sent: between two pages
            # deltas may be folded into an event of the next one, and the ring holds the half of them.
            index = self._journal.hub.index_after(after_pos) if at_end else None
            if index is not None:
                return index, after_pos
            page, last_pos, trimmed_pos = await self._journal.store.read(look)
            if after_pos < trimmed_pos:
                return None
            at_end = not page or page[-1].pos >= last_pos
            after_pos = last_pos if at_end else page[-1].pos
            out = [subscription.message(event) for event in page if subscription.wants(event)]
            if out:
                await connection.send_many(out)
            stream, seq = (page[-1].stream, page[-1].seq) if page else subscription.last[:2]
            subscription.last = (stream, seq, after_pos)

    async def _follow_log(
        self, connection: Subscriber, subscription: _Subscription, stream: str, after_seq: int | None
    ) -> None:
        async with aclosing(self._logs.follow(stream, after_seq)) as followed:
            async for lines in followed:
                await connection.send_many([subscription.message(line) for line in lines])

    async def _say_lagged(self, connection: Subscriber, subscription: _Subscription) -> None:
        stream, seq, pos = subscription.last
        params = wire.LaggedNotification(subscription_id=subscription.id, stream=stream, seq=seq, pos=pos)
        await connection.send(b'{"jsonrpc":"2.0","method":"notifications/lagged","params":%b}' % _encode(params))


def _resume_at(backlog: Backlog, since_pos: int | None, pos: int) -> int:
    """The position up to which nothing is owed before the first event of ``backlog`` has been sent."""
    if backlog.empty:
        return pos
    return 0 if since_pos is None else since_pos


def _since(params: wire.EventsSubscribeParams) -> tuple[dict[str, int] | None, int | None]:
    """``since`` is ``{pos}`` or ``{stream: seq}``; no stream is called ``pos``."""
    if params.since is None:
        return None, None
    if "pos" in params.since:
        if len(params.since) > 1:
            raise InvalidParams("give either pos or streams, not both", path="params.since")
        return None, params.since["pos"]
    return dict(params.since), None


def _as_wire(event: Event) -> wire.Event:
    return wire.Event(
        stream=event.stream,
        time=rfc3339(event.time_us),
        type=event.type,
        data=msgspec.Raw(event.data),
        seq=event.seq,
        pos=event.pos,
        first_seq=UNSET if event.first_seq is None else event.first_seq,
    )


@asynccontextmanager
async def open_events(
    journal: Journal, ids: Ids, logs: LogSource, snapshot: TakeSnapshot, may_read: MayRead
) -> AsyncIterator[Events]:
    """Run subscriptions for as long as the block lasts."""
    async with trio.open_nursery() as nursery:
        yield Events(journal, ids, logs, snapshot, may_read, nursery)
        nursery.cancel_scope.cancel()


__all__ = ["Events", "Hub", "open_events"]
