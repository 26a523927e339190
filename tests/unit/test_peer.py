"""A peer over a real Unix socket: cancel, progress, limits, slow readers, half-closed connections, access."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from tests.support.rpc import (
    LIMITS,
    Joined,
    dispatcher,
    method,
    spec_methods,
    unix_peer,
    websocket_peer,
)
from witsd.rpc.call import Call
from witsd.rpc.codec import params_decoder
from witsd.rpc.methods import Method, Notification
from witsd.rpc.outbox import HIGH_WATER
from witsd.rpc.peer import Peer, RemoteError
from witsd.values.actor import ANONYMOUS, OWNER, Actor, Scope
from witsd.values.errors import InvalidParams, NotFound, PermissionDenied, Timeout
from witsd.values.ids import AgentName
from witsd.values.wire.common import Empty

AGENT = Actor(kind="agent", label="agent:a", agent=AgentName("a"))


class Inner(msgspec.Struct, frozen=True, kw_only=True):
    backoff_s: float


class Params(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    restart: Inner | None = None


class Size(msgspec.Struct, frozen=True, kw_only=True):
    bytes: int


class Table:
    """Methods that wait, fail and talk, and what happened to them."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.cancelled = 0
        self.running = trio.Event()
        self.ended = trio.Event()
        self.go = trio.Event()
        self.audited: list[tuple[str, str, str, int | None]] = []
        self.told: list[Any] = []
        self.calls: list[Call] = []

    async def wait(self, call: Call, _: Empty) -> str:
        self.calls.append(call)
        self.running.set()
        try:
            await self.go.wait()
        except trio.Cancelled:
            self.cancelled += 1
            raise
        finally:
            self.ended.set()
        return "waited"

    async def named(self, call: Call, params: Params) -> str:
        self.begun.append(params.name)
        await trio.lowlevel.checkpoint()
        return params.name

    async def talk(self, call: Call, _: Empty) -> bool:
        await call.progress(progress=1, total=2, message="half")
        await call.progress(delta="a")
        return call.progress.wanted

    async def big(self, _: Call, params: Size) -> str:
        return "x" * params.bytes

    async def bug(self, _: Call, __: Empty) -> None:
        raise RuntimeError("the secret is 42")

    async def missing(self, _: Call, __: Empty) -> None:
        raise NotFound("no such thing", kind="thing", id="7")

    async def grouped(self, call: Call, params: Empty) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(self.missing, call, params)

    async def unencodable(self, _: Call, __: Empty) -> object:
        return object()

    async def forbidden(self, _: Call, params: Params) -> None:
        raise PermissionDenied("not yours", needs="grants.agents:x")

    async def watch(self, call: Call, _: Empty) -> None:
        self.calls.append(call)
        call.connection.on_close(self.ended.set)

    def methods(self) -> list[tuple[str, Method]]:
        return [
            *spec_methods(),
            method("wait", Empty, self.wait),
            method("named", Params, self.named, agents=True),
            method("talk", Empty, self.talk),
            method("big", Size, self.big),
            method("bug", Empty, self.bug),
            method("missing", Empty, self.missing),
            method("grouped", Empty, self.grouped),
            method("unencodable", Empty, self.unencodable),
            method("watch", Empty, self.watch),
            method("open", Params, self.named, anonymous=True),
            method("change", Params, self.named, scope=Scope.CHAT, mutates=True, target="name"),
            method("nested", Params, self.named, mutates=True, target="restart.backoff_s"),
            method("forbidden", Params, self.forbidden, mutates=True, target="name", agents=True),
        ]

    def notifications(self) -> list[Notification]:
        def note(_: Call, params: Params) -> None:
            self.told.append(params.name)

        def broken(_: Call, __: Params) -> None:
            raise RuntimeError("broken handler")

        return [
            Notification("notifications/note", Params, "", note),
            Notification("notifications/own", Params, "", note, agents=True),
            Notification("notifications/broken", Params, "", broken),
        ]

    def audit(self, actor: Actor, name: str, target: str, code: int | None) -> None:
        self.audited.append((actor.label, name, target, code))

    def peer(self, **options: Any) -> Any:
        return unix_peer(dispatcher(self.methods(), self.notifications(), audit=self.audit), **options)


