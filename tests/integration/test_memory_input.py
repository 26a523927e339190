"""Whatever a text, a question, a filter, a vector or a file holds: it is taken, or refused by name."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.integration.test_memory import add, found, refused
from tests.support.daemon import PATIENCE_S, Daemon
from tests.support.memory import embedded
from tests.support.wire import RpcError, Wire, wire


@pytest.fixture(scope="module")
def running() -> Iterator[Daemon]:
    """One daemon for all tests here, each of which has a namespace of its own."""
    it = Daemon()
    try:
        it.start()
        yield it
    finally:
        log = it.log()
        it.remove_after_showing()
    assert "Traceback" not in log


@pytest.fixture
def c(running: Daemon) -> Iterator[Wire]:
    with wire(running.socket) as connection:
        yield connection


def answered(c: Wire, method: str, **params: Any) -> Any:
    """The result, or None for a refusal that names what is wrong."""
    try:
        return c.call(method, **params)
    except RpcError as error:
        refusal = error
    assert refusal.code in (-32602, -32008), refusal
    assert "path" in refusal.data or "limit" in refusal.data, refusal.data
    return None


# ---- questions -----------------------------------------------------------------------------------------------

_PARTS = st.sampled_from(
    [
        "word", "AND", "OR", "NOT", "NEAR", "NEAR(", "NEAR/2", '"', "'", '""', "(", ")", "*", "^", ":", "-", "+", "{",
        "own:", "ns:", "{own around} :", "n1", "rowid", "\0", "\\", ";", "--", "%", "_", "日本", "語", "🎉", "\u202e",
        "\ufeff", "e\u0301", "ß", "İ", "\u0e01", "한국어", "مرحبا", "\n", "\t", "a.b", "c++", "#", "1e9", "x" * 300,
    ]
)  # fmt: skip


@settings(max_examples=60)
@given(st.lists(_PARTS, max_size=12), st.sampled_from(["", " "]), st.sampled_from(["hybrid", "keyword", "semantic"]))
def test_any_question_is_one(running: Daemon, parts: list[str], between: str, mode: str) -> None:
    with wire(running.socket) as c:
        add(c, "a word of n1, own: and NOT near (that)", "questions")
        question = between.join(parts)
        for namespaces in ({}, {"namespace": "questions"}):
            c.call("memory/search", query=question, mode=mode, **namespaces)
        c.call("memory/context", query=question, max_tokens=200)


@settings(max_examples=60)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_is_kept_as_it_is_and_found(running: Daemon, text: str) -> None:
    with wire(running.socket) as c:
        added = answered(c, "memory/add", namespace="texts", text=text)
        if added is None:
            assert not text.strip() or "\0" in text
            return
        kept = c.call("memory/get", memory_id=added["memory_id"])["text"]
        assert kept == text or added["deduplicated"]
        hits = c.call("memory/search", query=text, mode="keyword", namespace="texts", limit=200)["items"]
        assert all(hit["matched"] for hit in hits)


WORDS = {
    "Japanese": ("日本語のテキストには空白がありません", ["日本", "テキスト", "空白", "語", "ありません"]),
    "Chinese": ("我昨天在图书馆看见了一只黑猫", ["图书馆", "黑猫", "猫", "昨天"]),
    "Thai": ("แมวดำนอนอยู่บนหลังคา", ["แมว", "หลังคา"]),
    "Korean": ("어제 도서관에서 고양이를 보았다", ["도서관", "고양이"]),
    "Arabic": ("رأيت قطة سوداء في المكتبة أمس", ["قطة", "المكتبة"]),
    "Hebrew": ("ראיתי חתול שחור בספרייה", ["חתול", "בספרייה"]),
    "Hindi": ("मैंने पुस्तकालय में काली बिल्ली देखी", ["पुस्तकालय", "बिल्ली"]),
    "Russian": ("Вчера я видел чёрную кошку", ["кошку", "чёрную"]),
    "Greek": ("Είδα μια μαύρη γάτα χθες", ["γάτα", "μαύρη"]),
    "mixed": ("Das Wort кот und 黑猫 und قطة", ["кот", "黑猫", "قطة", "wort"]),
    "emoji": ("We had 🍕 and 🎂 at home", ["🍕", "pizza", "🎂"]),
    "accents": ("Zoë's café in Åre", ["zoe", "cafe", "are"]),
    "wide letters": ("\uff46\uff55\uff4c\uff4c letters", ["\uff46\uff55\uff4c\uff4c"]),
}


@pytest.mark.parametrize("script", WORDS)
def test_a_text_is_found_by_each_of_its_words(c: Wire, script: str) -> None:
    text, words = WORDS[script]
    space = f"script:{script.replace(' ', '-')}"
    add(c, text, space)
    add(c, "something else altogether, of no interest", space)
    for word in words:
        assert found(c, word, mode="keyword", namespace=space)[:1] == [text], word


# ---- filters -------------------------------------------------------------------------------------------------

_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["fact", "untrusted", "2026-01-01T00:00:00Z", "", "'; DROP TABLE memories; --", "日本"]),
)  # fmt: skip
_FIELDS = st.sampled_from(
    [
        "kind", "speaker", "time", "trust", "uses", "source.file", "expires_at", "metadata.a", "metadata.a.b",
        "metadata.日本", 'metadata.a"b', "metadata.a'b", "metadata.$", "metadata.[0]", "metadata.a\0b", "metadata.",
        "m.id", "text",
    ]
)  # fmt: skip
_OPERATORS = st.sampled_from(["eq", "ne", "in", "gt", "lt", "exists", "like"])
_LEAVES = st.dictionaries(
    _FIELDS,
    st.one_of(_SCALARS, st.dictionaries(_OPERATORS, st.one_of(_SCALARS, st.lists(_SCALARS, max_size=3)), max_size=2)),
    max_size=2,
)
_FILTERS = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda many, word: {word: many}, st.lists(inner, max_size=3), st.sampled_from(["and", "or"])),
        st.builds(lambda one: {"not": one}, inner),
    ),
    max_leaves=6,
)


@settings(max_examples=150)
@given(_FILTERS)
def test_any_filter_filters_or_is_refused_by_name(running: Daemon, condition: dict[str, Any]) -> None:
    with wire(running.socket) as c:
        if not found(c, "filtered", namespace="filters", mode="keyword"):
            add(c, "to be filtered", "filters", metadata={"a": {"b": 1}, "日本": "x"})
        for mode in ("keyword", "hybrid"):
            answered(c, "memory/search", query="filtered", namespace="filters", filter=condition, mode=mode)
        answered(c, "memory/list", namespace="filters", filter=condition)


@pytest.mark.parametrize("word", ["not", "and", "or"])
def test_a_filter_of_a_hundred_levels_is_refused(running: Daemon, word: str) -> None:
    nested: Any = {"kind": "fact"}
    for _ in range(100):
        nested = {word: nested if word == "not" else [nested]}
    for method in ("memory/search", "memory/context", "memory/list"):
        params = {"query": "x", "filter": nested} if method != "memory/list" else {"filter": nested}
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        error = asked(running, json.dumps(request).encode())["error"]
        # Two hundred levels of JSON are more than any message may have.
        assert "at most 16 deep" in error["message"] if word == "not" else "nest" in error["message"]


# ---- what else is asked --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "params", "path"),
    [
        ("memory/add", {"text": "x", "vector": [None] * 384}, "params.vector[0]"),
        ("memory/add", {"text": "x", "vector": ["1"] * 384}, "params.vector[0]"),
        ("memory/add", {"text": "x", "vector": [5e-324] * 384}, "params.vector"),
        ("memory/add", {"text": "x", "vector": []}, "params.vector"),
        ("memory/add", {"text": "x", "time": "0000-01-01T00:00:00Z"}, "params.time"),
        ("memory/add", {"text": "x", "ttl_s": -1}, "params.ttl_s"),
        ("memory/add", {"text": "x", "ttl_s": 1e300}, "params.ttl_s"),
        ("memory/add", {"text": "x", "kind": "rumour"}, "params.kind"),
        ("memory/search", {"query": "x", "vector": [1e308] * 384}, "params.vector"),
        ("memory/search", {"query": "x", "vector": [1.0] * 383}, "params.vector"),
        ("memory/search", {"query": "x", "limit": 0}, "params.limit"),
        ("memory/search", {"query": "x", "limit": 10**9}, "params.limit"),
        ("memory/search", {"query": "x", "cursor": "9" * 30}, "params.cursor"),
        ("memory/search", {"query": "x", "cursor": "-5"}, "params.cursor"),
        ("memory/list", {"cursor": "9" * 30}, "params.cursor"),
        ("memory/export", {"cursor": "9" * 30}, "params.cursor"),
        ("memory/context", {"query": "x", "max_tokens": 0}, "params.max_tokens"),
    ],
)
def test_it_is_said_what_is_wrong(c: Wire, method: str, params: dict[str, Any], path: str) -> None:
    embedded(c)
    space = {"namespace": "wrong"} if method in ("memory/add", "memory/search", "memory/list") else {}
    error = refused(c, method, **space, **params)
    assert (error.code, error.data["path"]) == (-32602, path)
    assert c.call("memory/stats", namespace="wrong")["records"] == 0


@pytest.mark.parametrize("literal", [b"NaN", b"Infinity", b"1e999"])
def test_what_json_has_no_number_for_is_refused(running: Daemon, literal: bytes) -> None:
    vector = b"[" + b",".join([literal] * 384) + b"]"
    params = b'{"namespace":"wrong","text":"x","vector":' + vector + b"}"
    answer = asked(running, b'{"jsonrpc":"2.0","id":1,"method":"memory/add","params":' + params + b"}")
    assert answer["error"]["code"] in (-32700, -32602)


def test_five_megabytes_are_refused_and_the_next_is_not(running: Daemon, c: Wire, tmp_path: Path) -> None:
    words = "word " * 1_000_000
    request = {"jsonrpc": "2.0", "id": 1, "method": "memory/add", "params": {"namespace": "big", "text": words}}
    error = asked(running, json.dumps(request).encode())["error"]
    assert "4194304" in error["message"]
    shown = running.cli("memory", "add", "-N", "big", stdin=words)
    assert shown.returncode == 1
    assert "4194304" in shown.stderr
    assert c.call("memory/stats", namespace="big")["records"] == 0
    # As a file it is cut into parts.
    file = tmp_path / "big.txt"
    file.write_text("".join(f"Paragraph {n} marks spot{n}.\n\n" for n in range(5000)) + "Filler.\n\n" * 530_000)
    assert file.stat().st_size > 4 << 20
    done = running.cli("memory", "import", "--json", "-N", "big", str(file), timeout_s=240)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["unreadable"] == []
    assert "spot4999" in found(c, "spot4999", namespace="big", mode="keyword")[0]


def test_a_namespace_that_is_not_there_is_empty(c: Wire) -> None:
    for method in ("memory/search", "memory/context", "memory/list", "memory/export", "memory/stats", "memory/clear"):
        params: dict[str, Any] = {"namespace": "never"}
        if method in ("memory/search", "memory/context"):
            params = {"query": "x", "namespaces": ["never"]}
        result = c.call(method, **params)
        assert not any(result.get(name) for name in ("items", "records", "deleted", "tokens")), method
    assert "never" not in [space["name"] for space in c.call("memory/namespaces")["items"]], "looking makes none"


def asked(daemon: Daemon, line: bytes) -> Any:
    """What is answered to one line, whatever it holds."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(PATIENCE_S)
        stream.connect(str(daemon.socket))
        stream.sendall(line + b"\n")
        with stream.makefile("rb") as lines:
            return json.loads(lines.readline())


