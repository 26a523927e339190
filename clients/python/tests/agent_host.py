"""The daemon's side of an agent's stdio: a real socket pair, messages as plain dicts."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from witsd_client import Agent
from witsd_client.transport import DescriptorTransport

#: Far more than anything here takes on a slow, busy machine.
PATIENCE_S = 60.0


class Host:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.got: list[dict[str, Any]] = []
        self._changed = anyio.Event()
        self.ended = anyio.Event()
        self._ids = iter(range(1, 100_000))

    async def read(self) -> None:
        buffer = b""
        while True:
            await anyio.wait_readable(self.sock)
            chunk = self.sock.recv(65536)
            if not chunk:
                self.ended.set()
                return
            buffer += chunk
            *lines, buffer = buffer.split(b"\n")
            self.got += [json.loads(line) for line in lines]
            changed, self._changed = self._changed, anyio.Event()
            changed.set()

    def send(self, message: dict[str, Any]) -> None:
        self.sock.sendall(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

    async def until(self, wanted: Any) -> dict[str, Any]:
        """The first message for which ``wanted`` is true, waiting for it if need be."""
        with anyio.fail_after(PATIENCE_S):
            while True:
                for message in self.got:
                    if wanted(message):
                        return message
                await self._changed.wait()

    def ask(self, method: str, params: Any = None) -> int:
        number = next(self._ids)
        self.send({"id": number, "method": method, "params": params or {}})
        return number

    async def answer(self, number: int) -> dict[str, Any]:
        """The response to request ``number``."""
        return await self.until(lambda m: m.get("id") == number and "method" not in m)

    async def call(self, method: str, params: Any = None) -> Any:
        reply = await self.answer(self.ask(method, params))
        assert "error" not in reply, reply
        return reply["result"]

    async def initialize(self, options: dict[str, Any] | None = None, *, stream: bool = True) -> Any:
        agent = {
            "name": "given",
            "kind": "native",
            "description": "",
            "options": options or {},
            "stream": stream,
        }
        params = {"protocol_version": "1", "agent": agent, "run_dir": "/tmp/x", "grants": {"tools": ["*"]}}
        return await self.call("initialize", params)

    def execute(self, run_id: str, text: str = "", **more: Any) -> int:
        return self.ask("runs/execute", {"run_id": run_id, "input": {"text": text}, "stream": True, **more})

    def cancel(self, number: int) -> None:
        self.send({"method": "notifications/cancelled", "params": {"request_id": number}})

    def items(self, run_id: str) -> list[dict[str, Any]]:
        return [
            m["params"]["item"]
            for m in self.got
            if m.get("method") == "notifications/item" and m["params"]["run_id"] == run_id
        ]

    def deltas(self, run_id: str) -> str:
        return "".join(
            m["params"]["text"]
            for m in self.got
            if m.get("method") == "notifications/delta" and m["params"]["run_id"] == run_id
        )

    async def said(self, run_id: str, text: str) -> None:
        await self.until(lambda _: self.deltas(run_id) == text)


@asynccontextmanager
async def hosted(agent: Agent) -> AsyncIterator[Host]:
    """Serve ``agent`` in this loop, with a host at the other end of a socket pair."""
    ours, theirs = socket.socketpair()
    host = Host(ours)
    transport = DescriptorTransport(os.dup(theirs.fileno()), os.dup(theirs.fileno()))
    theirs.close()
    # Closed also after a failure: left open it would fail a later test, too.
    with ours:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(agent.serve_on, transport)
            tasks.start_soon(host.read)
            try:
                yield host
            finally:
                # The daemon hangs up: whatever goes on, the agent ends.
                tasks.cancel_scope.deadline = anyio.current_time() + PATIENCE_S
                ours.shutdown(socket.SHUT_WR)
    assert not tasks.cancel_scope.cancelled_caught, "the agent did not end"
