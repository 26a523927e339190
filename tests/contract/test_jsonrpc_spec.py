"""Every example of the JSON-RPC 2.0 specification (section 7), over a Unix socket and a WebSocket.

https://www.jsonrpc.org/specification#examples
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from tests.support.rpc import Line, dispatcher, spec_methods, unix_peer, websocket_peer

Example = tuple[str, str, Any]

#: Name, what is sent, what comes back; None where nothing may. An error's message may say more.
EXAMPLES: list[Example] = [
    (
        "positional parameters",
        '{"jsonrpc": "2.0", "method": "subtract", "params": [42, 23], "id": 1}',
        {"jsonrpc": "2.0", "result": 19, "id": 1},
    ),
    (
        "positional parameters, the other way round",
        '{"jsonrpc": "2.0", "method": "subtract", "params": [23, 42], "id": 2}',
        {"jsonrpc": "2.0", "result": -19, "id": 2},
    ),
    (
        "named parameters",
        '{"jsonrpc": "2.0", "method": "subtract", "params": {"subtrahend": 23, "minuend": 42}, "id": 3}',
        {"jsonrpc": "2.0", "result": 19, "id": 3},
    ),
    (
        "named parameters in another order",
        '{"jsonrpc": "2.0", "method": "subtract", "params": {"minuend": 42, "subtrahend": 23}, "id": 4}',
        {"jsonrpc": "2.0", "result": 19, "id": 4},
    ),
    ("a notification", '{"jsonrpc": "2.0", "method": "update", "params": [1,2,3,4,5]}', None),
    ("a notification of a method that does not exist", '{"jsonrpc": "2.0", "method": "foobar"}', None),
    (
        "a method that does not exist",
        '{"jsonrpc": "2.0", "method": "foobar", "id": "1"}',
        {"jsonrpc": "2.0", "error": {"code": -32601, "message": "Method not found"}, "id": "1"},
    ),
    (
        "invalid JSON",
        '{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]',
        {"jsonrpc": "2.0", "error": {"code": -32700, "message": "Parse error"}, "id": None},
    ),
    (
        "an invalid request object",
        '{"jsonrpc": "2.0", "method": 1, "params": "bar"}',
        {"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": None},
    ),
    (
        "a batch of invalid JSON",
        '[{"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"}, {"jsonrpc": "2.0", "method"]',
        {"jsonrpc": "2.0", "error": {"code": -32700, "message": "Parse error"}, "id": None},
    ),
    (
        "an empty array",
        "[]",
        {"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": None},
    ),
    (
        "an invalid batch that is not empty",
        "[1]",
        [{"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": None}],
    ),
    (
        "an invalid batch",
        "[1,2,3]",
        [{"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": None}] * 3,
    ),
    (
        "a batch",
        '[{"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"},'
        '{"jsonrpc": "2.0", "method": "notify_hello", "params": [7]},'
        '{"jsonrpc": "2.0", "method": "subtract", "params": [42,23], "id": "2"},'
        '{"foo": "boo"},'
        '{"jsonrpc": "2.0", "method": "foo.get", "params": {"name": "myself"}, "id": "5"},'
        '{"jsonrpc": "2.0", "method": "get_data", "id": "9"}]',
        [
            {"jsonrpc": "2.0", "result": 7, "id": "1"},
            {"jsonrpc": "2.0", "result": 19, "id": "2"},
            {"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": None},
            {"jsonrpc": "2.0", "error": {"code": -32601, "message": "Method not found"}, "id": "5"},
            {"jsonrpc": "2.0", "result": ["hello", 5], "id": "9"},
        ],
    ),
    (
        "a batch of notifications",
        '[{"jsonrpc": "2.0", "method": "notify_sum", "params": [1,2,4]},'
        '{"jsonrpc": "2.0", "method": "notify_hello", "params": [7]}]',
        None,
    ),
]

TRANSPORTS = ("unix", "websocket")
PROBE = '{"jsonrpc": "2.0", "method": "sum", "params": [1, 1], "id": "probe"}'


@asynccontextmanager
async def connected(transport: str) -> AsyncIterator[Line]:
    served = dispatcher(spec_methods())
    if transport == "unix":
        async with unix_peer(served) as joined:
            yield joined.line
    else:
        async with websocket_peer(served) as line:
            yield line


def assert_matches(answer: Any, expected: Any) -> None:
    if isinstance(expected, list):
        assert isinstance(answer, list)
        assert len(answer) == len(expected)
        for one, of in zip(answer, expected, strict=True):
            assert_matches(one, of)
        return
    assert answer.keys() == expected.keys()
    assert answer["jsonrpc"] == "2.0"
    assert answer["id"] == expected["id"]
    assert type(answer["id"]) is type(expected["id"])
    if "error" in expected:
        assert answer["error"]["code"] == expected["error"]["code"]
        assert answer["error"]["message"].startswith(expected["error"]["message"])
        assert answer["error"]["data"].keys() >= {"name", "retryable"}
    else:
        assert answer["result"] == expected["result"]


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("name", "sent", "expected"), EXAMPLES, ids=[e[0].replace(" ", "-") for e in EXAMPLES])
async def test_example(transport: str, name: str, sent: str, expected: Any) -> None:
    with trio.fail_after(60):
        async with connected(transport) as line:
            await line.say(sent)
            if expected is not None:
                assert_matches(json.loads(await line.hear()), expected)
            # What follows is answered next, so nothing else was, and the connection goes on.
            await line.say(PROBE)
            assert await line.hear_json() == {"jsonrpc": "2.0", "id": "probe", "result": 2}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("request_id", ['"a\\u00e9"', "0", "-7", "1.5", "1e3", "12345678901234567890123", "null"])
async def test_an_id_comes_back_as_it_was_sent(transport: str, request_id: str) -> None:
    with trio.fail_after(60):
        async with connected(transport) as line:
            await line.say(f'{{"jsonrpc":"2.0","id":{request_id},"method":"sum","params":[1]}}')
            assert f'"id":{request_id},' in await line.hear()


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("request_id", ["true", "[1]", '{"a":1}'])
async def test_an_id_of_a_wrong_type_is_an_invalid_request(transport: str, request_id: str) -> None:
    with trio.fail_after(60):
        async with connected(transport) as line:
            await line.say(f'{{"jsonrpc":"2.0","id":{request_id},"method":"sum","params":[1]}}')
            answer = await line.hear_json()
            assert (answer["id"], answer["error"]["code"]) == (None, -32600)


@pytest.mark.parametrize(
    "fields",
    [
        '"jsonrpc":"1.0","method":"sum"',
        '"method":"sum"',
        '"jsonrpc":"2.0"',
        '"jsonrpc":"2.0","method":null',
        '"jsonrpc":"2.0","method":"sum","params":1',
        '"jsonrpc":"2.0","method":"sum","params":"x"',
    ],
)
async def test_an_invalid_request_is_answered_under_its_own_id(fields: str) -> None:
    with trio.fail_after(60):
        async with connected("unix") as line:
            await line.say(f'{{"id":"mine",{fields}}}')
            answer = await line.hear_json()
            assert (answer["id"], answer["error"]["code"]) == ("mine", -32600)
