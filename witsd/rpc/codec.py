"""JSON-RPC 2.0 messages as bytes: what came in, strictly read, and what goes out.

Ids stay the bytes they came as, so an answer carries the id exactly as it was sent. ``params``,
``result`` and ``error`` stay raw too, until their type is known.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable
from itertools import accumulate
from typing import Any, Literal

import msgspec
from msgspec import Raw

from witsd.values.errors import InvalidParams, InvalidRequest, LimitExceeded, ParseError, WitsdError
from witsd.values.wording import reword

#: The one encoder; attrs classes, structs and builtins alike.
encode = msgspec.json.Encoder().encode

ABSENT = Raw(b"")
NULL = Raw(b"null")


class Envelope(msgspec.Struct, gc=False):
    """One message. A field that was not sent is ``ABSENT`` (falsy); ``method`` is then ``""``."""

    jsonrpc: Literal["2.0"]
    method: str = ""
    id: Raw = ABSENT
    params: Raw = ABSENT
    result: Raw = ABSENT
    error: Raw = ABSENT


class BadMessage(Exception):
    """Bytes that are no message; ``error`` says why and ``id`` is what an answer must carry."""

    def __init__(self, error: WitsdError, request_id: Raw = NULL) -> None:
        super().__init__(error.message)
        self.error = error
        self.id = request_id


class _Loose(msgspec.Struct, gc=False):
    id: Raw = ABSENT


class _RemoteError(msgspec.Struct, gc=False):
    code: int
    message: str = ""
    data: Any = None


_decode_envelope = msgspec.json.Decoder(Envelope).decode
_decode_loose = msgspec.json.Decoder(_Loose).decode
_decode_elements = msgspec.json.Decoder(list[Raw]).decode
_decode_any = msgspec.json.Decoder(Raw).decode
decode_error = msgspec.json.Decoder(_RemoteError).decode

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError)


def decode(raw: bytes, max_depth: int) -> Envelope:
    """Read one message. Raises ``BadMessage``."""
    _check_text(raw, max_depth)
    return decode_element(raw)


def decode_any(raw: bytes, max_depth: int) -> Envelope | list[bytes]:
    """Read one message or, from an array, the elements of a batch, each for ``decode_element``."""
    if raw[:1] != b"{" and raw.lstrip(b" \t\r\n")[:1] == b"[":
        _check_text(raw, max_depth)
        try:
            return [bytes(element) for element in _decode_elements(raw)]
        except _UNREADABLE as error:
            raise BadMessage(ParseError(f"Parse error: {error}")) from None
    return decode(raw, max_depth)


def decode_element(raw: bytes) -> Envelope:
    """Read a message whose depth and text have been checked already. Raises ``BadMessage``."""
    try:
        envelope = _decode_envelope(raw)
    except _UNREADABLE as error:
        raise _what_is_wrong(raw, error) from None
    if envelope.id and not _valid_id(envelope.id):
        raise BadMessage(InvalidRequest("Invalid Request: an id is a string, a number or null"))
    if envelope.method:
        params = envelope.params
        if params and memoryview(params)[0] not in b"{[":
            if params != NULL:
                raise BadMessage(
                    InvalidRequest("Invalid Request: params must be an object or an array"),
                    envelope.id or NULL,
                )
            envelope.params = ABSENT  # what several clients send where they have no params
    elif not envelope.result and not envelope.error:
        raise BadMessage(InvalidRequest("Invalid Request: no method"), envelope.id or NULL)
    return envelope


def _what_is_wrong(raw: bytes, error: Exception) -> BadMessage:
    """Tell what is no JSON from what is no request, and find the id of the latter."""
    try:
        request_id = _decode_loose(raw).id
    except msgspec.ValidationError:
        request_id = ABSENT
        try:
            _decode_any(raw)
        except _UNREADABLE as unreadable:
            return BadMessage(ParseError(f"Parse error: {unreadable}"))
    except _UNREADABLE as unreadable:
        return BadMessage(ParseError(f"Parse error: {unreadable}"))
    message, path = _where(error, "")
    where = f"{path.removeprefix('.')}: " if path else ""
    known = request_id if request_id and _valid_id(request_id) else NULL
    return BadMessage(InvalidRequest(f"Invalid Request: {where}{message}"), known)


def _valid_id(request_id: Raw) -> bool:
    return bytes(request_id)[:1] in b'"-0123456789n'


def id_key(request_id: Raw) -> bytes:
    """What two spellings of one id share: ``"\\u0061"`` and ``"a"`` are the same id."""
    key = bytes(request_id)
    return encode(msgspec.json.decode(key)) if b"\\" in key else key


# ---- depth and text -------------------------------------------------------------------------------------

_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
#: As signed bytes: +1 for an opening bracket, -1 for a closing one.
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_SLICE = 1 << 16


def _check_text(raw: bytes, max_depth: int) -> None:
    if not raw.isascii():
        try:  # Raw fields are copied unread: bad UTF-8 in them would surface far from here, or never
            raw.decode()
        except UnicodeDecodeError as error:
            raise BadMessage(ParseError(f"Parse error: {error.reason} at byte {error.start}")) from None
    if raw.count(b"{") + raw.count(b"[") > max_depth and _deeper_than(raw, max_depth):
        raise BadMessage(LimitExceeded(f"nested more than {max_depth} deep", limit="depth", value=max_depth))


def _deeper_than(raw: bytes, max_depth: int) -> bool:
    """Whether brackets outside strings nest beyond ``max_depth``: a scan in C, stopped early."""
    steps = _STRINGS.sub(b"", raw).translate(_STEPS, _NOT_BRACKETS)
    depth = 0
    for start in range(0, len(steps), _SLICE):
        depths = array("q", accumulate(array("b", steps[start : start + _SLICE]), initial=depth))
        if max(depths) > max_depth:
            return True
        depth = depths[-1]
    return False


# ---- params ---------------------------------------------------------------------------------------------

_AT = re.compile(r" - at `\$([^`]*)`$")
_FIELD = re.compile(r"^Object (?:missing required|contains unknown) field `([^`]+)`")


def _where(error: Exception, prefix: str) -> tuple[str, str]:
    """msgspec names the failing field only in its message: split it into text and path."""
    text = str(error)
    path = prefix
    if at := _AT.search(text):
        text, path = text[: at.start()], prefix + at[1]
    if missing := _FIELD.match(text):
        path = f"{path}.{missing[1]}"
    return text, path


def params_decoder(params: type) -> Callable[[Raw], Any]:
    """A function that reads raw params as ``params``; it raises ``InvalidParams`` naming the path.

    An array is matched to the fields in the order they are declared; a ``params`` type that is no
    class with fields takes the array as it is.
    """
    decode: Callable[[bytes | Raw], Any] | None = None
    names = _field_names(params)
    empty = b"[]" if names is None and msgspec.json.schema(params).get("type") == "array" else b"{}"

    def by_name(raw: bytes | Raw) -> Any:
        nonlocal decode
        if decode is None:  # most methods are never called: what it takes to read their params is made when they are
            decode = msgspec.json.Decoder(params).decode
        return decode(raw)

    def read(raw: Raw) -> Any:
        try:
            if names is not None and raw and memoryview(raw)[0] == 0x5B:
                values = _decode_elements(raw)
                if len(values) > len(names):
                    raise InvalidParams(
                        f"takes at most {len(names)} params, got {len(values)}",
                        path=f"params[{len(names)}]",
                    )
                return by_name(encode(dict(zip(names, values, strict=False))))
            return by_name(raw or empty)
        except _UNREADABLE as error:
            text, path = _where(error, "params")
            if isinstance(error, msgspec.ValidationError):
                text = reword(text, path.removeprefix("params").removeprefix("."), params)
            raise InvalidParams(f"Invalid params: {path}: {text}", path=path) from None

    return read


def _field_names(params: type) -> list[str] | None:
    if isinstance(params, type) and issubclass(params, msgspec.Struct):
        return list(params.__struct_encode_fields__)
    return None


# ---- what goes out --------------------------------------------------------------------------------------


def response(request_id: Raw, result: bytes | Raw) -> bytes:
    """A success; ``result`` is encoded already."""
    return b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (request_id, result)


def error_response(request_id: Raw, code: int, message: str, data: Any) -> bytes:
    return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (
        request_id,
        encode({"code": code, "message": message, "data": data}),
    )


def error(request_id: Raw, why: WitsdError) -> bytes:
    """A failure."""
    return error_response(request_id, why.code, why.message, why.data)


def request(request_id: int, method: str, params: object) -> bytes:
    return b'{"jsonrpc":"2.0","id":%d,"method":%b,"params":%b}' % (
        request_id,
        encode(method),
        encode(params),
    )


def notification(method: str, params: object) -> bytes:
    return b'{"jsonrpc":"2.0","method":%b,"params":%b}' % (encode(method), encode(params))


def batch(messages: list[bytes]) -> bytes:
    """One array of messages that are encoded already."""
    return b"[%b]" % b",".join(messages)
