"""The daemon's side of the wire, in memory: a journal, subscriptions, and whatever methods a test adds.

Nothing of the client is used here, so both sides cannot share a mistake.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Ping, Pong, RejectConnection, Request, TextMessage

LIMITS = {"message_bytes": 4 << 20, "depth": 128, "in_flight": 512, "connections": 512, "batch": 1000}
TIME = "2026-01-31T09:05:07.123456Z"


class WireError(Exception):
    def __init__(self, code: int, message: str, **data: Any) -> None:
        super().__init__(message)
        self.body = {"code": code, "message": message, "data": {"retryable": False, **data}}


class Peer:
    """One connection."""

    def __init__(self, daemon: FakeDaemon, stream: anyio.abc.ByteStream) -> None:
        self.daemon = daemon
        self.stream = stream
        self.subscriptions: dict[str, dict[str, Any]] = {}
        self.scopes: dict[Any, anyio.CancelScope] = {}
        self.heard: list[dict[str, Any]] = []
        self._lock = anyio.Lock()

    async def send(self, *messages: dict[str, Any]) -> None:
        async with self._lock:
            await self.write([json.dumps(message) for message in messages])

    async def write(self, texts: list[str]) -> None:
        await self.stream.send(b"".join(text.encode() + b"\n" for text in texts))

    async def texts(self) -> Any:
        buffer = b""
        async for chunk in self.stream:
            buffer += chunk
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                yield line

    async def serve(self) -> None:
        self.daemon.peers.append(self)
        try:
            async with anyio.create_task_group() as tasks:
                async for text in self.texts():
                    message = json.loads(text)
                    self.heard.append(message)
                    self.daemon.note()
                    if message.get("method") == "notifications/cancelled":
                        scope = self.scopes.get(message["params"]["request_id"])
                        if scope:
                            scope.cancel()
                    elif "id" in message and "method" in message:
                        tasks.start_soon(self.answer, message)
                tasks.cancel_scope.cancel()
        except* (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        finally:
            self.daemon.peers.remove(self)
            self.daemon.note()

    async def answer(self, message: dict[str, Any]) -> None:
        reply: dict[str, Any] = {"jsonrpc": "2.0", "id": message["id"]}
        after: list[dict[str, Any]] = []
        with anyio.CancelScope() as scope:
            self.scopes[message["id"]] = scope
            try:
                reply["result"] = await self.daemon.call(self, message, after)
            except WireError as error:
                reply["error"] = error.body
        del self.scopes[message["id"]]
        if scope.cancelled_caught:
            reply["error"] = {"code": -32800, "message": "cancelled", "data": {}}
        try:
            await self.send(reply, *after)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass


class WebSocketPeer(Peer):
    """The same over WebSocket; several messages go out as one batch array."""

    def __init__(self, daemon: FakeDaemon, stream: anyio.abc.ByteStream) -> None:
        super().__init__(daemon, stream)
        self.protocol = WSConnection(ConnectionType.SERVER)
        self.requested: Request | None = None
        self.pongs: list[bytes] = []

    async def write(self, texts: list[str]) -> None:
        data = texts[0] if len(texts) == 1 else "[" + ",".join(texts) + "]"
        # In fragments, as a proxy may send it.
        half = len(data) // 2
        frames = self.protocol.send(TextMessage(data=data[:half], message_finished=False))
        frames += self.protocol.send(Ping(payload=b"between"))
        frames += self.protocol.send(TextMessage(data=data[half:]))
        await self.stream.send(frames)

    async def texts(self) -> Any:
        parts: list[str] = []
        async for chunk in self.stream:
            self.protocol.receive_data(chunk)
            for event in self.protocol.events():
                if isinstance(event, Request):
                    self.requested = event
                    refusal = self.daemon.refuse_upgrade
                    reply = RejectConnection(status_code=refusal) if refusal else AcceptConnection()
                    await self.stream.send(self.protocol.send(reply))
                elif isinstance(event, TextMessage):
                    parts.append(event.data)
                    if event.message_finished:
                        yield "".join(parts)
                        parts.clear()
                elif isinstance(event, Pong):
                    self.pongs.append(bytes(event.payload))
                elif isinstance(event, CloseConnection):
                    return


class FakeDaemon:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.epoch = "epoch-1"
        self.peers: list[Peer] = []
        #: ``{stream, seq, pos, type, data, first_seq?}`` in the order of ``pos``.
        self.events: list[dict[str, Any]] = []
        self.last_seq: dict[str, int] = {}
        self.pos = 0
        self.kept_from_pos = 0
        self.snapshot: dict[str, Any] = {"agents": [], "runs": [], "sessions": []}
        self.methods: dict[str, Callable[..., Awaitable[Any]]] = {}
        self.calls: list[tuple[str, Any]] = []
        self.limits = dict(LIMITS)
        self.refuse_upgrade = 0
        self.refuse_initialize: WireError | None = None
        self.port = 0
        self._numbers = iter(range(1, 1_000_000))
        self._noted = anyio.Event()
        self._scope: anyio.CancelScope | None = None

    # ---- listening ------------------------------------------------------------------------------------

    async def listen(self, tasks: anyio.abc.TaskGroup) -> None:
        self._tasks = tasks
        listener = await anyio.create_unix_listener(self.path)
        web = await anyio.create_tcp_listener(local_host="127.0.0.1")
        self.port = web.extra(anyio.abc.SocketAttribute.local_port)
        tasks.start_soon(self._accept, listener, Peer)
        tasks.start_soon(self._accept, web, WebSocketPeer)

    async def _accept(self, listener: anyio.abc.Listener[Any], kind: type[Peer]) -> None:
        async def serve(stream: anyio.abc.ByteStream) -> None:
            async with stream:
                await kind(self, stream).serve()

        async with listener:
            await listener.serve(serve)

    async def drop(self) -> None:
        """Cut every connection."""
        cut = list(self.peers)
        for peer in cut:
            await anyio.aclose_forcefully(peer.stream)
        await self.until(lambda: not any(peer in self.peers for peer in cut))

    def note(self) -> None:
        noted, self._noted = self._noted, anyio.Event()
        noted.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when the condition holds; looked at whenever something has been heard."""
        with anyio.fail_after(60):
            while not condition():
                with anyio.move_on_after(0.05):
                    await self._noted.wait()

    # ---- methods --------------------------------------------------------------------------------------

    async def call(self, peer: Peer, message: dict[str, Any], after: list[dict[str, Any]]) -> Any:
        method, params = message["method"], message.get("params") or {}
        self.calls.append((method, params))
        if method == "initialize":
            if self.refuse_initialize:
                raise self.refuse_initialize
            return {
                "protocol_version": "1",
                "server_info": {"name": "witsd", "version": "0.1.0"},
                "capabilities": {},
                "limits": self.limits,
                "epoch": self.epoch,
                "actor": {"kind": "owner", "label": "owner", "scopes": ["admin"]},
                "added_later": True,
            }
        if method == "ping":
            return {}
        if method == "events/subscribe":
            return self._subscribe(peer, params, after)
        if method == "events/unsubscribe":
            if peer.subscriptions.pop(params["subscription_id"], None) is None:
                raise WireError(-32002, "no such subscription", kind="subscription")
            return {}
        if method in self.methods:
            return await self.methods[method](peer, params)
        raise WireError(-32601, f"no method {method}", name="method_not_found")

    def _subscribe(self, peer: Peer, params: dict[str, Any], after: list[dict[str, Any]]) -> Any:
        since = params.get("since")
        if params.get("epoch") not in (None, self.epoch):
            raise WireError(-32010, "another database", name="resync_required", first_seq=1)
        patterns = params["streams"]
        exact = [p for p in patterns if "*" not in p]
        resync = False
        replay: list[dict[str, Any]] = []
        if since is not None and "pos" in since:
            if since["pos"] > self.pos:
                raise WireError(-32010, "beyond the end", name="resync_required", first_seq=1)
            resync = since["pos"] < self.kept_from_pos
            replay = [e for e in self.events if e["pos"] > since["pos"]]
            if len(exact) == len(patterns):
                replay = [e for name in patterns for e in replay if e["stream"] == name]
        elif since is not None:
            for name, seq in since.items():
                if seq > self.last_seq.get(name, 0):
                    raise WireError(-32010, "beyond the end", name="resync_required", first_seq=1)
                replay += [e for e in self.events if e["stream"] == name and e["seq"] > seq]
        subscription = {"id": f"sub-{next(self._numbers)}", **params}
        peer.subscriptions[subscription["id"]] = subscription
        if not resync:
            after += [self.message(subscription, e) for e in replay if self.wants(subscription, e)]
        named = {*exact, *(since or {})} - {"pos"}
        result = {
            "subscription_id": subscription["id"],
            "cursors": {name: self.last_seq.get(name, 0) for name in named},
            "pos": self.pos,
            "resync": resync,
            "epoch": self.epoch,
        }
        if resync or params.get("snapshot"):
            result["snapshot"] = self.snapshot
        return result

    @staticmethod
    def wants(subscription: dict[str, Any], event: dict[str, Any]) -> bool:
        types = subscription.get("types")
        return any(fnmatchcase(event["stream"], p) for p in subscription["streams"]) and (
            types is None or event["type"] in types
        )

    @staticmethod
    def message(subscription: dict[str, Any], event: dict[str, Any]) -> dict[str, Any]:
        return {
            "jsonrpc": "2.0",
            "method": "notifications/event",
            "params": {"subscription_id": subscription["id"], "time": TIME, **event},
        }

    # ---- events ---------------------------------------------------------------------------------------

    def record(self, stream: str, kind: str, data: Any = None) -> dict[str, Any]:
        """Append to the journal without telling anyone."""
        self.pos += 1
        seq = self.last_seq[stream] = self.last_seq.get(stream, 0) + 1
        event = {"stream": stream, "seq": seq, "pos": self.pos, "type": kind, "data": data}
        self.events.append(event)
        return event

    async def emit(self, stream: str, kind: str, data: Any = None) -> dict[str, Any]:
        """Append to the journal and tell the subscribers."""
        event = self.record(stream, kind, data)
        await self.tell(event)
        return event

    async def tell(self, event: dict[str, Any]) -> None:
        for peer in list(self.peers):
            out = [self.message(s, event) for s in peer.subscriptions.values() if self.wants(s, event)]
            if out:
                await peer.send(*out)

    async def lag(self) -> None:
        """End every subscription the way an overrun ring does."""
        for peer in list(self.peers):
            for subscription in list(peer.subscriptions.values()):
                del peer.subscriptions[subscription["id"]]
                params = {"subscription_id": subscription["id"], "stream": "", "seq": 0, "pos": 0}
                if self.events:
                    last = self.events[-1]
                    params |= {"stream": last["stream"], "seq": last["seq"], "pos": last["pos"]}
                params = getattr(self, "lag_params", lambda given: given)(params)
                await peer.send({"jsonrpc": "2.0", "method": "notifications/lagged", "params": params})