def request(name: str, params: Any = None, request_id: Any = 1) -> str:
    message = {"jsonrpc": "2.0", "id": request_id, "method": name}
    return json.dumps(message if params is None else {**message, "params": params})


def notification(name: str, params: Any) -> str:
    return json.dumps({"jsonrpc": "2.0", "method": name, "params": params})


def summary(answer: Any) -> tuple[Any, int, str]:
    return answer["id"], answer["error"]["code"], answer["error"]["data"]["name"]


# ---- cancel, order, progress ----------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["request_id", "requestId"])
async def test_cancelled_by_its_caller(spelling: str) -> None:
    table = Table()
    with trio.fail_after(60):
        async with table.peer() as joined:
            await joined.line.say(request("wait", request_id="é"))
            await table.running.wait()
            await joined.line.say(notification("notifications/cancelled", {spelling: "é"}))
            assert summary(await joined.line.hear_json()) == ("é", -32800, "cancelled")
            assert table.cancelled == 1
            await joined.line.say(notification("notifications/cancelled", {spelling: "gone"}))
            await joined.line.say(notification("notifications/cancelled", 3), request("sum", [1]))
            assert (await joined.line.hear_json())["error"]["code"] == -32600
            assert (await joined.line.hear_json())["result"] == 1


async def test_a_request_in_a_batch_is_cancelled_alone() -> None:
    table = Table()
    with trio.fail_after(60):
        async with table.peer() as joined:
            await joined.line.say(f"[{request('sum', [2], 1)},{request('wait', None, 2)}]")
            await table.running.wait()
            await joined.line.say(notification("notifications/cancelled", {"request_id": 2}))
            first, second = await joined.line.hear_json()
            assert (first["result"], second["error"]["code"]) == (2, -32800)


async def test_requests_begin_in_the_order_they_came() -> None:
    table = Table()
    names = [f"{n}" for n in range(200)]
    with trio.fail_after(60):
        async with table.peer() as joined:
            batch = ",".join(request("named", {"name": name}, int(name)) for name in names[100:])
            await joined.line.say(*(request("named", {"name": name}, int(name)) for name in names[:100]), f"[{batch}]")
            for _ in range(101):
                await joined.line.hear()
    assert table.begun == names


async def test_an_id_in_flight_is_refused_again() -> None:
    table = Table()
    with trio.fail_after(60):
        async with table.peer() as joined:
            await joined.line.say(request("wait", request_id="a"), '{"jsonrpc":"2.0","id":"\\u0061","method":"sum"}')
            assert summary(await joined.line.hear_json()) == ("a", -32600, "invalid_request")
            table.go.set()
            assert (await joined.line.hear_json())["result"] == "waited"
            await joined.line.say(request("sum", [1], "a"))
            assert (await joined.line.hear_json())["result"] == 1


async def test_progress_where_it_was_asked_for() -> None:
    with trio.fail_after(60):
        async with Table().peer() as joined:
            await joined.line.say(request("talk", {"_meta": {"progressToken": "t"}}))
            assert await joined.line.hear_json() == {
                "jsonrpc": "2.0",
                "method": "notifications/progress",
                "params": {"progress_token": "t", "progress": 1, "total": 2, "message": "half"},
            }
            assert (await joined.line.hear_json())["params"] == {"progress_token": "t", "delta": "a"}
            assert (await joined.line.hear_json())["result"] is True
            assert (await joined.line.ask("talk", {"x": {"_meta": 1}}))["result"] is False
            wrong = await joined.line.ask("talk", {"_meta": {"progress_token": [1]}})
            assert wrong["error"]["data"]["path"] == "params._meta.progress_token"


