"""The HTTP side of the door, over real sockets and as raw bytes: who is let in, and what rudeness gets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from tests.support.door import (
    FOREIGN,
    LIMITS,
    House,
    ask_websocket,
    open_house,
    read_reply,
    read_to_end,
    request,
    request_bytes,
)
from witsd.door.door import MAX_UNAUTHENTICATED_HTTP
from witsd.door.http import HEAD_BYTES, Deadlines
from witsd.values.actor import OWNER, Scope
from witsd.values.wire.common import Empty

HURRIED = Deadlines(idle_s=0.3, head_s=0.3, body_s=0.3, handshake_s=0.3, authenticate_s=0.3, linger_s=0.2)
PATHS = [
    ("GET", "/"),
    ("GET", "/healthz"),
    ("POST", "/rpc"),
    ("GET", "/ws"),
    ("POST", "/session"),
    ("GET", "/no"),
]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as house:
        yield house


@asynccontextmanager
async def hurried(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path, deadlines=HURRIED) as house:
        yield house


def assert_secure(headers: dict[str, str]) -> None:
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"


# ---- Host and Origin ------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), PATHS)
async def test_a_foreign_host_is_refused_everywhere(house: House, method: str, path: str) -> None:
    for host in ("evil.example", f"evil.example:{house.port}", "127.0.0.1:1", "127.0.0.1"):
        reply = await house.ask(method, path, {"Host": host})
        assert reply.status == 403
        assert reply.error["data"]["needs"] == "listen.allowed_hosts"
        assert_secure(reply.headers)


@pytest.mark.parametrize(("method", "path"), PATHS)
async def test_a_foreign_origin_is_refused_everywhere(house: House, method: str, path: str) -> None:
    token = (await house.token(*Scope)).token
    others = (
        FOREIGN,
        f"http://localhost:{house.port}",
        "http://127.0.0.1:1",
        f"https://127.0.0.1:{house.port}",
    )
    for origin in others:
        reply = await house.ask(method, path, {"Origin": origin, "Authorization": f"Bearer {token}"})
        assert reply.status == 403, origin
        assert_secure(reply.headers)
        assert "access-control-allow-origin" not in reply.headers


async def test_a_null_origin_counts_only_at_session(house: House) -> None:
    for method, path in PATHS:
        reply = await house.ask(method, path, {"Origin": "null"})
        assert (reply.status == 403) == (path != "/session"), path


async def test_every_name_of_the_loopback_is_ours(house: House) -> None:
    for name in ("127.0.0.1", "localhost", "LocalHost", "[::1]"):
        reply = await house.ask("GET", "/healthz", {"Host": f"{name}:{house.port}"})
        assert reply.status == 200, name


async def test_allowed_hosts_and_origins(tmp_path: Path) -> None:
    async with open_house(
        tmp_path, allowed_hosts=("box.example",), allowed_origins=("http://app.example",)
    ) as house:
        assert (await house.ask("GET", "/healthz", {"Host": "box.example"})).status == 200
        origin = {"Origin": "http://app.example"}
        token = (await house.token()).token
        preflight = await house.ask("OPTIONS", "/rpc", origin)
        assert preflight.status == 204
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        without = await house.ask("POST", "/rpc", origin)
        answered = await house.rpc(token, request("ping"), **origin)
        assert (without.status, answered.status) == (401, 200)
        for reply in (preflight, without, answered):
            assert reply.headers["access-control-allow-origin"] == "http://app.example"
            assert "access-control-allow-credentials" not in reply.headers
        # Its pages need a token: a ticket is for ours alone.
        ticket = (await house.access.ticket(OWNER, Empty())).ticket
        assert (await house.post_form(ticket, **origin)).status == 403


# ---- routes ---------------------------------------------------------------------------------------


async def test_health_page_and_files(house: House) -> None:
    health = await house.ask("GET", "/healthz")
    assert (health.status, health.json) == (200, {"status": "ok"})
    page = await house.ask("GET", "/?x=1")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert b"witsd is running" in page.body
    # The policy allows no inline script, so the page must work without one.
    assert b"<script>" not in page.body
    script = await house.ask("GET", "/index.js")
    assert (script.status, script.headers["content-type"]) == (200, "text/javascript; charset=utf-8")
    head = await house.ask("HEAD", "/")
    assert (head.status, head.headers["content-length"], head.body) == (200, str(len(page.body)), b"")
    for reply in (health, page, script, head):
        assert_secure(reply.headers)


@pytest.mark.parametrize(
    "path",
    ["/nothing", "/../door/http.py", "/%2e%2e/door/http.py", "//etc/passwd", "/index.html/", "/__init__.py"],
)
async def test_no_path_leads_out_of_the_page(house: House, path: str) -> None:
    reply = await house.ask("GET", path)
    assert reply.status == 404
    assert reply.error["code"] == -32002
    assert_secure(reply.headers)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/rpc", "POST"), ("POST", "/", "GET, HEAD"), ("DELETE", "/healthz", "GET, HEAD"),
        ("GET", "/session", "POST"), ("POST", "/ws", "GET"), ("OPTIONS", "/rpc", "POST"),
    ],
)  # fmt: skip
async def test_wrong_method(house: House, method: str, path: str, allowed: str) -> None:
    reply = await house.ask(method, path)
    assert (reply.status, reply.headers["allow"]) == (405, allowed)


async def test_rpc_needs_a_good_token(house: House) -> None:
    body = json.dumps(request("ping")).encode()
    cookie, secret = await house.sign_in()
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic eDp5"},
        {"Cookie": cookie},
        {"Authorization": f"Bearer {secret}", "Cookie": cookie},
    ):
        reply = await house.ask("POST", "/rpc", {"Content-Type": "application/json", **headers}, body)
        assert reply.status == 401, headers
        assert reply.headers["www-authenticate"].startswith("Bearer")
        assert reply.error["code"] == -32004
        assert_secure(reply.headers)


async def test_rpc_serves_requests_batches_and_notifications(house: House) -> None:
    token = (await house.token(Scope.CHAT)).token
    one = await house.rpc(token, request("echo", {"text": "hi"}))
    assert one.json == {"jsonrpc": "2.0", "id": 1, "result": {"text": "hi"}}
    both = await house.rpc(
        token, [request("echo", {"text": "a"}, 1), {"jsonrpc": "2.0", "method": "ping"}, 7]
    )
    assert both.status == 200
    assert [element.get("result") for element in both.json] == [{"text": "a"}, None]
    none = await house.rpc(token, {"jsonrpc": "2.0", "method": "ping"})
    assert (none.status, none.body) == (204, b"")
    assert "content-length" not in none.headers
    broken = await house.ask(
        "POST", "/rpc", {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}, b"{nope"
    )
    assert (broken.status, broken.error["code"]) == (200, -32700)
    form = await house.rpc(token, request("ping"), **{"Content-Type": "text/plain"})
    assert form.status == 415


async def test_scopes_of_a_token_hold(house: House) -> None:
    token = (await house.token(Scope.READ)).token
    reply = await house.rpc(token, request("echo"))
    assert reply.error["code"] == -32003
    assert reply.error["data"]["needs"] == "chat"


async def test_subscribing_over_post_says_where_to_go(house: House) -> None:
    reply = await house.rpc((await house.token(Scope.READ)).token, request("events/subscribe"))
    assert reply.error["code"] == -32005
    assert "WebSocket" in reply.error["message"]


async def test_an_expired_token_is_refused(house: House) -> None:
    token = (await house.token(expires_s=60)).token
    assert (await house.rpc(token, request("ping"))).status == 200
    house.clock.now += 61
    assert (await house.rpc(token, request("ping"))).status == 401


async def test_a_token_revoked_while_it_waits_for_an_answer(house: House) -> None:
    made = await house.token(Scope.ADMIN)
    async with trio.open_nursery() as nursery:

        async def waiter() -> None:
            reply = await house.rpc(made.token, request("wait"))
            assert reply.status == 401

        nursery.start_soon(waiter)
        with trio.fail_after(60):
            await house.wait.begun.wait()
        other = (await house.token(Scope.ADMIN)).token
        assert (await house.rpc(other, request("tokens/revoke", {"token_id": made.token_id}))).json[
            "result"
        ] == {}
    assert house.wait.cancelled.is_set()
    assert (await house.rpc(made.token, request("ping"))).status == 401


async def test_a_client_that_leaves_has_its_work_cancelled(house: House) -> None:
    token = (await house.token()).token
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    body = json.dumps(request("wait")).encode()
    async with await house.dial() as stream:
        await stream.send_all(request_bytes("POST", "/rpc", house.door.http, headers, body))
        with trio.fail_after(60):
            await house.wait.begun.wait()
    with trio.fail_after(60):
        await house.wait.cancelled.wait()


async def test_keep_alive_pipelining_and_expect(house: House) -> None:
    async with await house.dial() as stream:
        get = request_bytes("GET", "/healthz", house.door.http)
        await stream.send_all(get)
        assert (await read_reply(stream)).status == 200
        await stream.send_all(
            get + request_bytes("GET", "/healthz", house.door.http, {"Connection": "close"})
        )
        data = await read_to_end(stream)
        assert data.count(b"HTTP/1.1 200") == 2
    token = (await house.token()).token
    body = json.dumps(request("ping")).encode()
    async with await house.dial() as stream:
        headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Expect": "100-continue",
        }
        await stream.send_all(request_bytes("POST", "/rpc", house.door.http, headers))
        assert (await read_reply(stream)).status == 100
        await stream.send_all(body)
        assert (await read_reply(stream)).json["result"] == {}


# ---- tickets --------------------------------------------------------------------------------------


async def test_a_ticket_works_once(house: House) -> None:
    ticket = (await house.access.ticket(OWNER, Empty())).ticket
    first = await house.post_form(ticket)
    assert first.status == 200
    cookie = first.headers["set-cookie"]
    assert cookie.startswith(f"witsd_{house.port}_")
    for attribute in ("Path=/", "HttpOnly", "SameSite=Strict"):
        assert attribute in cookie
    assert b'<script src="/session.js">' in first.body
    again = await house.post_form(ticket)
    assert again.status == 403
    assert "set-cookie" not in again.headers
    for reply in (first, again):
        assert_secure(reply.headers)


async def test_a_ticket_is_too_old_after_thirty_seconds(house: House) -> None:
    ticket = (await house.access.ticket(OWNER, Empty())).ticket
    house.clock.now += 31
    assert (await house.post_form(ticket)).status == 403


async def test_a_ticket_may_be_typed(house: House) -> None:
    ticket = (await house.access.ticket(OWNER, Empty())).ticket
    typed = ticket.upper().replace("-", "+").replace("0", "O").replace("1", "I")
    assert (await house.post_form(typed, Origin=house.origin)).status == 200


@pytest.mark.parametrize("body", [b"", b"ticket", b"other=1", b"\xff\xfe", b"ticket=wrong"])
async def test_a_broken_form(house: House, body: bytes) -> None:
    reply = await house.ask("POST", "/session", {"Origin": "null"}, body)
    assert reply.status == (403 if body.startswith(b"ticket=") else 400)


async def test_the_page_drops_cookies_of_sessions_that_ended(house: House) -> None:
    live, _ = await house.sign_in()
    dead = f"witsd_{house.port}_00000000"
    reply = await house.ask("GET", "/", {"Cookie": f"{live}; {dead}=x; other=y"})
    assert reply.headers["set-cookie"].startswith(f"{dead}=;")
    assert "Max-Age=0" in reply.headers["set-cookie"]


# ---- rude clients ---------------------------------------------------------------------------------


async def test_a_silent_connection_is_closed(tmp_path: Path) -> None:
    async with hurried(tmp_path) as house, await house.dial() as stream:
        assert await read_to_end(stream) == b""


async def test_a_slow_head(tmp_path: Path) -> None:
    async with hurried(tmp_path) as house, await house.dial() as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHo")
        reply = await read_reply(stream)
        assert reply.status == 408
        assert_secure(reply.headers)
        assert await read_to_end(stream) == b""


async def test_a_slow_body(tmp_path: Path) -> None:
    async with hurried(tmp_path) as house, await house.dial() as stream:
        token = (await house.token()).token
        headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/json",
            "Content-Length": "100",
        }
        await stream.send_all(request_bytes("POST", "/rpc", house.door.http, headers) + b"{")
        reply = await read_reply(stream)
        assert (reply.status, reply.error["code"]) == (408, -32006)
        assert await read_to_end(stream) == b""


async def test_an_oversized_head(house: House) -> None:
    async with await house.dial() as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nX: " + b"x" * HEAD_BYTES + b"\r\n\r\n")
        reply = await read_reply(stream)
        assert (reply.status, reply.error["code"]) == (431, -32008)
        assert_secure(reply.headers)


async def test_a_head_without_end(house: House) -> None:
    async with await house.dial() as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nX: " + b"x" * HEAD_BYTES)
        assert (await read_reply(stream)).status == 431


async def test_the_refusal_reaches_a_client_that_is_still_sending(house: House) -> None:
    """Closing with unread bytes would reset the connection, and the answer with it."""
    headers = {"Content-Type": "application/json", "Content-Length": str(8 << 20)}
    async with await house.dial() as stream:
        await stream.send_all(request_bytes("POST", "/rpc", house.door.http, headers))
        await stream.send_all(b" " * (8 << 20))
        assert (await read_reply(stream)).status == 401


async def test_an_oversized_body_announced_or_not(house: House) -> None:
    token = (await house.token()).token
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    too_long = {**headers, "Content-Length": str(LIMITS.message_bytes + 1)}
    chunked = {**headers, "Transfer-Encoding": "chunked"}
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    for head, body in ((too_long, b""), (chunked, chunk * 2)):
        async with await house.dial() as stream:
            await stream.send_all(request_bytes("POST", "/rpc", house.door.http, head) + body)
            reply = await read_reply(stream)
            assert (reply.status, reply.error["code"]) == (413, -32008)
            assert reply.error["data"]["value"] == LIMITS.message_bytes
            assert_secure(reply.headers)


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n\n',
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"POST /rpc HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\n\n",
    ],
)
async def test_what_is_not_http(house: House, data: bytes) -> None:
    async with await house.dial() as stream:
        await stream.send_all(data)
        reply = await read_reply(stream)
        assert reply.status == 400
        assert_secure(reply.headers)
    assert (await house.ask("GET", "/healthz")).status == 200


async def test_a_client_that_leaves_half_way(house: House) -> None:
    token = (await house.token()).token
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", "Content-Length": "9"}
    for data in (b"", b"GET / HT", request_bytes("POST", "/rpc", house.door.http, headers) + b"{"):
        async with await house.dial() as stream:
            await stream.send_all(data)
    assert (await house.ask("GET", "/healthz")).status == 200


async def test_only_so_many_may_come_without_a_credential(house: House) -> None:
    token = (await house.token()).token
    async with AsyncExitStack() as stack, house.websocket(Authorization=f"Bearer {token}") as websocket:
        await ask_websocket(websocket, "ping")
        for _ in range(MAX_UNAUTHENTICATED_HTTP - 1):
            await stack.enter_async_context(await house.dial())
        # Who has shown a credential does not count: there is room for just one more.
        last = await stack.enter_async_context(await house.dial())
        await last.send_all(request_bytes("GET", "/healthz", house.door.http))
        assert (await read_reply(last)).status == 200
        assert (await house.ask("GET", "/healthz")).status == 503
        assert "result" in await ask_websocket(websocket, "ping")


async def test_strangers_cannot_take_all_connections(tmp_path: Path) -> None:
    async with open_house(tmp_path, limits=msgspec.structs.replace(LIMITS, connections=3)) as house:
        async with await house.dial(), await house.dial(), await house.dial():
            refused = await house.ask("GET", "/healthz")
            assert (refused.status, refused.error["code"]) == (503, -32001)
            assert refused.error["data"]["retry_after_ms"] > 0
            assert_secure(refused.headers)
            async with await trio.open_unix_socket(str(house.door.unix)) as newcomer:
                line = json.loads(await read_to_end(newcomer))
                assert line["error"]["code"] == -32001
        with trio.fail_after(60):
            while (await house.ask("GET", "/healthz")).status == 503:
                await trio.lowlevel.checkpoint()
