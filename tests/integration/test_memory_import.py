"""Import and export by the command line and the real daemon: in once, changed, out, and in again the same."""

from __future__ import annotations

import base64
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import PATIENCE_S, Daemon
from tests.support.pdf import pdf
from tests.support.wire import RpcError, Wire, wire
from witsd.services.memory import vectors


def imported(daemon: Daemon, *args: str | Path) -> dict[str, Any]:
    done = daemon.cli("memory", "import", "--json", *map(str, args))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def counts(found: dict[str, Any]) -> tuple[int, int, int, int]:
    return found["added"], found["known"], found["closed"], len(found["unreadable"])


def texts(c: Wire, query: str, **more: Any) -> list[str]:
    return [hit["text"] for hit in c.call("memory/search", query=query, mode="keyword", **more)["items"]]


def test_a_folder_comes_in_once_and_what_has_changed_takes_the_place_of_what_was(
    daemon: Daemon, tmp_path: Path
) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "birds.md").write_text("# Birds\n\nThe wren is small.\n")
    (folder / "page.html").write_text("<title>P</title><p>The heron is patient.</p>")
    (folder / "talk.json").write_text('[{"role": "user", "content": "The owl is wise, I say."}]')
    (folder / "otter.pdf").write_bytes(pdf(["The otter is playful."]))
    (folder / "old.txt").write_bytes("The café owner keeps a parrot.".encode("latin-1"))
    (folder / "bad.pdf").write_bytes(b"%PDF-1.4 broken")
    (folder / "package.json").write_text('{"name": "birds"}')
    first = imported(daemon, folder)
    assert counts(first) == (5, 0, 0, 1)
    assert first["passed_over"] == {"JSON without a conversation": 1}
    named = daemon.cli("memory", "import", "--json", str(folder / "package.json"))
    assert json.loads(named.stdout)["unreadable"][0]["reason"] == "this JSON holds no conversation"
    assert first["unreadable"][0]["place"] == str(folder / "bad.pdf")
    assert counts(imported(daemon, folder)) == (0, 5, 0, 1)
    with wire(daemon.socket) as c:
        hit = c.call("memory/search", query="wren", mode="keyword")["items"][0]
        assert (hit["kind"], hit["source"], hit["metadata"]) == (
            "document", {"file": str(folder / "birds.md")}, {"title": "Birds"},
        )  # fmt: skip
        for bird in ("heron", "owl", "otter", "parrot"):
            assert len(texts(c, bird)) == 1, bird
        (folder / "birds.md").write_text("# Birds\n\nThe wren is loud.\n")
        assert counts(imported(daemon, folder)) == (1, 4, 1, 1)
        assert texts(c, "wren") == ["# Birds\n\nThe wren is loud."]
        old = c.call("memory/get", memory_id=hit["memory_id"])
        assert old["superseded_by"] == c.call("memory/search", query="wren")["items"][0]["memory_id"]


def test_parts_that_a_document_has_lost_are_closed(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "book.md"
    chapters = [f"# Chapter {n}\n\nHere walrus{n} swims. " + "words " * 4000 + "\n" for n in range(4)]
    file.write_text("".join(chapters))
    assert counts(imported(daemon, file)) == (4, 0, 0, 0)
    with wire(daemon.socket) as c:
        assert texts(c, "walrus3")
        file.write_text("".join(chapters[:2]))
        assert counts(imported(daemon, file)) == (0, 2, 2, 0)
        assert texts(c, "walrus1")
        assert not texts(c, "walrus3")
        file.write_text("".join(chapters))
        assert counts(imported(daemon, file)) == (2, 2, 0, 0)
        assert texts(c, "walrus3")


def test_what_is_gone_from_a_folder_is_closed_when_it_is_asked_for(daemon: Daemon, tmp_path: Path) -> None:
    notes, other = tmp_path / "notes", tmp_path / "other"
    for folder in (notes, other):
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / "gecko.md").write_text(f"The gecko of {folder.name} climbs.")
        (folder / "skink.txt").write_text(f"The skink of {folder.name} hides.")
        (folder / "copy.txt").write_text(f"The skink of {folder.name} hides.")
    assert counts(imported(daemon, notes, other)) == (6, 0, 0, 0)
    (notes / "deep" / "gecko.md").unlink()
    (notes / "copy.txt").unlink()
    (other / "deep" / "gecko.md").unlink()
    with wire(daemon.socket) as c:
        assert counts(imported(daemon, notes)) == (0, 1, 0, 0)
        assert len(texts(c, "gecko")) == 2, "nobody asked"
        assert counts(imported(daemon, "--prune", notes)) == (0, 1, 2, 0)
        assert texts(c, "gecko") == ["The gecko of other climbs."], "of another folder"
        assert len(texts(c, "skink")) == 2
        (notes / "deep" / "gecko.md").write_text("The gecko of notes climbs.")
        assert counts(imported(daemon, "--prune", notes)) == (1, 1, 0, 0)
        assert len(texts(c, "gecko")) == 2
        # A folder that is not there may be a disk that is not mounted.
        assert daemon.cli("memory", "import", "--prune", str(tmp_path / "gone")).returncode == 1
        assert len(texts(c, "skink")) == 2


