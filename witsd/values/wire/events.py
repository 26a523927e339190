"""``events/*`` and the notifications a subscriber gets."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from witsd.values.wire.agents import Agent
from witsd.values.wire.common import UNSET, Timestamp, UnsetType
from witsd.values.wire.runs import Run
from witsd.values.wire.sessions import Session

Seq = Annotated[int, Meta(ge=0)]


class SincePos(Struct, frozen=True, kw_only=True):
    """Everything after this global position, also on streams born since."""

    pos: Seq


class EventsSubscribeParams(Struct, frozen=True, kw_only=True):
    """``streams`` are patterns such as ``run:*``; ``since`` maps streams to the last seq applied, or is ``{pos}``."""

    streams: Annotated[tuple[str, ...], Meta(min_length=1, max_length=100)]
    since: dict[str, Seq] | None = None
    epoch: str | None = None
    types: tuple[str, ...] | None = None
    snapshot: bool = False


class Snapshot(Struct, frozen=True, kw_only=True):
    """The state that the streams asked for describe, as of the result's ``pos``."""

    agents: tuple[Agent, ...]
    runs: tuple[Run, ...]
    sessions: tuple[Session, ...]


class EventsSubscribeResult(Struct, frozen=True, kw_only=True):
    """``pos``: what follows comes after it. ``resync``: part of what was asked for is gone, use ``snapshot``."""

    subscription_id: str
    cursors: dict[str, int]
    pos: int
    resync: bool
    epoch: str
    snapshot: Snapshot | UnsetType = UNSET


class EventsUnsubscribeParams(Struct, frozen=True, kw_only=True):
    subscription_id: str


class EventsReadParams(Struct, frozen=True, kw_only=True):
    stream: str
    after_seq: Seq = 0
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class Event(Struct, frozen=True, kw_only=True):
    """An event as read back; ``first_seq`` where it stands for a compacted range."""

    stream: str
    time: Timestamp
    type: str
    data: Any
    seq: int | UnsetType = UNSET
    pos: int | UnsetType = UNSET
    first_seq: int | UnsetType = UNSET


class EventsReadResult(Struct, frozen=True, kw_only=True):
    """``next_seq`` is the ``after_seq`` of the next call."""

    events: tuple[Event, ...]
    next_seq: int


class EventNotification(Struct, frozen=True, kw_only=True):
    """Params of ``notifications/event``. What is only of the moment (typing) has no ``seq`` and no ``pos``."""

    subscription_id: str
    stream: str
    time: Timestamp
    type: str
    data: Any
    seq: int | UnsetType = UNSET
    pos: int | UnsetType = UNSET
    first_seq: int | UnsetType = UNSET


class LaggedNotification(Struct, frozen=True, kw_only=True):
    """Params of ``notifications/lagged``: the subscription is over; subscribe again with ``since: {pos}``."""

    subscription_id: str
    stream: str
    seq: int
    pos: int
