"""Memory under the real daemon: remembered, found, filtered, changed, taken back."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.support.daemon import Daemon
from tests.support.memory import embedded
from tests.support.wire import RpcError, Wire, wire


def add(c: Wire, text: str, namespace: str = "shared", **more: Any) -> str:
    memory_id: str = c.call("memory/add", namespace=namespace, text=text, **more)["memory_id"]
    return memory_id


def found(c: Wire, query: str, **more: Any) -> list[str]:
    return [hit["text"] for hit in c.call("memory/search", query=query, **more)["items"]]


def refused(c: Wire, method: str, **params: Any) -> RpcError:
    with pytest.raises(RpcError) as error:
        c.call(method, **params)
    return error.value


def test_what_was_said_is_found_by_its_words_and_by_their_likes(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        blue = add(c, "My favourite colour is blue.")
        add(c, "The gardener planted tulips near the gate.")
        hits = c.call("memory/search", query="which colours do I like?", mode="keyword")["items"]
        assert [hit["memory_id"] for hit in hits] == [blue]
        assert hits[0]["matched"] == ["colour"], "stemmed alike"
        assert embedded(c)["models"][0]["embedded"] == 2
        hybrid = c.call("memory/search", query="gardening and gates")["items"][0]
        assert hybrid["text"].startswith("The gardener")
        assert hybrid["parts"]["words"] + hybrid["parts"]["meaning"] == pytest.approx(hybrid["score"])
        assert found(c, "tulip garden", mode="semantic")[0].startswith("The gardener")
        assert found(c, "blue", min_score=2.0) == []


def test_the_same_said_again_is_counted_and_not_found_twice(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        first = c.call("memory/add", namespace="shared", text="I like tea.")
        again = c.call("memory/add", namespace="shared", text="  i LIKE\ntea")
        assert again == {"memory_id": first["memory_id"], "deduplicated": True}
        other = c.call("memory/add", namespace="elsewhere", text="I like tea.")
        assert not other["deduplicated"]
        turns = {add(c, "I like tea.", speaker="Ann") for _ in range(3)}
        assert len(turns) == 3, "what people say is said each time"
        assert c.call("memory/get", memory_id=first["memory_id"])["duplicates"] == 1
        assert found(c, "tea", namespace="shared", filter={"kind": "fact"}) == ["I like tea."]
        duplicates = c.call("memory/list", namespace="shared", include=["duplicates"], kind="fact")["items"]
        assert [m.get("duplicate_of") for m in duplicates] == [first["memory_id"], None]


def test_filters(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        for n, (topic, day) in enumerate([("cats", "01"), ("dogs", "02"), ("cats", "03")]):
            add(c, f"note number {n} about pets", metadata={"topic": topic, "n": n, "deep": {"er": n}, "a.b": n},
                time=f"2026-01-{day}T00:00:00Z", kind="fact" if n else "preference")  # fmt: skip

        def notes(condition: Any) -> list[int]:
            texts = found(c, "pets", namespace="shared", filter=condition)
            listed = c.call("memory/list", namespace="shared", filter=condition)["items"]
            assert sorted(m["text"] for m in listed) == sorted(texts)
            assert sorted(found(c, "pets", filter=condition, mode="semantic")) == sorted(texts)
            return sorted(int(text.split()[2]) for text in texts)

        embedded(c)
        assert notes({"metadata.topic": "cats"}) == [0, 2]
        assert notes({"metadata.topic": {"ne": "cats"}}) == [1]
        assert notes({"metadata.n": {"in": [0, 1, 9]}}) == [0, 1]
        assert notes({"metadata.n": {"gt": 0, "lt": 2}}) == [1]
        assert notes({"metadata.deep.er": {"gt": 0}}) == [1, 2]
        assert notes({"metadata.a.b": 2}) == [2]
        assert notes({"metadata.nothing": {"exists": False}}) == [0, 1, 2]
        assert notes({"kind": "preference"}) == [0]
        assert notes({"time": {"gt": "2026-01-01T12:00:00Z"}}) == [1, 2]
        assert notes({"trust": {"gt": "agent"}}) == [0, 1, 2]
        both = {"and": [{"metadata.topic": "cats"}, {"not": {"metadata.n": 0}}]}
        assert notes({"or": [{"metadata.n": 0}, both]}) == [0, 2]
        assert notes({"not": {"metadata.nothing": {"gt": 1}}}) == [0, 1, 2]


@pytest.mark.parametrize(
    ("condition", "code", "path"),
    [
        ({"metadata.n": {"above": 1}}, -32602, "params.filter.metadata.n.above"),
        ({"nonsense": 1}, -32602, "params.filter.nonsense"),
        ({"and": {}}, -32602, "params.filter.and"),
        ({"kind": {"gt": None}}, -32602, "params.filter.kind.gt"),
        ({"time": {"gt": "yesterday"}}, -32602, "params.filter.time.gt"),
        ({'metadata.a"b': 1}, -32602, 'params.filter.metadata.a"b'),
    ],
)
def test_a_filter_that_means_nothing_is_refused_by_name(daemon: Daemon, condition: Any, code: int, path: str) -> None:
    with wire(daemon.socket) as c:
        error = refused(c, "memory/search", query="x", filter=condition)
        assert (error.code, error.data.get("path")) == (code, path)
        nested: Any = {"kind": "fact"}
        for _ in range(100):
            nested = {"not": nested}
        assert refused(c, "memory/list", filter=nested).data["limit"] == "filter_depth"
        many = {"metadata.n": {"in": list(range(1001))}}
        assert refused(c, "memory/list", filter=many).data["limit"] == "filter_values"


def test_pages_lead_through_everything_once(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        for n in range(25):
            add(c, f"entry {n} of the diary")
        embedded(c)
        for method, more in (("memory/search", {"query": "diary"}), ("memory/list", {})):
            seen: list[str] = []
            cursor: dict[str, str] = {}
            while True:
                page = c.call(method, limit=10, **more, **cursor)
                seen += [item["memory_id"] for item in page["items"]]
                if "next_cursor" not in page:
                    break
                cursor = {"cursor": page["next_cursor"]}
            assert len(seen) == len(set(seen)) == 25, method
        assert refused(c, "memory/list", cursor="made up").code == -32602


def test_what_is_no_longer_true_is_closed_and_left_out(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        old = add(c, "Ann lives in Paris")
        new = add(c, "Ann lives in Rome", supersedes=[old])
        assert found(c, "where does Ann live") == ["Ann lives in Rome"]
        assert found(c, "Ann Paris", include=["superseded"])[0] == "Ann lives in Paris"
        closed = c.call("memory/get", memory_id=old)
        assert closed["superseded_by"] == new
        assert "valid_to" in closed
        changes = [(h["change"], h.get("before")) for h in c.call("memory/history", memory_id=old)["items"]]
        assert changes == [("added", None), ("superseded", {"valid_to": None, "superseded_by": None})]
        gone = add(c, "the parcel comes at noon", ttl_s=0.001)
        time.sleep(0.01)
        assert found(c, "parcel", mode="keyword") == []
        assert c.call("memory/search", query="parcel", include=["expired"])["items"][0]["memory_id"] == gone


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("My favourite colour is blue.", "Green is my favorite color now."),
        ("Green is my favourite colour.", "My favourite colour is blue."),
        ("I moved to Rome.", "I live in Oslo."),
        ("I live in Oslo.", "I have moved to Rome."),
        ("Call me Ishmael.", "My name is Ada."),
        ("I am 34 years old.", "My age is 35."),
    ],
)
def test_what_one_says_of_oneself_closes_what_one_said_however_it_is_put(
    daemon: Daemon, first: str, then: str
) -> None:
    with wire(daemon.socket) as c:
        old = add(c, first, kind="turn", speaker="Ann")
        add(c, first, kind="turn", speaker="Bob")
        new = add(c, then, kind="turn", speaker="Ann")
        assert c.call("memory/get", memory_id=old)["superseded_by"] == new
        assert {m["text"] for m in c.call("memory/list")["items"]} == {first, then}


def test_a_change_is_found_and_its_past_is_kept(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        memory_id = add(c, "The key is under the mat", metadata={"a": 1})
        changed = c.call("memory/update", memory_id=memory_id, text="The key is in the shed", version=1)
        assert (changed["version"], changed["text"]) == (2, "The key is in the shed")
        embedded(c)
        assert found(c, "mat", mode="keyword") == []
        assert found(c, "shed") == ["The key is in the shed"]
        c.call("memory/update", memory_id=memory_id, metadata={"b": 2}, ttl_s=1000)
        history = c.call("memory/history", memory_id=memory_id)["items"]
        assert [h.get("before") for h in history] == [
            None,
            {"text": "The key is under the mat"},
            {"metadata": {"a": 1}, "expires_at": None},
        ]
        assert refused(c, "memory/update", memory_id=memory_id, text="x", version=1).code == -32009
        assert refused(c, "memory/update", memory_id=memory_id).code == -32602


ODD = [
    "日本語のテキストには空白がありません",
    "مرحبا بالعالم من الذاكرة",
    "🎉🦓 party zebra",
    'quotes " and \' and ( * : ^ NEAR AND OR NOT',
    "mixed текст 文字 कुछ text",
    "\x01\x02 control \x7f characters",
    "e\u0301clair compose\u0301",
]


@pytest.mark.parametrize("text", ODD)
def test_any_text_is_remembered_and_found_by_itself(daemon: Daemon, text: str) -> None:
    with wire(daemon.socket) as c:
        add(c, "something else altogether")
        add(c, text)
        assert found(c, text, mode="keyword")[0] == text
        embedded(c)
        assert found(c, text)[0] == text
        assert c.call("memory/list", limit=1)["items"][0]["text"] == text


QUERIES = ["", "   ", "(", '"', "AND OR NOT", "a* NEAR(b", "ns : n1", "{own}: x", "-", "\x00", "^"]


@pytest.mark.parametrize("query", QUERIES)
def test_any_query_is_a_query(daemon: Daemon, query: str) -> None:
    with wire(daemon.socket) as c:
        add(c, "the n1 word and not a near b own x")
        embedded(c)
        for mode in ("hybrid", "keyword", "semantic"):
            c.call("memory/search", query=query, mode=mode)


def test_bad_input_is_refused_and_changes_nothing(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        embedded_at_once = [0.1] * 384
        assert refused(c, "memory/add", namespace="shared", text=" \n ").data["path"] == "params.text"
        assert refused(c, "memory/add", namespace="shared", text="x" * (3 << 20)).data["limit"] == "memory_text"
        assert refused(c, "memory/add", namespace="a b", text="x").code == -32602
        assert refused(c, "memory/add", namespace="shared\n", text="x").code == -32602
        assert refused(c, "memory/add", namespace="shared", text="x", vector=[1.0, 2.0]).data["path"] == "params.vector"
        assert refused(c, "memory/add", namespace="shared", text="x", vector=[0.0] * 384).code == -32602
        assert refused(c, "memory/add", namespace="shared", text="x", vector=[1e308] * 384).code == -32602
        assert refused(c, "memory/add", namespace="shared", text="x", metadata={"a": "b" * 20000}).code == -32008
        assert refused(c, "memory/add", namespace="shared", text="x", time="soon").data["path"] == "params.time"
        assert refused(c, "memory/add", namespace="shared", text="x", supersedes=["mem_none"]).code == -32002
        assert refused(c, "memory/search", query="x", vector=[1.0] * 3).code == -32602
        assert refused(c, "memory/search", query="x", namespace="a", namespaces=["b"]).code == -32602
        assert refused(c, "memory/get", memory_id="mem_none").data["kind"] == "memory"
        assert c.call("memory/stats")["records"] == 0
        assert c.call("memory/search", query="x", namespace="never:written")["items"] == [], "empty, not an error"
        given = c.call("memory/add", namespace="shared", text="with a vector", vector=embedded_at_once)
        hits = c.call("memory/search", query="nothing alike", vector=embedded_at_once, mode="semantic")["items"]
        assert [h["memory_id"] for h in hits] == [given["memory_id"]]
        assert hits[0]["score"] == pytest.approx(1.0, abs=0.01)


def test_the_same_key_adds_once(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        first = add(c, "once", idempotency_key="k", speaker="Ann")
        assert add(c, "once", idempotency_key="k", speaker="Ann") == first
        assert refused(c, "memory/add", namespace="shared", text="other", idempotency_key="k").code == -32009
        assert c.call("memory/stats")["records"] == 1


def test_a_long_text_is_found_by_its_passages_and_read_whole(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        filler = "filler words here. " * 40
        parts = [f"## Chapter {n}\n\n{filler}The secret of chapter {n} is w{n}ord.\n" for n in range(9)]
        text = "# The book\n\n" + "\n".join(parts)
        memory_id = add(c, text, kind="document", metadata={"shelf": 3}, source={"file": "book.md"})
        hit = c.call("memory/search", query="secret w7ord", filter={"metadata.shelf": 3})["items"][0]
        assert hit["memory_id"] == memory_id
        assert "w7ord" in hit["text"]
        assert len(hit["text"]) < 2000
        assert hit["passage"]["heading"] == "The book > Chapter 7"
        assert text[hit["passage"]["start"] :].startswith(hit["text"])
        assert hit["source"] == {"file": "book.md"}
        assert c.call("memory/get", memory_id=memory_id)["text"] == text
        stats = embedded(c)
        assert stats["records"] == 1
        assert stats["chunks"] > 8
        c.call("memory/delete", memory_id=memory_id)
        stats = c.call("memory/stats")
        assert (stats["records"], stats["chunks"], stats["models"][0]["embedded"]) == (0, 0, 0)


def test_the_order_of_a_conversation_helps_to_find_it(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        for n in range(4):
            add(c, f"idle talk number {n}", session_id="s1", speaker="Ann", kind="turn")
        add(c, "Where did you spend the holidays?", session_id="s1", speaker="Ann", kind="turn")
        answer = add(c, "We went to Lisbon.", session_id="s1", speaker="Bob", kind="turn")
        add(c, "Lovely!", session_id="s1", speaker="Ann", kind="turn")
        hits = c.call("memory/search", query="holidays", mode="keyword")["items"]
        assert answer in [h["memory_id"] for h in hits], "an answer is found by the words of its question"
        assert "~holidays" in hits[[h["memory_id"] for h in hits].index(answer)]["matched"]


def test_events_say_what_comes_and_goes_but_not_the_text(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        memory_id = add(c, "the unspeakable text")
        c.call("memory/delete", memory_id=memory_id)
        events = c.call("events/read", stream="memory:shared")["events"]
        assert [e["type"] for e in events] == ["memory.added", "memory.deleted"]
        assert {e["data"]["memory_id"] for e in events} == {memory_id}
        assert "unspeakable" not in str(events)


def test_it_is_there_after_a_kill_and_what_had_no_vector_gets_one(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        for n in range(200):
            params = {"namespace": "shared", "text": f"written before the kill number{n}"}
            c.send({"jsonrpc": "2.0", "id": 1000 + n, "method": "memory/add", "params": params})
        add(c, "the last one before the kill")
    daemon.kill()
    daemon.start()
    with wire(daemon.socket) as c:
        stats = embedded(c)
        assert stats["models"][0]["embedded"] == stats["records"] >= 1
        assert found(c, "last one before")[0] == "the last one before the kill"
        assert len(found(c, "written kill", limit=200, mode="semantic")) >= min(100, stats["records"])
