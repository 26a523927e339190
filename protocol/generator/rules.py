"""The vectors that no type can say: rules across fields, framing, envelopes. Written by hand."""

from __future__ import annotations

from typing import Any

#: What examples of a type hold beside, or instead of, what its fields' types suggest.
EXAMPLES: dict[str, dict[str, Any]] = {
    "AgentSpec": {
        "kind": "native", "command": ["python", "agent.py"], "run_per_request": False, "pid": 0,
        "pid_file": "",
    },
    "Health": {"watchdog_s": 0},
}

#: Type -> ``(name, value)``.
VALID: dict[str, list[tuple[str, Any]]] = {
    "AgentsDefineParams": [
        ("an assistant has no command", {"spec": {"name": "assistant", "kind": "assistant"}}),
        (
            "exec, a process for each run",
            {"spec": {"name": "wc", "kind": "exec", "command": ["wc"], "run_per_request": True}},
        ),
        ("an external one by its pid file", {"spec": {"name": "db", "kind": "external", "pid_file": "/run/db.pid"}}),
    ],
    "EventsSubscribeParams": [
        ("since a position", {"streams": ["*"], "since": {"pos": 17}}),
        ("since a seq of each stream", {"streams": ["run:*"], "since": {"run:a": 0, "run:b": 12}}),
    ],
}

#: Type -> ``(name, value, path)``.
INVALID: dict[str, list[tuple[str, Any, str]]] = {
    "AgentsDefineParams": [
        ("native without a command", {"spec": {"name": "a", "kind": "native"}}, "$.spec"),
        (
            "an assistant with a command",
            {"spec": {"name": "a", "kind": "assistant", "command": ["x"]}},
            "$.spec",
        ),
        (
            "an external one without a process",
            {"spec": {"name": "a", "kind": "external"}},
            "$.spec",
        ),
        (
            "a process for each run of a native agent",
            {"spec": {"name": "a", "kind": "native", "command": ["x"], "run_per_request": True}},
            "$.spec",
        ),
    ],
}

#: A reader of the framing vectors takes messages up to this many bytes.
FRAMING_LIMIT = 256


def _framing(name: str, text: str, *messages: Any) -> dict[str, Any]:
    return {"name": name, "in": text, "messages": list(messages)}


_LONG = '{"long":"' + "x" * FRAMING_LIMIT + '"}'

#: The whole input of a connection, and what it holds: messages as text, ``oversize`` in the place of
#: one that is too long (the connection goes on), ``truncated`` where the input ends within one.
FRAMING: list[dict[str, Any]] = [
    _framing("a line", '{"a":1}\n', '{"a":1}'),
    _framing("two lines", '{"a":1}\n{"b":2}\n', '{"a":1}', '{"b":2}'),
    _framing("the last line has no newline", '{"a":1}\n{"b":2}', '{"a":1}', '{"b":2}'),
    _framing("blank lines count for nothing", '\n\n{"a":1}\n\n \n{"b":2}\n', '{"a":1}', '{"b":2}'),
    _framing("characters of four bytes", '{"a":"𝄞"}\n', '{"a":"𝄞"}'),
    _framing("an escaped newline is no end", '{"a":"x\\ny"}\n', '{"a":"x\\ny"}'),
    _framing("a line too long", f'{_LONG}\n{{"a":1}}\n', {"oversize": True}, '{"a":1}'),
    _framing("nothing", ""),
    _framing("headers", 'Content-Length: 7\r\n\r\n{"a":1}', '{"a":1}'),
    _framing(
        "headers, twice",
        'Content-Length: 7\r\n\r\n{"a":1}Content-Length: 7\r\n\r\n{"b":2}',
        '{"a":1}',
        '{"b":2}',
    ),
    _framing(
        "a header's name has no case, others are ignored",
        'content-type: application/vscode-jsonrpc; charset=utf-8\r\ncontent-length:7\r\n\r\n{"a":1}',
        '{"a":1}',
    ),
    _framing("a length counts bytes", 'Content-Length: 12\r\n\r\n{"a":"𝄞"}', '{"a":"𝄞"}'),
    _framing("a body may have newlines", 'Content-Length: 9\r\n\r\n{"a":\n1\n}', '{"a":\n1\n}'),
    _framing("half a body", 'Content-Length: 9\r\n\r\n{"a"', {"truncated": True}),
    _framing("half a head", "Content-Length: 9\r\n", {"truncated": True}),
    _framing(
        "a body too long",
        f'Content-Length: {len(_LONG)}\r\n\r\n{_LONG}Content-Length: 7\r\n\r\n{{"a":1}}',
        {"oversize": True},
        '{"a":1}',
    ),
    _framing("headers without a length", 'Content-Type: x\r\n\r\n{"a":1}', {"truncated": True}),
]


