"""From an envelope to its answer: who may call what, params into types, the call, errors onto the wire.

One path for every transport. Results and responses are jsonrpcserver's; what it would get wrong here is kept from
it: exceptions are mapped before it could put their text on the wire.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import attrs
import msgspec
import trio
from msgspec import Raw

from witsd.rpc.call import Call, Connection, Progress
from witsd.rpc.codec import (
    ABSENT,
    NULL,
    BadMessage,
    Envelope,
    batch,
    decode_any,
    decode_element,
    encode,
    error,
    error_response,
    notification,
    params_decoder,
    response,
)
from witsd.rpc.jsonrpc import Error, Left, Request, Result, Success, to_response
from witsd.rpc.methods import Method, Notification
from witsd.values.actor import Actor
from witsd.values.errors import (
    InternalError,
    InvalidParams,
    InvalidRequest,
    LimitExceeded,
    MethodNotFound,
    PermissionDenied,
    Unauthenticated,
    WitsdError,
)
from witsd.values.ids import Ids
from witsd.values.wire.system import LimitsInfo

#: Told of each mutating call: who, method, target, and the error code where it was refused.
Audit = Callable[[Actor, str, str, int | None], None]


#: Characters of a method's name that nobody knows which are looked at and shown.
_SHOWN = 100
#: Characters of a target that are kept: names and ids are shorter, what a caller makes up need not be.
_TARGET = 200


#: Of the methods that everybody has.
_QUICK: Mapping[str, Callable[[Actor, Raw], bool]] = {"ping": lambda actor, params: True}


class _Meta(msgspec.Struct, gc=False):
    progress_token: Raw = ABSENT
    progressToken: Raw = ABSENT  # noqa: N815  (MCP's spelling)


class _WithMeta(msgspec.Struct, gc=False):
    meta: Raw = msgspec.field(name="_meta", default=ABSENT)


_read_with_meta = msgspec.json.Decoder(_WithMeta).decode
_read_meta = msgspec.json.Decoder(_Meta).decode
_read_dict = msgspec.json.Decoder(dict[str, Any]).decode


class _NoProgress:
    wanted = False

    async def __call__(
        self,
        *,
        progress: float | None = None,
        total: float | None = None,
        message: str | None = None,
        delta: str | None = None,
        thought: str | None = None,
    ) -> None:
        pass


NO_PROGRESS: Progress = _NoProgress()


@attrs.define(eq=False)
class _SendProgress:
    connection: Connection
    token: Raw
    wanted: bool = True

    async def __call__(
        self,
        *,
        progress: float | None = None,
        total: float | None = None,
        message: str | None = None,
        delta: str | None = None,
        thought: str | None = None,
    ) -> None:
        given = {"progress": progress, "total": total, "message": message, "delta": delta, "thought": thought}
        params = {"progress_token": self.token, **{k: v for k, v in given.items() if v is not None}}
        await self.connection.send(notification("notifications/progress", params))


class Dispatcher:
    """Serves the method table. Holds no state of any connection, so all of them share one."""

    def __init__(
        self,
        methods: Mapping[str, Method],
        notifications: Mapping[str, Notification],
        audit: Audit,
        ids: Ids,
        log: logging.Logger,
        quick: Mapping[str, Callable[[Actor, Raw], bool]] = _QUICK,
    ) -> None:
        """``quick``: the methods that a peer may serve without a task where actor and params make them never wait."""
        self._quick = quick
        self._audit = audit
        self._ids = ids
        self._log = log
        self._table = _Table(self._unknown, {name: self._registered(m) for name, m in methods.items()})
        self._notifications = {name: (n, params_decoder(n.params)) for name, n in notifications.items()}

    def has(self, method: str) -> bool:
        return method in self._table

    def is_quick(self, envelope: Envelope, actor: Actor) -> bool:
        never_waits = self._quick.get(envelope.method)
        return never_waits is not None and never_waits(actor, envelope.params)

    async def handle(self, envelope: Envelope, actor: Actor, connection: Connection, answered: trio.Event) -> bytes:
        """Serve one request; returns its encoded answer, whatever happens. Only ``Cancelled`` passes.

        ``answered`` is for the caller to set once the answer is on its way.
        """
        request_id = envelope.id or NULL
        progress, meta = NO_PROGRESS, None
        if b'"_meta"' in bytes(envelope.params):
            try:
                progress, meta = _progress(envelope.params, connection)
            except InvalidParams as wrong:
                return error(request_id, wrong)
        call = (
            Call(actor=actor, connection=connection, progress=progress, answered=answered)
            if meta is None
            else Call(actor=actor, connection=connection, progress=progress, answered=answered, meta=meta)
        )
        request = Request(envelope.method, [envelope.method, envelope.params], request_id)
        done = to_response(request, await self._table[envelope.method](call, envelope.method, envelope.params))
        if isinstance(done, Left):
            failed = done._error
            return error_response(failed.id, failed.code, failed.message, failed.data)
        return response(done._value.id, done._value.result)

    def notify(self, call: Call, envelope: Envelope, *, from_agent: bool) -> None:
        """Deliver a notification of the table; what is unknown, not allowed or wrong is not answered."""
        found = self._notifications.get(envelope.method)
        if found is None:
            return
        known, read = found
        if (known.agents and not from_agent) or call.actor.kind == "anonymous":
            self._log.warning("rpc.notification_refused method=%s actor=%s", known.name, call.actor.label)
            return
        try:
            known.call(call, read(envelope.params))
        except WitsdError as wrong:
            self._log.warning(
                "rpc.notification_failed method=%s actor=%s error=%s",
                known.name,
                call.actor.label,
                wrong.message,
            )
        except Exception:  # noqa: BLE001  (the boundary: one bad notification must not end the connection)
            self._log.exception("rpc.notification_failed method=%s actor=%s", known.name, call.actor.label)

    # ---- one method -------------------------------------------------------------------------------------

    def _registered(self, method: Method) -> Callable[..., Awaitable[Result]]:
        read = params_decoder(method.params)

        async def run(call: Call, _: str, raw: Raw) -> Result:
            try:
                _require_access(call.actor, method)
                params = read(raw)
                if method.mutates:
                    self._audit(call.actor, method.name, _target(params, method.target), None)
                return Success(Raw(encode(await method.call(call, params))))
            except WitsdError as wrong:
                return self._refused(call, method, raw, wrong)
            except ExceptionGroup as group:
                only = _only_witsd_error(group)
                if only is None:
                    return self._bug(call, method, group)
                return self._refused(call, method, raw, only)
            except Exception as bug:  # noqa: BLE001  (the boundary: what is no WitsdError is a bug)
                return self._bug(call, method, bug)
            except BaseExceptionGroup as group:
                cancelled, rest = group.split(trio.Cancelled)
                if cancelled is None or (rest and not isinstance(rest, ExceptionGroup)):
                    raise
                if rest is not None:
                    self._bug(call, method, rest)
                raise cancelled from None

        return run

    async def _unknown(self, call: Call, name: str, raw: Raw) -> Result:
        if call.actor.kind == "anonymous":
            return _as_result(_unauthenticated())
        shown = name[:_SHOWN]
        import difflib  # needed only by who mistypes

        near = difflib.get_close_matches(shown, self._table, n=1)
        which = f"did you mean {near[0]}?" if near else "rpc.discover tells which there are"
        return _as_result(MethodNotFound(f"Method not found: {shown}; {which}", near=near))

    def _refused(self, call: Call, method: Method, raw: Raw, wrong: WitsdError) -> Result:
        if method.mutates and isinstance(wrong, PermissionDenied):
            self._audit(call.actor, method.name, _raw_target(raw, method.target), wrong.code)
        return _as_result(wrong)

    def _bug(self, call: Call, method: Method, bug: BaseException) -> Result:
        log_id = self._ids.new("log")
        self._log.error(
            "rpc.internal_error log_id=%s method=%s actor=%s",
            log_id,
            method.name,
            call.actor.label,
            exc_info=bug,
        )
        return _as_result(InternalError("an internal error; the daemon's log has it", log_id=log_id))


class _Table(dict[str, Callable[..., Awaitable[Result]]]):
    """The registered methods; a name that is not among them is answered too, in our own words."""

    def __init__(
        self,
        unknown: Callable[..., Awaitable[Result]],
        methods: Mapping[str, Callable[..., Awaitable[Result]]],
    ) -> None:
        super().__init__(methods)
        self._unknown = unknown

    def __missing__(self, name: str) -> Callable[..., Awaitable[Result]]:
        return self._unknown


def _as_result(wrong: WitsdError) -> Result:
    return Error(wrong.code, wrong.message, wrong.data)


def _unauthenticated() -> Unauthenticated:
    return Unauthenticated("say who you are first: initialize with a token")


def _require_access(actor: Actor, method: Method) -> None:
    if actor.kind == "anonymous":
        if not method.anonymous:
            raise _unauthenticated()
    elif actor.kind == "agent":
        if not method.agents:
            raise PermissionDenied(f"agents may not call {method.name}", needs="grants")
    elif method.scope is not None and method.scope not in actor.scopes:
        actor.require(method.scope)


def _only_witsd_error(group: BaseExceptionGroup[BaseException]) -> WitsdError | None:
    """The one error that a group stands for, however deep its nurseries nest it."""
    while len(group.exceptions) == 1:
        inner = group.exceptions[0]
        if isinstance(inner, WitsdError):
            return inner
        if not isinstance(inner, BaseExceptionGroup):
            return None
        group = inner
    return None


def _target(params: Any, path: str) -> str:
    """What a call acts on, as the audit names it: the params field at ``path``."""
    found = params
    for name in path.split(".") if path else ():
        found = found.get(name, "") if isinstance(found, dict) else getattr(found, name, "")
    return str(found)[:_TARGET] if path else ""


def _raw_target(raw: Raw, path: str) -> str:
    """The same for params nobody has checked: whatever of it can be read."""
    try:
        found = _target(_read_dict(raw), path)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return ""
    return found


def _progress(params: Raw, connection: Connection) -> tuple[Progress, dict[str, Any] | None]:
    if bytes(params)[:1] != b"{":
        return NO_PROGRESS, None
    raw = _read_with_meta(params).meta
    if not raw or raw == NULL:  # the text "_meta" stood somewhere deeper
        return NO_PROGRESS, None
    try:
        meta = _read_meta(raw)
        token = meta.progress_token or meta.progressToken
        if token and bytes(token)[:1] not in b'"-0123456789':
            raise InvalidParams(
                "Invalid params: a progress token is a string or a number", path="params._meta.progress_token"
            )
        progress: Progress = _SendProgress(connection, token) if token else NO_PROGRESS
        return progress, _read_dict(raw)
    except (msgspec.DecodeError, ValueError, RecursionError) as wrong:
        raise InvalidParams(f"Invalid params: params._meta: {wrong}", path="params._meta") from None


# ---- whole messages -------------------------------------------------------------------------------------


def check_batch(elements: Sequence[bytes], limits: LimitsInfo) -> bytes | None:
    """The one answer to a batch that is empty or too long; None where it can be served."""
    if not elements:
        return error(NULL, InvalidRequest("Invalid Request: an empty batch"))
    if len(elements) > limits.batch:
        what = f"a batch of {len(elements)}: at most {limits.batch}"
        return error(NULL, LimitExceeded(what, limit="batch", value=limits.batch))
    return None


@attrs.define(eq=False)
class BatchAnswer:
    """Collects the answers to a batch, in the order of its elements."""

    size: int
    answers: list[bytes | None] = attrs.field(init=False)
    #: How many it still waits for; the reader of the batch is one of them.
    open: int = 1
    #: Set when the array is on its way.
    answered: list[trio.Event] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.answers = [None] * self.size

    def array(self) -> bytes | None:
        """None where nothing is to be answered, as for a batch of notifications."""
        given = [answer for answer in self.answers if answer is not None]
        return batch(given) if given else None


async def answer_message(
    dispatcher: Dispatcher, message: bytes, actor: Actor, connection: Connection, limits: LimitsInfo
) -> bytes | None:
    """Serve one message or batch that came by itself, as in an HTTP body; None where none is due."""

    async def one(envelope: Envelope) -> bytes | None:
        if not envelope.method:
            return error(NULL, InvalidRequest("Invalid Request: an answer, where nothing was asked"))
        answered = trio.Event()
        try:
            answer = await dispatcher.handle(envelope, actor, connection, answered)
        finally:
            answered.set()
        return bounded(answer, envelope.id, limits) if envelope.id else None

    async def element(found: BatchAnswer, index: int) -> None:
        try:
            found.answers[index] = await one(decode_element(elements[index]))
        except BadMessage as bad:
            found.answers[index] = error(bad.id, bad.error)

    if len(message) > limits.message_bytes:
        return error(NULL, too_big(limits))
    try:
        read = decode_any(message, limits.depth)
    except BadMessage as bad:
        return error(bad.id, bad.error)
    if not isinstance(read, list):
        return await one(read)
    elements = read
    wrong = check_batch(elements, limits)
    if wrong is not None:
        return wrong
    answers = BatchAnswer(len(elements))
    async with trio.open_nursery() as nursery:
        for index in range(len(elements)):
            nursery.start_soon(element, answers, index)
    return answers.array()


def bounded(answer: bytes, request_id: Raw, limits: LimitsInfo) -> bytes:
    """``answer``, or where it is longer than a message may be, the error that says so."""
    if len(answer) <= limits.message_bytes:
        return answer
    why = LimitExceeded(
        f"the answer has {len(answer)} bytes and may have {limits.message_bytes}: ask for a smaller page, "
        "or read it piece by piece with events/read",
        limit="message_bytes",
        value=limits.message_bytes,
    )
    return error(request_id, why)


def too_big(limits: LimitsInfo) -> LimitExceeded:
    most = limits.message_bytes
    return LimitExceeded(f"a message longer than {most} bytes", limit="message_bytes", value=most)
