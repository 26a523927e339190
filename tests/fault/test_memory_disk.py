"""The disk is full while memory is written to: who asks is told so, what was acknowledged is kept and found, deleting
and embedding go on once there is room."""

from __future__ import annotations

from typing import Any

from tests.support.daemon import Daemon
from tests.support.memory import all_at_once, check, embedded, until
from tests.support.small_disk import fill, small_disk
from tests.support.wire import RpcError, Wire, wire

SEA = " Waves roll in from the sea." * 200


def tried(c: Wire, method: str, **params: Any) -> dict[str, Any]:
    """The result; empty where the disk is full, which it says. SQLite has some room in reserve."""
    try:
        result: dict[str, Any] = c.call(method, **params)
    except RpcError as raised:
        error = raised
    else:
        return result
    assert (error.code, error.data["limit"]) == (-32008, "disk")
    assert "ree some space" in str(error)
    return {}


def add_until_full(c: Wire, known: dict[str, str]) -> None:
    """Long texts and short ones; what was acknowledged goes into ``known``: id -> word."""
    while True:
        assert len(known) < 20_000
        word = f"marker{len(known)}x"
        text = f"The word is {word}." + (SEA if len(known) % 2 else "")
        added = tried(c, "memory/add", namespace="shared", text=text)
        if not added:
            return
        known[added["memory_id"]] = word


def find_each(c: Wire, known: dict[str, str]) -> None:
    asked = [{"query": word, "mode": "keyword"} for word in known.values()]
    for (memory_id, word), found in zip(known.items(), all_at_once(c, "memory/search", asked), strict=True):
        assert [hit["memory_id"] for hit in found["items"] if word in hit["text"]] == [memory_id], word


def test_a_full_disk_refuses_and_loses_nothing(daemon: Daemon) -> None:
    known: dict[str, str] = {}
    with small_disk(daemon.home, 60):
        daemon.user_home.mkdir(exist_ok=True)
        daemon.start()
        filler = daemon.home / "filler"
        with wire(daemon.socket) as c:
            for n in range(3):
                known[c.call("memory/add", namespace="shared", text=f"before{n}")["memory_id"]] = f"before{n}"
            embedded(c)
            fill(filler)
            with filler.open("ab") as file:  # so that it becomes full on the way
                file.truncate(filler.stat().st_size - (2 << 20))
            add_until_full(c, known)
            changed, *_, doomed = known
            if tried(c, "memory/update", memory_id=changed, text="here is changed1" + SEA):
                known[changed] = "changed1"
            tried(c, "memory/delete", memory_id=doomed)
            tried(c, "memory/reindex")
            find_each(c, {memory_id: word for memory_id, word in known.items() if memory_id != doomed})
            assert c.call("memory/search", query="before1")["items"], "also by meaning"
            fill(filler)
            shown = daemon.cli("memory", "add", SEA)
            assert shown.returncode == 1
            assert "free some space" in shown.stderr
            assert "Traceback" not in shown.stderr
            filler.unlink()
            room = c.call("memory/add", namespace="shared", text="there is room")
            c.call("memory/delete", memory_id=room["memory_id"])
            # It was deleted before, or is now.
            if doomed in [one["memory_id"] for one in c.call("memory/list", limit=200)["items"]]:
                c.call("memory/delete", memory_id=doomed)
            del known[doomed]
            embedded(c)
            stats = until(c, lambda stats: "trouble" not in stats)
            assert stats["records"] == len(known), "what was refused is not there"
            c.call("memory/update", memory_id=changed, text="here is changed2")
            known[changed] = "changed2"
            known[c.call("memory/add", namespace="shared", text="here is after1" + SEA)["memory_id"]] = "after1"
            c.call("memory/reindex")
            until(c, lambda stats: len(stats["models"]) == 1)
        daemon.kill()
        check(daemon)
        daemon.start()
        with wire(daemon.socket) as c:
            find_each(c, known)
        assert daemon.stop() == 0
        check(daemon)
