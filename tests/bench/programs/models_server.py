"""A model server as fast as trio can be: ``models_server``; each answer has as many tokens as ``max_tokens`` says.

The first at once, then one every 1 / ``seed`` seconds, or all at once where ``seed`` is 0. Prints its port.
"""

from __future__ import annotations

import json
import re

import trio

_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
_LENGTH = re.compile(rb"(?i)content-length: *(\d+)")


def _chunk(document: object) -> bytes:
    data = b"data: " + (document if isinstance(document, bytes) else json.dumps(document).encode()) + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


def _event(delta: object, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return _chunk({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]})


_FIRST = _event({"role": "assistant", "content": ""})
_TOKEN = _event({"content": " token"})
_END = _event({}, "stop") + _chunk(b"[DONE]") + b"0\r\n\r\n"


async def serve(stream: trio.SocketStream) -> None:
    data = b""
    while True:
        while b"\r\n\r\n" not in data:
            more = await stream.receive_some(65536)
            if not more:
                return
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(found[1]) if (found := _LENGTH.search(head)) else 0
        while len(body) < length:
            body += await stream.receive_some(65536)
        asked, data = json.loads(body[:length]), body[length:]
        tokens, hz = asked["max_tokens"], asked["seed"]
        await stream.send_all(_HEAD + _FIRST + _TOKEN)
        begun = trio.current_time()
        for n in range(1, tokens):
            if hz:
                await trio.sleep_until(begun + n / hz)
            await stream.send_all(_TOKEN)
        await stream.send_all(_END)


async def main() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=200)
    print("ready", listener.socket.getsockname()[1], flush=True)
    await trio.serve_listeners(serve, [listener])


trio.run(main)
