"""Floor: lines in, JSON parsed, an answer written as JSON. ``echo_unix SOCKET``."""

from __future__ import annotations

import json
import sys

import trio


async def echo(stream: trio.SocketStream) -> None:
    rest = b""
    while data := await stream.receive_some(65536):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            asked = json.loads(line)
            answer = {"jsonrpc": "2.0", "id": asked["id"], "result": {}}
            await stream.send_all(json.dumps(answer).encode() + b"\n")


async def main(path: str) -> None:
    with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM) as sock:
        await sock.bind(path)
        sock.listen()
        print("ready", flush=True)
        await trio.serve_listeners(echo, [trio.SocketListener(sock)])


trio.run(main, sys.argv[1])