# ---- errors ---------------------------------------------------------------------------------------------


async def test_a_bug_keeps_its_text(caplog: pytest.LogCaptureFixture) -> None:
    with trio.fail_after(60):
        async with Table().peer() as joined:
            await joined.line.say(request("bug"))
            text = await joined.line.hear()
    error = json.loads(text)["error"]
    assert error["code"] == -32603
    assert error["data"] == {"name": "internal_error", "retryable": False, "log_id": "log_1"}
    assert "42" not in text
    record = next(r for r in caplog.records if "log_1" in r.getMessage())
    assert record.exc_info is not None
    assert "the secret is 42" in str(record.exc_info[1])


@pytest.mark.parametrize(
    ("name", "code"), [("missing", -32002), ("grouped", -32002), ("unencodable", -32603), ("nope", -32601)]
)
async def test_errors_by_code(name: str, code: int) -> None:
    with trio.fail_after(60):
        async with Table().peer() as joined:
            error = (await joined.line.ask(name))["error"]
            assert error["code"] == code
            if code == -32002:
                assert error["data"] == {"name": "not_found", "retryable": False, "kind": "thing", "id": "7"}


@pytest.mark.parametrize(
    ("params", "path"),
    [
        ({}, "params.name"),
        ({"name": 1}, "params.name"),
        ({"name": "a", "restart": {"backoff_s": "x"}}, "params.restart.backoff_s"),
        ({"name": "a", "restart": {}}, "params.restart.backoff_s"),
        ([1], "params.name"),
        (["a", None, 3], "params[2]"),
    ],
)
async def test_wrong_params_are_named(params: Any, path: str) -> None:
    with trio.fail_after(60):
        async with Table().peer() as joined:
            error = (await joined.line.ask("named", params))["error"]
            assert (error["code"], error["data"]["path"]) == (-32602, path)
            assert path in error["message"] or path == "params[2]"


def test_params_in_order_and_unknown_ones() -> None:
    read = params_decoder(Params)
    assert read(b'["a",{"backoff_s":1}]') == Params(name="a", restart=Inner(backoff_s=1))  # type: ignore[arg-type]
    assert read(b'{"name":"a","newer":1,"_meta":{}}') == Params(name="a")  # type: ignore[arg-type]
    with pytest.raises(InvalidParams):
        read(b"[]")  # type: ignore[arg-type]


# ---- who may ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("actor", "name", "expected"),
    [
        (ANONYMOUS, "open", "a"),
        (ANONYMOUS, "named", -32004),
        (ANONYMOUS, "nope", -32004),
        (AGENT, "named", "a"),
        (AGENT, "change", -32003),
        (OWNER, "change", "a"),
        (Actor(kind="client", label="token:t", scopes=frozenset({Scope.READ})), "change", -32003),
        (Actor(kind="client", label="token:t", scopes=frozenset({Scope.CHAT})), "change", "a"),
    ],
)
async def test_access(actor: Actor, name: str, expected: Any) -> None:
    with trio.fail_after(60):
        async with Table().peer(actor=actor) as joined:
            answer = await joined.line.ask(name, {"name": "a"})
            assert (answer["error"]["code"] if "error" in answer else answer["result"]) == expected
            if expected == -32003:
                assert answer["error"]["data"]["needs"] == ("grants" if actor is AGENT else "chat")


async def test_a_connection_speaks_for_its_new_actor() -> None:
    with trio.fail_after(60):
        async with Table().peer(actor=ANONYMOUS) as joined:
            joined.peer.set_actor(OWNER)
            assert (await joined.line.ask("change", {"name": "a"}))["result"] == "a"


