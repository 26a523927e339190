"""Agents of single runs: what goes over the wire for what a handler does."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest
from agent_host import hosted
from witsd_client import Agent, NotFound, Run, RunCancelled, SyncRun
from witsd_client import run as run_module

pytestmark = pytest.mark.anyio


async def test_declares_itself() -> None:
    agent = Agent("mine", version="3")
    agent.skill("digest", "digests", {"type": "object"})
    agent.add_tool("count", "counts", {}, lambda arguments: len(arguments))
    async with hosted(agent) as host:
        result = await host.initialize({"depth": 3})
        assert result == {
            "protocol_version": "1",
            "agent_info": {"name": "mine", "version": "3"},
            "capabilities": {"sessions": False, "embeddings": False, "completions": False},
            "tools": [
                {"name": "count", "description": "counts", "input_schema": {}, "read_only": False, "parallel": False}
            ],
            "skills": [{"name": "digest", "description": "digests", "input_schema": {"type": "object"}}],
        }
        assert (agent.name, agent.options, agent.grants.tools) == ("given", {"depth": 3}, ("*",))
        assert await host.call("ping", {"nonce": "n1"}) == {"nonce": "n1"}
        reply = await host.answer(host.ask("no/such"))
        assert reply["error"]["code"] == -32601
        reply = await host.answer(host.ask("runs/execute", {"run_id": 5}))
        assert reply["error"]["code"] == -32602
        reply = await host.answer(host.execute("r1"))
        assert reply["error"]["code"] == -32005


async def test_say_makes_one_message_and_the_output() -> None:
    agent = Agent("echo")

    @agent.run
    async def echo(run: Run) -> None:
        for word in run.text.split():
            await run.say(word + " ")

    async with hosted(agent) as host:
        assert await host.call("runs/execute", {"run_id": "r1", "input": {"text": "a b"}}) == {"output": "a b "}
        first, last = host.items("r1")
        assert first == {
            "item_id": "r1.1", "type": "message", "role": "assistant", "status": "in_progress", "text": ""
        }
        assert last == {**first, "status": "completed", "text": "a b "}
        assert host.deltas("r1") == "a b "
        assert "result" in host.got[-1]  # everything else came before


async def test_without_streaming_there_are_no_deltas() -> None:
    agent = Agent("echo")

    @agent.run
    async def echo(run: Run) -> None:
        await run.say("a")
        await run.say("b")

    async with hosted(agent) as host:
        result = await host.answer(host.execute("r1", stream=False))
        assert (result["result"], host.deltas("r1")) == ({"output": "ab"}, "")
        assert host.items("r1")[-1]["text"] == "ab"


async def test_what_is_returned_is_the_output() -> None:
    agent = Agent("count")

    @agent.run
    async def count(run: Run) -> Any:
        if run.data:
            await run.say("counting")
            return {"words": len(run.data["words"]), "cwd": run.cwd}
        return "just text"

    async with hosted(agent) as host:
        data = {"input": {"text": "", "data": {"words": [1, 2]}, "cwd": "/w"}}
        assert await host.call("runs/execute", {"run_id": "r1", **data}) == {"output": {"words": 2, "cwd": "/w"}}
        assert await host.call("runs/execute", {"run_id": "r2", "input": {}}) == {"output": "just text"}
        assert host.items("r2")[-1]["text"] == "just text"


async def test_items_of_every_kind() -> None:
    agent = Agent("all")

    @agent.run
    async def work(run: Run) -> None:
        await run.think("hm")
        tool = await run.item("tool_call", tool="t", arguments={"a": 1}, status="in_progress")
        await run.item("tool_call", item_id=tool, tool="t", arguments={"a": 1}, result=2)
        await run.log("warning", "careful")
        await run.usage(model="m", input_tokens=3, output_tokens=4)
        await run.item("custom", name="x", data=[1])

    async with hosted(agent) as host:
        await host.answer(host.execute("r1"))
        kinds = [(i["type"], i["status"]) for i in host.items("r1")]
        assert kinds == [
            ("thought", "in_progress"),
            ("tool_call", "in_progress"),
            ("tool_call", "completed"),
            ("log", "completed"),
            ("usage", "completed"),
            ("custom", "completed"),
            ("thought", "completed"),
        ]
        ids = [i["item_id"] for i in host.items("r1")]
        assert ids[1] == ids[2]
        assert len(set(ids)) == 5


async def test_failures_are_told_and_survived(capsys: pytest.CaptureFixture[str]) -> None:
    agent = Agent("bad")

    @agent.run
    async def work(run: Run) -> Any:
        match run.text:
            case "raise":
                await run.say("so far")
                raise ValueError("no good")
            case "group":
                async with anyio.create_task_group():
                    raise KeyError("inner")
            case "refuse":
                raise NotFound("no such file", {"kind": "file"})
            case "strange":
                return object()
            case "big":
                return "x" * (5 << 20)
        return "fine"

    async with hosted(agent) as host:
        error = (await host.answer(host.execute("r1", "raise")))["error"]
        assert (error["code"], error["message"]) == (-32007, "ValueError: no good")
        assert error["data"]["run_id"] == "r1"
        assert host.items("r1")[-1]["status"] == "failed"
        error = (await host.answer(host.execute("r2", "group")))["error"]
        assert error["message"] == "KeyError: 'inner'"
        error = (await host.answer(host.execute("r3", "refuse")))["error"]
        assert (error["code"], error["data"]["kind"]) == (-32002, "file")
        error = (await host.answer(host.execute("r4", "strange")))["error"]
        assert error["code"] == -32007
        error = (await host.answer(host.execute("r5", "big")))["error"]
        assert error["code"] == -32008
        assert (await host.answer(host.execute("r6")))["result"] == {"output": "fine"}
    assert "no good" in capsys.readouterr().err


async def test_cancel_ends_that_run_only() -> None:
    agent = Agent("slow")
    ended: list[str] = []

    @agent.run
    async def slow(run: Run) -> None:
        try:
            await run.say("begun")
            await anyio.sleep_forever()
        finally:
            ended.append(run.run_id)

    async with hosted(agent) as host:
        one, two = host.execute("r1"), host.execute("r2")
        await host.said("r1", "begun")
        await host.said("r2", "begun")
        host.cancel(one)
        assert (await host.answer(one))["error"]["code"] == -32800
        assert ended == ["r1"]
        assert host.items("r1")[-1] | {"text": "begun"} == host.items("r1")[-1]
        assert host.items("r1")[-1]["status"] == "cancelled"
        assert await host.call("ping", {"nonce": "still here"})
        host.cancel(two)
        await host.answer(two)


async def test_a_handler_that_only_speaks_holds_up_nothing() -> None:
    agent = Agent("chatty")

    @agent.run
    async def chatty(run: Run) -> None:
        while True:
            await run.say("x")

    async with hosted(agent) as host:
        number = host.execute("r1")
        await host.until(lambda m: m.get("method") == "notifications/delta")
        assert await host.call("ping", {"nonce": "n"})
        host.cancel(number)
        assert (await host.answer(number))["error"]["code"] == -32800


async def test_calls_back_to_the_daemon() -> None:
    agent = Agent("asker")

    @agent.run
    async def work(run: Run) -> Any:
        pieces: list[str] = []

        async def piece(news: Any) -> None:
            pieces.append(news.delta)
            await run.say(news.delta)

        params = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
        await run.client.call("models/complete", params, progress=piece)
        name = await run.ask_user("Name?", {"type": "string"})
        started = await run.client.runs.start(agent="other", input="go")
        return [pieces, name, started.run_id]

    async with hosted(agent) as host:
        number = host.execute("r1")
        ask = await host.until(lambda m: m.get("method") == "models/complete")
        for delta in "ab":
            news = {"progress_token": ask["params"]["_meta"]["progress_token"], "delta": delta}
            host.send({"method": "notifications/progress", "params": news})
        host.send({"id": ask["id"], "result": {}})
        ask = await host.until(lambda m: m.get("method") == "inputs/request")
        assert ask["params"] == {"run_id": "r1", "message": "Name?", "schema": {"type": "string"}}
        host.send({"id": ask["id"], "result": {"response": "Ada"}})
        ask = await host.until(lambda m: m.get("method") == "runs/start")
        host.send({"id": ask["id"], "result": {"run_id": "r2"}})
        assert (await host.answer(number))["result"] == {"output": [["a", "b"], "Ada", "r2"]}


async def test_cancelling_a_run_cancels_what_it_asked_for() -> None:
    agent = Agent("asker")

    @agent.run
    async def work(run: Run) -> None:
        await run.client.call("models/complete", {"messages": []})

    async with hosted(agent) as host:
        number = host.execute("r1")
        ask = await host.until(lambda m: m.get("method") == "models/complete")
        host.cancel(number)
        await host.answer(number)
        told = await host.until(lambda m: m.get("method") == "notifications/cancelled")
        assert told["params"] == {"request_id": ask["id"]}


async def test_plain_function_in_a_thread_of_its_own() -> None:
    agent = Agent("sync")
    threads: list[str] = []

    @agent.run
    def work(run: SyncRun) -> Any:
        threads.append(threading.current_thread().name)
        run.say(run.text)
        other = threading.Thread(target=run.say, args=("!",))
        other.start()
        other.join()
        run.usage(model="m", input_tokens=1)
        return run.client.runs.get(run_id="r0").status

    async with hosted(agent) as host:
        number = host.execute("r1", "hi")
        ask = await host.until(lambda m: m.get("method") == "runs/get")
        run = {"run_id": "r0", "agent": "a", "status": "failed", "input": {}, "items": [], "usage": {}}
        host.send({"id": ask["id"], "result": {**run, "created_at": "x"}})
        assert (await host.answer(number))["result"] == {"output": "failed"}
        assert host.deltas("r1") == "hi!"
        assert threads == ["run r1"]


async def test_cancel_reaches_a_thread() -> None:
    agent = Agent("sync")
    ended = threading.Event()
    go = threading.Event()

    @agent.run
    def work(run: SyncRun) -> None:
        run.say("begun")
        try:
            go.wait(10)
            try:
                run.say("more")
            except Exception:  # noqa: BLE001 - the point: this does not swallow it
                return
        except RunCancelled:
            ended.set()
            raise

    async with hosted(agent) as host:
        number = host.execute("r1")
        await host.said("r1", "begun")
        host.cancel(number)
        assert (await host.answer(number))["error"]["code"] == -32800
        go.set()
        assert await anyio.to_thread.run_sync(ended.wait, 10)
        assert host.deltas("r1") == "begun"


async def test_async_handler_speaks_from_a_thread() -> None:
    agent = Agent("mixed")

    @agent.run
    async def work(run: Run) -> None:
        await anyio.to_thread.run_sync(run.sync.say, "from a thread")

    async with hosted(agent) as host:
        assert (await host.answer(host.execute("r1")))["result"] == {"output": "from a thread"}


async def test_shutdown_lets_work_end() -> None:
    agent = Agent("slow")
    go = anyio.Event()

    @agent.run
    async def slow(run: Run) -> str:
        await run.say("begun")
        await go.wait()
        return "done"

    async with hosted(agent) as host:
        number = host.execute("r1")
        await host.said("r1", "begun")
        await host.call("shutdown")
        refused = await host.answer(host.execute("r2"))
        assert refused["error"]["code"] == -32005
        go.set()
        assert (await host.answer(number))["result"] == {"output": "done"}
        with anyio.fail_after(60):
            await host.ended.wait()  # and then it hangs up


async def test_nothing_can_be_added_after_the_end() -> None:
    agent = Agent("late")
    kept: list[Run] = []

    @agent.run
    async def work(run: Run) -> None:
        kept.append(run)

    async with hosted(agent) as host:
        await host.answer(host.execute("r1"))
        with pytest.raises(RuntimeError, match="is over"):
            await kept[0].say("late")
    assert run_module.current_run.get() is None


BACKENDS = """
import asyncio
from witsd_client import Agent
agent = Agent("sleeper")
@agent.run
async def sleeper(run):
    await asyncio.sleep(0.001)
    return "slept"
