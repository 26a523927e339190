"""Embedders that are down, slow, wrong or killed: what is remembered is found by its words at once and by its meaning
once they work again, the figures say why not yet, and nothing wrong is ever stored."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.doubles.embedding_server import EmbeddingServer, open_embedding_server
from tests.integration.test_memory import add, found, refused
from tests.support.agents import define
from tests.support.daemon import PATIENCE_S, Daemon
from tests.support.memory import all_at_once, check, embedded, until
from tests.support.wire import Wire, wire


@contextmanager
def near(daemon: Daemon) -> Iterator[tuple[EmbeddingServer, Wire]]:
    """A daemon whose memory has embedded ten records by a server beside it."""
    with open_embedding_server() as server:
        (daemon.home / "witsd.toml").write_text(server.settings)
        daemon.start()
        with wire(daemon.socket) as c:
            all_at_once(c, "memory/add", [{"namespace": "shared", "text": f"pebble number {n}"} for n in range(10)])
            c.call("memory/reindex", embedder="near/letters")
            assert until(c, lambda stats: [m["model"] for m in stats["models"]] == ["letters"])["to_embed"] == 0
            yield server, c


def troubled(c: Wire) -> str:
    return str(until(c, lambda stats: "trouble" in stats)["trouble"])


def finds_by_words_alone(c: Wire, word: str) -> str:
    """Why meaning did not count."""
    hits = c.call("memory/search", query=word)
    assert word in hits["items"][0]["text"]
    return str(hits["degraded"])


WRONG = {
    "too few": "2 vectors for 3 texts",
    "ragged": "a vector of 25 numbers where it says 26",
    "nan": "not JSON",
    "infinite": "not JSON",
    "words": "no list of numbers",
    "broken": "out of memory",
}


def test_a_server_that_answers_wrongly_or_is_down(stopped_daemon: Daemon) -> None:
    daemon = stopped_daemon
    with near(daemon) as (server, c):
        for manner, says in WRONG.items():
            server.manner = manner
            word = f"thing{manner.replace(' ', '')}"
            texts = [f"the {word} in the {place}" for place in ("shed", "loft", "cellar")]
            items = [{"namespace": "shared", "text": text, "kind": "fact", "key": text} for text in texts]
            c.call("memory/import", items=items)  # in one batch
            troubled(c)
            assert says in daemon.log()
            assert "near/letters cannot embed the question" in finds_by_words_alone(c, word)
            error = refused(c, "memory/search", query=word, mode="semantic")
            assert error.data["name"] == "model_error", "nothing else was asked for"
            server.manner = "letters"
            add(c, f"and another {word}")  # it looks at once where something new is due
            stats = embedded(c)
            assert "trouble" not in stats
            assert [(model["model"], model["dimensions"]) for model in stats["models"]] == [("letters", 26)]
            assert found(c, texts[1], mode="semantic")[0] == texts[1]
    # The server is gone by now.
    with wire(daemon.socket) as c:
        add(c, "the lighthouse keeper")
        assert "connect" in troubled(c)
        assert "near" in finds_by_words_alone(c, "lighthouse")
        shown = daemon.cli("memory", "stats")
        assert "1 are found by their words only, so far: embedding fails: near" in shown.stderr
    daemon.kill()
    check(daemon)


def test_a_server_that_counts_differently_each_time_is_given_a_rest(stopped_daemon: Daemon) -> None:
    with near(stopped_daemon) as (server, c):
        before = server.asked
        server.manner = "fickle"
        add(c, "a new pebble")
        assert "as one model and then as another" in troubled(c)
        assert server.asked - before < 20, "nor was it asked without end"
        assert len(found(c, "pebble", mode="keyword", limit=20)) == 11
        server.manner = "letters"
        add(c, "the last pebble")
        assert [model["dimensions"] for model in embedded(c)["models"]] == [26]
        assert len(found(c, "pebble", mode="semantic", limit=20)) == 12


def test_a_slow_server_holds_up_no_question_for_long(stopped_daemon: Daemon) -> None:
    with near(stopped_daemon) as (server, c):
        server.manner = "slow"
        add(c, "the tortoise in the garden")
        assert "has not answered within 10 s" in finds_by_words_alone(c, "tortoise")
        assert found(c, "tortoise", mode="keyword"), "who asks for words need not wait"
        server.manner = "letters"
        server.go_on.set()
        assert embedded(c)["models"][0]["embedded"] == 11


def test_an_embedder_that_is_killed_in_a_batch_starts_again_and_loses_nothing(daemon: Daemon) -> None:
    manner = daemon.home / "manner"
    manner.write_text("letters")
    with wire(daemon.socket) as c:
        define(c, "letters", "embedding", start="on_demand", options={"manner_file": str(manner)})
        c.call("memory/reindex", embedder="letters")
        until(c, lambda stats: [m["model"] for m in stats["models"]] == ["letters"])
        for kill in range(3):
            manner.write_text("waits")
            texts = [{"namespace": "shared", "text": f"batch of {time.monotonic_ns()} {n}"} for n in range(40)]
            all_at_once(c, "memory/add", texts)
            kill_when_it_waits(daemon.home / "waiting", manner)
            stats = embedded(c)
            assert stats["models"][0]["embedded"] == stats["records"] == 40 * (kill + 1)
            assert "trouble" not in stats
    assert daemon.stop() == 0
    check(daemon)


def kill_when_it_waits(waiting: Path, manner: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not waiting.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    manner.write_text("letters")
    pid = int(waiting.read_text())
    waiting.unlink()
    os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_text_that_kills_the_embedder_is_passed_over(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        texts = [f"stone {n}" if n != 5 else "the poison bottle" for n in range(9)]
        items = [{"namespace": "shared", "text": text, "kind": "fact", "key": text} for text in texts]
        c.call("memory/import", items=items)
        options = {"manner": "dies of poison"}
        define(c, "letters", "embedding", start="on_demand", restart={"backoff_s": 0}, options=options)
        c.call("memory/reindex", embedder="letters")
        stats = until(c, lambda stats: [m["model"] for m in stats["models"]] == ["letters"])
        assert stats["models"][0]["embedded"] == 8
        assert len(found(c, "stone", mode="semantic", limit=20)) == 8
        assert found(c, "poison", mode="keyword") == ["the poison bottle"]


def test_another_model_behind_the_same_name_is_noticed_by_a_question(daemon: Daemon) -> None:
    manner = daemon.home / "manner"
    manner.write_text("named")
    with wire(daemon.socket) as c:
        define(c, "letters", "embedding", start="on_demand", options={"manner_file": str(manner)})
        add(c, "a pebble")
        c.call("memory/reindex", embedder="letters")
        until(c, lambda stats: [m["digest"] for m in stats["models"]] == ["d1"])
        manner.write_text("renamed")
        assert "is another model by now" in finds_by_words_alone(c, "pebble")
        until(c, lambda stats: [m["digest"] for m in stats["models"]] == ["d2"])
        assert "degraded" not in c.call("memory/search", query="pebble")


def test_all_is_embedded_anew_from_the_command_line(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        add(c, "a pebble")
        embedded(c)
        done = daemon.cli("memory", "reindex")
        assert done.returncode == 0, done.stderr
        assert "hash embeds from now on" in done.stderr
        assert embedded(c)["models"][0]["embedded"] == 1
        none = daemon.cli("memory", "reindex", "--embedder", "nobody")
        assert none.returncode == 1
        assert "witsd model install minilm" in none.stderr
    assert daemon.stop() == 0
    check(daemon)
    assert "memory_vectors_2" in tables(daemon)


def tables(daemon: Daemon) -> set[Any]:
    db = apsw.Connection(str(daemon.home / "witsd.db"))
    try:
        return {name for (name,) in db.execute("SELECT name FROM sqlite_schema")}
    finally:
        db.close()