async def test_what_changes_something_is_audited() -> None:
    table = Table()
    with trio.fail_after(60):
        async with table.peer() as joined:
            await joined.line.ask("change", {"name": "x"})
            await joined.line.ask("nested", {"name": "x", "restart": {"backoff_s": 2}})
            await joined.line.ask("named", {"name": "x"})
            await joined.line.ask("change", {"name": 1})
            await joined.line.ask("forbidden", {"name": "y"})
        async with table.peer(actor=AGENT) as joined:
            await joined.line.ask("change", {"name": "z"})
    assert table.audited == [
        ("owner", "change", "x", None),
        ("owner", "nested", "2.0", None),
        ("owner", "forbidden", "y", None),
        ("owner", "forbidden", "y", -32003),
        ("agent:a", "change", "z", -32003),
    ]


# ---- notifications ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stdio", [True, False])
async def test_notifications(stdio: bool, caplog: pytest.LogCaptureFixture) -> None:
    table = Table()
    with trio.fail_after(60):
        async with table.peer(actor=AGENT, is_agent_stdio=stdio, newline_only=True) as joined:
            await joined.line.say(
                notification("notifications/note", {"name": "a"}),
                notification("notifications/own", {"name": "b"}),
                notification("notifications/note", {"name": 3}),
                notification("notifications/broken", {"name": "c"}),
                notification("notifications/nobody_knows", {"name": "d"}),
                f"[{notification('notifications/note', {'name': 'e'})}]",
                request("named", {"name": "last"}),
            )
            assert (await joined.line.hear_json())["result"] == "last"
    assert table.told == (["a", "b", "e"] if stdio else ["a", "e"])
    assert "broken handler" in caplog.text


async def test_what_an_agent_prints_is_not_answered() -> None:
    rubbish: list[bytes] = []
    table = Table()
    limits = msgspec.structs.replace(LIMITS, message_bytes=1000)
    with trio.fail_after(60):
        async with table.peer(
            actor=AGENT, is_agent_stdio=True, newline_only=True, on_rubbish=rubbish.append, limits=limits
        ) as joined:
            await joined.line.say(
                "Content-Length: hello", "42", '{"level":"info"}', "[1", "x" * 5000, request("named", {"name": "a"})
            )
            assert (await joined.line.hear_json())["result"] == "a"
    assert rubbish[:4] == [b"Content-Length: hello", b"42", b'{"level":"info"}', b"[1"]
    assert rubbish[4].startswith(b"xxx")
    assert len(rubbish[4]) < 300


# ---- limits ----------------------------------------------------------------------------------------------


async def test_more_in_flight_than_allowed() -> None:
    table = Table()
    with trio.fail_after(60):
        async with table.peer(limits=msgspec.structs.replace(LIMITS, in_flight=3)) as joined:
            await joined.line.say(*(request("wait", None, n) for n in range(4)))
            answer = await joined.line.hear_json()
            assert summary(answer) == (3, -32001, "overloaded")
            assert answer["error"]["data"]["retry_after_ms"] > 0
            table.go.set()
            assert {(await joined.line.hear_json())["id"] for _ in range(3)} == {0, 1, 2}
            # What takes no time may come in any number.
            await joined.line.say(*(request("sum", [n], n) for n in range(500)))
            assert [(await joined.line.hear_json())["result"] for _ in range(500)] == list(range(500))


async def test_a_batch_beyond_the_limit() -> None:
    with trio.fail_after(60):
        async with Table().peer(limits=msgspec.structs.replace(LIMITS, batch=3, in_flight=2)) as joined:
            sums = [request("sum", [n], n) for n in range(4)]
            await joined.line.say(f"[{','.join(sums)}]", f"[{','.join(sums[:3])}]")
            assert (await joined.line.hear_json())["error"]["data"] == {
                "name": "limit_exceeded",
                "retryable": False,
                "limit": "batch",
                "value": 3,
            }
            assert [answer["result"] for answer in await joined.line.hear_json()] == [0, 1, 2]


