"""This repository's own documents, asked in other words than theirs, are answered from the right passages."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.support.daemon import PATIENCE_S, ROOT, Daemon
from witsd.services.memory.stems import stem
from witsd.services.memory.words import pieces, query_words

DOCUMENTS = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "protocol"]

#: A question, the file it is answered from, and words of the passage that has the answer.
QUESTIONS = [
    ("Which setting survives a power cut?", "README.md", "the machine loses power"),
    ("Does a provider's key ever reach an agent?", "README.md", "never reach an agent"),
    ("How do I continue an earlier conversation?", "README.md", "closing and reopening continues it"),
    ("How is it noticed that a child has exited?", "ARCHITECTURE.md", "Exit is seen through a pidfd"),
    ("What happens to agents when their parent process is killed?", "forker.md", "death signal"),
]
#: The same of README, without any word in common.
WORDLESS = [
    ("For how long is history retained?", "journal.max_age_days"),
    ("Does this protect me against malware?", "a hostile program can read your files"),
]


def take_in(daemon: Daemon, namespace: str, *paths: Path) -> None:
    """``witsd memory import``, until it is found by its meaning, too."""
    done = daemon.cli("memory", "import", "-N", namespace, *map(str, paths))
    assert done.returncode == 0, done.stderr
    embedded(daemon, "hash")


def embedded(daemon: Daemon, model: str) -> None:
    """Wait until everything has a vector of ``model`` and no other."""
    deadline = time.monotonic() + 10 * PATIENCE_S
    while True:
        stats = daemon.call("memory/stats")
        if not stats["to_embed"] and [one["model"] for one in stats["models"]] == [model]:
            return
        assert time.monotonic() < deadline, stats
        time.sleep(0.1)


def test_questions_in_other_words_find_the_right_passages(daemon: Daemon) -> None:
    take_in(daemon, "docs", *DOCUMENTS)
    for question, file, words in QUESTIONS:
        hits = daemon.call("memory/search", query=question, namespace="docs", limit=3)["items"]
        found = [(hit["source"]["file"], " ".join(hit["text"].split())) for hit in hits]
        assert any(name.endswith(file) and words in text for name, text in found), (question, found)


def test_the_assistant_answers_from_a_document_and_names_it(daemon: Daemon) -> None:
    spec = daemon.call("agents/get", name="assistant")["spec"]
    if spec.get("grants", {}).get("memory") != ["shared"]:
        pytest.fail(f"the first assistant may read what is shared: {spec}")
    take_in(daemon, "shared", ROOT / "README.md")
    session = daemon.call("sessions/create", agent="assistant", settings={"model": "offline"})["session_id"]
    asked = {"session_id": session, "text": "Which of the settings survive when the machine loses power?"}
    run = daemon.call("sessions/prompt", **asked)["run_id"]
    answer = daemon.call("runs/wait", run_id=run, timeout_s=60)["output"]
    assert f"{ROOT / 'README.md'} says (memory mem_" in answer, answer
    assert "loses power" in answer


def test_with_minilm_also_where_no_word_is_shared(daemon: Daemon, minilm: Path) -> None:
    done = daemon.cli("model", "install", "minilm", "--from", str(minilm), timeout_s=600)
    assert done.returncode == 0, done.stderr
    paragraphs = [p for p in re.split(r"\n\s*\n", (ROOT / "README.md").read_text()) if re.match(r"[A-Z][a-z]", p)]
    answers = [next(p for p in paragraphs if words in p) for _, words in WORDLESS]
    for text in {*answers, *paragraphs[:8]}:
        daemon.call("memory/add", namespace="docs", kind="document", text=text)
    embedded(daemon, "minilm")
    for (question, _), answer in zip(WORDLESS, answers, strict=True):
        common = {stem(word) for word in query_words(question)} & {stem(word) for word in pieces(answer)}
        assert not common, "ask it in other words"
        best = daemon.call("memory/search", query=question, namespace="docs", limit=1)["items"]
        assert [hit["text"] for hit in best] == [answer], question
