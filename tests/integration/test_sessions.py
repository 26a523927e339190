"""Conversations under the real daemon: what is said is kept, and an agent leads each as one lasting task."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.agents import begin, define, events_of, wait
from tests.support.daemon import Daemon
from tests.support.gate import gate
from tests.support.wire import RpcError, Wire, wire


@pytest.fixture
def counting(daemon: Daemon) -> Daemon:
    """A daemon with an agent that counts the messages of each conversation in a local variable."""
    with wire(daemon.socket) as c:
        define(c, "counting", "counting")
    return daemon


def create(connection: Wire, agent: str = "counting", **more: Any) -> str:
    session_id: str = connection.call("sessions/create", agent=agent, **more)["session_id"]
    return session_id


def prompt(connection: Wire, session_id: str, text: str, **more: Any) -> str:
    run_id: str = connection.call("sessions/prompt", session_id=session_id, text=text, **more)["run_id"]
    return run_id


def say(connection: Wire, session_id: str, text: str, **more: Any) -> str:
    """What the agent answers."""
    run = wait(connection, prompt(connection, session_id, text, **more))
    assert run["status"] == "completed", run
    return str(run["output"])


def messages(connection: Wire, session_id: str) -> list[tuple[str, str]]:
    page = connection.call("sessions/messages", session_id=session_id, limit=1000)
    return [(message["author"], message["text"]) for message in page["items"]]


# ---- what is said ---------------------------------------------------------------------------------------


def test_what_is_said_is_kept_in_order_and_read_page_by_page(counting: Daemon) -> None:
    with wire(counting.socket) as c:
        session = create(c)
        assert c.call("sessions/messages", session_id=session) == {"items": []}
        for n in range(4):
            say(c, session, f"message {n}")
        everything = c.call("sessions/messages", session_id=session)["items"]
        assert [m["n"] for m in everything] == list(range(1, 9))
        assert [m["role"] for m in everything] == ["user", "assistant"] * 4
        assert everything[0]["author"] == "owner"
        assert (everything[1]["author"], everything[1]["text"]) == ("counting", "1 after 0: message 0")
        assert everything[0]["run_id"] == everything[1]["run_id"]

        newest = c.call("sessions/messages", session_id=session, limit=3)
        assert [m["n"] for m in newest["items"]] == [6, 7, 8], "the newest page, in the order it was said"
        older = c.call("sessions/messages", session_id=session, limit=3, before=newest["next_cursor"])
        assert [m["n"] for m in older["items"]] == [3, 4, 5]
        oldest = c.call("sessions/messages", session_id=session, limit=3, before=older["next_cursor"])
        assert [m["n"] for m in oldest["items"]] == [1, 2]
        assert "next_cursor" not in oldest

        forward = c.call("sessions/messages", session_id=session, limit=5, after="0")
        assert [m["n"] for m in forward["items"]] == [1, 2, 3, 4, 5]
        forward = c.call("sessions/messages", session_id=session, limit=5, after=forward["next_cursor"])
        assert [m["n"] for m in forward["items"]] == [6, 7, 8]
        assert "next_cursor" not in forward
        with pytest.raises(RpcError) as both:
            c.call("sessions/messages", session_id=session, before="3", after="1")
        assert (both.value.code, both.value.data["path"]) == (-32602, "params.after")
        after = c.call("sessions/get", session_id=session)
        assert (after["messages"], after["status"]) == (8, "idle")


def test_sessions_are_listed_latest_first(counting: Daemon) -> None:
    with wire(counting.socket) as c:
        define(c, "other", "counting")
        first, second, third = create(c), create(c, "other"), create(c)
        say(c, first, "now I am the latest")

        def listed(**more: Any) -> list[str]:
            return [s["session_id"] for s in c.call("sessions/list", **more)["items"]]

        assert listed() == [first, third, second]
        assert listed(agent="other") == [second]
        page = c.call("sessions/list", limit=2)
        assert listed(limit=2, cursor=page["next_cursor"]) == [second]


def test_a_title_is_given_or_made_of_the_first_message(counting: Daemon) -> None:
    with wire(counting.socket) as c:
        named = create(c, title="Mine")
        say(c, named, "hello")
        assert c.call("sessions/get", session_id=named)["title"] == "Mine"
        short, long = create(c), create(c)
        say(c, short, "  What is\nthe time? ")
        say(c, short, "and now?")
        say(c, long, "words and " * 50)
        assert c.call("sessions/get", session_id=short)["title"] == "What is the time?"
        title = c.call("sessions/get", session_id=long)["title"]
        assert title.endswith("…")
        assert len(title) <= 60
        assert title[:-1].split(" ")[-1] in ("words", "and"), "cut between words"
        with pytest.raises(RpcError) as too_long:
            c.call("sessions/update", session_id=named, title="x" * 201)
        assert (too_long.value.code, too_long.value.data["path"]) == (-32602, "params.title")


def test_a_run_in_a_session_is_a_turn_of_it(counting: Daemon) -> None:
    with wire(counting.socket) as c:
        session = create(c)
        say(c, session, "one")
        run = c.call("runs/start", agent="counting", input="two", session_id=session)["run_id"]
        assert wait(c, run)["output"] == "2 after 0: two"
        c.call("agents/restart", name="counting")
        assert say(c, session, "three") == "3 after 2: three", "also for a process that has to read it up"
        assert [text for _, text in messages(c, session)][2:4] == ["two", "2 after 0: two"]
        define(c, "other", "counting")
        with pytest.raises(RpcError) as foreign:
            c.call("runs/start", agent="other", input="x", session_id=session)
        assert foreign.value.code == -32009
        for method, more in (("get", {}), ("prompt", {"text": "x"}), ("messages", {}), ("clear", {}), ("delete", {})):
            with pytest.raises(RpcError) as missing:
                c.call(f"sessions/{method}", session_id="ses_nowhere", **more)
            assert (missing.value.code, missing.value.data["kind"]) == (-32002, "session")


def test_idempotent_prompts_and_sessions(counting: Daemon) -> None:
    with wire(counting.socket) as c:
        session = create(c, idempotency_key="begin")
        assert create(c, idempotency_key="begin") == session
        first = c.call("sessions/prompt", session_id=session, text="once", idempotency_key="k")
        wait(c, first["run_id"])
        c.call("agents/stop", name="counting")
        again = {"session_id": session, "text": "once", "idempotency_key": "k"}
        assert c.call("sessions/prompt", **again) == first, "whatever has become of the agent since"
        assert len(messages(c, session)) == 2
        with pytest.raises(RpcError) as refused:
            prompt(c, session, "x")
        assert refused.value.code == -32005
        assert len(messages(c, session)) == 2, "what was refused was not said"


# ---- one lasting task for each conversation -------------------------------------------------------------


def test_a_session_is_one_lasting_coroutine_rebuilt_after_restarts(counting: Daemon) -> None:
    with wire(counting.socket) as c:
        one, other = create(c), create(c)
        assert say(c, one, "a") == "1 after 0: a"
        assert say(c, other, "b") == "1 after 0: b"
        assert say(c, one, "c") == "2 after 0: c", "the same coroutine, not a new one for each message"
        c.call("agents/restart", name="counting")
        assert say(c, one, "d") == "3 after 2: d"
        assert say(c, one, "e") == "4 after 2: e"
    counting.restart()
    with wire(counting.socket) as c:
        assert say(c, one, "f") == "5 after 4: f"
        assert say(c, other, "g") == "2 after 1: g"
    counting.kill()
    counting.start()
    with wire(counting.socket) as c:
        assert say(c, one, "h") == "6 after 5: h"
        assert say(c, one, "i") == "7 after 5: i"


def test_an_interrupted_first_message_does_not_cost_the_agent_its_memory(counting: Daemon) -> None:
    """The history goes with the first run a process gets; one that is cancelled before it must not take it along."""
    with wire(counting.socket) as c:
        session = create(c)
        say(c, session, "a")
        say(c, session, "b")
        for n in range(10):
            c.call("agents/restart", name="counting")
            # In one write: the second is accepted while the first is on its way to the agent.
            for number, text in enumerate((f"first {n}", f"second {n}")):
                params = {"session_id": session, "text": text, "while_running": "interrupt"}
                c.send({"jsonrpc": "2.0", "id": f"{n}.{number}", "method": "sessions/prompt", "params": params})
            runs = [wait(c, m["result"]["run_id"]) for m in (c.receive(), c.receive())]
            assert "completed" in {run["status"] for run in runs}
            numbers = [int(run["output"].split()[0]) for run in runs if run["status"] == "completed"]
            assert numbers[-1] > 2 + n, "it has forgotten what was said before"


# ---- a message while one is being answered --------------------------------------------------------------


def test_while_running(counting: Daemon) -> None:
    with wire(counting.socket) as c, gate(counting.home) as door:
        session = create(c)
        c.subscribe(f"session:{session}", "run:*")
        first = prompt(c, session, f"@ {door.path} long")
        c.until("item.delta")
        with pytest.raises(RpcError) as busy:
            prompt(c, session, "not now", while_running="reject")
        assert (busy.value.code, busy.value.data["state"]) == (-32005, "running")
        second = prompt(c, session, "in line")
        assert c.call("runs/get", run_id=second)["status"] == "queued"
        door.let()
        assert wait(c, first)["output"] == "1 begun long"
        assert wait(c, second)["output"] == "2 after 0: in line"

        third = prompt(c, session, f"@ {door.path} doomed")
        c.until("item.delta", where=lambda d: d["run_id"] == third)
        fourth = prompt(c, session, "never begun")
        fifth = prompt(c, session, "instead", while_running="interrupt")
        assert wait(c, fifth)["output"] == "4 after 0: instead"
        for run_id in (third, fourth):
            run = c.call("runs/get", run_id=run_id)
            assert (run["status"], run["reason"]) == ("cancelled", "interrupted by the next message")
        said = {(m["text"], m["status"]) for m in c.call("sessions/messages", session_id=session)["items"]}
        assert ("3 begun doomed", "cancelled") in said, "what was said is kept, and that it was cut short"
        assert say(c, session, "calm", while_running="reject") == "5 after 0: calm"


def test_other_sessions_go_on_meanwhile(counting: Daemon) -> None:
    with wire(counting.socket) as c, gate(counting.home) as door:
        busy, free = create(c), create(c)
        c.subscribe("run:*")
        held = prompt(c, busy, f"@ {door.path} long")
        c.until("item.delta")
        assert say(c, free, "hello") == "1 after 0: hello"
        door.let()
        assert wait(c, held)["status"] == "completed"


def test_the_status_of_a_session_is_that_of_what_it_works_on(counting: Daemon) -> None:
    with wire(counting.socket) as c, wire(counting.socket) as watcher, gate(counting.home) as door:
        session = create(c)
        watcher.subscribe(f"session:{session}", types=["session.status"])

        def next_status() -> tuple[str, str | None]:
            data = watcher.next_event()["data"]
            return data["status"], data.get("run_id")

        def now() -> tuple[str, str | None]:
            found = c.call("sessions/get", session_id=session)
            return found["status"], found.get("run_id")

        first = prompt(c, session, f"@ {door.path} long")
        assert next_status() == ("running", first)
        waiting = prompt(c, session, "in line")
        c.call("runs/cancel", run_id=waiting)
        assert now() == ("running", first), "one that waited in line ends without a word about the session"
        second = prompt(c, session, f"@ {door.path} second", while_running="interrupt")
        assert next_status() == ("idle", None)
        assert next_status() == ("running", second)
        assert now() == ("running", second)
        door.let()
        wait(c, second)
        assert next_status() == ("idle", None)
        assert now() == ("idle", None)


def test_a_session_waits_for_a_person_and_goes_on(daemon: Daemon) -> None:
    with wire(daemon.socket) as c, gate(daemon.home) as door:
        define(c, "script", "script")
        session = create(c, "script")
        c.subscribe(f"session:{session}", types=["session.status"])
        run = begin(c, "script", ["ask", "well?"], ["gate", door.path], session_id=session)
        assert c.next_event()["data"]["status"] == "running"
        assert c.next_event()["data"]["status"] == "waiting"
        assert c.call("sessions/get", session_id=session)["status"] == "waiting"
        question = c.call("runs/get", run_id=run)["items"][0]["request_id"]
        c.call("runs/respond", run_id=run, request_id=question, response="yes")
        resumed = c.next_event()["data"]
        assert (resumed["status"], resumed["run_id"]) == ("running", run)
        assert c.call("sessions/get", session_id=session)["status"] == "running"
        door.let()
        assert c.next_event()["data"]["status"] == "idle"


def test_after_a_crash_no_session_is_left_running(counting: Daemon) -> None:
    with gate(counting.home) as door:
        with wire(counting.socket) as c:
            session = create(c)
            c.subscribe("run:*")
            run = prompt(c, session, f"@ {door.path} long")
            c.until("item.delta")
        counting.kill()
        counting.start()
        with wire(counting.socket) as c:
            assert c.call("sessions/get", session_id=session)["status"] == "idle"
            assert c.call("runs/get", run_id=run)["status"] == "interrupted"
            last = c.call("sessions/messages", session_id=session)["items"][-1]
            assert (last["text"], last["status"]) == ("1 begun long", "interrupted")
            assert say(c, session, "go on") == "2 after 1: go on"


# ---- changing sessions ----------------------------------------------------------------------------------


def test_a_fork_shares_the_past_and_goes_its_own_way(counting: Daemon) -> None:
    with wire(counting.socket) as c:
        source = create(c, title="Trunk", settings={"system": "be brief"})
        say(c, source, "a")
        say(c, source, "b")
        second = c.call("sessions/messages", session_id=source)["items"][1]["message_id"]
        whole = c.call("sessions/fork", session_id=source)
        part = c.call("sessions/fork", session_id=source, message_id=second, title="Branch")
        assert (whole["parent_id"], whole["title"], whole["messages"]) == (source, "Trunk (fork)", 4)
        assert (part["parent_id"], part["title"], part["messages"]) == (source, "Branch", 2)
        assert whole["settings"] == {"system": "be brief"}
        assert messages(c, whole["session_id"]) == messages(c, source)
        assert messages(c, part["session_id"]) == messages(c, source)[:2]
        assert say(c, part["session_id"], "x") == "2 after 1: x"
        assert say(c, whole["session_id"], "y") == "3 after 2: y"
        assert say(c, source, "c") == "3 after 0: c", "the source knows nothing of its forks"
        c.call("sessions/delete", session_id=source)
        assert say(c, part["session_id"], "z") == "3 after 1: z"
        with pytest.raises(RpcError) as foreign:
            c.call("sessions/fork", session_id=part["session_id"], message_id=second)
        assert (foreign.value.code, foreign.value.data["kind"]) == (-32002, "message")


def test_clear_forgets_here_and_in_the_agent(counting: Daemon) -> None:
    with wire(counting.socket) as c, gate(counting.home) as door:
        session = create(c, title="Kept")
        say(c, session, "a secret")
        c.subscribe("run:*")
        running = prompt(c, session, f"@ {door.path} long")
        c.until("item.delta")
        cleared = c.call("sessions/clear", session_id=session)
        assert (cleared["messages"], cleared["title"], cleared["status"]) == (0, "Kept", "idle")
        assert messages(c, session) == []
        assert c.call("sessions/search", query="secret")["items"] == []
        assert c.call("runs/get", run_id=running)["status"] == "cancelled"
        assert say(c, session, "anew") == "1 after 0: anew"
        page = c.call("sessions/messages", session_id=session)
        assert [m["text"] for m in page["items"]] == ["anew", "1 after 0: anew"]
        c.call("agents/restart", name="counting")
        assert say(c, session, "still") == "2 after 1: still"


def test_delete_ends_what_runs(counting: Daemon) -> None:
    with wire(counting.socket) as c, gate(counting.home) as door:
        session = create(c)
        c.subscribe("run:*", f"session:{session}")
        running = prompt(c, session, f"@ {door.path} long")
        c.until("item.delta")
        queued = prompt(c, session, "in line")
        assert c.call("sessions/delete", session_id=session) == {}
        assert c.until("session.deleted")["data"] == {"session_id": session}
        for run in (running, queued):
            assert c.call("runs/get", run_id=run)["status"] == "cancelled"
        assert c.call("sessions/list")["items"] == []
        assert c.call("sessions/search", query="long")["items"] == []
        with pytest.raises(RpcError) as gone:
            c.call("sessions/delete", session_id=session)
        assert gone.value.code == -32002
        other = create(c)
        assert say(c, other, "alive") == "1 after 0: alive"


def test_settings_change_one_by_one_and_null_goes_back(counting: Daemon) -> None:
    with wire(counting.socket) as c:
        session = create(c, settings={"model": "small", "stream": False})
        assert say(c, session, "settings") == "'small' UNSET False"

        def update(**settings: Any) -> dict[str, Any]:
            found: dict[str, Any] = c.call("sessions/update", session_id=session, settings=settings)
            return dict(found["settings"])

        assert update(system="be brief") == {"model": "small", "stream": False, "system": "be brief"}
        assert update(model=None, tools=["calculator"]) == {
            "stream": False,
            "system": "be brief",
            "tools": ["calculator"],
        }
        assert say(c, session, "settings") == "UNSET 'be brief' False"
        assert update(stream=None, system=None, tools=None) == {}
        c.subscribe(f"session:{session}", "run:*")
        assert say(c, session, "settings") == "UNSET UNSET True"
        run = c.call("runs/list", session_id=session)["items"][0]["run_id"]
        assert [e for e in events_of(c, run) if e["type"] == "item.delta"]
        renamed = c.call("sessions/update", session_id=session, title="New name")
        assert (renamed["title"], renamed["settings"]) == ("New name", {})
        assert c.until("session.updated")["data"]["session"] == renamed
        with pytest.raises(RpcError) as wrong:
            update(memory="sometimes")
        assert (wrong.value.code, wrong.value.data["path"]) == (-32602, "params.settings.memory")


def test_typing_is_of_the_moment(counting: Daemon) -> None:
    with wire(counting.socket) as c, wire(counting.socket) as other:
        session = create(c)
        result = other.subscribe(f"session:{session}")
        assert c.call("sessions/typing", session_id=session, typing=True) == {}
        event = other.until("session.typing")
        assert event["data"] == {"session_id": session, "author": "owner", "typing": True}
        assert "seq" not in event
        assert "pos" not in event
        c.call("sessions/update", session_id=session, title="x")
        updated = other.until("session.updated")
        assert updated["seq"] == result["cursors"][f"session:{session}"] + 1, "it takes no number"
        kept = c.call("events/read", stream=f"session:{session}")["events"]
        assert "session.typing" not in [event["type"] for event in kept]
        with pytest.raises(RpcError) as missing:
            c.call("sessions/typing", session_id="ses_nowhere", typing=True)
        assert missing.value.code == -32002


# ---- getting conversations out --------------------------------------------------------------------------

ODD_QUERIES = [
    '"', "'", "*", "a*", "NEAR(", "AND", "OR NOT", "text:hello", "{a b}: c", "-hello", "^", "(", "hello)", "\u0000",
    "%", "_", "日本", "\\", "; DROP TABLE messages", "🙂",
]  # fmt: skip


def test_search_takes_any_text_and_means_its_words(counting: Daemon) -> None:
    with wire(counting.socket) as c:
        first, second = create(c, title="Fruit"), create(c)
        for text in ("Apples and oranges", "the café's naïve Größe", "pears AND NOT apples", "日本語 テスト"):
            prompt(c, first, text)
        last = prompt(c, second, "apples in another conversation, said 'twice' \"quoted\"")
        wait(c, last)
        for run in c.call("runs/list")["items"]:
            wait(c, run["run_id"])

        def found(query: str, **more: Any) -> set[str]:
            hits = c.call("sessions/search", query=query, limit=100, **more)["items"]
            return {hit["message"]["text"] for hit in hits if hit["message"]["role"] == "user"}

        assert found("apples") == {
            "Apples and oranges",
            "pears AND NOT apples",
            "apples in another conversation, said 'twice' \"quoted\"",
        }
        assert found("APPLE oranges") == {"Apples and oranges"}, "all words, in any form"
        assert found("apples", session_id=first) == {"Apples and oranges", "pears AND NOT apples"}
        assert found("apples", agent="nobody") == set()
        assert found("pears AND NOT apples") == {"pears AND NOT apples"}, "an operator is a word like any other"
        assert found("cafe") == found("café") == found("cafe\u0301") == {"the café's naïve Größe"}
        assert found("cafe\u0301's nai\u0308ve") == {"the café's naïve Größe"}
        assert found("日本語") == {"日本語 テスト"}
        assert found('"quoted" \'twice\'') == {"apples in another conversation, said 'twice' \"quoted\""}
        for query in ODD_QUERIES:
            found(query)
        for query in ("", "  ", "***", '"""', "_", "\u0000"):
            assert found(query) == set(), f"no words: {query!r}"
        assert found("apples " * 20_000) == found("apples")
        found(" ".join(f"word{n}" for n in range(20_000)))

        hit = c.call("sessions/search", query="oranges", session_id=first)["items"][-1]
        assert hit["title"] == "Fruit"
        assert "[oranges]" in hit["snippet"]
        page = c.call("sessions/search", query="apples", limit=2)
        rest = c.call("sessions/search", query="apples", limit=100, cursor=page["next_cursor"])
        ids = [h["message"]["message_id"] for h in (*page["items"], *rest["items"])]
        assert len(ids) == len(set(ids)) == len(c.call("sessions/search", query="apples", limit=100)["items"])