@pytest.mark.parametrize("depth", [129, 10_000, 1_000_000])
async def test_nesting_too_deep(depth: int) -> None:
    with trio.fail_after(60):
        async with Table().peer() as joined:
            nested = "[" * (depth - 1) + "]" * (depth - 1)
            await joined.line.say(f'{{"jsonrpc":"2.0","id":1,"method":"sum","params":{nested}}}')
            answer = await joined.line.hear_json()
            assert summary(answer) == (None, -32008, "limit_exceeded")
            assert (answer["error"]["data"]["limit"], answer["error"]["data"]["value"]) == ("depth", 128)


@pytest.mark.parametrize("text", ["[" * 200, '\\"[{' * 200, "\\\\"])
async def test_brackets_in_text_and_side_by_side_are_not_depth(text: str) -> None:
    with trio.fail_after(60):
        async with Table().peer() as joined:
            params = f'{{"name":"{text}","other":[{",".join(["{}"] * 500)}],"deep":{"[" * 126}{"]" * 126}}}'
            await joined.line.say(f'{{"jsonrpc":"2.0","id":1,"method":"named","params":{params}}}')
            assert "result" in await joined.line.hear_json()


async def test_a_hundred_megabytes_in_one_line() -> None:
    chunk = b"x" * 1_000_000
    with trio.fail_after(60):
        async with Table().peer() as joined:
            tracemalloc.start()
            for _ in range(100):
                await joined.line.stream.send_all(chunk)
            await joined.line.say("", request("sum", [1]))
            answer = await joined.line.hear_json()
            assert summary(answer) == (None, -32008, "limit_exceeded")
            assert answer["error"]["data"]["value"] == LIMITS.message_bytes
            assert (await joined.line.hear_json())["result"] == 1
            _, peak_bytes = tracemalloc.get_traced_memory()
            tracemalloc.stop()
    assert peak_bytes < 2 * LIMITS.message_bytes + (1 << 20)


async def test_a_message_too_long_for_a_websocket_and_a_binary_one() -> None:
    limits = msgspec.structs.replace(LIMITS, message_bytes=1000)
    with trio.fail_after(60):
        async with websocket_peer(dispatcher(Table().methods()), limits=limits) as line:
            await line.say(request("sum", [1] * 500))
            assert summary(await line.hear_json()) == (None, -32008, "limit_exceeded")
            await line.ws.send_message(request("sum", [1]).encode())
            assert summary(await line.hear_json()) == (None, -32600, "invalid_request")
            assert (await line.ask("sum", [1]))["result"] == 1


@pytest.mark.parametrize("text", ["{", '{"jsonrpc":"2.0","id":1,"method":1', '{"a":"\\ud800"}x', "\x00"])
async def test_no_json(text: str) -> None:
    with trio.fail_after(60):
        async with Table().peer() as joined:
            await joined.line.say(text)
            assert summary(await joined.line.hear_json()) == (None, -32700, "parse_error")
            await joined.line.stream.send_all(b'{"jsonrpc":"2.0","id":1,"method":"sum","params":{"a":"\xff"}}\n')
            assert summary(await joined.line.hear_json()) == (None, -32700, "parse_error")


# ---- slow readers, endings -------------------------------------------------------------------------------


async def test_a_client_that_never_reads_is_not_served_without_end() -> None:
    table = Table()
    sent = 0
    async with table.peer(limits=msgspec.structs.replace(LIMITS, in_flight=4)) as joined:
        with trio.move_on_after(1):
            while True:
                await joined.line.say(request("big", {"bytes": 500_000}, sent))
                sent += 1
        # Backed up: four in flight on top of the high-water mark, the rest waits in the socket, unread.
        assert joined.peer._outbox._bytes <= HIGH_WATER + 5 * 500_100
        with trio.fail_after(60):
            answers = [await joined.line.hear_json() for _ in range(sent)]
        assert len(answers) == sent
        assert any("result" in answer for answer in answers)


