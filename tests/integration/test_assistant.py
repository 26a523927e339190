"""The assistant under the real daemon: a conversation, what is streamed, what goes wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from witsd_client.generated import ChatMessage

from tests.doubles.fake_openai import (
    KEY,
    Exchange,
    FakeOpenAI,
    chunk,
    failing,
    open_fake_openai,
    streamed,
    whole,
)
from tests.support.daemon import Daemon
from witsd.adapters.assistant import Attachment, with_attachments
from witsd.adapters.assistant_window import MAX_SENT_CHARS, window

Call = Callable[..., Any]


@pytest.fixture
def home() -> Iterator[Daemon]:
    """A daemon, not started, that finds no model of this machine by chance."""
    it = Daemon({"OLLAMA_HOST": "127.0.0.1:1"})
    try:
        yield it
    finally:
        it.remove_after_showing()


def finished(daemon: Daemon, session: str, text: str, **more: Any) -> Any:
    run = daemon.call("sessions/prompt", session_id=session, text=text, **more)["run_id"]
    return daemon.call("runs/wait", run_id=run, timeout_s=30)


def event_types(daemon: Daemon, run_id: str) -> list[str]:
    return [event["type"] for event in daemon.call("events/read", stream=f"run:{run_id}")["events"]]


def test_a_conversation_lasts_over_messages_attachments_and_a_restart(home: Daemon) -> None:
    home.start()
    session = home.call("sessions/create", agent="assistant")["session_id"]
    first = finished(home, session, "Hello, my name is Ada.")
    assert (first["status"], "your name is Ada" in first["output"]) == ("completed", True)
    usage = next(item for item in first["items"] if item["type"] == "usage")
    assert (usage["model"], usage["output_tokens"] > 0) == ("offline", True)
    attached = [{"name": "notes.txt", "text": "The launch code is 4711. Lunch is at noon."}]
    finished(home, session, "Here are my notes.", attachments=attached)
    assert finished(home, session, "What is my name?")["output"] == "Your name is Ada."
    home.kill()
    home.start()
    assert finished(home, session, "What is my name?")["output"] == "Your name is Ada."
    assert "4711" in finished(home, session, "what is the launch code?")["output"]


def test_a_run_without_a_session_reads_the_files_it_is_given(home: Daemon) -> None:
    home.start()
    work = home.user_home
    (work / "a.txt").write_text(
        "Agents are kept alive by witsd. Bananas are yellow. Witsd keeps agents running."
    )
    wanted = {"text": "Summarise the attached file", "cwd": str(work), "files": ["a.txt"]}
    run = home.call("runs/start", agent="assistant", input=wanted)["run_id"]
    assert "kept alive" in home.call("runs/wait", run_id=run, timeout_s=30)["output"]
    run = home.call("runs/start", agent="assistant", input={**wanted, "files": ["none.txt"]})["run_id"]
    failed = home.call("runs/wait", run_id=run, timeout_s=30)
    assert failed["status"] == "failed"
    assert failed["error"]["code"] == -32602
    assert str(work / "none.txt") in failed["error"]["message"]


def test_deltas_are_sent_unless_the_session_wants_none(home: Daemon) -> None:
    home.start()
    session = home.call("sessions/create", agent="assistant")["session_id"]
    assert "item.delta" in event_types(home, finished(home, session, "What can you do?")["run_id"])
    home.call("sessions/update", session_id=session, settings={"stream": False})
    quiet = finished(home, session, "What can you do?")
    assert "no language model" in quiet["output"]
    assert "item.delta" not in event_types(home, quiet["run_id"])


# -- with a model behind it ---------------------------------------------------------------------------


@asynccontextmanager
async def with_model(home: Daemon, options: str = "") -> AsyncIterator[tuple[FakeOpenAI, Call]]:
    """The daemon with a server of OpenAI's API as its model; ``call`` does not block the server."""
    async with open_fake_openai() as fake:
        key = home.home / "key"
        key.write_text(KEY)
        key.chmod(0o600)
        (home.home / "witsd.toml").write_text(
            f'[models]\ndefault = "fake"\n[providers.fake]\nkind = "openai"\nbase_url = "{fake.base_url}"\n'
            'api_key_file = "key"\nretries = 0\nmodels = ["gpt-a", "gpt-b"]\n'
        )
        (home.home / "agents").mkdir()
        (home.home / "agents" / "assistant.toml").write_text(
            f'name = "assistant"\nkind = "assistant"\n{options}\n[grants]\nmodels = ["*"]\n'
        )
        with trio.fail_after(60):
            await trio.to_thread.run_sync(home.start)

            async def call(method: str, **params: Any) -> Any:
                return await trio.to_thread.run_sync(partial(home.call, method, **params))

            yield fake, call


async def talk(call: Call, session: str, text: str) -> Any:
    run = (await call("sessions/prompt", session_id=session, text=text))["run_id"]
    ended = await call("runs/wait", run_id=run, timeout_s=60)
    print(ended["status"], ended.get("error"))  # shown where a test fails
    return ended


