"""The WebSocket side of the door: three ways to say who one is, and what happens to those who do not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection

from tests.support.door import FOREIGN, LIMITS, House, ask_websocket, open_house, read_reply, request_bytes
from witsd.door.http import Deadlines
from witsd.values.actor import Scope

HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as house:
        yield house


async def closes(websocket: WebSocketConnection) -> None:
    with trio.fail_after(60):
        try:
            while True:
                await websocket.get_message()
        except ConnectionClosed:
            pass


async def test_nothing_works_before_a_credential(house: House) -> None:
    async with house.websocket() as websocket:
        for method in ("ping", "echo", "no/such"):
            assert (await ask_websocket(websocket, method))["error"]["code"] == -32004
        for params in ({}, {"token": "wrong"}, {"token": ""}):
            assert (await ask_websocket(websocket, "initialize", params))["error"]["code"] == -32004
        assert (await ask_websocket(websocket, "ping"))["error"]["code"] == -32004


async def test_who_says_nothing_is_cut_off(tmp_path: Path) -> None:
    async with open_house(tmp_path, deadlines=Deadlines(authenticate_s=1)) as house:
        async with house.websocket() as websocket:
            await closes(websocket)
        token = (await house.token()).token
        async with house.websocket() as websocket:
            await ask_websocket(websocket, "initialize", {"token": token})
            with trio.move_on_after(1.5) as waited:
                await closes(websocket)
            assert waited.cancelled_caught


async def test_a_token_in_the_header(house: House) -> None:
    token = (await house.token(Scope.CHAT)).token
    async with house.websocket(Authorization=f"Bearer {token}") as websocket:
        assert (await ask_websocket(websocket, "echo", {"text": "é"}))["result"] == {"text": "é"}
        assert (await ask_websocket(websocket, "initialize"))["result"]["label"] == "token:test"
    for wrong in ("Bearer wrong", f"Bearer {token}x"):
        with pytest.raises((ConnectionRejected, BaseExceptionGroup)) as refused:
            async with house.websocket(Authorization=wrong):
                pass
        assert "401" in repr(refused.value)


async def test_a_token_in_the_first_frame(house: House) -> None:
    token = (await house.token(Scope.CHAT)).token
    async with house.websocket() as websocket:
        answer = await ask_websocket(websocket, "initialize", {"token": token})
        assert answer["result"] == {"kind": "client", "label": "token:test", "scopes": ["chat"]}
        assert "result" in await ask_websocket(websocket, "echo")
        assert (await ask_websocket(websocket, "auth/ticket"))["error"]["code"] == -32003


async def test_a_browser_needs_cookie_origin_and_tab_secret(house: House) -> None:
    cookie, secret = await house.sign_in()
    async with house.websocket(Cookie=cookie, Origin=house.origin) as websocket:
        answer = await ask_websocket(websocket, "initialize", {"token": secret})
        assert answer["result"]["label"] == "browser"
        assert answer["result"]["scopes"] == sorted(Scope)
    async with house.websocket(Cookie=cookie, Origin=house.origin) as websocket:
        for token in (None, "", cookie.partition("=")[2]):
            answer = await ask_websocket(websocket, "initialize", {"token": token})
            assert answer["error"]["code"] == -32004
    other, _ = await house.sign_in()
    for headers in (
        {},
        {"Origin": house.origin},
        {"Cookie": cookie},
        {"Cookie": other, "Origin": house.origin},
        {"Cookie": cookie, "Origin": f"http://localhost:{house.port}", "Host": f"127.0.0.1:{house.port}"},
    ):
        async with await house.dial() as stream:
            await stream.send_all(request_bytes("GET", "/ws", house.door.http, {**HANDSHAKE, **headers}))
            reply = await read_reply(stream)
        if "localhost" in headers.get("Origin", ""):
            assert reply.status == 403
            continue
        assert reply.status == 101
        async with house.websocket(**{k: v for k, v in headers.items() if k != "Host"}) as websocket:
            answer = await ask_websocket(websocket, "initialize", {"token": secret})
            assert answer["error"]["code"] == -32004, headers


async def test_two_tabs_with_tickets_of_their_own_both_stay_signed_in(house: House) -> None:
    tabs = [await house.sign_in(), await house.sign_in()]
    together = "; ".join(cookie for cookie, _ in tabs)
    for _, secret in tabs:
        async with house.websocket(Cookie=together, Origin=house.origin) as websocket:
            assert "result" in await ask_websocket(websocket, "initialize", {"token": secret})


async def test_logout_ends_the_session_and_its_connections(house: House) -> None:
    cookie, secret = await house.sign_in()
    headers = {"Cookie": cookie, "Origin": house.origin}
    async with house.websocket(**headers) as one, house.websocket(**headers) as two:
        for websocket in (one, two):
            assert "result" in await ask_websocket(websocket, "initialize", {"token": secret})
        assert (await ask_websocket(one, "auth/logout"))["result"] == {}
        await closes(one)
        await closes(two)
    async with house.websocket(**headers) as websocket:
        answer = await ask_websocket(websocket, "initialize", {"token": secret})
        assert answer["error"]["code"] == -32004


async def test_a_revoked_token_can_do_nothing_and_its_connections_close(house: House) -> None:
    made = await house.token(Scope.ADMIN)
    other = await house.token(Scope.ADMIN)
    async with (
        house.websocket(Authorization=f"Bearer {made.token}") as victim,
        house.websocket(Authorization=f"Bearer {other.token}") as stays,
    ):
        await ask_websocket(victim, "ping")
        await ask_websocket(stays, "ping")
        assert len(house.access.connections_of(made.token_id)) == 1
        revoke = {"token_id": made.token_id}
        assert (await ask_websocket(stays, "tokens/revoke", revoke))["result"] == {}
        assert (await ask_websocket(victim, "ping"))["error"]["code"] == -32004
        await closes(victim)
        assert "result" in await ask_websocket(stays, "ping")
        assert house.access.connections_of(made.token_id) == ()


async def test_a_connection_lasts_no_longer_than_its_token(house: House) -> None:
    token = (await house.token(expires_s=0.3)).token
    async with house.websocket(Authorization=f"Bearer {token}") as websocket:
        await ask_websocket(websocket, "ping")
        await closes(websocket)


async def test_a_foreign_origin_never_gets_a_websocket(house: House) -> None:
    token = (await house.token()).token
    with pytest.raises((ConnectionRejected, BaseExceptionGroup)) as refused:
        async with house.websocket(Origin=FOREIGN, Authorization=f"Bearer {token}"):
            pass
    assert "403" in repr(refused.value)


async def test_the_upgrade_itself_carries_the_policy(house: House) -> None:
    async with await house.dial() as stream:
        # An ordinary request first: the same connection may be upgraded afterwards.
        await stream.send_all(request_bytes("GET", "/healthz", house.door.http))
        assert (await read_reply(stream)).status == 200
        await stream.send_all(request_bytes("GET", "/ws", house.door.http, HANDSHAKE))
        reply = await read_reply(stream)
    assert reply.status == 101
    assert "default-src 'none'" in reply.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"Upgrade": ""}, 426),
        ({"Sec-WebSocket-Version": "8"}, 400),
        ({"Sec-WebSocket-Key": "short"}, 400),
        ({"Sec-WebSocket-Key": ""}, 400),
        ({"Connection": "keep-alive"}, 400),
    ],
)
async def test_a_broken_handshake(house: House, change: dict[str, str], status: int) -> None:
    reply = await house.ask("GET", "/ws", {**HANDSHAKE, **change})
    assert reply.status == status
    assert "default-src 'none'" in reply.headers["content-security-policy"]


async def test_a_message_over_the_limit_gets_an_error_and_the_connection_goes_on(house: House) -> None:
    token = (await house.token(Scope.CHAT)).token
    async with house.websocket(Authorization=f"Bearer {token}") as websocket:
        answer = await ask_websocket(websocket, "echo", {"text": "x" * LIMITS.message_bytes})
        assert answer["error"]["code"] == -32008
        assert "result" in await ask_websocket(websocket, "ping")


async def test_closing_the_door_ends_connections(house: House) -> None:
    token = (await house.token()).token
    async with house.websocket(Authorization=f"Bearer {token}") as websocket:
        await ask_websocket(websocket, "ping")
        async with await house.dial() as idle:
            await house.door.stop_accepting()
            with pytest.raises(OSError, match="onnect"):
                await house.dial()
            assert "result" in await ask_websocket(websocket, "ping")
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(closes, websocket)
                    await house.door.close_connections(within_s=5)
                assert await idle.receive_some() == b""
            assert house.door.connections == 0
