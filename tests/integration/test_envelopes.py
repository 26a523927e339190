"""The envelope vectors, run by a real daemon over each kind of framing."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any, BinaryIO

import pytest

from tests.support.daemon import PATIENCE_S, ROOT, Daemon

ROWS = json.loads((ROOT / "protocol/vectors/envelopes.json").read_text())["envelopes"]
#: Sent after each vector: when this is what comes back first, the vector had no answer.
LAST = {"jsonrpc": "2.0", "id": "last", "method": "ping"}


def has(got: Any, expected: Any) -> bool:
    """Whether ``got`` has at least what is expected; an error also needs a message for people."""
    if isinstance(expected, list):
        return isinstance(got, list) and len(got) == len(expected) and all(map(has, got, expected))
    if not isinstance(expected, dict):
        return type(got) is type(expected) and bool(got == expected)
    if not isinstance(got, dict) or ("code" in expected and not got.get("message")):
        return False
    return all(key in got and has(got[key], value) for key, value in expected.items())


def _line(message: str) -> bytes:
    return message.encode() + b"\n"


def _headers(message: str) -> bytes:
    return b"Content-Length: %d\r\n\r\n%b" % (len(message.encode()), message.encode())


def _read_line(stream: BinaryIO) -> Any:
    return json.loads(stream.readline())


def _read_headers(stream: BinaryIO) -> Any:
    head = stream.readline()
    assert stream.readline() == b"\r\n"
    return json.loads(stream.read(int(head.removeprefix(b"Content-Length: "))))


@pytest.mark.parametrize(
    ("write", "read"), [(_line, _read_line), (_headers, _read_headers)], ids=["lines", "headers"]
)
def test_the_daemon_answers_the_vectors(
    daemon: Daemon, write: Callable[[str], bytes], read: Callable[[BinaryIO], Any]
) -> None:
    wrong = []
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE_S)
        connection.connect(str(daemon.socket))
        with connection.makefile("rb") as stream:
            for row in ROWS:
                connection.sendall(write(row["in"]))
                answer = read(stream) if row["out"] is not None else None
                connection.sendall(write(json.dumps(LAST)))
                after = read(stream)
                if not has(answer, row["out"]) or after.get("id") != "last":
                    wrong.append((row["name"], answer, after))
    assert wrong == []


def test_the_comparison_can_fail() -> None:
    error = {"id": 1, "error": {"code": -32601, "message": "no", "data": {"name": "method_not_found"}}}
    assert has(error, {"id": 1, "error": {"code": -32601}})
    assert not has(error, {"id": "1", "error": {"code": -32601}})
    assert not has(error, {"id": 1, "error": {"code": -32602}})
    assert not has({"id": 1, "error": {"code": -32601}}, {"id": 1, "error": {"code": -32601}})
    assert not has([error], [error, error])
    assert not has(None, {"id": 1})


def test_rpc_discover_answers_the_committed_document(daemon: Daemon) -> None:
    committed = json.loads((ROOT / "protocol/openrpc.json").read_text())
    del committed["x-generated"]
    assert daemon.call("rpc.discover") == committed