async def test_options_and_settings_reach_the_model(home: Daemon) -> None:
    options = '[options]\nmodel = "gpt-b"\nsystem = "Be kind."\ntemperature = 0.5\nmax_tokens = 9\n'
    options = 'memory = "off"\nhistory_messages = 2\n' + options
    async with with_model(home, options) as (fake, call):
        session = (await call("sessions/create", agent="assistant"))["session_id"]
        fake.plan += [streamed("one"), streamed("two"), streamed("three", finish="length")]
        await talk(call, session, "first")
        await call(
            "sessions/update", session_id=session, settings={"model": "fake/gpt-a", "system": "Be brief."}
        )
        await talk(call, session, "second")
        last = await talk(call, session, "third")
    bodies = [seen.body for seen in fake.chats]
    assert [body["model"] for body in bodies] == ["gpt-b", "gpt-a", "gpt-a"]
    assert (bodies[0]["temperature"], bodies[0]["max_tokens"]) == (0.5, 9)
    said = [[(m["role"], m["content"]) for m in body["messages"]] for body in bodies]
    assert said[0] == [("system", "Be kind."), ("user", "first")]
    assert said[2] == [("system", "Be brief."), ("user", "second"), ("assistant", "two"), ("user", "third")]
    assert any("cut off" in item.get("text", "") for item in last["items"] if item["type"] == "log")
    (usage,) = [item for item in last["items"] if item["type"] == "usage"]
    assert usage["model"] == "gpt-fake-2026"


async def test_a_models_error_ends_the_run_with_its_code_and_the_conversation_goes_on(home: Daemon) -> None:
    async with with_model(home) as (fake, call):
        session = (await call("sessions/create", agent="assistant"))["session_id"]
        fake.plan += [failing(429, f"slow down, {KEY}"), streamed("better")]
        failed = await talk(call, session, "hello")
        good = await talk(call, session, "again")
    assert failed["status"] == "failed"
    assert failed["error"]["code"] == -32011
    assert (failed["error"]["data"]["provider"], failed["error"]["data"]["status"]) == ("fake", 429)
    assert "slow down, [key]" in failed["error"]["message"]
    assert good["output"] == "better"
    logs = "".join(p.read_text() for p in Path(home.home).rglob("*") if p.is_file() and "log" in str(p))
    assert KEY not in logs + home.log()


async def test_cancelling_a_run_cancels_the_models_call_and_the_conversation_goes_on(home: Daemon) -> None:
    begun, gone = trio.Event(), trio.Event()

    async def endless(exchange: Exchange) -> None:
        await exchange.start_events()
        await exchange.event(chunk({"content": "Once upon"}))
        begun.set()
        while await exchange.stream.receive_some():
            pass
        gone.set()

    async with with_model(home) as (fake, call):
        session = (await call("sessions/create", agent="assistant"))["session_id"]
        fake.plan += [endless, streamed("Here.")]
        run = (await call("sessions/prompt", session_id=session, text="tell me a story"))["run_id"]
        await begun.wait()
        while "item.delta" not in [
            e["type"] for e in (await call("events/read", stream=f"run:{run}"))["events"]
        ]:
            await trio.lowlevel.checkpoint()
        cancelled = await call("runs/cancel", run_id=run)
        await gone.wait()
        after = await talk(call, session, "still there?")
    assert cancelled["status"] == "cancelled"
    assert after["output"] == "Here."
    assert [m["content"] for m in fake.chats[1].body["messages"] if m["role"] != "system"] == [
        "tell me a story",
        "Once upon",
        "still there?",
    ]


async def test_where_nobody_streams_the_answer_comes_whole(home: Daemon) -> None:
    async with with_model(home) as (fake, call):
        fake.plan += [whole("All at once.")]
        run = (await call("runs/start", agent="assistant", input="hello", stream=False))["run_id"]
        ended = await call("runs/wait", run_id=run, timeout_s=30)
    assert ended["output"] == "All at once."
    assert "stream" not in fake.chats[0].body
    assert [item["text"] for item in ended["items"] if item["type"] == "message"] == ["All at once."]


async def test_a_wrong_option_is_named(home: Daemon) -> None:
    async with with_model(home, "[options]\ntemperature = 7\n") as (_, call):
        run = (await call("runs/start", agent="assistant", input="hello"))["run_id"]
        ended = await call("runs/wait", run_id=run, timeout_s=30)
    assert "temperature" in ended["error"]["message"]


# -- what is sent -------------------------------------------------------------------------------------


def message(role: Any, content: str = "x") -> ChatMessage:
    return ChatMessage(role=role, content=content)


def test_the_window_keeps_whole_turns() -> None:
    roles = ["user", "assistant", "tool", "assistant", "user", "assistant", "user"]
    talk = [message(role) for role in roles]
    assert [m.role for m in window(talk, 100)] == roles
    assert [m.role for m in window(talk, 6)] == roles[4:]  # not the tool's answer without its call
    assert [m.role for m in window(talk, 2)] == ["user"]
    assert [m.role for m in window([message("user"), message("assistant"), message("tool")], 2)] == [
        "assistant",
        "tool",
    ]
    long = [message("user", "y" * (MAX_SENT_CHARS // 2 + 1)) for _ in range(3)]
    assert len(window(long, 100)) == 1
    assert len(window([message("user", "y" * (MAX_SENT_CHARS + 1))], 100)) == 1


def test_a_fence_cannot_be_closed_from_inside() -> None:
    text = with_attachments("See:", [Attachment("a\n.md", "x\n````\ny")])
    assert text == "See:\n\nAttached: a .md\n`````\nx\n````\ny\n`````"
