"""What a model call through ``/v1`` costs, beside the same server asked directly."""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import attrs

from tests.bench.measure import Figure, Round, Run, Sample, cores, daemon, pin, pinned_here, program, quantile

STREAMS = 50
HZ = 50
_TOKENS = 100
#: Calls before the first that counts.
_WARM = 10
_TOKEN = b'" token"'
_DONE = b"[DONE]"


@attrs.frozen
class Where:
    """One of the two servers that are asked."""

    address: tuple[str, int]
    head: str

    def request(self, tokens: int, hz: int) -> bytes:
        body = json.dumps(
            {"model": "up/m", "messages": [{"role": "user", "content": "Hello!"}], "stream": True,
             "max_tokens": tokens, "seed": hz}
        ).encode()  # fmt: skip
        return f"{self.head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _where(address: str, token: str) -> Where:
    host, _, port = address.rpartition(":")
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n"
        "Content-Type: application/json\r\n"
    )
    return Where((host, int(port)), head)


def _first_ms(sock: socket.socket, request: bytes) -> float:
    """From the request to its first token; the rest is read, too."""
    begun = time.perf_counter_ns()
    sock.sendall(request)
    data = sock.recv(65536)
    while _TOKEN not in data:
        data += sock.recv(65536)
    took = (time.perf_counter_ns() - begun) / 1e6
    while not data.endswith(b"0\r\n\r\n"):
        data += sock.recv(65536)
    return took


def _per_second(where: Where, tokens: int, hz: int) -> float:
    """Tokens a second over all streams, from the first request to the last end."""
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        for _ in range(STREAMS):
            sock = stack.enter_context(socket.create_connection(where.address))
            selector.register(sock, selectors.EVENT_READ)
        begun, got, ended = time.perf_counter(), 0, 0
        request = where.request(tokens, hz)
        for key in selector.get_map().values():
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.sendall(request)
        rest: dict[int, bytes] = {}
        while ended < STREAMS:
            for key, _ in selector.select(30):
                assert isinstance(key.fileobj, socket.socket)
                data = rest.get(key.fd, b"") + key.fileobj.recv(1 << 18)
                got += data.count(_TOKEN)
                rest[key.fd] = data[-7:]  # shorter than either word
                if _DONE in data:
                    ended += 1
                    selector.unregister(key.fileobj)
        took = time.perf_counter() - begun
        assert got == STREAMS * tokens, f"{got} tokens of {STREAMS * tokens}"
        return got / took


class Gateway:
    name = "gateway"
    title = f"a model's answer through /v1, beside the same server asked directly; {STREAMS} streams at once"
    figures = (
        Figure(
            key="added", what="added to the first token, median", unit="ms", best="lowest", limit=3.0,
            floor="direct", floor_is="the first token, asked directly",
        ),
        Figure(
            key="paced", what=f"tokens, {HZ} a second from each", unit="/s", best="highest", limit=0.85,
            as_ratio=True, floor="paced_direct", floor_is="asked directly",
        ),
    )  # fmt: skip

    @contextmanager
    def open(self, run: Run) -> Iterator[Round]:
        ours, others = cores()[0], cores()[-1]
        with (
            program("models_server", core=others) as server,
            pinned_here(others),
            daemon({"OLLAMA_HOST": "127.0.0.1:1"}, started=False) as witsd,
        ):
            url = f"127.0.0.1:{server.said}"
            (witsd.home / "witsd.toml").write_text(
                f'[providers.up]\nkind = "openai"\nbase_url = "http://{url}/v1"\nmodels = ["m"]\n'
            )
            witsd.start()
            pin(witsd.pid, ours)
            token = witsd.call("tokens/create", name="bench", scopes=["chat"])["token"]
            direct, through = _where(url, "none"), _where(witsd.http, token)

            def once() -> Sample:
                took: dict[str, list[float]] = {"direct": [], "through": []}
                with socket.create_connection(direct.address) as a, socket.create_connection(through.address) as b:
                    for number in range(_WARM + run.scaled(400)):
                        for name, where, sock in (("direct", direct, a), ("through", through, b)):
                            ms = _first_ms(sock, where.request(1, 0))
                            if number >= _WARM:
                                took[name].append(ms)
                first = {name: quantile(sorted(each), 0.5) for name, each in took.items()}
                return {
                    "direct": first["direct"],
                    "added": first["through"] - first["direct"],
                    "paced_direct": _per_second(direct, _TOKENS, HZ),
                    "paced": _per_second(through, _TOKENS, HZ),
                    "flat_out_direct": _per_second(direct, run.scaled(400), 0),
                    "flat_out": _per_second(through, run.scaled(400), 0),
                }

            yield once