def _error(request_id: Any, code: int, name: str, **data: Any) -> dict[str, Any]:
    data = {"name": name, "retryable": False, **data}
    return {"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "data": data}}


def _ok(request_id: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": request_id, "result": {}}


def _envelope(name: str, text: str, answer: Any) -> dict[str, Any]:
    return {"name": name, "in": text, "out": answer}


#: One message to a daemon and its answer; null means none. An answer has at least what is shown: an
#: error always has a message too, which is for people and not fixed.
ENVELOPES: list[dict[str, Any]] = [
    _envelope("a request", '{"jsonrpc":"2.0","id":1,"method":"ping","params":{}}', _ok(1)),
    _envelope("without params", '{"jsonrpc":"2.0","id":2,"method":"ping"}', _ok(2)),
    _envelope("positional params", '{"jsonrpc":"2.0","id":3,"method":"ping","params":[]}', _ok(3)),
    _envelope("an id is a string", '{"jsonrpc":"2.0","id":"a-1","method":"ping"}', _ok("a-1")),
    _envelope("an id is negative", '{"jsonrpc":"2.0","id":-7,"method":"ping"}', _ok(-7)),
    _envelope("an id is null", '{"jsonrpc":"2.0","id":null,"method":"ping"}', _ok(None)),
    _envelope(
        "params it does not know",
        '{"jsonrpc":"2.0","id":4,"method":"ping","params":{"x_new":1}}',
        _ok(4),
    ),
    _envelope("a notification", '{"jsonrpc":"2.0","method":"ping"}', None),
    _envelope("a notification no one knows", '{"jsonrpc":"2.0","method":"notifications/x_new"}', None),
    _envelope("a notification of an unknown method", '{"jsonrpc":"2.0","method":"no/such"}', None),
    _envelope(
        "an unknown method",
        '{"jsonrpc":"2.0","id":5,"method":"no/such"}',
        _error(5, -32601, "method_not_found"),
    ),
    _envelope(
        "a param is missing",
        '{"jsonrpc":"2.0","id":6,"method":"agents/get","params":{}}',
        _error(6, -32602, "invalid_params", path="params.name"),
    ),
    _envelope(
        "a param of the wrong type",
        '{"jsonrpc":"2.0","id":7,"method":"agents/get","params":{"name":7}}',
        _error(7, -32602, "invalid_params", path="params.name"),
    ),
    _envelope(
        "too many positional params",
        '{"jsonrpc":"2.0","id":8,"method":"agents/get","params":["a","b"]}',
        _error(8, -32602, "invalid_params", path="params[1]"),
    ),
    _envelope(
        "an agent that is not there",
        '{"jsonrpc":"2.0","id":9,"method":"agents/get","params":{"name":"x-nowhere"}}',
        _error(9, -32002, "not_found", kind="agent", id="x-nowhere"),
    ),
    _envelope("not JSON", '{"jsonrpc":"2.0","id":1,"method"', _error(None, -32700, "parse_error")),
    _envelope("a number", "1", _error(None, -32600, "invalid_request")),
    _envelope("an object of something else", '{"foo":"boo"}', _error(None, -32600, "invalid_request")),
    _envelope(
        "no version", '{"id":1,"method":"ping"}', _error(1, -32600, "invalid_request")
    ),
    _envelope(
        "another version",
        '{"jsonrpc":"1.0","id":1,"method":"ping"}',
        _error(1, -32600, "invalid_request"),
    ),
    _envelope(
        "an id is an object",
        '{"jsonrpc":"2.0","id":{},"method":"ping"}',
        _error(None, -32600, "invalid_request"),
    ),
    _envelope(
        "params are a string",
        '{"jsonrpc":"2.0","id":1,"method":"ping","params":"x"}',
        _error(1, -32600, "invalid_request"),
    ),
    _envelope(
        "a batch: each element its answer, notifications none",
        '[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","method":"ping"},3,'
        '{"jsonrpc":"2.0","id":"2","method":"no/such"}]',
        [_ok(1), _error(None, -32600, "invalid_request"), _error("2", -32601, "method_not_found")],
    ),
    _envelope("a batch of notifications", '[{"jsonrpc":"2.0","method":"ping"}]', None),
    _envelope("an empty batch", "[]", _error(None, -32600, "invalid_request")),
]