def test_a_copy_stands_in_when_the_first_of_two_same_files_changes(daemon: Daemon, tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("The gecko climbs.")
    assert counts(imported(daemon, tmp_path)) == (2, 0, 0, 0)
    with wire(daemon.socket) as c:
        assert len(texts(c, "gecko")) == 1
        (tmp_path / "a.txt").write_text("The skink hides.")
        assert counts(imported(daemon, tmp_path)) == (1, 1, 1, 0)
        assert texts(c, "gecko") == ["The gecko climbs."]
        assert texts(c, "skink") == ["The skink hides."]


def test_what_the_daemon_refuses_is_named_and_costs_nothing_else(daemon: Daemon, tmp_path: Path) -> None:
    lines = [{"text": f"fact number {n}"} for n in range(5)]
    lines[1] = {"text": "odd kind", "kind": "rumour"}
    lines[2] = {"text": "much metadata", "metadata": {"x": "y" * 20_000}}  # type: ignore[dict-item]
    lines[3] = {"text": "z" * (3 << 20)}
    file = tmp_path / "facts.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    found = imported(daemon, file)
    assert counts(found) == (2, 0, 0, 3)
    assert [one["place"] for one in found["unreadable"]] == [f"{file}:{n}" for n in (4, 2, 3)]
    assert "kind" in found["unreadable"][1]["reason"]
    strict = daemon.cli("memory", "import", "--strict", str(file))
    assert strict.returncode == 1
    assert f"{file}:4" in strict.stderr
    shown = daemon.cli("memory", "import", str(file))
    assert "1 file: 0 new, 2 known, 3 unreadable" in shown.stdout
    assert daemon.cli("memory", "import", "-N", "no such name", str(file)).returncode == 1
    assert daemon.cli("memory", "import", str(tmp_path / "nothing.md")).returncode == 1


@pytest.mark.parametrize(
    ("item", "path"),
    [
        ({"text": "x", "kind": "fact"}, "params.items[0].key"),
        ({"text": " ", "kind": "fact", "key": "k"}, "params.items[0].text"),
        ({"text": "x\0", "kind": "fact", "key": "k"}, "params.items[0].text"),
        ({"text": "x", "kind": "fact", "key": "k", "time": "noon"}, "params.items[0].time"),
        ({"text": "x", "kind": "fact", "key": "k", "vectors": ["?"]}, "params.items[0].vectors"),
        ({"text": "x", "kind": "fact", "memory_id": "mem_a b"}, "params.items[0].memory_id"),
    ],
)
def test_an_item_that_is_wrong_is_refused_by_name(daemon: Daemon, item: dict[str, Any], path: str) -> None:
    with wire(daemon.socket) as c:
        with pytest.raises(RpcError) as error:
            c.call("memory/import", items=[{"namespace": "shared", **item}])
        assert (error.value.code, error.value.data["path"]) == (-32602, path)
        assert c.call("memory/stats")["records"] == 0


def exported(daemon: Daemon, file: Path, *args: str) -> list[dict[str, Any]]:
    done = daemon.cli("memory", "export", str(file), *args)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]]


def fill(c: Wire) -> None:
    def add(text: str, **more: Any) -> str:
        memory_id: str = c.call("memory/add", **{"namespace": "shared", "text": text, **more})["memory_id"]
        return memory_id

    old = add("I like red.", time="2020-01-02T03:04:05Z", metadata={"a": [1, {"b": None}]}, kind="preference")
    new = add("I like blue.", supersedes=[old], source={"url": "https://example.org/x", "tool": "web"})
    add("Blue it is.", derived_from=[new], kind="summary", valid_from="2021-01-01T00:00:00Z", ttl_s=9e8)
    add("I like blue.")
    add("Hello there", speaker="Ann", session_id="ses_1", namespace="agent:nobody")
    add("# Long\n\n" + "A sentence about the quokka and its ways. " * 200, kind="document", namespace="docs")
    add("Ünïcödé 漢字 🦉 \u202e \u2028 end")


