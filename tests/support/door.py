"""A real door over a real journal with a table of a few methods, and the bytes to talk to it."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import msgspec
import trio
from trio_websocket import WebSocketConnection, wrap_client_stream

from witsd.door.door import Door, open_door
from witsd.door.exchange import without_streams
from witsd.door.http import Deadlines
from witsd.door.identity import Identifier
from witsd.journal.journal import Journal, open_journal
from witsd.journal.store import open_store
from witsd.rpc.call import Call
from witsd.rpc.dispatch import Dispatcher
from witsd.rpc.methods import Method
from witsd.services.access import Access, open_access
from witsd.values.actor import OWNER, Scope
from witsd.values.clock import SystemClock
from witsd.values.ids import TimeOrderedIds
from witsd.values.wire.auth import Ticket, TokenCreated, TokensCreateParams, TokensRevokeParams
from witsd.values.wire.common import Empty
from witsd.values.wire.system import ActorInfo, InitializeParams, LimitsInfo

LIMITS = LimitsInfo(message_bytes=64 * 1024, depth=64, in_flight=64, connections=100, batch=100)
FOREIGN = "http://evil.example"


class FakeClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000_000_000.0

    def wall_us(self) -> int:
        return int(self.now * 1_000_000)

    def monotonic(self) -> float:
        return self.now


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    unix: Path
    http: str = "127.0.0.1:0"
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    allow_remote: bool = False


@attrs.frozen
class Echo:
    text: str = ""


@attrs.define(eq=False)
class Wait:
    """The method ``wait`` of the table: tests see when it begins and that it is cancelled."""

    begun: trio.Event = attrs.field(factory=trio.Event)
    cancelled: trio.Event = attrs.field(factory=trio.Event)

    async def __call__(self, call: Call, params: Any) -> Empty:
        self.begun.set()
        try:
            await trio.sleep_forever()
        finally:
            self.cancelled.set()
        return Empty()


@attrs.define(eq=False)
class Calls:
    """What got as far as a method: the labels of those who entered, and the names of what was called."""

    names: list[str] = attrs.field(factory=list)
    entered: dict[str, trio.Event] = attrs.field(factory=lambda: defaultdict(trio.Event))

    def wrap(self, method: Method) -> Method:
        async def call(call: Call, params: Any) -> Any:
            self.names.append(method.name)
            result = await method.call(call, params)
            if isinstance(result, ActorInfo):
                self.entered[result.label].set()
            return result

        return attrs.evolve(method, call=call)


@attrs.define(eq=False)
class House:
    """Everything a test of the door needs."""

    door: Door
    access: Access
    journal: Journal
    clock: FakeClock
    wait: Wait
    calls: Calls

    @property
    def port(self) -> int:
        assert self.door.http is not None
        return int(self.door.http.rpartition(":")[2])

    @property
    def origin(self) -> str:
        return f"http://{self.door.http}"

    async def dial(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def token(self, *scopes: Scope, **params: Any) -> TokenCreated:
        made = TokensCreateParams(name="test", scopes=scopes or (Scope.READ,), **params)
        return await self.access.create_token(OWNER, made)

    async def sign_in(self) -> tuple[str, str]:
        """A ticket redeemed as the page does it: the Cookie header and the secret of the tab."""
        ticket = await self.access.ticket(OWNER, Empty())
        reply = await self.post_form(ticket.ticket)
        assert reply.status == 200, reply
        cookie = reply.headers["set-cookie"].partition(";")[0]
        secret = reply.body.decode().partition('data-tab="')[2].partition('"')[0]
        assert secret
        return cookie, secret

    async def post_form(self, ticket: str, **headers: str) -> Reply:
        given = {"Content-Type": "application/x-www-form-urlencoded", "Origin": "null", **headers}
        return await self.ask("POST", "/session", given, f"ticket={ticket}".encode())

    async def ask(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Reply:
        """One request on a connection of its own."""
        async with await self.dial() as stream:
            await stream.send_all(request_bytes(method, path, self.door.http, headers, body))
            return await read_reply(stream, head_only=method == "HEAD")

    async def rpc(self, token: str, message: Any, **headers: str) -> Reply:
        given = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", **headers}
        return await self.ask("POST", "/rpc", given, json.dumps(message).encode())

    @asynccontextmanager
    async def websocket(self, **headers: str) -> AsyncIterator[WebSocketConnection]:
        extra = [(name.encode(), value.encode()) for name, value in headers.items()]
        async with await self.dial() as stream, trio.open_nursery() as nursery:
            yield await wrap_client_stream(nursery, stream, str(self.door.http), "/ws", extra_headers=extra)
            nursery.cancel_scope.cancel()


@attrs.frozen
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]


def request_bytes(
    method: str, path: str, host: str | None, headers: Mapping[str, str] | None = None, body: bytes = b""
) -> bytes:
    """A request as it goes over the wire."""
    given = {"Host": host or "", **(headers or {})}
    if body:
        given["Content-Length"] = str(len(body))
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items() if value)
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body


async def read_reply(stream: trio.abc.ReceiveStream, *, head_only: bool = False) -> Reply:
    """One response: a head and as many bytes as it announces."""
    data = b""
    with trio.fail_after(60):
        while b"\r\n\r\n" not in data:
            more = await stream.receive_some()
            assert more, f"closed within a head: {data!r}"
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = 0 if head_only else int(headers.get("content-length", 0))
        while len(body) < length:
            more = await stream.receive_some()
            assert more, "closed within a body"
            body += more
    return Reply(int(first.split()[1]), headers, bytes(body[:length]))


async def read_to_end(stream: trio.abc.ReceiveStream) -> bytes:
    """All that comes until the other side closes; a reset counts as closing."""
    data = b""
    with trio.fail_after(60):
        try:
            while more := await stream.receive_some():
                data += more
        except trio.BrokenResourceError:
            pass
    return data


def request(method: str, params: Any = None, number: int = 1) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": params or {}}


async def ask_websocket(websocket: WebSocketConnection, method: str, params: Any = None) -> Any:
    await websocket.send_message(json.dumps(request(method, params)))
    with trio.fail_after(60):
        return json.loads(await websocket.get_message())


async def ask_stream(stream: trio.SocketStream, method: str, params: Any = None) -> Any:
    await stream.send_all(json.dumps(request(method, params)).encode() + b"\n")
    data = b""
    with trio.fail_after(60):
        while not data.endswith(b"\n"):
            more = await stream.receive_some()
            assert more, "closed without an answer"
            data += more
    return json.loads(data)


def methods(access: Access, wait: Wait, calls: Calls) -> dict[str, Method]:
    """The real calls of ``Access``, and three methods that need no other service."""

    async def initialize(call: Call, params: InitializeParams) -> ActorInfo:
        actor = access.enter(call.connection, call.actor, params.token)
        return ActorInfo(kind=actor.kind, label=actor.label, scopes=tuple(sorted(actor.scopes)))

    async def ping(call: Call, params: Empty) -> Empty:
        return Empty()

    async def echo(call: Call, params: Echo) -> Echo:
        return params

    async def boom(call: Call, params: Empty) -> Empty:
        raise AssertionError("never called")

    rows = (
        Method("initialize", InitializeParams, ActorInfo, "", initialize, agents=True, anonymous=True),
        Method("ping", Empty, Empty, "", ping, agents=True),
        Method("echo", Echo, Echo, "", echo, scope=Scope.CHAT),
        Method("wait", Empty, Empty, "", wait),
        Method("events/subscribe", Empty, Empty, "", boom, scope=Scope.READ),
        Method(
            "auth/ticket", Empty, Ticket, "",
            lambda c, p: access.ticket(c.actor, p), scope=Scope.ADMIN, mutates=True,
        ),
        Method("auth/logout", Empty, Empty, "", lambda c, p: access.logout(c.actor, p), mutates=True),
        Method(
            "tokens/revoke", TokensRevokeParams, Empty, "",
            lambda c, p: access.revoke_token(c.actor, p), scope=Scope.ADMIN, mutates=True, target="token_id",
        ),
    )  # fmt: skip
    return {row.name: calls.wrap(row) for row in rows}


@asynccontextmanager
async def open_house(
    home: Path,
    *,
    limits: LimitsInfo = LIMITS,
    deadlines: Deadlines | None = None,
    identifier: Identifier | None = None,
    clock: FakeClock | None = None,
    **settings: Any,
) -> AsyncIterator[House]:
    """A door on a socket in ``home`` and on a free port."""
    clock = clock or FakeClock()
    ids = TimeOrderedIds(SystemClock().wall_us)
    log = logging.getLogger("test")
    wait, calls = Wait(), Calls()
    async with open_store(home / "test.db") as store, open_journal(store, clock, epoch="e") as journal:
        access = await open_access(journal, clock, ids)
        table = methods(access, wait, calls)
        make: Callable[[Mapping[str, Method]], Dispatcher] = lambda rows: Dispatcher(  # noqa: E731
            rows, {}, lambda *_: None, ids, log
        )
        async with open_door(
            Settings(unix=home / "witsd.sock", **settings),
            dispatcher=make(table),
            http_dispatcher=make(without_streams(table)),
            access=access,
            limits=limits,
            identifier=identifier,
            deadlines=deadlines,
        ) as door:
            yield House(door, access, journal, clock, wait, calls)
