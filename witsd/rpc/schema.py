"""The protocol as a document: what ``rpc.discover`` answers and ``protocol/`` is generated from.

Everything here is derived from the method table, the wire types, the event types and the errors; a
method or a field is never described a second time. Nothing is built until it is asked for.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, cast

import msgspec

from witsd.rpc.methods import Method, Services, method_table
from witsd.values import items as i
from witsd.values.errors import WitsdError, error_types
from witsd.values.wire import events as e
from witsd.values.wire import models as m
from witsd.values.wire import native as n
from witsd.values.wire import tools as t
from witsd.values.wire.common import Empty
from witsd.values.wire.event_types import EVENT_TYPES
from witsd.values.wire.notify import CancelledNotification, ProgressNotification
from witsd.values.wire.system import PROTOCOL_VERSION

Direction = Literal["to_client", "to_daemon", "to_agent", "both"]

#: Where a schema refers to another one, in the OpenRPC document.
REF = "#/components/schemas/{name}"


class Message(msgspec.Struct, frozen=True):
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
    Message("models/complete", "to_agent", m.ModelsCompleteParams, m.ModelsCompleteResult,
            "Answer a call of a model; for agents whose capabilities say completions"),
    Message("models/embed", "to_agent", m.ModelsEmbedParams, m.ModelsEmbedResult,
            "Texts as vectors; for agents whose capabilities say embeddings"),
    Message("tools/call", "to_agent", t.AgentToolCallParams, t.ToolsCallResult,
            "Run a tool that the agent offered at initialize"),
    Message("ping", "to_agent", n.PingParams, n.PingResult, "Proof of life, answered by the work loop"),
    Message("shutdown", "to_agent", Empty, Empty, "Finish and exit"),
    Message("notifications/session_closed", "to_agent", n.SessionClosedNotification, None,
            "A conversation is over"),
    Message("notifications/item", "to_daemon", n.ItemNotification, None,
            "Insert or replace an item of a run"),
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
    return cast(type[msgspec.Struct], cls).__struct_encode_fields__


def defaults(cls: type) -> dict[str, Any]:
    """Field name -> default, of the fields that may be left out; factories are called."""
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(cast(type[msgspec.Struct], cls)):
        if field.default_factory is not msgspec.NODEFAULT:
            found[field.name] = field.default_factory()
        elif field.default is not msgspec.NODEFAULT:
            found[field.name] = field.default
    return found


def comments(cls: type) -> Mapping[str, str]:
    """What ``#:`` comments above a class's fields say; nothing where there is no source to read."""
    return _module_comments(cls.__module__).get(cls.__name__, {})


@functools.cache
def _module_comments(module: str) -> dict[str, dict[str, str]]:
    """Class -> field -> comment of one module. Read by lines: ``inspect.getsource`` takes 1 ms a class."""
    try:
        source = inspect.getsource(sys.modules[module])
    except (OSError, TypeError):
        return {}
    found: dict[str, dict[str, str]] = {}
    own: dict[str, str] = {}
    pending: list[str] = []
    for line in source.splitlines():
        if match := re.match(r"class (\w+)", line):
            own = found.setdefault(match[1], {})
        text = line.strip()
        if text.startswith("#:"):
            pending.append(text[2:].strip())
            continue
        if pending and line.startswith("    ") and (match := re.match(r"(\w+):", text)):
            own[match[1]] = " ".join(pending)
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
    return isinstance(hint, type) and issubclass(hint, msgspec.Struct)


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


@functools.cache
def openrpc() -> dict[str, Any]:
    """The OpenRPC 1.4 document. Built at the first call; the caller must not change it.

    Beside the standard's own fields a method says ``x-scope`` (what a token needs; absent where any
    caller may), ``x-agents`` (agents may call it, within their grants), ``x-mutates`` (audited) and
    ``x-anonymous``. ``x-witsd-notifications``, ``x-witsd-agent`` and ``x-witsd-events`` hold what
    OpenRPC has no place for: every entry's ``params``, ``result`` and ``data`` is a schema.
    """
    schemas = component_schemas()
    return {
        "openrpc": "1.4.0",
        "info": {
            "title": "witsd",
            "version": PROTOCOL_VERSION,
            "description": "JSON-RPC 2.0 in both directions over a Unix socket, a WebSocket, HTTP and an "
            "agent's stdio. Params the server does not know are ignored.",
            "license": {"name": "MIT"},
        },
        "methods": [_method(method, schemas) for method in methods().values()],
        "components": {"schemas": schemas, "errors": {cls.__name__: error(cls) for cls in error_types()}},
        "x-witsd-notifications": [_message(message) for message in NOTIFICATIONS],
        "x-witsd-agent": [_message(message) for message in NATIVE],
        "x-witsd-events": {name: _ref(cls) for name, cls in EVENT_TYPES.items()},
    }


def component_schemas() -> dict[str, dict[str, Any]]:
    """Class name -> JSON Schema of every wire type, in the order of their names."""
    classes = related(wire_types())
    _, found = msgspec.json.schema_components(classes, ref_template=REF)
    for cls in classes:
        properties = found[cls.__name__].get("properties", {})
        for field, text in comments(cls).items():
            own = properties[field]
            # In draft 7, OpenRPC's, what stands beside a $ref does not count: wrap it.
            own = {"allOf": [own]} if "$ref" in own else own
            properties[field] = own | {"description": text}
        if text := summary(cls):
            found[cls.__name__]["description"] = text
    return dict(sorted(found.items()))


def error(cls: type[WitsdError]) -> dict[str, Any]:
    """An error type as OpenRPC shapes it."""
    data = {"name": cls.name, "retryable": cls.retryable}
    return {"code": cls.code, "message": summary(cls) or cls.name.replace("_", " "), "data": data}


def _ref(cls: type) -> dict[str, str]:
    return {"$ref": REF.format(name=cls.__name__)}


def _method(method: Method, schemas: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    shape = schemas[method.params.__name__]
    required = set(shape.get("required", ()))
    params: list[dict[str, Any]] = []
    for name, own in shape.get("properties", {}).items():
        param = {"name": name, "required": name in required, "schema": own}
        if text := own.get("description"):
            param["description"] = text
        params.append(param)
    result = {"type": "object"} if method.result is dict else _ref(method.result)
    noun = method.name.rpartition("/")[0]
    document: dict[str, Any] = {
        "name": method.name,
        "summary": method.summary,
        "paramStructure": "either",
        "params": params,
        "result": {"name": "result", "schema": result},
        "x-params": _ref(method.params),
        "x-agents": method.agents,
        "x-mutates": method.mutates,
        "x-anonymous": method.anonymous,
    }
    if text := summary(method.params):
        document["description"] = text
    if noun:
        document["tags"] = [{"name": noun}]
    if method.scope is not None:
        document["x-scope"] = method.scope.value
    return document


def _message(message: Message) -> dict[str, Any]:
    document: dict[str, Any] = {
        "name": message.name,
        "summary": message.summary,
        "direction": message.direction,
        "params": _ref(message.params),
    }
    if message.result is not None:
        document["result"] = _ref(message.result)
    return document
