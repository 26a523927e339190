"""Floor: the same agents' deltas to the same listeners, with no journal and no daemon between them.

``relay SOCKET AGENTS HZ SECONDS LISTENERS`` starts the emitters once every listener is there, parses each
line, and every 20 ms writes what came, with a ``seq`` for each run, to each listener. Listeners of the
WebSocket kind connect to the port it prints.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import trio
from trio_websocket import ConnectionClosed, WebSocketRequest, serve_websocket

TICK_S = 0.02
EMIT = str(Path(__file__).with_name("emit.py"))


class Relay:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.seq: Counter[str] = Counter()
        self.listeners: list[trio.MemorySendChannel[list[str]]] = []
        self.come = trio.Event()

    def listen(self) -> trio.MemoryReceiveChannel[list[str]]:
        send, receive = trio.open_memory_channel[list[str]](10_000)
        self.listeners.append(send)
        self.come.set()
        self.come = trio.Event()
        return receive

    def event(self, run: str, kind: str, text: str) -> None:
        self.seq[run] += 1
        params = {
            "subscription_id": "s",
            "stream": f"run:{run}",
            "seq": self.seq[run],
            "type": kind,
            "data": {"run_id": run, "item_id": "i1", "text": text},
        }
        self.lines.append(json.dumps({"jsonrpc": "2.0", "method": "notifications/event", "params": params}))

    async def tick(self) -> None:
        while True:
            await trio.sleep(TICK_S)
            lines, self.lines = self.lines, []
            if lines:
                for listener in self.listeners:
                    listener.send_nowait(lines)

    async def unix(self, stream: trio.SocketStream) -> None:
        async for lines in self.listen():
            await stream.send_all(("\n".join(lines) + "\n").encode())

    async def websocket(self, request: WebSocketRequest) -> None:
        ws = await request.accept()
        try:
            async for lines in self.listen():
                await ws.send_message("[" + ",".join(lines) + "]")
        except ConnectionClosed:
            pass

    async def agent(self, run: str, hz: str, seconds: str) -> None:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-I", "-S", EMIT, hz, seconds], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdin is not None
        assert process.stdout is not None
        request = {"jsonrpc": "2.0", "id": 1, "method": "runs/execute", "params": {"run_id": run}}
        await process.stdin.send_all(json.dumps(request).encode() + b"\n")
        rest = b""
        while data := await process.stdout.receive_some(65536):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if "result" in message:
                    self.event(run, "run.completed", "")
                    await process.stdin.aclose()
                else:
                    self.event(run, "item.delta", message["params"]["text"])
        await process.wait()


async def main(path: str, agents: int, hz: str, seconds: str, listeners: int) -> None:
    relay = Relay()
    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve_websocket, relay.websocket, "127.0.0.1", 0, None)
        with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM) as sock:
            await sock.bind(path)
            sock.listen()
            nursery.start_soon(trio.serve_listeners, relay.unix, [trio.SocketListener(sock)])
            print("ready", server.port, flush=True)
            while len(relay.listeners) < listeners:
                await relay.come.wait()
            nursery.start_soon(relay.tick)
            async with trio.open_nursery() as all_agents:
                for number in range(agents):
                    all_agents.start_soon(relay.agent, f"r{number}", hz, seconds)
            await trio.sleep_forever()


trio.run(main, sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5]))
