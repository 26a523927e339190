"""The protocol as a document: what ``rpc.discover`` answers and ``protocol/`` is generated from.

Everything here is derived from the method table, the wire types, the event types and the errors; a
method or a field is never described a second time. Nothing is built until it is asked for.
"""

from __future__ import annotations

import functools
import inspect
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, cast

import attrs
import msgspec

from witsd.rpc.methods import Method, Services, method_table
from witsd.values import items as i
from witsd.values.wire import events as e
from witsd.values.wire import native as n
from witsd.values.wire.common import Empty
from witsd.values.wire.event_types import EVENT_TYPES
from witsd.values.wire.notify import CancelledNotification, ProgressNotification

Direction = Literal["to_client", "to_daemon", "to_agent", "both"]

#: Where a schema refers to another one, in the OpenRPC document.
REF = "#/components/schemas/{name}"


@attrs.frozen
class Message:
    """A message that is not in the method table; ``result`` None makes it a notification."""

    name: str
    direction: Direction
    params: type
    result: type | None
    summary: str


#: What the daemon tells any client.
NOTIFICATIONS = (
    Message("notifications/event", "to_client", e.EventNotification, None, "An event of a subscription"),
    Message("notifications/lagged", "to_client", e.LaggedNotification, None,
            "The subscription fell behind and is over"),
    Message("notifications/progress", "to_client", ProgressNotification, None, "How a request is going"),
    Message("notifications/cancelled", "both", CancelledNotification, None, "A request is no longer wanted"),
)

#: What the daemon and a native agent say to each other over the agent's stdin and stdout.
NATIVE = (
    Message("initialize", "to_agent", n.AgentInitializeParams, n.AgentInitializeResult,
            "Who the agent is to the daemon; the answer makes it active"),
    Message("runs/execute", "to_agent", n.RunsExecuteParams, n.RunsExecuteResult,
            "Do a piece of work; the result ends the run"),
    Message("ping", "to_agent", n.PingParams, n.PingResult, "Proof of life, answered by the work loop"),
    Message("shutdown", "to_agent", Empty, Empty, "Finish and exit"),
    Message("notifications/session_closed", "to_agent", n.SessionClosedNotification, None,
            "A conversation is over"),
    Message("notifications/item", "to_daemon", n.ItemNotification, None, "Insert or replace an item of a run"),
    Message("notifications/delta", "to_daemon", n.DeltaNotification, None, "Append to an item's text"),
)

ITEM_TYPES: tuple[type, ...] = typing.get_args(i.Item)


def methods() -> dict[str, Method]:
    """The method table without services behind it: good for reading, not for calling."""
    return method_table(cast(Services, None))


def wire_types() -> tuple[type, ...]:
    """Every class that travels at the top of a message or an event, each once, in a fixed order."""
    found: dict[type, None] = {}
    for method in methods().values():
        found.update({method.params: None, method.result: None})
    for message in (*NOTIFICATIONS, *NATIVE):
        found[message.params] = None
        if message.result is not None:
            found[message.result] = None
    found.update(dict.fromkeys(EVENT_TYPES.values()))
    found.update(dict.fromkeys(ITEM_TYPES))
    found.pop(dict, None)
    return tuple(found)


def fields(cls: type) -> tuple[str, ...]:
    """The field names of a wire type, in wire order."""
    if issubclass(cls, msgspec.Struct):
        return cls.__struct_encode_fields__
    return tuple(field.name for field in attrs.fields(cast(Any, cls)))


@functools.cache
def comments(cls: type) -> Mapping[str, str]:
    """What ``#:`` comments above a class's fields say; nothing where there is no source to read."""
    found: dict[str, str] = {}
    try:
        lines = inspect.getsource(cls).splitlines()
    except (OSError, TypeError):
        return found
    pending: list[str] = []
    for line in lines:
        text = line.strip()
        if text.startswith("#:"):
            pending.append(text[2:].strip())
        elif match := re.match(r"(\w+):", text):
            if pending:
                found[match[1]] = " ".join(pending)
            pending = []
        else:
            pending = []
    return found


def summary(cls: type) -> str:
    """What a class's own docstring says, in one paragraph; empty without one."""
    return " ".join(inspect.cleandoc(cls.__dict__.get("__doc__") or "").split())


def hints(cls: type) -> dict[str, Any]:
    """Field name -> resolved annotation, in wire order."""
    resolved = typing.get_type_hints(cls, include_extras=True)
    return {name: resolved[name] for name in fields(cls)}


def is_object(hint: Any) -> bool:
    """Whether an annotation is a class of ours that is an object on the wire."""
    return isinstance(hint, type) and (issubclass(hint, msgspec.Struct) or attrs.has(hint))


def related(types: Iterable[type]) -> tuple[type, ...]:
    """The given classes and all that their fields mention; what is mentioned comes first."""
    ordered: dict[type, None] = {}

    def visit(hint: Any) -> None:
        for part in typing.get_args(hint):
            visit(part)
        if typing.get_origin(hint) is Annotated:
            visit(hint.__origin__)
        if is_object(hint) and hint not in ordered:
            for field in hints(hint).values():
                visit(field)
            ordered[hint] = None

    for cls in types:
        visit(cls)
    return tuple(ordered)
