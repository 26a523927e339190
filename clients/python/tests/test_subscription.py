"""Subscriptions across drops, lags, gaps, resyncs and slow readers: never a gap, never a duplicate."""

from __future__ import annotations

import gc
from typing import Any

import anyio
import pytest
from fake_daemon import FakeDaemon
from witsd_client import Event, Resync, Subscription, connect, subscription

pytestmark = pytest.mark.anyio


async def take(events: Subscription, count: int) -> list[Any]:
    with anyio.fail_after(60):
        return [await anext(events) for _ in range(count)]


def seqs(items: list[Any]) -> list[Any]:
    return [item.seq if isinstance(item, Event) else item.reason for item in items]


def subscribed(daemon: FakeDaemon) -> list[dict[str, Any]]:
    return [params for name, params in daemon.calls if name == "events/subscribe"]


async def test_from_a_cursor_then_live(daemon: FakeDaemon) -> None:
    for _ in range(3):
        daemon.record("run:a", "item.delta")
    async with connect(daemon.path) as client, client.subscribe("run:a", since={"run:a": 1}) as events:
        assert seqs(await take(events, 2)) == [2, 3]
        await daemon.emit("run:a", "item.delta")
        await daemon.emit("run:b", "item.delta")
        await daemon.emit("run:a", "run.completed", {"output": 1})
        later = await take(events, 2)
        assert seqs(later) == [4, 5]
        assert later[1].data == {"output": 1}


async def test_goes_on_after_a_drop(daemon: FakeDaemon) -> None:
    async with connect(daemon.path) as client, client.subscribe(["run:*"]) as events:
        await daemon.emit("run:a", "x")
        await take(events, 1)
        await daemon.drop()
        daemon.record("run:a", "x")
        daemon.record("run:born-meanwhile", "x")
        got = await take(events, 2)
        assert [(e.stream, e.seq) for e in got] == [("run:a", 2), ("run:born-meanwhile", 1)]
    assert subscribed(daemon)[-1]["since"] == {"pos": 1}
    assert subscribed(daemon)[-1]["epoch"] == "epoch-1"


