"""The synchronous face, from a plain thread."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.to_thread
import pytest
from fake_daemon import FakeDaemon
from test_subscription import finished, run_events
from witsd_client import NotFound
from witsd_client.sync import connect

pytestmark = pytest.mark.anyio


async def test_calls_events_and_ask(daemon: FakeDaemon, anyio_backend: str) -> None:
    async def start(peer: Any, params: Any) -> Any:
        daemon._tasks.start_soon(run_events, daemon)
        return {"run_id": "r1"}

    async def get(peer: Any, params: Any) -> Any:
        return finished()

    daemon.methods |= {"runs/start": start, "runs/get": get}

    def use() -> None:
        with connect(daemon.path, backend=anyio_backend) as client:
            assert client.runs.get(run_id="r1").status == "completed"
            with pytest.raises(NotFound):
                client.call("events/unsubscribe", {"subscription_id": "none"})
            answer = client.ask("echo", "hi")
            assert "".join(answer) == "Hello you"
            with client.subscribe("run:r1", since={"run:r1": 0}) as events:
                assert [getattr(next(events), "seq", None) for _ in range(3)] == [1, 2, 3]
            assert [getattr(event, "type", None) for event in client.stream_run("r1")][-1] == "run.completed"

    with anyio.fail_after(60):
        await anyio.to_thread.run_sync(use)


async def test_an_exception_in_the_block_comes_out(daemon: FakeDaemon, anyio_backend: str) -> None:
    def use() -> None:
        with pytest.raises(ZeroDivisionError), connect(daemon.path, backend=anyio_backend):
            raise ZeroDivisionError

    with anyio.fail_after(60):
        await anyio.to_thread.run_sync(use)
