"""Calls and the connection under them."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio
import trio.testing
from fake_daemon import FakeDaemon, Peer, WebSocketPeer, WireError
from witsd_client import (
    ConnectionLost,
    DaemonNotRunning,
    LimitExceeded,
    NotFound,
    ProtocolError,
    Timeout,
    Unauthenticated,
    WitsdError,
    connect,
)
from witsd_client.connection import HIGH_WATER
from witsd_client.messages import MAX_PROGRESS, Progress

pytestmark = pytest.mark.anyio

RUN = {
    "run_id": "r1",
    "agent": "echo",
    "status": "completed",
    "input": {"text": "hi"},
    "items": [{"type": "message", "item_id": "i1", "status": "completed", "role": "assistant", "text": "hi"}],
    "usage": {"input_tokens": 0, "output_tokens": 0, "calls": 0, "cost_usd": 0},
    "created_at": "2026-01-31T09:05:07.123456Z",
    "of_a_newer_daemon": 1,
}


async def test_typed_call_ignores_what_it_does_not_know(daemon: FakeDaemon) -> None:
    async def get(peer: Peer, params: dict[str, Any]) -> Any:
        assert params == {"run_id": "r1"}
        return RUN

    daemon.methods["runs/get"] = get
    async with connect(daemon.path) as client:
        run = await client.runs.get(run_id="r1")
        assert (run.status, run.items[0].item_id) == ("completed", "i1")
        assert client.epoch == "epoch-1"
    assert daemon.calls[0][1]["protocol_version"] == "1"


def test_a_daemon_that_is_being_replaced_is_waited_for(tmp_path: Path) -> None:
    clock = trio.testing.MockClock()
    path = tmp_path / "witsd.sock"

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            fake = FakeDaemon(path)

            async def late(task_status: trio.TaskStatus[None]) -> None:
                # Listens and accepts nothing, as while the one before drains; then the next one takes over.
                with trio.socket.socket(trio.socket.AF_UNIX) as listener:
                    await listener.bind(str(path))
                    listener.listen()
                    task_status.started()
                    accepted, _ = await listener.accept()
                    with accepted:
                        said = json.loads(await accepted.recv(65536))
                        assert said["method"] == "initialize"
                        clock.jump(50)
                        await trio.testing.wait_all_tasks_blocked()
                        result = await fake.call(Peer(fake, None), said, [])  # type: ignore[arg-type]
                        reply = {"jsonrpc": "2.0", "id": said["id"], "result": result}
                        await accepted.send(json.dumps(reply).encode() + b"\n")
                        await trio.sleep_forever()

            await nursery.start(late)
            async with connect(path) as client:
                assert client.epoch == "epoch-1"
            nursery.cancel_scope.cancel()

    trio.run(main, clock=clock)


async def test_error_becomes_its_class(daemon: FakeDaemon) -> None:
    async def get(peer: Peer, params: dict[str, Any]) -> Any:
        raise WireError(-32002, "no run r9", name="not_found", kind="run", id="r9")

    async def odd(peer: Peer, params: dict[str, Any]) -> Any:
        raise WireError(-31999, "new kind")

    daemon.methods |= {"runs/get": get, "odd": odd}
    async with connect(daemon.path) as client:
        with pytest.raises(NotFound, match="no run r9") as caught:
            await client.runs.get(run_id="r9")
        assert (caught.value.data["kind"], caught.value.retryable) == ("run", False)
        with pytest.raises(WitsdError) as unknown:
            await client.call("odd")
        assert unknown.value.code == -31999


async def test_result_of_another_shape(daemon: FakeDaemon) -> None:
    async def get(peer: Peer, params: dict[str, Any]) -> Any:
        return {"run_id": 5}

    daemon.methods["runs/get"] = get
    async with connect(daemon.path) as client:
        with pytest.raises(ProtocolError, match="runs/get"):
            await client.runs.get(run_id="r1")
        await client.ping()


async def test_own_exceptions_leave_the_block_as_they_are(daemon: FakeDaemon) -> None:
    with pytest.raises(ZeroDivisionError):
        async with connect(daemon.path):
            raise ZeroDivisionError


async def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(DaemonNotRunning, match=r"witsd up"):
        async with connect(tmp_path / "none.sock"):
            pass
    long = tmp_path / ("x" * 120)
    with pytest.raises(DaemonNotRunning, match="107 bytes"):
        async with connect(long):
            pass
    with pytest.raises(DaemonNotRunning):
        async with connect("ws://127.0.0.1:1/ws"):
            pass


async def test_refused_at_initialize(daemon: FakeDaemon) -> None:
    daemon.refuse_initialize = WireError(-32004, "who are you", name="unauthenticated")
    with pytest.raises(Unauthenticated, match="who are you"):
        async with connect(daemon.path):
            pass


async def test_cancelled_caller_cancels_the_call_there(daemon: FakeDaemon) -> None:
    ended: list[str] = []

    async def slow(peer: Peer, params: dict[str, Any]) -> Any:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("slow")

    daemon.methods["slow"] = slow
    async with connect(daemon.path) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call, "slow")
            await daemon.until(lambda: ("slow", {}) in daemon.calls)
            tasks.cancel_scope.cancel()
        await daemon.until(lambda: bool(ended))
        with pytest.raises(Timeout):
            await client.call("slow", timeout_s=0.05)
        await daemon.until(lambda: len(ended) == 2)
        await client.ping()


async def test_progress_in_order_and_before_the_result(daemon: FakeDaemon) -> None:
    async def work(peer: Peer, params: dict[str, Any]) -> Any:
        token = params["_meta"]["progress_token"]
        for n in range(1000):
            news = {"progress_token": token, "progress": n, "delta": f"{n} "}
            await peer.send({"jsonrpc": "2.0", "method": "notifications/progress", "params": news})
        told.set()
        return "done"

    daemon.methods["work"] = work
    told = anyio.Event()
    seen: list[Progress] = []

    async def slowly(news: Progress) -> None:
        await told.wait()  # by then there is more than is kept apart
        seen.append(news)

    async with connect(daemon.path) as client:
        assert await client.call("work", {"x": 1}, progress=slowly) == "done"
        text = "".join(news.delta or "" for news in seen)
        assert text == "".join(f"{n} " for n in range(1000))  # merged, never lost
        assert len(seen) <= MAX_PROGRESS + 1
        assert seen[-1].progress == 999

        def refuse(news: Progress) -> None:
            raise ValueError("enough")

        with pytest.raises(ValueError, match="enough"):
            await client.call("work", progress=refuse)
        await client.ping()


async def test_in_flight_at_a_drop_fails_and_later_calls_wait(daemon: FakeDaemon) -> None:
    async def never(peer: Peer, params: dict[str, Any]) -> Any:
        await anyio.sleep_forever()

    daemon.methods["never"] = never
    async with connect(daemon.path) as client:
        failures: list[str] = []

        async def ask() -> None:
            with pytest.raises(ConnectionLost):
                await client.call("never")
            failures.append("lost")
            await client.ping()  # waits for the next connection
            failures.append("back")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await daemon.until(lambda: ("never", {}) in daemon.calls)
            await daemon.drop()
        assert failures == ["lost", "back"]
        assert [name for name, _ in daemon.calls].count("initialize") == 2


async def test_waiting_for_a_connection_is_bounded(daemon: FakeDaemon) -> None:
    async with connect(daemon.path, reconnect_timeout_s=0.2) as client:
        daemon.path.unlink()
        await daemon.drop()
        with anyio.fail_after(60), pytest.raises(ConnectionLost):
            await client.ping()


async def test_token_revoked_while_away(daemon: FakeDaemon) -> None:
    async with connect(daemon.path, token="t") as client:
        daemon.refuse_initialize = WireError(-32004, "revoked", name="unauthenticated")
        await daemon.drop()
        with anyio.fail_after(60), pytest.raises(Unauthenticated):
            await client.ping()


async def test_limits_are_kept(daemon: FakeDaemon) -> None:
    daemon.limits |= {"message_bytes": 2000, "in_flight": 3}
    most = now = 0

    async def work(peer: Peer, params: dict[str, Any]) -> Any:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await anyio.sleep(0.01)
        now -= 1

    daemon.methods["work"] = work
    async with connect(daemon.path) as client:
        with pytest.raises(LimitExceeded, match="2000"):
            await client.call("work", {"text": "x" * 3000})
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(client.call, "work")
    assert most == 3


async def test_calls_wait_while_the_daemon_does_not_read(tmp_path: Path) -> None:
    """Memory stays bounded: above the high-water mark a caller waits."""
    from witsd_client.connection import open_connection

    gate = anyio.Event()

    class Stuck:
        async def receive(self) -> list[bytes] | None:
            await anyio.sleep_forever()
            return None

        async def send(self, messages: Any) -> None:
            await gate.wait()

        async def aclose(self) -> None: ...

    sent = 0

    async def send() -> None:
        nonlocal sent
        while not gate.is_set():
            await connection.notify("n", {"text": "x" * 100_000})
            sent += 1

    async with open_connection(Stuck()) as connection, anyio.create_task_group() as tasks:
        tasks.start_soon(send)
        await anyio.wait_all_tasks_blocked()
        assert HIGH_WATER // 100_000 <= sent <= HIGH_WATER // 100_000 + 2
        gate.set()
        with anyio.fail_after(60):
            await connection.notify("n")


async def test_a_daemon_that_takes_no_more_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many wait already as may: one more waits for its turn, but not for ever."""
    from witsd_client.transport import dial

    path = tmp_path / "witsd.sock"
    with socket.socket(socket.AF_UNIX) as busy, ExitStack() as waiting:
        busy.bind(str(path))
        busy.listen(0)
        with suppress(BlockingIOError):
            while True:
                one = waiting.enter_context(socket.socket(socket.AF_UNIX))
                one.setblocking(False)
                one.connect(str(path))
        with monkeypatch.context() as patch:
            patch.setattr("witsd_client.transport.HANDSHAKE_TIMEOUT_S", 0.1)
            with pytest.raises(DaemonNotRunning, match="takes no more connections"):
                await dial(path)
        async with anyio.create_task_group() as tasks:

            async def take_one() -> None:
                await anyio.wait_all_tasks_blocked()
                busy.accept()[0].close()

            tasks.start_soon(take_one)
            transport = await dial(path)
        await transport.aclose()


