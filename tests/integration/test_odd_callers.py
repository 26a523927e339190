"""Callers that say what no client library would."""

from __future__ import annotations

import json
import socket

import pytest

from tests.support.daemon import PATIENCE_S, Daemon


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (b"Content-Length: -5\r\n\r\n{}", "without a valid Content-Length"),
        (b"Content-Type: x\r\n\r\n{}", "without a valid Content-Length"),
        (b"Content-Length: " + b"1" * 100_000, "a head longer than"),
    ],
)
def test_a_broken_head_is_told_before_the_connection_ends(daemon: Daemon, head: bytes, says: str) -> None:
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(PATIENCE_S)
        caller.connect(str(daemon.socket))
        caller.sendall(head)
        heard = b""
        try:
            while data := caller.recv(65536):
                heard += data
        except ConnectionResetError:
            pass  # what it had not read of ours when it closed
    answer = json.loads(heard.partition(b"\r\n\r\n")[2])
    assert answer["error"]["code"] == -32700
    assert says in answer["error"]["message"]


@pytest.mark.parametrize("cursor", ["\N{SUPERSCRIPT TWO}", "9" * 30, "-1", ""])
def test_a_cursor_that_was_made_up(daemon: Daemon, cursor: str) -> None:
    for method, params in (
        ("runs/list", {"cursor": cursor}),
        ("sessions/search", {"query": "x", "cursor": cursor}),
    ):
        answer = daemon.ask({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        assert answer["error"]["code"] == -32602
        assert answer["error"]["data"]["path"] == "params.cursor"
