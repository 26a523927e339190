"""The assistant remembers: across sessions and restarts, with where it has it from, within what is allowed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.doubles.fake_openai import streamed
from tests.integration.test_assistant import talk, with_model
from tests.support.daemon import Daemon


@pytest.fixture
def home() -> Iterator[Daemon]:
    """A daemon, not started, that finds no model of this machine by chance."""
    it = Daemon({"OLLAMA_HOST": "127.0.0.1:1"})
    try:
        yield it
    finally:
        it.remove_after_showing()


def say(daemon: Daemon, text: str, session: str | None = None, **settings: Any) -> Any:
    """The run that answers ``text``, in a session of its own unless one is given."""
    if session is None:
        session = daemon.call("sessions/create", agent="assistant", settings=settings)["session_id"]
    run = daemon.call("sessions/prompt", session_id=session, text=text)["run_id"]
    done = daemon.call("runs/wait", run_id=run, timeout_s=60)
    assert done["status"] == "completed", done
    return done


def sources(run: Any) -> list[Any]:
    found = [item["data"] for item in run["items"] if item["type"] == "custom" and item["name"] == "memory.recalled"]
    return list(found[0]["items"]) if found else []


def test_what_was_told_is_known_in_a_new_session_after_a_restart_with_its_source(home: Daemon) -> None:
    home.start()
    told = say(home, "My favourite colour is blue.")
    assert "I remember it" in told["output"]
    home.kill()
    home.start()
    asked = say(home, "What is my favourite colour?")
    day = asked["created_at"]
    assert asked["output"].startswith("Your favourite colour is blue. You told me on ")
    assert f"in session {told['session_id']}: “My favourite colour is blue.”" in asked["output"]
    assert day[:4] in asked["output"]
    (source,) = [s for s in sources(asked) if s["speaker"] == "owner"]
    record = home.call("memory/get", memory_id=source["memory_id"])
    assert (record["text"], record["session_id"]) == ("My favourite colour is blue.", told["session_id"])
    assert record["uses"] >= 1
    assert "memory" not in str([i for i in told["items"] if i["type"] == "log"])


def test_the_newest_holds_and_closes_the_old_one(home: Daemon) -> None:
    home.start()
    say(home, "My favourite colour is blue.")
    corrected = say(home, "What is my favourite colour?")["session_id"]
    assert "your favourite colour is green" in say(home, "Now it is green.", corrected)["output"]
    asked = say(home, "Which is my favourite colour?")["output"]
    assert asked.startswith("Your favourite colour is green. It was noted on "), "in these words it was not said"
    assert "blue" not in asked
    say(home, "By the way, my favorite color is now red")
    assert say(home, "what's my favourite colour?")["output"].startswith("Your favourite colour is red.")
    open_ones = {m["text"] for m in home.call("memory/list", namespace="agent:assistant")["items"]}
    every = home.call("memory/list", namespace="agent:assistant", include=["superseded"])["items"]
    closed = {m["text"] for m in every} - open_ones
    assert closed == {"My favourite colour is blue.", "My favourite colour is green."}
    assert all(m["superseded_by"] and m["valid_to"] for m in every if m["text"] in closed)


def test_off_neither_records_nor_recalls(home: Daemon) -> None:
    home.start()
    say(home, "My favourite colour is blue.")
    private = say(home, "What is my favourite colour?", memory="off")
    assert private["output"] == "You have not told me your favourite colour in this conversation."
    assert sources(private) == []
    secret = say(home, "My password is swordfish.", memory="off")
    assert "in this conversation" in secret["output"]
    assert "not told me" in say(home, "What is my password?")["output"]


def test_what_is_shared_and_what_fits_by_its_words_is_quoted_with_its_source(home: Daemon) -> None:
    home.start()
    note = home.call("memory/add", namespace="shared", text="The spare key is under the flower pot.\nOr was it?")
    hidden = home.call("memory/add", namespace="agent:other", text="The spare key is at the neighbour's.")
    asked = say(home, "Where is the spare key?")
    assert "flower pot" in asked["output"]
    assert f"(memory {note['memory_id']})" in asked["output"]
    assert "neighbour" not in asked["output"]
    assert hidden["memory_id"] not in [s["memory_id"] for s in sources(asked)]
    assert "I cannot answer that" in say(home, "How far is the moon?")["output"]


def test_an_answer_quoted_from_memory_is_not_taken_for_a_persons_words(home: Daemon) -> None:
    home.start()
    home.call("memory/add", namespace="agent:assistant", text="My name is Mallory.", kind="turn", session_id="s",
              speaker="assistant")  # fmt: skip
    assert "not told me" in say(home, "What is my name?")["output"]
    assert "I cannot answer that" in say(home, "Who is called Mallory?")["output"], "nor quoted as what was said"


async def test_blocks_and_memories_reach_the_model_once_each_and_well_marked(home: Daemon) -> None:
    options = '[options]\nsystem = "Be kind."\nmemory_tokens = 400\n'
    async with with_model(home, options) as (fake, call):
        await call("blocks/set", agent="assistant", name="human", text="Ada, an engineer")
        fake.plan += [streamed("noted"), streamed("in Oslo"), streamed("again")]
        one = (await call("sessions/create", agent="assistant"))["session_id"]
        two = (await call("sessions/create", agent="assistant"))["session_id"]
        await talk(call, one, "The workshop about otters is in Oslo")
        run = await talk(call, two, "Where is the workshop about otters?")
        await talk(call, two, "And when is the workshop about otters?")
        turns = (await call("memory/list", namespace="agent:assistant"))["items"]
    systems = [seen.body["messages"][0]["content"] for seen in fake.chats]
    always = 'Be kind.\n\n<block name="human">\nAda, an engineer\n</block>\n\nYou have a memory'
    assert all(text.startswith(always) for text in systems)
    assert "<recalled_memory>" not in systems[0]
    marked = systems[1].partition("<recalled_memory>")[2]
    assert marked.endswith("</recalled_memory>")
    assert marked.count("The workshop about otters is in Oslo") == 1
    assert f"In session {one}:" in marked
    assert "Where is the workshop" not in systems[2], "what the conversation has anyway"
    (item,) = [item for item in run["items"] if item["type"] == "custom"]
    assert item["data"]["text"] == f"recalled {len(item['data']['items'])} memories"
    assert {source["session_id"] for source in item["data"]["items"]} == {one}
    assert len(turns) == 6
    assert not any("recalled" in turn["text"] for turn in turns)


async def test_the_conversation_that_is_sent_is_bounded_and_memory_has_the_rest(home: Daemon) -> None:
    async with with_model(home, "history_messages = 2\n") as (fake, call):
        session = (await call("sessions/create", agent="assistant"))["session_id"]
        fake.plan += [streamed("one"), streamed("two"), streamed("three")]
        await talk(call, session, "The zebra is called Zoe")
        await talk(call, session, "The otter is called Otto")
        await talk(call, session, "How is the zebra called?")
    system, *messages = fake.chats[-1].body["messages"]
    assert [m["content"] for m in messages] == ["The otter is called Otto", "two", "How is the zebra called?"]
    assert "owner: The zebra is called Zoe" in system["content"]
    assert "Otto" not in system["content"]
