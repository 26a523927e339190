"""A server with ``/embeddings`` on loopback, in a thread, for tests whose daemon runs beside them: well or wrongly."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import attrs

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@attrs.define(eq=False)
class EmbeddingServer:
    """``manner`` is how it answers from now on; ``slow`` ones wait until ``go_on`` is set."""

    manner: str = "letters"
    port: int = 0
    asked: int = 0
    go_on: threading.Event = attrs.field(factory=threading.Event)

    @property
    def settings(self) -> str:
        """The section of ``witsd.toml`` that names it ``near``."""
        url = f"http://127.0.0.1:{self.port}/v1"
        return f'[providers.near]\nkind = "openai"\nbase_url = "{url}"\nmodels = ["chat"]\nretries = 0\n'

    def answer(self, texts: list[str]) -> tuple[int, bytes]:
        """Status and body."""
        vectors: Any = [[float(text.lower().count(c)) for c in LETTERS] for text in texts]
        match self.manner:
            case "letters":
                pass
            case "slow":
                self.go_on.wait(120)
            case "too few":
                vectors = vectors[1:]
            case "ragged":
                vectors[-1] = vectors[-1][1:]
            case "nan":
                vectors[-1][0] = float("nan")  # which json writes, though it is no JSON
            case "infinite":
                return 200, b'{"data": [{"embedding": [1e999, 1]}]}'
            case "words":
                vectors[-1] = ["one", "two"]
            case "broken":
                return 500, b'{"error": {"message": "out of memory"}}'
            case "fickle":  # as many numbers as it likes
                vectors = [vector[: 20 + self.asked % 2] for vector in vectors]
            case manner:
                raise ValueError(f"a manner I do not know: {manner}")
        data = [{"index": n, "embedding": vector} for n, vector in enumerate(vectors)]
        return 200, json.dumps({"model": "letters", "data": data}).encode()


@contextmanager
def open_embedding_server() -> Iterator[EmbeddingServer]:
    """Serve until the end of the block."""
    it = EmbeddingServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            it.asked += 1
            status, answer = it.answer(body["input"])
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

        def handle(self) -> None:
            try:
                super().handle()
            except ConnectionError:
                pass  # who asked was killed

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        it.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield it
        finally:
            it.go_on.set()
            server.shutdown()
            thread.join()
