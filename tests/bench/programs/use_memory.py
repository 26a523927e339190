"""Clients of memory: ``use_memory SOCKET add|search SEED PER_S NAMESPACES``; a line on stdin says for how many seconds.

Prints how many answers came, a second. ``add`` adds turns with their vectors, 64 on their way at a time, as fast as it
is let (PER_S 0). ``search`` asks PER_S questions a second with their vectors, each in one namespace.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from itertools import count, islice

from tests.bench.memory_data import Invention

_WINDOW = 64
_LINES = 3000
_CONNECTIONS = 4


def request(number: int, method: str, params: dict[str, object]) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode() + b"\n"


def adding(seed: int, namespaces: int) -> list[bytes]:
    invention = Invention(namespaces, 1000, seed)
    return [
        request(
            number,
            "memory/add",
            {
                "namespace": f"agent:a{memory.namespace}",
                "text": memory.text,
                "kind": "turn",
                "speaker": memory.speaker,
                "session_id": f"{memory.session}_{seed}",
                "vector": [round(value / 127, 4) for value in memoryview(memory.vector).cast("b")],
            },
        )
        for number, memory in enumerate(islice(invention.memories(), _LINES))
    ]


def searching(seed: int, namespaces: int) -> list[bytes]:
    invention = Invention(namespaces, 1000, seed)
    return [
        request(
            number,
            "memory/search",
            {"namespace": f"agent:a{q.namespace}", "query": q.text, "vector": [*q.vector], "limit": 10},
        )
        for number, q in enumerate(invention.questions(_LINES // 10))
    ]


def connect(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    return sock


class Adder:
    """One connection, with always as many requests on their way as fit into the window."""

    def __init__(self, path: str, lines: list[bytes]) -> None:
        self._sock = connect(path)
        self._lines = lines
        self._sent = 0

    def go_on(self, seconds: float) -> float:
        begun = time.perf_counter()
        self._send(_WINDOW)
        out, got = _WINDOW, 0
        while out:
            answers = self._sock.recv(1 << 16)
            if b'"error"' in answers or not answers:
                raise RuntimeError(answers.decode())
            done = answers.count(b"\n")
            got += done
            out -= done
            if time.perf_counter() < begun + seconds:
                self._send(done)
                out += done
        return got / (time.perf_counter() - begun)

    def _send(self, many: int) -> None:
        self._sock.sendall(b"".join(self._lines[(self._sent + n) % len(self._lines)] for n in range(many)))
        self._sent += many


class Searcher:
    """Questions at an even pace. Who is late asks the next one at once."""

    def __init__(self, path: str, lines: list[bytes], per_s: float) -> None:
        self._socks = [connect(path) for _ in range(_CONNECTIONS)]
        self._lines = lines
        self._per_s = per_s / _CONNECTIONS

    def go_on(self, seconds: float) -> float:
        answered = [0] * _CONNECTIONS
        begun = time.perf_counter()

        def ask(number: int) -> None:
            sock = self._socks[number]
            for place in count():
                now = time.perf_counter() - begun
                due = (place + number / _CONNECTIONS) / self._per_s
                if max(now, due) >= seconds:
                    return
                time.sleep(max(0.0, due - now))
                sock.sendall(self._lines[(place * _CONNECTIONS + number) % len(self._lines)])
                answer = sock.recv(1 << 16)
                while not answer.endswith(b"\n"):
                    answer += sock.recv(1 << 16)
                if b'"items"' not in answer:
                    raise RuntimeError(answer.decode())
                answered[number] += 1

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(_CONNECTIONS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(answered) / max(seconds, time.perf_counter() - begun)


def main() -> None:
    path, what = sys.argv[1:3]
    seed, per_s, namespaces = int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])
    client = (
        Adder(path, adding(seed, namespaces)) if what == "add" else Searcher(path, searching(seed, namespaces), per_s)
    )
    print("ready", flush=True)
    for line in sys.stdin:
        print("measured", client.go_on(float(line)), flush=True)


main()
