"""Talk to witsd, and write agents for it.

Names are loaded when they are first used, so that ``witsd_client.paths`` costs nothing to those who
want nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from witsd_client.agent import Agent
    from witsd_client.answer import Answer
    from witsd_client.client import Client, connect
    from witsd_client.errors import (
        AgentFailed,
        ClientError,
        Conflict,
        ConnectionLost,
        DaemonNotRunning,
        InternalError,
        InvalidParams,
        InvalidRequest,
        InvalidState,
        LimitExceeded,
        MethodNotFound,
        ModelError,
        NotFound,
        Overloaded,
        ParseError,
        PermissionDenied,
        ProtocolError,
        RequestCancelled,
        ResyncRequired,
        RunCancelled,
        RunFailed,
        Timeout,
        Unauthenticated,
        WitsdError,
    )
    from witsd_client.generated import Event
    from witsd_client.messages import Progress
    from witsd_client.paths import Paths
    from witsd_client.run import Run
    from witsd_client.session import Message, Session
    from witsd_client.subscription import Resync, Subscription
    from witsd_client.threads import SyncMessage, SyncRun, SyncSession

__version__ = "0.1.0"

_HOME = {
    "Agent": "agent",
    "Answer": "answer",
    "Client": "client",
    "connect": "client",
    "Progress": "messages",
    "Event": "generated",
    "Paths": "paths",
    "Run": "run",
    "Message": "session",
    "Session": "session",
    "Resync": "subscription",
    "Subscription": "subscription",
    "SyncMessage": "threads",
    "SyncRun": "threads",
    "SyncSession": "threads",
}

__all__ = [
    "Agent",
    "AgentFailed",
    "Answer",
    "Client",
    "ClientError",
    "Conflict",
    "ConnectionLost",
    "DaemonNotRunning",
    "Event",
    "InternalError",
    "InvalidParams",
    "InvalidRequest",
    "InvalidState",
    "LimitExceeded",
    "Message",
    "MethodNotFound",
    "ModelError",
    "NotFound",
    "Overloaded",
    "ParseError",
    "Paths",
    "PermissionDenied",
    "Progress",
    "ProtocolError",
    "RequestCancelled",
    "Resync",
    "ResyncRequired",
    "Run",
    "RunCancelled",
    "RunFailed",
    "Session",
    "Subscription",
    "SyncMessage",
    "SyncRun",
    "SyncSession",
    "Timeout",
    "Unauthenticated",
    "WitsdError",
    "connect",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