# ---- files -----------------------------------------------------------------------------------------------------

FILES: dict[str, tuple[bytes, int, str]] = {
    "cut.jsonl": (b'{"text":"whole heron one"}\n{"text":"half wri', 1, "cut.jsonl:2: the line is no JSON"),
    "mixed.jsonl": (b'{"text":"ok \xff"}\n\0\0\n[1,2]\nnull\n{"text":5}\n{"text":"whole heron two"}\n', 1, "no UTF-8"),
    "binary.txt": (bytes(range(256)) * 40, 0, "binary"),
    "archive.md": (b"PK\x03\x04" + bytes(range(256)) * 40, 0, "binary"),
    "empty.md": (b"", 0, "no text"),
    "blank.txt": (b" \n\t\n", 0, "no text"),
    "deep.json": (b"[" * 100_000, 0, "nested too deeply"),
    "cut.pdf": (b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog", 0, "cut.pdf"),
    "wide.txt": ("whole heron three".encode("utf-16"), 1, ""),
}


@pytest.mark.parametrize("name", FILES)
def test_of_a_broken_file_what_is_whole_comes_in(running: Daemon, c: Wire, tmp_path: Path, name: str) -> None:
    content, good, says = FILES[name]
    (tmp_path / name).write_bytes(content)
    space = f"files:{name}"
    done = running.cli("memory", "import", "-N", space, str(tmp_path / name))
    assert "Traceback" not in done.stderr
    assert says in done.stderr
    assert done.returncode == (0 if good else 1), done.stderr
    assert c.call("memory/stats", namespace=space)["records"] == good
    assert len(found(c, "heron", namespace=space, mode="keyword")) == good


def test_an_export_that_breaks_off_comes_in_as_far_as_it_goes(running: Daemon, c: Wire, tmp_path: Path) -> None:
    for n in range(20):
        add(c, f"an egret, number {n}", "whole")
    embedded(c)
    exported = running.cli("memory", "export", "-N", "whole", "--vectors").stdout
    lines = exported.splitlines(keepends=True)
    assert len(lines) == 21
    (tmp_path / "half.jsonl").write_text("".join(lines[:11]) + lines[11][:60])
    running_again = Daemon()
    try:
        running_again.start()
        done = running_again.cli("memory", "import", str(tmp_path / "half.jsonl"))
        assert done.returncode == 0, done.stderr
        assert "10 new, 0 known, 1 unreadable" in done.stdout
        (tmp_path / "half.jsonl").write_text(exported)
        done = running_again.cli("memory", "import", str(tmp_path / "half.jsonl"))
        assert "10 new, 10 known, 0 unreadable" in done.stdout
        with wire(running_again.socket) as other:
            assert len(found(other, "egret", mode="keyword", limit=50)) == 20
    finally:
        running_again.remove_after_showing()