agent.serve(GIVEN)
"""


@pytest.mark.parametrize("backend", ["trio", "asyncio", None])
async def test_serve_runs_handlers_under_the_backend_that_is_asked_for(tmp_path: Path, backend: str | None) -> None:
    script = tmp_path / "sleeper.py"
    script.write_text(BACKENDS.replace("GIVEN", f"backend={backend!r}" if backend else ""))
    async with await anyio.open_process([sys.executable, str(script)], stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        run = {"jsonrpc": "2.0", "id": 1, "method": "runs/execute", "params": {"run_id": "r1", "input": {}}}
        with anyio.fail_after(60):
            await process.stdin.send(json.dumps(run).encode() + b"\n")
            out = b""
            while b'"id":1' not in out or not out.endswith(b"\n"):
                out += await process.stdout.receive()
            await process.stdin.aclose()
            assert await process.wait() == 0
    reply = next(m for m in map(json.loads, out.splitlines()) if m.get("id") == 1)
    if backend == "asyncio":
        assert reply["result"] == {"output": "slept"}
    else:
        assert "no running event loop" in reply["error"]["message"]
        assert 'agent.serve(backend="asyncio")' in reply["error"]["message"]


SCRIPT = """
import os, subprocess, sys
from witsd_client import Agent
agent = Agent("noisy")
print("before")
@agent.run
async def noisy(run):
    print("to stdout")
    os.write(1, b"to fd 1\\n")
    subprocess.run(["echo", "from a child"])
    assert sys.stdin.read() == ""
    await run.say("clean")
print("before serve")
agent.serve()
print("after")
"""


async def test_prints_never_reach_the_protocol(tmp_path: Path) -> None:
    script = tmp_path / "noisy.py"
    script.write_text(SCRIPT.replace('print("before")\n', "").replace('print("before serve")\n', ""))
    async with await anyio.open_process([sys.executable, str(script)]) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        run = {"jsonrpc": "2.0", "id": 1, "method": "runs/execute", "params": {"run_id": "r1", "input": {}}}
        with anyio.fail_after(60):
            await process.stdin.send(json.dumps(run).encode() + b"\n")
            out = b""
            while b'"id":1' not in out:
                out += await process.stdout.receive()
            await process.stdin.aclose()  # the daemon hangs up
            assert await process.wait() == 0
            errors = b"".join([chunk async for chunk in process.stderr])
    assert all(json.loads(line) for line in out.splitlines())
    for text in (b"to stdout", b"to fd 1", b"from a child", b"after"):
        assert text in errors
        assert text not in out
