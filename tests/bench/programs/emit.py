"""A native agent as lean as can be: ``emit HZ SECONDS`` streams that many deltas a second for each run it gets.

Each delta carries the moment it was written and its number, so that whoever gets it can tell how old it is
and whether one is missing. Runs with ``python -I -S``: a hundred of these are a load, not a measurement.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time

HZ, SECONDS = float(sys.argv[1]), float(sys.argv[2])


def write(message: str) -> None:
    os.write(1, message.encode() + b"\n")


def answer(request: dict[str, object], result: object) -> None:
    write(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}))


def serve(line: bytes) -> None:
    message = json.loads(line)
    match message.get("method"):
        case "initialize":
            answer(message, {"protocol_version": "1", "agent_info": {"name": "emit", "version": "1"}})
        case "ping":
            answer(message, {"nonce": message["params"]["nonce"]})
        case "runs/execute":
            stream(message)
        case "shutdown":
            answer(message, {})
            raise SystemExit


def stream(request: dict[str, object]) -> None:
    params = request["params"]
    assert isinstance(params, dict)
    run_id = params["run_id"]
    head = f'{{"jsonrpc":"2.0","method":"notifications/delta","params":{{"run_id":"{run_id}","item_id":"i1","text":"<'
    due = time.monotonic() + os.getpid() % 20 / 20 / HZ  # not all in the same moment
    for number in range(int(HZ * SECONDS)):
        due += 1 / HZ
        while (left := due - time.monotonic()) > 0:
            listen(left)
        write(f'{head}{time.monotonic():.6f} {number}>"}}}}')
    answer(request, {"output": number + 1})


rest = b""


def listen(timeout_s: float | None) -> None:
    """Serve what the daemon says within that time."""
    global rest
    if select.select([0], [], [], timeout_s)[0]:
        data = os.read(0, 65536)
        if not data:
            raise SystemExit
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            serve(line)


while True:
    listen(None)
