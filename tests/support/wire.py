"""A client made of a socket and ``json``: what any program could write, for tests of the wire itself."""

from __future__ import annotations

import json
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE_S = 60.0


class RpcError(Exception):
    """The error object of an answer."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["message"])
        self.code = error["code"]
        self.data = error.get("data", {})


class Wire:
    """One connection. ``call`` asks and waits; events that come meanwhile are kept for ``until``."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE_S)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rb")
        self._last_id = 0
        self.events: deque[dict[str, Any]] = deque()

    def close(self) -> None:
        self._lines.close()
        self._socket.close()

    def send(self, message: Any) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any]:
        """The next message. Raises ``EOFError`` when the connection has ended."""
        line = self._lines.readline()
        if not line.endswith(b"\n"):
            raise EOFError("the daemon closed the connection")
        message: dict[str, Any] = json.loads(line)
        return message

    def call(self, method: str, /, **params: Any) -> Any:
        """The result; raises ``RpcError``."""
        self._last_id += 1
        self.send({"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": params})
        while True:
            message = self.receive()
            if "method" in message:
                self.events.append(message)
            elif message["id"] == self._last_id:
                if "error" in message:
                    raise RpcError(message["error"])
                return message["result"]

    def subscribe(self, *streams: str, **more: Any) -> dict[str, Any]:
        result: dict[str, Any] = self.call("events/subscribe", streams=list(streams), **more)
        return result

    def next_event(self) -> dict[str, Any]:
        """The params of the next ``notifications/event``."""
        while True:
            message = self.events.popleft() if self.events else self.receive()
            if message.get("method") == "notifications/event":
                params: dict[str, Any] = message["params"]
                return params
            assert message.get("method") != "notifications/lagged", message

    def until(self, *types: str, where: Callable[[dict[str, Any]], bool] = lambda _: True) -> dict[str, Any]:
        """The next event of one of these types whose data fits; what comes before it is dropped."""
        give_up = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up:
            event = self.next_event()
            if event["type"] in types and where(event["data"]):
                return event
        raise TimeoutError(f"no {types} came")


@contextmanager
def wire(path: Path) -> Iterator[Wire]:
    connection = Wire(path)
    try:
        yield connection
    finally:
        connection.close()