async def test_websocket(daemon: FakeDaemon) -> None:
    async def big(peer: Peer, params: dict[str, Any]) -> Any:
        return params["text"]

    daemon.methods["big"] = big
    async with connect(f"ws://127.0.0.1:{daemon.port}/ws", token="secret-token") as client:
        peer = daemon.peers[0]
        assert isinstance(peer, WebSocketPeer)
        text = "é" * 200_000
        assert await client.call("big", {"text": text}) == text
        # A backlog comes as one batch array.
        async with client.subscribe("run:*") as events:
            subscription = next(iter(peer.subscriptions.values()))
            batch = [daemon.message(subscription, daemon.record("run:a", "item.delta")) for _ in range(5)]
            await peer.send(*batch)
            assert [getattr(await anext(events), "seq", None) for _ in range(5)] == [1, 2, 3, 4, 5]
        await daemon.until(lambda: b"between" in peer.pongs)
        assert peer.requested is not None
        assert "secret" not in peer.requested.target + repr(peer.requested.extra_headers)
    assert daemon.calls[0][1]["token"] == "secret-token"


@pytest.mark.parametrize(("status", "error"), [(401, Unauthenticated), (403, ProtocolError)])
async def test_websocket_refused(daemon: FakeDaemon, status: int, error: type[Exception]) -> None:
    daemon.refuse_upgrade = status
    with pytest.raises(error, match=str(status)):
        async with connect(f"ws://127.0.0.1:{daemon.port}/ws"):
            pass
    with pytest.raises(ValueError, match="no secret"):
        async with connect("ws://127.0.0.1:9487/ws?token=x"):
            pass