async def test_sending_waits_for_a_reader_and_ends_with_it() -> None:
    async with Table().peer() as joined:
        with trio.move_on_after(0.5) as waiting:
            for _ in range(100):
                await joined.peer.send(b'"' + b"x" * 200_000 + b'"')
        assert waiting.cancelled_caught
        assert joined.peer._outbox._bytes <= HIGH_WATER + 200_002
        with trio.fail_after(60):
            await joined.line.stream.aclose()
            await joined.over.wait()
            assert joined.peer.closed
            with pytest.raises(trio.BrokenResourceError):
                await joined.peer.send(b"1")


async def test_a_reader_that_has_stalled_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    with trio.fail_after(60):
        async with Table().peer(send_timeout_s=0.2) as joined:
            await joined.line.say(request("big", {"bytes": 4_000_000}))
            await joined.over.wait()
    assert "rpc.stalled" in caplog.text


async def test_half_closed_requests_are_answered_then_it_is_closed() -> None:
    table = Table()
    with trio.fail_after(60):
        async with table.peer() as joined:
            await joined.line.stream.send_all(request("wait").encode())  # not even a newline
            await joined.line.stream.send_eof()
            await table.running.wait()
            table.go.set()
            assert (await joined.line.hear_json())["result"] == "waited"
            with pytest.raises(EOFError):
                await joined.line.hear()
            await joined.over.wait()


async def test_half_closed_subscriptions_go_on_until_it_hangs_up() -> None:
    table = Table()
    with trio.fail_after(60):
        async with table.peer() as joined:
            await joined.line.say(request("watch"))
            assert (await joined.line.hear_json())["id"] == 1
            await joined.line.stream.send_eof()
            await trio.testing.wait_all_tasks_blocked(0.05)
            await table.calls[0].connection.send_many([b"[1]", b"[2]"])
            assert [await joined.line.hear(), await joined.line.hear()] == ["[1]", "[2]"]
            assert not table.ended.is_set()
            await joined.line.stream.aclose()
            await table.ended.wait()
            await joined.over.wait()


async def test_a_client_that_vanishes_takes_its_requests_along() -> None:
    table = Table()
    with trio.fail_after(60):
        async with table.peer() as joined:
            await joined.line.say(request("wait"), request("watch", None, 2))
            await table.running.wait()
            await joined.line.stream.aclose()
            await joined.over.wait()
    assert table.cancelled == 1
    assert table.calls[0].connection.closed


async def test_half_a_message_is_named() -> None:
    with trio.fail_after(60):
        async with Table().peer() as joined:
            await joined.line.stream.send_all(b"Content-Length: 50\r\n\r\n{")
            await joined.line.stream.send_eof()
            assert "Content-Length" in (head := await joined.line.hear())
            await joined.line.hear()
            body = await joined.line.stream.receive_some() or joined.line._buffer
            assert b"-32700" in joined.line._buffer + body, head


async def test_answered_is_set_when_the_answer_is_on_its_way() -> None:
    table = Table()
    with trio.fail_after(60):
        async with table.peer() as joined:
            await joined.line.say(f"[{request('watch', None, 1)},{request('wait', None, 2)}]")
            await table.running.wait()
            assert not table.calls[0].answered.is_set()
            table.go.set()
            await joined.line.hear()
            await table.calls[0].answered.wait()
            assert table.calls[1].answered.is_set()
            await joined.line.ask("watch")
            await table.calls[2].answered.wait()


async def test_close_when_flushed() -> None:
    with trio.fail_after(60):
        async with Table().peer() as joined, trio.open_nursery() as nursery:
            for n in range(4):
                await joined.peer.send(b"%d" % n + b" " * 200_000)
            nursery.start_soon(joined.peer.close_when_flushed)
            assert [(await joined.line.hear()).strip() for _ in range(4)] == ["0", "1", "2", "3"]
            await joined.over.wait()