def settled(c: Wire) -> None:
    """Until all is embedded."""
    deadline = time.monotonic() + PATIENCE_S
    while c.call("memory/stats")["to_embed"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_goes_out_comes_in_the_same_elsewhere(daemon: Daemon, stopped_daemon: Daemon, tmp_path: Path) -> None:
    with wire(daemon.socket) as c:
        fill(c)
        settled(c)
    plain = exported(daemon, tmp_path / "a.jsonl")
    withal = exported(daemon, tmp_path / "v.jsonl", "--vectors")
    assert (plain[0], len(plain)) == ({"witsd_memory": 1}, 8)
    assert len(withal[6]["vectors"]) > 1, "one for each passage of the long text"
    there = stopped_daemon
    there.start()
    assert counts(imported(there, tmp_path / "v.jsonl")) == (7, 0, 0, 0)
    assert exported(there, tmp_path / "b.jsonl") == plain
    assert counts(imported(there, tmp_path / "a.jsonl")) == (0, 7, 0, 0)
    with wire(there.socket) as c:
        settled(c)
        assert {"I like blue.", "I like red."} & set(texts(c, "blue or red")) == {"I like blue."}
        red = c.call("memory/list", include=["superseded"], kind="preference")["items"][0]
        assert red["superseded_by"] == plain[2]["memory_id"]
        c.call("memory/delete", memory_id=plain[2]["memory_id"])
        assert "Blue it is." not in texts(c, "blue"), "what was derived still goes with its source"
    assert exported(there, tmp_path / "v2.jsonl", "--vectors")[-2]["vectors"] == withal[-2]["vectors"]
    assert counts(imported(there, tmp_path / "a.jsonl", "-N", "copy")) == (7, 0, 0, 0)
    assert counts(imported(there, tmp_path / "a.jsonl", "-N", "copy")) == (0, 7, 0, 0)
    only = exported(there, tmp_path / "c.jsonl", "-N", "copy")
    assert [item["text"] for item in only[1:]] == [item["text"] for item in plain[1:]]
    assert {item["namespace"] for item in only[1:]} == {"copy"}


def test_vectors_of_this_model_are_taken_over_and_others_are_not(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        c.call("memory/add", namespace="shared", text="the first makes the generation")
        settled(c)
        model = c.call("memory/stats")["models"][0]
        item = {"namespace": "n", "text": "zebra", "kind": "fact", "key": "k", "vectors": ["AQ" * 255 + "AQ=="]}
        odd = {**item, "key": "k2", "text": "okapi"}
        c.call("memory/import", items=[item, odd], model="another", digest=model["digest"])
        settled(c)
        far = c.call("memory/search", query="zebra", mode="semantic", namespace="n")["items"][0]
        assert (far["text"], far["score"]) == ("zebra", pytest.approx(1, abs=0.05)), "embedded here"
        ones = base64.b64encode(vectors.pack([1.0] * 384)).decode()
        ours = {**item, "key": "k3", "text": "gnu", "vectors": [ones]}
        wrong = {**item, "key": "k4", "text": "eland", "vectors": [ones[:8]]}
        c.call("memory/import", items=[ours, wrong], model=model["model"], digest=model["digest"])
        settled(c)
        near = c.call("memory/search", vector=[1.0] * 384, mode="semantic", namespace="n")["items"]
        assert (near[0]["text"], near[0]["score"]) == ("gnu", pytest.approx(1, abs=0.05)), "as it came"
        assert "eland" in {hit["text"] for hit in near}, "of another size, so embedded here"


def test_a_long_export_comes_in_pieces_and_as_markdown(daemon: Daemon, tmp_path: Path) -> None:
    with wire(daemon.socket) as c:
        items = [{"namespace": "n", "text": f"note {n}", "kind": "fact", "key": f"k{n}"} for n in range(1000)]
        assert c.call("memory/import", items=items) == {"added": 1000, "known": 0, "closed": 0}
        first = c.call("memory/export")
        assert (first["records"], first["text"].count("\n")) == (500, 501)
        assert c.call("memory/export", namespace="nothing")["records"] == 0
    assert len(exported(daemon, tmp_path / "a.jsonl", "-N", "n")) == 1001
    done = daemon.cli("memory", "export", "--format", "markdown")
    assert done.stdout.startswith("# Memory\n\n## fact · n · ")
    assert done.stdout.count("\n## ") == 1000


def test_a_session_goes_out_and_comes_into_memory(daemon: Daemon, tmp_path: Path) -> None:
    with wire(daemon.socket) as c:
        session = c.call("sessions/create", agent="assistant")["session_id"]
        c.call("runs/wait", run_id=c.call("sessions/prompt", session_id=session, text="Tell me of newts")["run_id"])
    file = tmp_path / "talk.jsonl"
    done: subprocess.CompletedProcess[str] = daemon.cli("session", "export", session, "--output", str(file))
    assert done.returncode == 0, done.stderr
    assert counts(imported(daemon, file, "-N", "talks")) == (2, 0, 0, 0)
    with wire(daemon.socket) as c:
        hit = c.call("memory/search", query="newts", namespace="talks", mode="keyword")["items"][0]
        assert (hit["kind"], hit["session_id"]) == ("turn", session)
