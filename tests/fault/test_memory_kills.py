"""The daemon is killed while it remembers, embeds anew and moves to another model, twenty times each: the file is
sound, all that was acknowledged is there and is found, once, and what was under way is done in the end."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from tests.doubles.embedding_server import open_embedding_server
from tests.support.daemon import Daemon
from tests.support.memory import all_at_once, check, embedded, until
from tests.support.wire import Wire, wire

KILLS = 20
#: Adds that are on their way when it dies.
ADDS = 48
#: Records whose models are changed: four batches and a bit.
RECORDS = 150


def adds(kill: int) -> dict[int, dict[str, Any]]:
    """Requests by their id: facts, turns of a conversation, long texts, records with a vector; each with its word."""
    made: dict[int, dict[str, Any]] = {}
    for n in range(ADDS):
        number = kill * 1000 + n
        params: dict[str, Any] = {"namespace": f"space:{n % 3}", "text": f"The word of this one is marker{number}x."}
        match n % 4:
            case 1:
                params |= {"kind": "turn", "speaker": "Ann", "session_id": "talk"}
            case 2:
                params |= {"kind": "document", "text": params["text"] + " Waves roll in from the sea." * 120}
            case 3:
                params |= {"vector": [float((number * 7 + i) % 13 - 6) for i in range(384)]}
        made[number] = params
    return made


def added_when_killed(daemon: Daemon, kill: int) -> dict[str, str]:
    """Ask for many adds and kill the daemon after some answers; what it has acknowledged: id -> word."""
    asked = adds(kill)
    known: dict[str, str] = {}
    with wire(daemon.socket) as c:
        for number, params in asked.items():
            c.send({"jsonrpc": "2.0", "id": number, "method": "memory/add", "params": params})
        with suppress(EOFError, ConnectionResetError):
            while True:
                if len(known) == kill * 2:
                    daemon.kill()  # and read what it had answered
                answer = c.receive()
                known[answer["result"]["memory_id"]] = f"marker{answer['id']}x"
    return known


def find_each(c: Wire, known: dict[str, str]) -> None:
    """Each is found by its own word, once, and as what it was acknowledged as."""
    asked = [{"query": word, "mode": "keyword"} for word in known.values()]
    for (memory_id, word), found in zip(known.items(), all_at_once(c, "memory/search", asked), strict=True):
        assert [hit["memory_id"] for hit in found["items"] if word in hit["text"]] == [memory_id], word


@pytest.mark.slow
def test_killed_while_it_remembers(daemon: Daemon) -> None:
    daemon.start()
    with wire(daemon.socket) as c:
        embedded(c)  # only now can a vector be given
    known: dict[str, str] = {}
    for kill in range(KILLS):
        fresh = added_when_killed(daemon, kill)
        assert len(fresh) >= kill * 2
        assert not fresh.keys() & known.keys()
        known |= fresh
        check(daemon)
        daemon.start()
        with wire(daemon.socket) as c:
            find_each(c, fresh)
            assert c.call("memory/stats")["records"] >= len(known)
    with wire(daemon.socket) as c:
        find_each(c, known)
        stats = embedded(c)
        # Of a long text it is the passages that have a vector.
        assert stats["models"][0]["embedded"] == stats["records"] - stats["kinds"]["document"] + stats["chunks"]
    assert daemon.stop() == 0
    check(daemon)


def remember(c: Wire) -> set[str]:
    """Records that a search for one word gives all at once; their ids."""
    texts = [{"namespace": "shared", "text": f"Here is a pebble, the one of day{n}."} for n in range(RECORDS)]
    return {added["memory_id"] for added in all_at_once(c, "memory/add", texts)}


def find_all(c: Wire, ids: set[str]) -> None:
    """By words and by vectors, each once, with either model."""
    for mode in ("keyword", "semantic"):
        found = c.call("memory/search", query="pebble", mode=mode, limit=200)
        assert {hit["memory_id"] for hit in found["items"]} == ids, mode
        assert len(found["items"]) == len(ids), mode
        assert "degraded" not in found


def searched(stats: dict[str, Any]) -> dict[str, Any]:
    (model,) = (model for model in stats["models"] if model["state"] == "current")
    return dict(model)


def part_way(stats: dict[str, Any], batches: int) -> bool:
    """Whether the model that is to take over has so many batches, or has taken over."""
    building = [model for model in stats["models"] if model["state"] == "building"]
    return not building or building[0]["embedded"] >= 32 * batches


@pytest.mark.slow
def test_killed_while_it_embeds_anew(daemon: Daemon) -> None:
    daemon.start()
    with wire(daemon.socket) as c:
        ids = remember(c)
        embedded(c)
    broken_off = 0
    for kill in range(KILLS):
        with wire(daemon.socket) as c:
            c.call("memory/reindex")
            stats = until(c, partial(part_way, batches=kill % 4))
            daemon.kill()
        broken_off += len(stats["models"]) == 2
        check(daemon)
        daemon.start()
        with wire(daemon.socket) as c:
            find_all(c, ids)
    assert broken_off >= KILLS // 2, "it was always done before it was killed"
    with wire(daemon.socket) as c:
        assert searched(embedded(c))["embedded"] == RECORDS
        find_all(c, ids)
    assert daemon.stop() == 0
    check(daemon)


def moved_so_far(stats: dict[str, Any], model: str, batches: int) -> bool:
    """Whether ``model`` has so many batches, or has taken over."""
    if searched(stats)["model"] == model:
        return True
    return any(one["model"] == model and one["embedded"] >= 32 * batches for one in stats["models"])


@pytest.mark.slow
def test_killed_while_it_moves_to_another_model(daemon: Daemon) -> None:
    models = {"hash": "hash", "near/letters": "letters"}
    chosen = "hash"
    broken_off = 0
    with open_embedding_server() as server:
        (daemon.home / "witsd.toml").write_text(server.settings)
        daemon.start()
        with wire(daemon.socket) as c:
            ids = remember(c)
            embedded(c)
        for kill in range(KILLS):
            with wire(daemon.socket) as c:
                if searched(c.call("memory/stats"))["model"] == models[chosen]:
                    # The move before this one was done when it died, or since.
                    (chosen,) = models.keys() - {chosen}
                    c.call("memory/reindex", embedder=chosen)
                stats = until(c, partial(moved_so_far, model=models[chosen], batches=kill % 4))
                daemon.kill()
            broken_off += len(stats["models"]) == 2
            check(daemon)
            daemon.start()
            with wire(daemon.socket) as c:
                assert c.call("memory/stats")["embedder"] == chosen, "the choice was acknowledged"
                find_all(c, ids)
        assert broken_off >= KILLS // 4, "it was always done before it was killed"
        with wire(daemon.socket) as c:
            stats = embedded(c)
            assert [model["model"] for model in stats["models"]] == [models[chosen]]
            assert searched(stats)["embedded"] == RECORDS
            find_all(c, ids)
        assert daemon.stop() == 0
    check(daemon)