async def test_a_backlog_is_one_array_on_a_websocket() -> None:
    peers: list[Peer] = []
    with trio.fail_after(60):
        async with websocket_peer(dispatcher(Table().methods()), peers=peers) as line:
            await line.ask("sum", [1])
            await peers[0].send(b"-1")
            await peers[0].send_many([b"%d" % n for n in range(501)])
            await peers[0].send_many([b"7"])
            assert await line.hear() == "-1"
            assert json.loads(await line.hear()) == list(range(500))
            assert [await line.hear(), await line.hear()] == ["500", "7"]


async def test_a_websocket_that_closes_takes_its_requests_along() -> None:
    table = Table()
    with trio.fail_after(60):
        async with websocket_peer(dispatcher(table.methods())) as line:
            await line.say(request("wait"))
            await table.running.wait()
            await line.ws.aclose()
            await table.ended.wait()
    assert table.cancelled == 1


# ---- asking the other side -------------------------------------------------------------------------------


async def answering(joined: Joined, answer: dict[str, Any]) -> dict[str, Any]:
    asked: dict[str, Any] = await joined.line.hear_json()
    await joined.line.say(json.dumps({"jsonrpc": "2.0", "id": asked["id"], **answer}))
    return asked


async def test_asking() -> None:
    with trio.fail_after(60):
        async with Table().peer() as joined, trio.open_nursery() as nursery:
            nursery.start_soon(answering, joined, {"result": {"name": "a"}})
            assert await joined.peer.request("x/y", {"p": 1}, Params) == Params(name="a")
            joined.peer.notify("notifications/x", {})
            assert await joined.line.hear_json() == {"jsonrpc": "2.0", "method": "notifications/x", "params": {}}


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ({"error": {"code": -32002, "message": "no", "data": {"name": "x", "id": "7"}}}, NotFound, "no"),
        ({"error": {"code": -32002, "message": "no", "data": "text"}}, NotFound, "no"),
        ({"error": {"code": 12, "message": "odd"}}, RemoteError, "odd"),
        ({"error": "nonsense"}, RemoteError, "does not fit"),
        ({"result": {"name": 3}}, RemoteError, "does not fit"),
    ],
)
async def test_asking_and_being_refused(answer: dict[str, Any], error: type[Exception], message: str) -> None:
    with trio.fail_after(60):
        async with Table().peer() as joined, trio.open_nursery() as nursery:
            nursery.start_soon(answering, joined, answer)
            with pytest.raises(error, match=message) as raised:
                await joined.peer.request("x/y", {}, Params)
            if isinstance(raised.value, NotFound):
                assert raised.value.data["name"] == "not_found"


async def test_giving_up_says_so() -> None:
    with trio.fail_after(60):
        async with Table().peer() as joined:
            with pytest.raises(Timeout):
                await joined.peer.request("slow", {}, Empty, timeout_s=0.01)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(joined.peer.request, "slow", {}, Empty)
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            heard = [await joined.line.hear_json() for _ in range(4)]
            assert [h.get("params") for h in heard] == [{}, {"request_id": 1}, {}, {"request_id": 2}]
            # The answer that comes too late, and one nobody asked for, are nobody's.
            await joined.line.say('{"jsonrpc":"2.0","id":1,"result":{}}', '{"jsonrpc":"2.0","id":"x","result":1}')
            assert (await joined.line.ask("sum", [1]))["result"] == 1


async def test_asking_when_the_other_side_says_no_more() -> None:
    table = Table()
    with trio.fail_after(60):
        async with table.peer() as joined, trio.open_nursery() as nursery:

            async def say_no_more() -> None:
                await joined.line.hear()
                await joined.line.stream.send_eof()

            await joined.line.say(request("wait"))
            nursery.start_soon(say_no_more)
            with pytest.raises(trio.BrokenResourceError):
                await joined.peer.request("x/y", {}, Empty)
            assert not joined.peer.closed
            with pytest.raises(trio.BrokenResourceError):
                await joined.peer.request("x/y", {}, Empty)
            table.go.set()
            assert (await joined.line.hear_json())["result"] == "waited"
            await joined.over.wait()