async def test_dropped_in_the_middle_of_a_replay_by_stream(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the other streams have missed lies before the position reached: it must come all the same."""
    for _ in range(3):
        daemon.record("run:b", "x")
    for _ in range(3):
        daemon.record("run:a", "x")
    async with connect(daemon.path) as client:
        events = client.subscribe(["run:a", "run:b"], since={"pos": 0})
        cut = daemon.message

        def half(sub: dict[str, Any], event: dict[str, Any]) -> dict[str, Any]:
            return cut(sub, event) if event["stream"] == "run:a" else {"jsonrpc": "2.0", "method": "lost"}

        monkeypatch.setattr(daemon, "message", half)
        assert [(e.stream, e.seq) for e in await take(events, 3)] == [("run:a", n) for n in (1, 2, 3)]
        monkeypatch.setattr(daemon, "message", cut)
        await daemon.drop()
        assert [(e.stream, e.seq) for e in await take(events, 3)] == [("run:b", n) for n in (1, 2, 3)]
        await daemon.emit("run:a", "x")
        assert seqs(await take(events, 1)) == [4]


async def test_lagged(daemon: FakeDaemon) -> None:
    async with connect(daemon.path) as client, client.subscribe(["run:*"]) as events:
        await daemon.emit("run:a", "x")
        await daemon.lag()
        for _ in range(3):
            daemon.record("run:a", "x")
        assert seqs(await take(events, 4)) == [1, 2, 3, 4]
        assert len(daemon.peers) == 1  # on the same connection


async def test_history_no_longer_kept(daemon: FakeDaemon) -> None:
    daemon.snapshot["sessions"] = []
    async with connect(daemon.path) as client, client.subscribe(["run:*"]) as events:
        await daemon.emit("run:a", "x")
        await take(events, 1)
        await daemon.drop()
        for _ in range(5):
            daemon.record("run:a", "x")
        daemon.kept_from_pos = 4
        (resync,) = await take(events, 1)
        assert isinstance(resync, Resync)
        assert (resync.pos, resync.snapshot is not None) == (6, True)
        await daemon.emit("run:a", "x")
        assert seqs(await take(events, 1)) == [7]


async def test_another_database(daemon: FakeDaemon) -> None:
    async with connect(daemon.path) as client, client.subscribe(["run:*"]) as events:
        await daemon.emit("run:a", "x")
        await take(events, 1)
        daemon.epoch, daemon.events, daemon.last_seq, daemon.pos = "epoch-2", [], {}, 0
        await daemon.drop()
        (resync,) = await take(events, 1)
        assert isinstance(resync, Resync)
        assert (resync.epoch, resync.reason) == ("epoch-2", "another database")
        await daemon.emit("run:a", "x")
        assert seqs(await take(events, 1)) == [1]


async def test_a_cursor_from_elsewhere(daemon: FakeDaemon) -> None:
    async with connect(daemon.path) as client:
        events = client.subscribe("run:*", since={"pos": 99}, epoch="epoch-1")
        (resync,) = await take(events, 1)
        assert isinstance(resync, Resync)


async def test_snapshot_comes_first(daemon: FakeDaemon) -> None:
    async with connect(daemon.path) as client, client.subscribe("run:*", snapshot=True) as events:
        await daemon.emit("run:a", "x")
        first, second = await take(events, 2)
        assert (first.reason, second.seq) == ("snapshot", 1)
        await daemon.drop()
        await daemon.emit("run:a", "x")
        assert seqs(await take(events, 1)) == [2]  # and not the snapshot again


async def test_compacted_range_is_no_gap(daemon: FakeDaemon) -> None:
    async with connect(daemon.path) as client, client.subscribe("run:a") as events:
        for _ in range(2):
            await daemon.emit("run:a", "item.delta")
        await take(events, 2)
        await daemon.drop()
        daemon.record("run:a", "item.delta")
        daemon.record("run:a", "item.delta")
        done = daemon.record("run:a", "item.completed")
        done["first_seq"] = 1
        daemon.events = [done]
        (event,) = await take(events, 1)
        assert (event.first_seq, event.seq) == (1, 5)


async def test_a_hole_is_fetched_again(daemon: FakeDaemon) -> None:
    async with connect(daemon.path) as client, client.subscribe("run:a") as events:
        await daemon.emit("run:a", "x")
        daemon.record("run:a", "x")  # never told
        await daemon.emit("run:a", "x")
        assert seqs(await take(events, 3)) == [1, 2, 3]
        await daemon.emit("run:a", "x")
        assert seqs(await take(events, 1)) == [4]
    assert ("events/unsubscribe", {"subscription_id": "sub-1"}) in daemon.calls


async def test_a_hole_in_the_journal_itself_is_a_resync(daemon: FakeDaemon) -> None:
    async with connect(daemon.path) as client, client.subscribe("run:a") as events:
        await daemon.emit("run:a", "x")
        daemon.record("run:a", "x")
        daemon.events.pop()
        await daemon.emit("run:a", "x")
        assert seqs(await take(events, 2)) == [1, "events are missing from the journal"]


async def test_filtered_by_type_has_holes_and_no_complaint(daemon: FakeDaemon) -> None:
    async with connect(daemon.path) as client, client.subscribe("run:a", types=["b"]) as events:
        for kind in "abab":
            await daemon.emit("run:a", kind)
        assert seqs(await take(events, 2)) == [2, 4]
    assert len(subscribed(daemon)) == 1


async def test_slow_reader_loses_nothing_and_may_call(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue overruns; answers still come, and the rest is fetched again."""
    monkeypatch.setattr(subscription, "MAX_QUEUED", 10)
    async with connect(daemon.path) as client, client.subscribe("run:a") as events:
        for _ in range(95):
            await daemon.emit("run:a", "x")
        await client.ping()
        assert len(events._queue) == 10
        got = []
        for _ in range(95):
            got += await take(events, 1)
            await client.ping()
        assert seqs(got) == list(range(1, 96))


async def test_slow_reader_of_a_replay_out_of_order(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription, "MAX_QUEUED", 4)
    for n in range(30):
        daemon.record(f"run:{'ab'[n % 2]}", "x")
    async with connect(daemon.path) as client:
        events = client.subscribe(["run:a", "run:b"], since={"pos": 0})
        got = await take(events, 30)
    for name in ("run:a", "run:b"):
        assert [e.seq for e in got if e.stream == name] == list(range(1, 16))


async def test_of_the_moment(daemon: FakeDaemon) -> None:
    async with connect(daemon.path) as client, client.subscribe("session:*") as events:
        await daemon.tell({"stream": "session:s", "type": "session.typing", "data": {"typing": True}})
        (event,) = await take(events, 1)
        assert event.type == "session.typing"


async def test_logs_go_on_by_line_number(daemon: FakeDaemon) -> None:
    def line(n: int) -> dict[str, Any]:
        return {"stream": "log:echo", "seq": n, "type": "log.line", "data": {"source": "stderr", "text": "x"}}

    daemon.last_seq["log:echo"] = 7
    async with connect(daemon.path) as client, client.subscribe("log:echo") as events:
        await daemon.tell(line(8))
        daemon.last_seq["log:echo"] = 8
        assert seqs(await take(events, 1)) == [8]
        await daemon.drop()
        await daemon.until(lambda: len(daemon.peers) == 1)
        with anyio.move_on_after(0.2):
            await anext(events)
        assert subscribed(daemon)[-1]["since"] == {"log:echo": 8}
        with pytest.raises(ValueError, match="log"):
            client.subscribe(["log:echo", "run:*"])


async def test_abandoned_subscription_is_ended(daemon: FakeDaemon) -> None:
    async with connect(daemon.path) as client:

        async def follow() -> None:
            async for _ in client.subscribe("run:a", since={"run:a": 0}):
                break

        daemon.record("run:a", "x")
        await follow()
        gc.collect()
        await daemon.emit("run:a", "x")
        await daemon.until(lambda: any(name == "events/unsubscribe" for name, _ in daemon.calls))


async def test_closing_ends_the_iteration(daemon: FakeDaemon) -> None:
    async with connect(daemon.path) as client:
        events = client.subscribe("run:a")
        await events.start()
        async with anyio.create_task_group() as tasks:

            async def read() -> None:
                assert [e async for e in events] == []

            tasks.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            await events.aclose()


async def run_events(daemon: FakeDaemon, *, pause: anyio.Event | None = None) -> None:
    item = {"item_id": "i1", "type": "message", "role": "assistant", "text": ""}
    await daemon.emit("run:r1", "run.started", {"run_id": "r1"})
    await daemon.emit("run:r1", "item.started", {"run_id": "r1", "item": {**item, "status": "in_progress"}})
    await daemon.emit("run:r1", "item.delta", {"run_id": "r1", "item_id": "i1", "text": "Hel"})
    if pause:
        await pause.wait()
    await daemon.emit("run:r1", "item.delta", {"run_id": "r1", "item_id": "i1", "text": "lo"})
    done = {**item, "status": "completed", "text": "Hello you"}
    await daemon.emit("run:r1", "item.completed", {"run_id": "r1", "item": done})
    await daemon.emit("run:r1", "run.completed", {"run_id": "r1", "output": "Hello you"})


def finished(status: str = "completed", **more: Any) -> dict[str, Any]:
    item = {"type": "message", "item_id": "i1", "status": "completed", "text": "Hello you"}
    return {
        "run_id": "r1",
        "agent": "echo",
        "status": status,
        "input": {"text": "hi"},
        "items": [item],
        "usage": {},
        "created_at": "2026-01-31T09:05:07.123456Z",
        **more,
    }


async def test_ask_streams_across_a_drop(daemon: FakeDaemon) -> None:
    pause = anyio.Event()

    async def start(peer: Any, params: Any) -> Any:
        assert params == {"agent": "echo", "input": {"text": "hi", "cwd": "/w"}}
        daemon._tasks.start_soon(lambda: run_events(daemon, pause=pause))
        return {"run_id": "r1"}

    async def get(peer: Any, params: Any) -> Any:
        return finished()

    daemon.methods |= {"runs/start": start, "runs/get": get}
    async with connect(daemon.path) as client:
        answer = client.ask("echo", "hi", cwd="/w")
        pieces = []
        with anyio.fail_after(60):
            async for piece in answer:
                pieces.append(piece)
                if len(pieces) == 1:
                    await daemon.drop()
                    pause.set()
        assert pieces[0] == "Hel"
        assert "".join(pieces) == "Hello you"
        assert answer.run is not None
        assert answer.run.status == "completed"


async def test_ask_whose_history_is_gone(daemon: FakeDaemon) -> None:
    await run_events(daemon)
    daemon.events = daemon.events[-1:]
    daemon.snapshot["runs"] = [{**finished(), "items": []}]

    async def prompt(peer: Any, params: Any) -> Any:
        return {"run_id": "r1", "message_id": "m1"}

    async def get(peer: Any, params: Any) -> Any:
        return finished()

    daemon.methods |= {"sessions/prompt": prompt, "runs/get": get}
    async with connect(daemon.path) as client:
        with anyio.fail_after(60):
            assert await client.ask("echo", "hi", session_id="s1").text() == "Hello you"


async def test_ask_that_fails(daemon: FakeDaemon) -> None:
    from witsd_client import RunFailed

    async def start(peer: Any, params: Any) -> Any:
        daemon.record("run:r1", "run.failed", {"run_id": "r1"})
        return {"run_id": "r1"}

    async def get(peer: Any, params: Any) -> Any:
        return finished("failed", error={"code": -32007, "message": "ValueError: x", "data": {}})

    daemon.methods |= {"runs/start": start, "runs/get": get}
    async with connect(daemon.path) as client:
        with anyio.fail_after(60), pytest.raises(RunFailed, match="ValueError: x") as caught:
            await client.ask("echo", "hi").text()
        assert (caught.value.code, caught.value.status) == (-32007, "failed")
