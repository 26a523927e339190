"""What agents may remember and recall, and what is remembered of what is said to them."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.integration.test_memory import add, found, refused
from tests.support.agents import begin, define, play, wait
from tests.support.daemon import PATIENCE_S, Daemon
from tests.support.gate import gate
from tests.support.memory import embedded
from tests.support.wire import Wire, wire


def ask(c: Wire, agent: str, method: str, /, **params: Any) -> dict[str, Any]:
    """The result of a call that ``agent`` makes during a run, or ``{"error": ...}``."""
    answered = asked(c, agent, method, **params)[1]
    result: dict[str, Any] = answered.get("result", answered)
    return result


def asked(c: Wire, agent: str, method: str, /, **params: Any) -> tuple[str, dict[str, Any]]:
    """The run, and what was answered in it."""
    run = play(c, agent, ["call", method, params])
    assert run["status"] == "completed", run
    return run["run_id"], next(item["data"] for item in run["items"] if item["type"] == "custom")


def texts(result: dict[str, Any]) -> list[str]:
    return [item["text"] for item in result["items"]]


def needs(answered: dict[str, Any]) -> Any:
    assert answered["error"]["code"] == -32003, answered
    return answered["error"]["data"]["needs"]


def test_an_agent_has_its_own_memory_and_what_it_is_granted(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        define(c, "reader", "script", grants={"memory": ["shared", "team:*"]})
        define(c, "other", "script")
        for namespace in ("agent:reader", "agent:other", "shared", "team:a", "private"):
            add(c, f"a note of {namespace}", namespace)
        secret = c.call("memory/list", namespace="private")["items"][0]["memory_id"]
        seen = ask(c, "reader", "memory/search", query="note", limit=50)
        assert sorted(texts(seen)) == ["a note of agent:reader", "a note of shared", "a note of team:a"]
        assert sorted(texts(ask(c, "other", "memory/list"))) == ["a note of agent:other"]
        names = [n["name"] for n in ask(c, "reader", "memory/namespaces")["items"]]
        assert names == ["agent:reader", "shared", "team:a"]
        assert ask(c, "reader", "memory/stats")["records"] == 3
        for method, params in (
            ("memory/search", {"query": "x", "namespace": "agent:other"}),
            ("memory/search", {"query": "x", "namespaces": ["shared", "agent:other"]}),
            ("memory/context", {"query": "x", "namespaces": ["agent:other"]}),
            ("memory/list", {"namespace": "agent:other"}),
            ("memory/add", {"namespace": "agent:other", "text": "x"}),
            ("memory/clear", {"namespace": "agent:other"}),
            ("memory/stats", {"namespace": "agent:other"}),
        ):
            assert needs(ask(c, "reader", method, **params)) == "grants.memory:agent:other", method
        for method in ("memory/get", "memory/delete", "memory/history"):
            assert needs(ask(c, "reader", method, memory_id=secret)) == "grants.memory:private", method
        for more in ({"supersedes": [secret]}, {"derived_from": [secret]}):
            assert needs(ask(c, "reader", "memory/add", namespace="shared", text="x", **more))
        assert needs(ask(c, "reader", "memory/search", query="x", namespace="never:written")), "nor whether it is there"
        assert needs(ask(c, "reader", "events/read", stream="memory:private"))
        assert ask(c, "reader", "events/read", stream="memory:shared")["events"]
        assert ask(c, "reader", "memory/reindex", embedder="hash")["error"]["code"] == -32003


def test_a_token_needs_the_scope(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        add(c, "a note")
        for scopes, fits in ((["read", "chat"], False), (["memory"], True)):
            token = c.call("tokens/create", name="t", scopes=scopes)["token"]
            with wire(daemon.socket) as other:
                other.call("initialize", protocol_version="1", client_info={"name": "t", "version": "1"}, token=token)
                if fits:
                    assert found(other, "note") == ["a note"]
                else:
                    assert refused(other, "memory/search", query="note").data["needs"] == "memory"


def test_what_is_trusted_too_little_never_reaches_an_agent(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        define(c, "careful", "script", grants={"memory": ["shared"], "memory_trust": "agent"})
        define(c, "open", "script", grants={"memory": ["shared"]})
        add(c, "a rumour from the web", source={"url": "http://x"})
        added = add(c, "a rumour that a person tells")
        page = c.call("memory/list", filter={"trust": "untrusted"})["items"]
        assert texts({"items": page}) == ["a rumour from the web"]
        assert texts(ask(c, "careful", "memory/search", query="rumour")) == ["a rumour that a person tells"]
        assert texts(ask(c, "careful", "memory/list")) == ["a rumour that a person tells"]
        recalled = ask(c, "careful", "memory/context", query="rumour", max_tokens=500)
        assert "web" not in recalled["text"]
        assert ask(c, "careful", "memory/get", memory_id=page[0]["memory_id"])["error"]["code"] == -32002
        assert len(texts(ask(c, "open", "memory/search", query="rumour"))) == 2
        # What was made of it is not trusted more than it was, nor can an agent vouch for more than itself.
        made = ask(c, "open", "memory/add", namespace="shared", text="so they say",
                   derived_from=[page[0]["memory_id"], added])  # fmt: skip
        assert c.call("memory/get", memory_id=made["memory_id"])["trust"] == "untrusted"
        lent = ask(c, "open", "memory/update", memory_id=page[0]["memory_id"], trust="agent")
        assert lent["trust"] == "untrusted"
        rewritten = ask(c, "open", "memory/update", memory_id=added, text="a rumour that an agent tells")
        assert rewritten["trust"] == "agent"
        vouched = ask(c, "open", "memory/add", namespace="shared", text="believe me", trust="person")
        assert vouched["error"]["data"]["path"] == "params.trust"


def prompt(c: Wire, session_id: str, text: str) -> str:
    run_id: str = c.call("sessions/prompt", session_id=session_id, text=text)["run_id"]
    assert wait(c, run_id)["status"] == "completed"
    return run_id


def test_what_is_said_in_a_session_is_remembered_by_itself(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        define(c, "counting", "counting")
        session = c.call("sessions/create", agent="counting")["session_id"]
        run_id = prompt(c, session, "The umbrella is green")
        turns = c.call("memory/list", namespace="agent:counting")["items"][::-1]
        said = c.call("sessions/messages", session_id=session)["items"]
        assert [t["text"] for t in turns] == [m["text"] for m in said]
        assert [t["message_id"] for t in turns] == [m["message_id"] for m in said]
        assert [(t["kind"], t["speaker"], t["author"], t["trust"]) for t in turns] == [
            ("turn", "owner", "owner", "person"),
            ("turn", "counting", "agent:counting", "agent"),
        ]
        assert {(t["session_id"], t["run_id"]) for t in turns} == {(session, run_id)}
        assert found(c, "umbrella", namespace="agent:counting")[0].endswith("The umbrella is green")


@pytest.mark.parametrize("where", ["definition", "session", "back on"])
def test_memory_off_records_nothing(daemon: Daemon, where: str) -> None:
    with wire(daemon.socket) as c:
        define(c, "counting", "counting", memory="on" if where == "session" else "off")
        settings = {"session": {"memory": "off"}, "back on": {"memory": "on"}}.get(where, {})
        session = c.call("sessions/create", agent="counting", settings=settings)["session_id"]
        prompt(c, session, "a secret")
        run = c.call("runs/start", agent="counting", input="another", session_id=session)["run_id"]
        wait(c, run)
        count = 4 if where == "back on" else 0
        assert c.call("memory/stats")["records"] == count
        assert len(c.call("sessions/messages", session_id=session)["items"]) == 4


def test_what_was_recalled_is_not_remembered_again(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        add(c, "The zebra is called Zoe")
        recalled = c.call("memory/context", query="zebra", max_tokens=200)["text"]
        assert "Zoe" in recalled
        define(c, "counting", "counting")
        session = c.call("sessions/create", agent="counting")["session_id"]
        prompt(c, session, f"{recalled}\nWhat is its name?")
        turns = [t["text"] for t in c.call("memory/list", namespace="agent:counting")["items"]]
        assert len(turns) == 2
        assert not any("Zoe" in text for text in turns)
        assert any("What is its name?" in text for text in turns)
        assert refused(c, "memory/add", namespace="shared", text=recalled).data["path"] == "params.text"


def test_the_history_an_agent_gets_is_bounded(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        define(c, "counting", "counting", history_messages=2)
        session = c.call("sessions/create", agent="counting")["session_id"]
        for n in range(3):
            prompt(c, session, f"message {n}")
        c.call("agents/restart", name="counting", wait=True)
        prompt(c, session, "after")
        answer = c.call("sessions/messages", session_id=session)["items"][-1]["text"]
        assert answer == "2 after 1: after", "one message of a person was in what it was given"


def test_what_a_prompt_should_carry(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        for n in range(30):
            add(c, f"idle talk number {n} " + "blah " * 20, session_id="s1", speaker="Ann", kind="turn")
        add(c, "Where do you keep the spare key?", session_id="s1", speaker="Ann", kind="turn")
        add(c, "Under the flower pot.", session_id="s1", speaker="Bob", kind="turn")
        add(c, "Where do you keep the spare key?", session_id="s2", speaker="Ann", kind="turn")
        embedded(c)
        for budget in (60, 100, 400, 1200):
            packed = c.call("memory/context", query="where is the spare key", max_tokens=budget)
            assert packed["tokens"] <= budget
            assert len(packed["text"]) <= 4 * budget
        assert packed["text"].count("spare key") == 1, "no text twice"
        assert "Bob: Under the flower pot." in packed["text"], "an answer comes along with its question"
        used = c.call("memory/search", query="spare key", mode="keyword", limit=1)["items"][0]["memory_id"]
        deadline = time.monotonic() + PATIENCE_S
        while c.call("memory/get", memory_id=used)["uses"] == 0:  # counted without keeping the caller waiting
            assert time.monotonic() < deadline
            time.sleep(0.02)
        nothing = c.call("memory/context", query="", max_tokens=100)
        assert nothing == {"text": "", "items": [], "tokens": 0}


def test_beside_a_passage_stand_the_ends_of_those_next_to_it(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        filler = "There is much else to be said of it. " * 25
        chapters = [f"## Chapter {n}\n\nopening{n} {filler} closing{n}.\n" for n in range(9)]
        chapters[5] = chapters[5].replace("closing5", "The zebra sleeps. closing5")
        add(c, "# The book\n\n" + "\n".join(chapters), kind="document", source={"file": "/book.md"})
        context = c.call("memory/context", query="zebra", max_tokens=560)
        told = context["text"]
        assert context["tokens"] <= 560
        assert told.index("closing4") < told.index("opening5") < told.index("zebra") < told.index("opening6")
        assert "opening4" not in told
        assert "closing6" not in told


def test_a_session_is_not_reminded_of_what_it_has_before_it(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        define(c, "counting", "counting")
        one, two = (c.call("sessions/create", agent="counting")["session_id"] for _ in range(2))
        prompt(c, one, "my bicycle is red")
        prompt(c, two, "my bicycle is old")
        embedded(c)
        text = c.call("memory/context", query="bicycle", session_id=two, max_tokens=500)["text"]
        assert "bicycle is red" in text
        assert "bicycle is old" not in text


def test_a_run_is_taken_back_and_nothing_else(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        define(c, "writer", "script", grants={"memory": ["shared"]})
        kept = add(c, "Ann lives in Paris")
        other = add(c, "Bob has a dog", metadata={"a": 1})
        run = play(
            c, "writer",
            ["call", "memory/add", {"namespace": "shared", "text": "Ann lives on the moon", "supersedes": [kept]}],
            ["call", "memory/add", {"namespace": "agent:writer", "text": "the moon is made of cheese"}],
            ["call", "memory/add", {"namespace": "shared", "text": "Bob has a dog"}],
            ["call", "memory/update", {"memory_id": other, "text": "Bob has a dragon"}],
            ["call", "blocks/set", {"agent": "writer", "name": "me", "text": "I am the king"}],
        )  # fmt: skip
        answers = [item["data"] for item in run["items"]]
        assert all("result" in a for a in answers), answers
        moon = answers[0]["result"]["memory_id"]
        derived = add(c, "Ann needs a rocket", derived_from=[moon])
        later = ask(c, "writer", "memory/add", namespace="shared", text="an honest note")["memory_id"]
        assert found(c, "Ann lives", mode="keyword")[0] == "Ann lives on the moon"
        undone = c.call("memory/revert", run_id=run["run_id"])
        assert {moon, derived} <= set(undone["deleted"])
        assert len(undone["deleted"]) == 4
        assert sorted(undone["restored"]) == sorted([kept, other])
        left = {m["memory_id"]: m for m in c.call("memory/list", include=["superseded"])["items"]}
        assert set(left) == {kept, other, later}
        assert left[other]["text"] == "Bob has a dog"
        assert left[other]["metadata"] == {"a": 1}
        assert left[other]["duplicates"] == 0
        assert found(c, "where does Ann live", mode="keyword") == ["Ann lives in Paris"]
        assert found(c, "dragon", mode="keyword") == []
        assert "dragon" not in json.dumps(c.call("memory/history", memory_id=other))
        assert c.call("blocks/list", agent="writer")["items"] == []
        assert c.call("memory/revert", run_id=run["run_id"]) == {"deleted": [], "restored": []}
        assert refused(c, "memory/revert", run_id="run_none").code == -32002


def test_an_agent_undoes_only_its_own_runs(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        define(c, "one", "script")
        define(c, "two", "script")
        run_id, _ = asked(c, "one", "memory/add", namespace="agent:one", text="written by one")
        assert needs(ask(c, "two", "memory/revert", run_id=run_id)) == "run"
        assert len(ask(c, "one", "memory/revert", run_id=run_id)["deleted"]) == 1
        strange = ask(c, "two", "memory/add", namespace="agent:two", text="x", run_id=run_id)
        assert strange["error"]["code"] == -32002


def test_an_agent_deletes_memories_and_not_what_was_said(daemon: Daemon) -> None:
    said = "These very words were said by a person"
    with wire(daemon.socket) as c:
        define(c, "counting", "counting")
        define(c, "rubber", "script", grants={"memory": ["shared"]})
        session = c.call("sessions/create", agent="counting")["session_id"]
        run_id = prompt(c, session, said)
        mine = ask(c, "rubber", "memory/add", namespace="shared", text=said)["memory_id"]
        private = add(c, "made of it by somebody else", "private", derived_from=[mine])
        shared = add(c, "made of it in the open", "shared", derived_from=[mine])
        done = ask(c, "rubber", "memory/delete", memory_id=mine)
        assert (done["deleted"], done["redacted"]) == ([mine, shared], 0)
        assert c.call("sessions/messages", session_id=session)["items"][0]["text"] == said
        assert c.call("runs/get", run_id=run_id)["input"]["text"] == said
        assert c.call("memory/get", memory_id=private)["namespace"] == "private"


def test_blocks_are_versioned_and_bounded(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        define(c, "one", "script")
        first = c.call("blocks/set", agent="one", name="persona", text="I am kind")
        assert (first["version"], first["author"]) == (1, "owner")
        second = ask(c, "one", "blocks/set", agent="one", name="persona", text="I am very kind", version=1)
        assert (second["version"], second["author"]) == (2, "agent:one")
        assert refused(c, "blocks/set", agent="one", name="persona", text="x", version=1).code == -32009
        assert c.call("blocks/get", agent="one", name="persona")["text"] == "I am very kind"
        assert c.call("blocks/get", agent="one", name="persona", version=1)["text"] == "I am kind"
        assert [b["version"] for b in ask(c, "one", "blocks/list", agent="one")["items"]] == [2]
        assert refused(c, "blocks/set", agent="one", name="x", text="y" * 4001).data["limit"] == "block_characters"
        for n in range(15):
            c.call("blocks/set", agent="one", name=f"b{n}", text="x")
        assert refused(c, "blocks/set", agent="one", name="b15", text="x").data["limit"] == "blocks"
        assert ask(c, "one", "blocks/set", agent="two", name="x", text="y")["error"]["code"] == -32003
        c.call("blocks/set", agent="one", name="persona", text="")
        assert "persona" not in [b["name"] for b in c.call("blocks/list", agent="one")["items"]]
        assert refused(c, "blocks/get", agent="one", name="none").code == -32002


def test_two_runs_at_once_say_which_they_write_for(daemon: Daemon, tmp_path: Any) -> None:
    with wire(daemon.socket) as c, gate(tmp_path) as door:
        define(c, "writer", "script")
        waiting = begin(c, "writer", ["gate", door.path])
        c.subscribe(f"run:{waiting}", since={f"run:{waiting}": 0})
        c.until("run.started")
        _, unsaid = asked(c, "writer", "memory/add", namespace="agent:writer", text="by one of the two")
        _, said = asked(c, "writer", "memory/add", namespace="agent:writer", text="by the first", run_id=waiting)
        assert "run_id" not in c.call("memory/get", memory_id=unsaid["result"]["memory_id"])
        assert c.call("memory/get", memory_id=said["result"]["memory_id"])["run_id"] == waiting
        door.let()
        wait(c, waiting)
