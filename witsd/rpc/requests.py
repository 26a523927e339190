"""Requests of ours that the other side answers."""

from __future__ import annotations

import logging
from typing import TypeVar

import attrs
import msgspec
import trio

from witsd.rpc import codec
from witsd.rpc.codec import Envelope
from witsd.rpc.outbox import Outbox
from witsd.values.errors import AgentFailed, Timeout, error_types

_T = TypeVar("_T")

_log = logging.getLogger("witsd.rpc")
_ERRORS = {error.code: error for error in error_types()}


class RemoteError(AgentFailed):
    """The other side, an agent, answered with an error of its own or with what is no answer.

    ``data.agent_error`` is that error as it was sent, where there was one.
    """


@attrs.define(eq=False)
class _Pending:
    done: trio.Event = attrs.field(factory=trio.Event)
    answer: Envelope | None = None


class Requests:
    """What one connection has asked and not been told yet."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._pending: dict[int, _Pending] = {}
        self._last_id = 0
        self._ended = False

    async def ask(self, method: str, params: object, result_type: type[_T], timeout_s: float | None) -> _T:
        """See ``Peer.request``."""
        if self._ended:
            raise trio.BrokenResourceError("the connection is over")
        self._last_id += 1
        request_id = self._last_id
        pending = self._pending[request_id] = _Pending()
        sent = False
        try:
            with trio.move_on_after(float("inf") if timeout_s is None else timeout_s):
                await self._outbox.wait_room()
                self._outbox.put(codec.request(request_id, method, params))
                sent = True
                await pending.done.wait()
        finally:
            del self._pending[request_id]
            if sent and not pending.done.is_set():
                self._outbox.put(codec.notification("notifications/cancelled", {"request_id": request_id}))
        if not pending.done.is_set():
            raise Timeout(f"{method} was not answered within {timeout_s:g} s")
        if pending.answer is None:
            raise trio.BrokenResourceError("the connection ended before the answer")
        return _result(method, pending.answer, result_type)

    def take(self, answer: Envelope) -> None:
        """Hand an answer to whoever waits for it."""
        try:
            pending = self._pending.get(int(bytes(answer.id)))
        except ValueError:
            pending = None
        if pending is None or pending.done.is_set():
            # Regular: an answer that comes after its request was given up.
            _log.debug("rpc.unknown_answer id=%r", bytes(answer.id)[:40])
            return
        pending.answer = answer
        pending.done.set()

    def end(self) -> None:
        """No answer can come any more."""
        self._ended = True
        for pending in self._pending.values():
            pending.done.set()


def _result(method: str, answer: Envelope, result_type: type[_T]) -> _T:
    try:
        if answer.result:
            return msgspec.json.decode(answer.result, type=result_type)
        error = codec.decode_error(answer.error)
    except (msgspec.DecodeError, ValueError, RecursionError) as wrong:
        raise RemoteError(f"the answer to {method} does not fit: {wrong}", reason="no answer to this") from None
    kind = _ERRORS.get(error.code)
    if kind is None:
        raise RemoteError(
            error.message or f"error {error.code}",
            reason=error.message,
            agent_error={"code": error.code, "message": error.message, "data": error.data},
        )
    data = dict(error.data) if isinstance(error.data, dict) else {}
    data.pop("name", None)
    retryable = data.pop("retryable", None)
    raise kind(error.message, retryable=retryable if isinstance(retryable, bool) else None, **data)
