"""JSON-RPC 2.0 messages as bytes and as structs, and a request that waits for its answer."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import anyio
import msgspec
from msgspec import UNSET, Raw, UnsetType

from witsd_client.errors import InternalError, InvalidParams, WitsdError

log = logging.getLogger(__name__)

#: Progress kept apart for a caller that is busy; beyond it, deltas are joined and figures replaced.
MAX_PROGRESS = 256

encode = msgspec.json.Encoder().encode


class Progress(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How a request is going. ``delta`` is the next piece of a text the result will hold in full, ``thought`` of
    the reasoning beside it.
    """

    progress: float | None = None
    total: float | None = None
    message: str | None = None
    delta: str | None = None
    thought: str | None = None


class ErrorObject(msgspec.Struct):
    code: int
    message: str = ""
    data: Any = None


class Envelope(msgspec.Struct, gc=False):
    id: Raw | UnsetType = UNSET
    method: str | UnsetType = UNSET
    params: Raw | UnsetType = UNSET
    result: Raw | UnsetType = UNSET
    error: ErrorObject | None | UnsetType = UNSET


class ProgressParams(Progress, kw_only=True):
    progress_token: Any = None


class CancelledParams(msgspec.Struct):
    request_id: Raw | UnsetType = UNSET
    requestId: Raw | UnsetType = UNSET  # noqa: N815 - MCP's spelling


decode_one = msgspec.json.Decoder(Envelope).decode
decode_batch = msgspec.json.Decoder(list[Raw]).decode
NO_PARAMS = Raw(b"{}")


class Pending:
    """A request waiting for its answer."""

    __slots__ = ("answer", "changed", "done", "method", "on_answer", "progress")

    def __init__(self, method: str, on_answer: Callable[[Raw], None] | None) -> None:
        self.method = method
        self.on_answer = on_answer
        self.progress: deque[Progress] = deque()
        self.answer: Raw | Exception | None = None
        self.done = False
        self.changed = anyio.Event()

    def settle(self, answer: Raw | Exception) -> None:
        if not self.done:
            self.answer, self.done = answer, True
            self.changed.set()

    def add_progress(self, news: Progress) -> None:
        if len(self.progress) >= MAX_PROGRESS:
            last = self.progress[-1]
            last.progress, last.total, last.message = news.progress, news.total, news.message
            if news.delta is not None:
                last.delta = (last.delta or "") + news.delta
            if news.thought is not None:
                last.thought = (last.thought or "") + news.thought
        else:
            self.progress.append(news)
        self.changed.set()


def request_bytes(method: str, params: Any, request_id: int | None = None) -> bytes:
    head = b"" if request_id is None else b'"id":%d,' % request_id
    tail = b"" if params is None else b',"params":%b' % encode(params)
    return b'{"jsonrpc":"2.0",%b"method":%b%b}' % (head, encode(method), tail)


def as_wire_error(method: str, error: Exception) -> WitsdError:
    if isinstance(error, WitsdError):
        return error
    if isinstance(error, msgspec.ValidationError):
        return InvalidParams(str(error))
    log.error("%s failed", method, exc_info=error)
    return InternalError(f"{method} failed: see the log")


def result_bytes(request_id: Raw, result: Any) -> bytes:
    return b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (request_id, encode(result))


def failure_bytes(request_id: Raw, error: WitsdError) -> bytes:
    body = {"code": error.code, "message": error.message, "data": error.data}
    return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (request_id, encode(body))