def exported(connection: Wire, session_id: str, format_: str) -> list[str]:
    """The pieces of an export."""
    pieces: list[str] = []
    cursor = None
    while True:
        piece = connection.call("sessions/export", session_id=session_id, format=format_, cursor=cursor)
        assert piece["format"] == format_
        pieces.append(piece["text"])
        cursor = piece.get("next_cursor")
        if cursor is None:
            return pieces


def test_export(counting: Daemon) -> None:
    with wire(counting.socket) as c:
        session = create(c, title="Two\nlines")
        fence = "before\n```python\nprint('````')\n```\nafter"
        say(c, session, "look", attachments=[{"name": "code.md", "text": fence}, {"name": "plain.txt", "text": "x"}])
        (text,) = exported(c, session, "jsonl")
        lines = [json.loads(line) for line in text.splitlines()]
        assert lines[0]["session_id"] == session
        assert [(line["role"], line["text"]) for line in lines[1:]] == [
            ("user", "look"),
            ("assistant", "1 after 0: look"),
        ]
        assert lines[1]["attachments"][0]["text"] == fence
        (markdown,) = exported(c, session, "markdown")
        assert markdown.startswith("# Two lines\n")
        assert f"code.md:\n\n`````\n{fence}\n`````\n" in markdown, "a fence longer than any inside"
        assert "plain.txt:\n\n```\nx\n```\n" in markdown
        assert "\n## counting, " in markdown


def test_an_export_of_any_length_comes_in_pieces(counting: Daemon) -> None:
    with wire(counting.socket) as c:
        session = create(c)
        runs = [prompt(c, session, f"message number {n}") for n in range(130)]
        wait(c, runs[-1])
        big = "x" * 700_000
        for n in range(3):
            say(c, session, f"{n}", attachments=[{"name": "big", "text": big}])
        for format_ in ("jsonl", "markdown"):
            pieces = exported(c, session, format_)
            assert len(pieces) >= 3
            assert max(map(len, pieces)) < 2_500_000, "a million characters and one message"
        texts = [json.loads(line).get("text") for line in "".join(exported(c, session, "jsonl")).splitlines()]
        kept = c.call("sessions/messages", session_id=session, limit=1000)["items"]
        assert texts[1:] == [m["text"] for m in kept], "each message once, in order"
        assert "".join(exported(c, session, "markdown")).count("\n## ") == len(kept)
