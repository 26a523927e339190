"""Every error that may reach a caller, and its code on the wire.

Callers branch on ``code``; ``message`` is for people and may change. ``data`` always carries
``{name, retryable}`` beside the fields named in each class. An exception that is none of these is a
bug: it becomes -32603 with a log id and its text stays in the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class WitsdError(Exception):
    """Base of what a caller may be told. Subclasses fix ``code``, ``name`` and ``retryable``."""

    code: ClassVar[int] = -32603
    name: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, /, *, retryable: bool | None = None, **data: Any) -> None:
        super().__init__(message)
        self.message = message
        self.data: Mapping[str, Any] = {
            "name": self.name,
            "retryable": self.retryable if retryable is None else retryable,
            **data,
        }


class ParseError(WitsdError):
    """The bytes are not JSON."""

    code, name = -32700, "parse_error"


class InvalidRequest(WitsdError):
    """JSON, but not a JSON-RPC 2.0 message."""

    code, name = -32600, "invalid_request"


class MethodNotFound(WitsdError):
    """``data.near`` lists the method whose name resembles it most, where one does."""

    code, name = -32601, "method_not_found"


class InvalidParams(WitsdError):
    """``data.path`` names the field, as in ``params.restart.backoff_s``."""

    code, name = -32602, "invalid_params"


class InternalError(WitsdError):
    """``data.log_id`` finds the details in the daemon's log."""

    code, name = -32603, "internal_error"


class RequestCancelled(WitsdError):
    """The caller sent ``notifications/cancelled`` for this request."""

    code, name = -32800, "cancelled"


class Overloaded(WitsdError):
    """A queue is full; ``data.retry_after_ms`` says when to try again."""

    code, name, retryable = -32001, "overloaded", True


class NotFound(WitsdError):
    """``data.kind`` and ``data.id`` say what is missing."""

    code, name = -32002, "not_found"


class PermissionDenied(WitsdError):
    """``data.needs`` names the scope or grant that is missing."""

    code, name = -32003, "permission_denied"


class Unauthenticated(WitsdError):
    code, name = -32004, "unauthenticated"


class InvalidState(WitsdError):
    """The target exists but cannot do this now; ``data.state`` says what it is in."""

    code, name = -32005, "invalid_state"


class Timeout(WitsdError):
    """Of a run: ``data.limit`` is ``run_timeout_s`` (its agent's definition), ``timeout_s`` (of its start) or
    ``wait`` (it goes on, the wait is over)."""

    code, name, retryable = -32006, "timeout", True


class AgentFailed(WitsdError):
    """An agent broke while serving; ``data.reason`` and, for a run, ``data.run_id``."""

    code, name = -32007, "agent_failed"


class LimitExceeded(WitsdError):
    """``data.limit`` names the limit, ``data.value`` its figure."""

    code, name = -32008, "limit_exceeded"


class Conflict(WitsdError):
    """Another thing holds that name or key."""

    code, name = -32009, "conflict"


class ResyncRequired(WitsdError):
    """A cursor this journal cannot continue; ``data.first_seq`` is the oldest event kept."""

    code, name = -32010, "resync_required"


class ModelError(WitsdError):
    """A model provider failed; ``data.provider`` and ``data.status``."""

    code, name = -32011, "model_error"


def error_types() -> tuple[type[WitsdError], ...]:
    """All error types in code order: the table behind ``protocol/errors.json``."""
    return tuple(sorted(WitsdError.__subclasses__(), key=lambda t: (t.code < -32100, -t.code)))
