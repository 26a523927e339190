"""Reading files for an import: encodings, pages, PDF, chats, lines; what is odd is said by its place."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.pdf import pdf
from witsd.cli.reading import chats, documents, html, lines
from witsd.cli.reading import pdf as reading_pdf
from witsd.cli.reading.decoding import decoded
from witsd.cli.reading.found import File, Unreadable, find


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252", "latin-1"]
)
def test_text_in_any_usual_encoding(encoding: str) -> None:
    text = "Ein Café in Zürich, very ordinary otherwise.\nSecond line"
    assert decoded(text.encode(encoding)) == text


def test_what_a_page_says_of_its_encoding_is_believed() -> None:
    page = '<meta charset="iso-8859-2"><p>Łódź żółw</p>'
    assert decoded(page.encode("iso-8859-2"), declares=True) == page
    assert decoded(b'<meta charset="nonsense">caf\xe9', declares=True).endswith("café")


@pytest.mark.parametrize("data", [os.urandom(3000) + b"\0\0", b"\x7fELF\x02\x01\0\0\0" * 9, b"\xff\xfea", b"a\x01b"])
def test_what_is_no_text_is_refused(data: bytes) -> None:
    with pytest.raises(Unreadable):
        decoded(data)


@given(st.binary(max_size=300))
def test_any_bytes_are_text_without_nul_or_refused(data: bytes) -> None:
    try:
        text = decoded(data)
    except Unreadable:
        return
    assert "\0" not in text
    assert "\r" not in text
    text.encode()


def test_of_a_page_the_text_is_left_with_its_structure() -> None:
    page = """<html><head><title> My  page </title><style>p{}</style></head><body><nav><a>Menu</a></nav>
      <h1>Hedge<i>hogs</i></h1><p>They eat <b>slugs</b>,
      mostly.</p><script>evil()</script><ul><li>One<li>Two</ul><table><tr><th>a<th>b<tr><td>1<td>2</table>
      <pre>x = 1\n  y</pre>line<br>break &amp; more<footer>Imprint</footer>"""
    title, text = html.title_and_text(page)
    assert title == "My page"
    assert text.split("\n") == [
        "# Hedgehogs", "", "They eat slugs, mostly.", "", "- One", "- Two", "", "a | b", "1 | 2", "", "```",
        "x = 1", "  y", "```", "line", "break & more",
    ]  # fmt: skip


def test_of_a_page_with_a_main_part_that_is_taken() -> None:
    page = "<body><header>Site</header><main><header>About foxes</header><p>Foxes dig.</p></main><aside>Ads</aside>"
    assert html.title_and_text(page) == ("", "About foxes\n\nFoxes dig.")
    deep = "<div>" * 5000 + "deep" + "</div>" * 5000
    assert html.title_and_text(deep)[1] == "deep"
    assert html.title_and_text("")[1] == ""


def test_the_pages_of_a_pdf(tmp_path: Path) -> None:
    file = tmp_path / "a.pdf"
    file.write_bytes(pdf(["Otters hold hands.", "", "They sleep afloat."]))
    _, text = reading_pdf.title_and_text(file)
    assert text == "## Page 1\n\nOtters hold hands.\n\n## Page 3\n\nThey sleep afloat."


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"no pdf at all", "cannot be read"),
        (pdf(["x"])[:200], "cannot be read"),
        (pdf([""]), "are its pages pictures"),
        (pdf(["x"]).replace(b"/Kids [4 0 R]", b"/Kids [2 0 R]"), "PDF"),
    ],
)
def test_a_pdf_that_cannot_be_read_says_why(tmp_path: Path, data: bytes, why: str) -> None:
    file = tmp_path / "a.pdf"
    file.write_bytes(data)
    with pytest.raises(Unreadable, match=why):
        reading_pdf.title_and_text(file)


@given(st.text(alphabet="ab# \n", max_size=400), st.integers(1, 60))
def test_a_long_text_is_cut_and_nothing_is_lost(piece: str, times: int) -> None:
    text = (piece + "\n\n# Heading\n\nsome words of a paragraph that is not short\n") * times * 10
    parts = list(documents.cut(text))
    assert all(0 < len(part) <= documents.MOST for part in parts)
    assert "".join("".join(parts).split()) == "".join(text.split())


def test_a_text_is_cut_where_its_headings_are() -> None:
    chapter = "# Chapter\n" + "word " * 5000 + "\n"
    assert [part[:9] for part in documents.cut(chapter * 4)] == ["# Chapter"] * 4


def turns(value: Any) -> list[tuple[str, str, str | None]]:
    found = chats.conversations(value, "/f", "shared")
    assert found is not None
    return [(item["speaker"], item["text"], item.get("time")) for item in found]


def test_chats_of_many_kinds() -> None:
    plain = [{"role": "user", "content": "Hi", "time": 1700000000}, {"speaker": "Bo", "text": "Yo"}, {"role": "x"}]
    assert turns(plain) == [("user", "Hi", "2023-11-14T22:13:20Z"), ("Bo", "Yo", None)]
    parts = {"messages": [{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}]}
    assert turns(parts) == [("assistant", "a", None)]
    sent = [{"name": "Al", "message": "m", "timestamp": "2024-02-03T04:05:06+02:00"}]
    assert turns({"chat_messages": sent}) == [("Al", "m", "2024-02-03T02:05:06Z")]
    for nothing in ({"a": 1}, [], 7, "x", None, [1, 2], {"messages": 3}):
        assert chats.conversations(nothing, "/f", "shared") is None


def test_chatgpt_the_branch_that_was_open_last() -> None:
    def node(parent: str | None, children: list[str], role: str = "", text: str = "") -> dict[str, Any]:
        said = {"author": {"role": role}, "content": {"content_type": "text", "parts": [text]}, "create_time": 1.7e9}
        return {"parent": parent, "children": children, "message": said if role else None}

    mapping = {
        "root": node(None, ["s"]), "s": node("root", ["q"], "system", "be good"),
        "q": node("s", ["a1", "a2"], "user", "Why?"), "a1": node("q", [], "assistant", "No."),
        "a2": node("q", [], "assistant", "Because."),
    }  # fmt: skip
    talk = {"title": "T", "conversation_id": "c1", "mapping": mapping, "current_node": "a2"}
    assert [said[:2] for said in turns([talk])] == [("user", "Why?"), ("assistant", "Because.")]
    item = next(iter(chats.conversations([talk], "/f", "shared") or ()))
    assert (item["session_id"], item["metadata"]) == ("c1", {"title": "T"})
    mapping["q"]["parent"] = "a2"  # a ring
    assert len(turns([talk])) == 2


def test_the_same_said_twice_is_two_turns_with_two_names() -> None:
    found = list(chats.conversations([{"role": "user", "content": "Hi"}] * 3, "/f", "shared") or ())
    assert len({(item["key"], item["part"]) for item in found}) == 3


def read_lines(file: Path, namespace: str | None = None) -> tuple[list[dict[str, Any]], list[str]]:
    bad: list[str] = []
    taken = File(file, "jsonl", file.stat().st_size, 0.0)
    found = [item for _, item in lines.items(taken, namespace, lambda place, why: bad.append(f"{place}: {why}"))]
    return found, bad


def test_a_bad_line_is_named_and_the_next_one_read(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    good = [b'{"text": "one", "kind": "preference", "metadata": {"a": 1}}', b'{"role": "user", "content": "two"}']
    wrong = [b"[1]", b'{"text": ""}', b"{", b"\xff\xfe", b'{"a": ' * 100_000, b"7"]
    file.write_bytes(b"\n".join([good[0], *wrong, b"", good[1], b'{"text": "ha']))
    found, bad = read_lines(file)
    assert [(item["text"], item["kind"]) for item in found] == [("one", "preference"), ("two", "turn")]
    assert [line.removeprefix(f"{file}:").split(":")[0] for line in bad] == ["2", "3", "4", "5", "6", "7", "10"]
    assert bad[-1].endswith("cut off at the end of the file?")


def test_lines_in_utf_16_and_of_a_session(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    said = {"message_id": "msg_1", "session_id": "ses_1", "n": 1, "role": "user", "author": "cli:ann", "text": "Hi",
            "status": "completed", "created_at": "2026-01-02T03:04:05Z"}  # fmt: skip
    session = {"session_id": "ses_1", "agent": "assistant", "title": "Greetings"}
    file.write_text(f"{json.dumps(session)}\n{json.dumps(said)}\n", encoding="utf-16")
    found, bad = read_lines(file, "elsewhere")
    assert bad == []
    assert found[0] | {"key": ""} == {
        "namespace": "elsewhere", "text": "Hi", "kind": "turn", "speaker": "cli:ann", "session_id": "ses_1",
        "source": {"file": str(file)}, "key": "", "part": 0, "time": "2026-01-02T03:04:05Z",
        "metadata": {"title": "Greetings"},
    }  # fmt: skip


def test_what_a_folder_is_taken_for(tmp_path: Path) -> None:
    for name in ("b.md", "A.TXT", "sub/c.html", ".hidden.md", ".git/d.md", "node_modules/e.md", "f.py", "no_ending"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("x")
    (tmp_path / "link.md").symlink_to(tmp_path / "b.md")
    (tmp_path / "round").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.md")
    found = find([tmp_path, tmp_path / "b.md", tmp_path / "missing.md"], "auto")
    assert [(file.path.name, file.form) for file in found.files] == [
        ("A.TXT", "text"), ("b.md", "markdown"), ("c.html", "html"),
    ]  # fmt: skip
    assert found.passed_over == {
        "hidden": 2, "links": 2, "folders of programs": 1, "other kinds of files": 2, "no files": 1,
    }  # fmt: skip
    assert [place for place, _ in found.unreadable] == [str(tmp_path / "missing.md")]
    named = find([tmp_path / "link.md", tmp_path / "f.py", tmp_path / "pipe.md"], "auto")
    assert [(file.path.name, file.form) for file in named.files] == [("link.md", "markdown"), ("f.py", "text")]
    assert named.unreadable == [(str(tmp_path / "pipe.md"), "this is no file")]
