"""Those who subscribe: ``listen SOCKET ADDRESS TOKEN UNIX RUNS HZ SECONDS`` hears RUNS runs to their end.

One WebSocket and UNIX Unix sockets, in one process that costs little. Prints ``listening`` when all have
subscribed, ``streaming`` when every run streams, and at the end as JSON how old deltas were, how many
each listener got, and how often a number was missing, by ``seq`` of the run or in the agents' own count.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from array import array

import msgspec

from tests.bench.ping import client_frame, connect

#: What of each run is not timed: while the first runs stream, the last are still being started, and when they
#: end, each shows its whole text once more.
SKIPPED_S, LAST_S = 2.0, 1.0


class Data(msgspec.Struct, gc=False):
    text: str = ""


class Params(msgspec.Struct, gc=False):
    stream: str = ""
    seq: int = 0
    type: str = ""
    data: Data = msgspec.field(default_factory=Data)


class Message(msgspec.Struct, gc=False):
    params: Params = msgspec.field(default_factory=Params)
    method: str = ""


_one = msgspec.json.Decoder(Message).decode
_many = msgspec.json.Decoder(list[Message]).decode


class Listener:
    def __init__(self, sock: socket.socket, *, websocket: bool) -> None:
        self.sock = sock
        self.websocket = websocket
        self.buffer = b""
        self.seq: dict[str, int] = {}
        self.number: dict[str, int] = {}
        self.over: set[str] = set()
        self.gaps = 0
        self.deltas = 0
        self.lagged = 0
        self.ages = array("d")

    def send(self, message: dict[str, object]) -> None:
        body = json.dumps(message).encode()
        self.sock.sendall(client_frame(body) if self.websocket else body + b"\n")

    def receive(self) -> None:
        data = self.sock.recv(1 << 20)
        now = time.monotonic()
        if not data:
            raise ConnectionError("the connection ended")
        self.buffer += data
        if not self.websocket:
            *lines, self.buffer = self.buffer.split(b"\n")
            for line in lines:
                self.take(_one(line), now)
            return
        buffer, at = self.buffer, 0
        while len(buffer) - at >= 2:
            size, body = buffer[at + 1], at + 2
            if size >= 126:
                wide = 2 if size == 126 else 8
                size, body = int.from_bytes(buffer[body : body + wide], "big"), body + wide
            if len(buffer) < body + size:
                break
            payload = buffer[body : body + size]
            at = body + size
            for message in _many(payload) if payload[:1] == b"[" else (_one(payload),):
                self.take(message, now)
        self.buffer = buffer[at:]

    def take(self, message: Message, now: float) -> None:
        event = message.params
        if message.method == "notifications/lagged":
            self.lagged += 1
        if not event.seq:
            return
        stream = event.stream
        if event.seq != self.seq.get(stream, event.seq - 1) + 1:
            self.gaps += 1
        self.seq[stream] = event.seq
        if event.type == "item.delta":
            for delta in event.data.text.split(">")[:-1]:
                written, _, count = delta[1:].partition(" ")
                number = int(count)
                if number != self.number.get(stream, -1) + 1:
                    self.gaps += 1
                self.number[stream] = number
                self.deltas += 1
                if FIRST <= number < LAST:
                    self.ages.append(now - float(written))
        elif event.type in ("run.completed", "run.failed"):
            self.over.add(stream)


def main() -> None:
    path, address, token, unix, runs = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
    print("ready", flush=True)
    listeners = [Listener(connect(address, "/ws", token), websocket=True)]
    for _ in range(unix):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        listeners.append(Listener(sock, websocket=False))
    with selectors.DefaultSelector() as selector:
        for listener in listeners:
            if token != "-":  # the floor sends without being asked
                params = {"streams": ["run:*"]}
                listener.send({"jsonrpc": "2.0", "id": 1, "method": "events/subscribe", "params": params})
                listener.receive()
            selector.register(listener.sock, selectors.EVENT_READ, listener)
        print("listening", flush=True)
        streaming = False
        while any(len(listener.over) < runs for listener in listeners):
            for key, _ in selector.select():
                key.data.receive()
            if not streaming and len(listeners[0].number) == runs:
                streaming = True
                print("streaming", flush=True)
    ages = sorted(age for listener in listeners for age in listener.ages)
    report = {
        "p50_ms": ages[len(ages) // 2] * 1000,
        "p99_ms": ages[int(len(ages) * 0.99)] * 1000,
        "max_ms": ages[-1] * 1000,
        "deltas": [listener.deltas for listener in listeners],
        "gaps": sum(listener.gaps for listener in listeners),
        "lagged": sum(listener.lagged for listener in listeners),
        "cpu_s": time.process_time(),
    }
    print("heard", json.dumps(report), flush=True)
    sys.stdin.read()


HZ, SECONDS = float(sys.argv[6]), float(sys.argv[7])
FIRST, LAST = HZ * SKIPPED_S, HZ * (SECONDS - LAST_S)
main()
