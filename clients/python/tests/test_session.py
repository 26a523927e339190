"""Conversations: one coroutine (or thread) for as long as they last, whatever becomes of single runs."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import pytest
from agent_host import Host, hosted
from witsd_client import Agent, Session, SyncSession, session

pytestmark = pytest.mark.anyio


def lasting(log: list[str]) -> Agent:
    """Counts, so that a coroutine begun anew betrays itself; obeys a few commands."""
    agent = Agent("lasting")

    @agent.session
    async def talk(session: Session) -> None:
        count = 0
        log.append(f"begin {session.session_id} {[turn.text for turn in session.history]}")
        try:
            async for message in session:
                async with message:
                    count += 1
                    await message.say(f"{count}:{message.text}")
                    match message.text:
                        case "raise":
                            raise ValueError("no good")
                        case "sleep":
                            try:
                                await anyio.sleep_forever()
                            finally:
                                log.append("woken")
                        case "call":
                            await session.client.call("models/complete", {})
                        case "group":
                            async with anyio.create_task_group() as tasks:
                                tasks.start_soon(message.client.call, "models/complete", {})
                        case "reply":
                            await message.reply("!")
                            log.append("after reply")
        finally:
            log.append(f"end {session.session_id}")

    return agent


async def turn(host: Host, run_id: str, text: str, session_id: str = "s1", **more: Any) -> Any:
    return await host.answer(host.execute(run_id, text, session_id=session_id, **more))


async def test_one_coroutine_for_all_messages_of_a_session() -> None:
    log: list[str] = []
    async with hosted(lasting(log)) as host:
        assert (await turn(host, "r1", "a", history=[]))["result"] == {"output": "1:a"}
        assert (await turn(host, "r2", "b"))["result"] == {"output": "2:b"}
        assert (await turn(host, "r3", "x", "s2"))["result"] == {"output": "1:x"}
        assert (await turn(host, "r4", "c"))["result"] == {"output": "3:c"}
        assert log == ["begin s1 []", "begin s2 []"]
        assert host.items("r2")[-1] == {
            "item_id": "r2.1", "type": "message", "role": "assistant", "status": "completed", "text": "2:b"
        }


async def test_history_begins_it_anew() -> None:
    log: list[str] = []
    async with hosted(lasting(log)) as host:
        await turn(host, "r1", "a")
        history = [{"role": "user", "text": "old"}, {"role": "assistant", "text": "1:old"}]
        assert (await turn(host, "r2", "b", history=history))["result"] == {"output": "1:b"}
        await host.until(lambda _: "end s1" in log)
        assert "begin s1 ['old', '1:old']" in log


@pytest.mark.parametrize("how", ["sleep", "call", "group"])
async def test_a_cancelled_run_leaves_the_conversation_alive(how: str) -> None:
    log: list[str] = []
    async with hosted(lasting(log)) as host:
        await turn(host, "r1", "a")
        number = host.execute("r2", how, session_id="s1")
        await host.said("r2", f"2:{how}")
        if how != "sleep":
            await host.until(lambda m: m.get("method") == "models/complete")
        host.cancel(number)
        assert (await host.answer(number))["error"]["code"] == -32800
        assert host.items("r2")[-1]["status"] == "cancelled"
        assert (await turn(host, "r3", "b"))["result"] == {"output": "3:b"}
        assert [entry for entry in log if entry.startswith(("begin", "end"))] == ["begin s1 []"]
        if how != "sleep":
            await host.until(lambda m: m.get("method") == "notifications/cancelled")


async def test_a_failure_is_that_run_s() -> None:
    log: list[str] = []
    async with hosted(lasting(log)) as host:
        error = (await turn(host, "r1", "raise"))["error"]
        assert (error["code"], error["message"]) == (-32007, "ValueError: no good")
        assert (await turn(host, "r2", "b"))["result"] == {"output": "2:b"}


async def test_reply_completes_before_the_handler_comes_back() -> None:
    log: list[str] = []
    async with hosted(lasting(log)) as host:
        assert (await turn(host, "r1", "reply"))["result"] == {"output": "1:reply!"}
        assert (await turn(host, "r2", "b"))["result"] == {"output": "2:b"}
        assert "after reply" in log


async def test_messages_wait_their_turn() -> None:
    async with hosted(lasting([])) as host:
        numbers = [host.execute(f"r{n}", str(n), session_id="s1") for n in range(5)]
        outputs = [(await host.answer(number))["result"]["output"] for number in numbers]
        assert outputs == [f"{n + 1}:{n}" for n in range(5)]


async def test_a_message_cancelled_while_it_waits_is_never_seen() -> None:
    log: list[str] = []
    async with hosted(lasting(log)) as host:
        first = host.execute("r1", "sleep", session_id="s1")
        await host.said("r1", "1:sleep")
        second, third = (host.execute(f"r{n}", "x", session_id="s1") for n in (2, 3))
        host.cancel(second)
        assert (await host.answer(second))["error"]["code"] == -32800
        host.cancel(first)
        assert (await host.answer(third))["result"] == {"output": "2:x"}


async def test_closed_by_the_daemon() -> None:
    log: list[str] = []
    async with hosted(lasting(log)) as host:
        await turn(host, "r1", "a")
        host.send({"method": "notifications/session_closed", "params": {"session_id": "s1"}})
        await host.call("ping", {"nonce": "x"})
        await host.until(lambda _: log[-1] == "end s1")
        assert (await turn(host, "r2", "b"))["result"] == {"output": "1:b"}


async def test_a_run_without_a_session_is_a_conversation_of_one() -> None:
    log: list[str] = []
    async with hosted(lasting(log)) as host:
        assert (await host.answer(host.execute("r1", "a")))["result"] == {"output": "1:a"}
        await host.call("ping", {"nonce": "x"})
        assert log == ["begin r1 []", "end r1"]


async def test_without_the_block_a_handler_begins_again_from_its_turns() -> None:
    agent = Agent("plain")
    begun: list[list[str]] = []

    @agent.session
    async def talk(session: Session) -> None:
        begun.append([f"{turn.role}: {turn.text}" for turn in session.history])
        async for message in session:
            await message.say("so ")
            if message.text == "wait":
                await message.client.call("models/complete", {})
            if message.text == "raise":
                raise ValueError("no good")
            await message.say("far")

    async with hosted(agent) as host:
        number = host.execute("r1", "wait", session_id="s1")
        await host.until(lambda m: m.get("method") == "models/complete")
        host.cancel(number)
        assert (await host.answer(number))["error"]["code"] == -32800
        assert "error" in await turn(host, "r2", "raise")
        assert (await turn(host, "r3", "fine"))["result"] == {"output": "so far"}
        turns = ["user: wait", "assistant: so ", "user: raise", "assistant: so "]
        assert begun == [[], turns[:2], turns]


async def test_a_handler_that_does_not_come_back_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "INTERRUPT_GRACE_S", 0.1)
    agent = Agent("stubborn")

    @agent.session
    async def talk(session: Session) -> None:
        async for message in session:
            await message.say("begun")
            if message.text == "wait":
                await anyio.sleep_forever()

    async with hosted(agent) as host:
        number = host.execute("r1", "wait", session_id="s1")
        await host.said("r1", "begun")
        host.cancel(number)
        assert (await host.answer(number))["error"]["code"] == -32800
        assert (await turn(host, "r2", "b"))["result"] == {"output": "begun"}


async def test_a_handler_that_ends_at_once_fails_its_runs_and_does_not_spin() -> None:
    agent = Agent("short")
    begun = 0

    @agent.session
    async def talk(session: Session) -> None:
        nonlocal begun
        begun += 1
        if begun == 1:
            raise OSError("no database")

    async with hosted(agent) as host:
        assert (await turn(host, "r1", "a"))["error"]["message"] == "OSError: no database"
        assert (await turn(host, "r2", "a"))["error"]["code"] == -32005
        assert begun == 2


async def test_one_message_and_out_is_a_conversation_too() -> None:
    agent = Agent("brief")

    @agent.session
    async def talk(session: Session) -> None:
        async for message in session:
            await message.reply(f"after {len(session.history)}")
            return

    async with hosted(agent) as host:
        assert (await turn(host, "r1", "a"))["result"] == {"output": "after 0"}
        assert (await turn(host, "r2", "b"))["result"] == {"output": "after 2"}


async def test_idle_conversations_beyond_the_limit_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("witsd_client.agent.MAX_LIVE_SESSIONS", 2)
    log: list[str] = []
    async with hosted(lasting(log)) as host:
        for n in range(5):
            await turn(host, f"r{n}", "a", f"s{n}")
        await host.until(lambda _: "end s1" in log)
        assert (await turn(host, "again", "b", "s0"))["result"] == {"output": "1:b"}
        assert "begin s0 ['a', '1:a']" in log


async def test_a_plain_function_keeps_one_thread() -> None:
    agent = Agent("sync")
    threads: set[int] = set()
    ended = threading.Event()

    @agent.session
    def talk(session: SyncSession) -> None:
        count = 0
        for message in session:
            with message:
                count += 1
                threads.add(threading.get_ident())
                message.say(f"{count}:{message.text}")
                if message.text == "raise":
                    raise ValueError("no good")
                if message.text == "call":
                    message.client.call("models/complete", {})
        ended.set()

    async with hosted(agent) as host:
        assert (await turn(host, "r1", "a"))["result"] == {"output": "1:a"}
        assert (await turn(host, "r2", "raise"))["error"]["message"] == "ValueError: no good"
        number = host.execute("r3", "call", session_id="s1")
        await host.until(lambda m: m.get("method") == "models/complete")
        host.cancel(number)
        assert (await host.answer(number))["error"]["code"] == -32800
        await host.until(lambda m: m.get("method") == "notifications/cancelled")
        assert (await turn(host, "r4", "b"))["result"] == {"output": "4:b"}
        assert len(threads) == 1
        host.send({"method": "notifications/session_closed", "params": {"session_id": "s1"}})
        assert await anyio.to_thread.run_sync(ended.wait, 10)


async def test_settings_of_the_latest_message() -> None:
    agent = Agent("set")

    @agent.session
    async def talk(session: Session) -> None:
        async for message in session:
            await message.reply(str(session.settings.model))

    async with hosted(agent) as host:
        one = await turn(host, "r1", "a", settings={"model": "m1"})
        two = await turn(host, "r2", "a", settings={"model": "m2"})
        assert (one["result"]["output"], two["result"]["output"]) == ("m1", "m2")
