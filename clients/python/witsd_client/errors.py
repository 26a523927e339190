"""What can go wrong: what the daemon answers, and what happens on the way to it.

Branch on the class or on ``code``; messages are for people and may change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class ClientError(Exception):
    """Base of everything this library raises for a reason outside the calling program."""


class ConnectionLost(ClientError):
    """The connection ended before the answer came. Whether the daemon did the work is not known."""


class DaemonNotRunning(ConnectionLost):
    """Nobody answers at ``target``; the message says how to start the daemon."""

    def __init__(self, target: str, reason: str = "") -> None:
        detail = f" ({reason})" if reason else ""
        super().__init__(f"no witsd daemon answers at {target}{detail}: start it with `witsd up`")
        self.target = target
        self.reason = reason


class ProtocolError(ClientError):
    """The other side does not keep to the protocol, or speaks another one."""


class RunFailed(ClientError):
    """A run ended as ``status`` other than completed; ``code`` where it failed with an error."""

    def __init__(
        self, run_id: str, status: str, message: str, code: int | None = None, data: Any = None
    ) -> None:
        super().__init__(message or f"the run was {status}")
        self.run_id = run_id
        self.status = status
        self.code = code
        self.data = data


class RunCancelled(BaseException):
    """In an agent: the run being worked on has been cancelled. Let it pass, like any cancellation.

    No ``Exception``, so that a handler's own ``except Exception`` does not work on against it.
    """


def is_run_cancelled(error: BaseException | None) -> bool:
    """Whether ``error`` is ``RunCancelled``, or a group of nothing else."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(RunCancelled)[1] is None
    return isinstance(error, RunCancelled)


class WitsdError(ClientError):
    """The daemon's answer to a request it refused or could not carry out.

    An agent's handler raises one (any subclass) to end its run with that code and message.
    """

    def __init__(self, code: int, message: str, data: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data: Mapping[str, Any] = dict(data or {})

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return bool(self.data.get("retryable", False))


class _Known(WitsdError):
    """One of the protocol's own errors: the class fixes the code."""

    CODE: ClassVar[int]
    NAME: ClassVar[str]
    RETRYABLE: ClassVar[bool] = False

    def __init__(self, message: str, data: Mapping[str, Any] | None = None) -> None:
        super().__init__(self.CODE, message, {"name": self.NAME, "retryable": self.RETRYABLE, **(data or {})})


class ParseError(_Known):
    """What was sent is no JSON."""

    CODE, NAME = -32700, "parse_error"


class InvalidRequest(_Known):
    """What was sent is no JSON-RPC 2.0 message."""

    CODE, NAME = -32600, "invalid_request"


class MethodNotFound(_Known):
    CODE, NAME = -32601, "method_not_found"


class InvalidParams(_Known):
    """``data["path"]`` names the field."""

    CODE, NAME = -32602, "invalid_params"


class InternalError(_Known):
    """``data["log_id"]`` finds the details in the daemon's log."""

    CODE, NAME = -32603, "internal_error"


class RequestCancelled(_Known):
    CODE, NAME = -32800, "cancelled"


class Overloaded(_Known):
    """``data["retry_after_ms"]`` says when to try again."""

    CODE, NAME, RETRYABLE = -32001, "overloaded", True


class NotFound(_Known):
    """``data["kind"]`` and ``data["id"]`` say what is missing."""

    CODE, NAME = -32002, "not_found"


class PermissionDenied(_Known):
    """``data["needs"]`` names the scope or grant that is missing."""

    CODE, NAME = -32003, "permission_denied"


class Unauthenticated(_Known):
    CODE, NAME = -32004, "unauthenticated"


class InvalidState(_Known):
    """``data["state"]`` says what the target is in."""

    CODE, NAME = -32005, "invalid_state"


class Timeout(_Known):
    """No answer in time: the daemon's limit, or this client's ``timeout_s``."""

    CODE, NAME, RETRYABLE = -32006, "timeout", True


class AgentFailed(_Known):
    """``data["reason"]`` and, for a run, ``data["run_id"]``."""

    CODE, NAME = -32007, "agent_failed"


class LimitExceeded(_Known):
    """``data["limit"]`` names the limit, ``data["value"]`` its figure."""

    CODE, NAME = -32008, "limit_exceeded"


class Conflict(_Known):
    CODE, NAME = -32009, "conflict"


class ResyncRequired(_Known):
    """A cursor the journal cannot continue; ``data["first_seq"]`` is the oldest event kept."""

    CODE, NAME = -32010, "resync_required"


class ModelError(_Known):
    """``data["provider"]`` and ``data["status"]``."""

    CODE, NAME = -32011, "model_error"


#: Code -> class, for every error the protocol names.
ERROR_CLASSES: Mapping[int, type[_Known]] = {cls.CODE: cls for cls in _Known.__subclasses__()}


def error_from_wire(code: int, message: str, data: Any = None) -> WitsdError:
    """The error behind a JSON-RPC error object; an unknown code stays a plain ``WitsdError``."""
    fields = data if isinstance(data, Mapping) else {} if data is None else {"data": data}
    known = ERROR_CLASSES.get(code)
    return known(message, fields) if known else WitsdError(code, message, fields)
