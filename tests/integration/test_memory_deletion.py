"""A delete that deletes: afterwards no file of the data folder holds the text, nor its vector."""

from __future__ import annotations

import time
from typing import Any

import apsw
import pytest

from tests.integration.test_memory import add, found
from tests.support.agents import define, wait
from tests.support.daemon import Daemon
from tests.support.memory import embedded
from tests.support.wire import Wire, wire

#: Words that occur nowhere else; the text index would hold them stemmed, and cut at the front where they are alike.
SECRET = "The zebracornish umbrella belongs to Quuxolomew Vandergrift"
TRACES = (b"zebracorn", b"ebracornis", b"Quuxolomew", b"uuxolomew", b"andergrift")


def holding(daemon: Daemon, *traces: bytes) -> list[str]:
    """The files under the daemon's home that hold one of ``traces``."""
    return [
        f"{path.relative_to(daemon.home)}: {trace!r}"
        for path in sorted(daemon.home.rglob("*"))
        if path.is_file() and not path.is_symlink()
        for trace in traces
        if trace in path.read_bytes().replace(b"\0", b"")
    ]


def fill(c: Wire, count: int = 300) -> None:
    """Other records, before and after, so that the indexes have more than one part."""
    for n in range(count):
        add(c, f"filler number {n} about {n * 7919 % 1000} ordinary umbrellas", session_id="filler", kind="turn")


def test_the_text_is_gone_from_every_file(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        fill(c)
        memory_id = add(c, SECRET, metadata={"who": "Quuxolomew"}, speaker="Vandergrift")
        add(c, "a neighbour that stays", session_id="s", kind="turn")
        told = add(c, SECRET, session_id="s", kind="turn", namespace="n2")
        add(c, "another neighbour", session_id="s", kind="turn", namespace="n2")
        fill(c)
        embedded(c)
        changed = add(c, "an innocent text at first")
        c.call("memory/update", memory_id=changed, text=SECRET + " as I said")
        c.call("memory/update", memory_id=changed, text="innocent again", metadata={"x": "Vandergrift"})
        embedded(c)
        c.call("memory/search", query=SECRET)
        assert holding(daemon, *TRACES)
        done = c.call("memory/delete", memory_ids=[memory_id, told, changed])
        assert set(done["deleted"]) == {memory_id, told, changed}
        assert holding(daemon, *TRACES) == []
        assert "a neighbour that stays" in found(c, "neighbour", limit=50)
        assert found(c, "Quuxolomew", mode="keyword") == []
    daemon.stop()
    check(daemon)


def test_the_vector_is_gone_as_well(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        embedded(c)
        fill(c, 20)
        vector = [float(n % 127 - 63) for n in range(384)]
        length = sum(x * x for x in vector) ** 0.5
        packed = bytes(round(127 * x / length) & 0xFF for x in vector)
        memory_id = add(c, "something with a vector", vector=vector)
        c.call("memory/delete", memory_id=add(c, "so that the log is emptied"))
        assert packed in (daemon.home / "witsd.db").read_bytes()
        c.call("memory/delete", memory_id=memory_id)
        assert packed not in (daemon.home / "witsd.db").read_bytes()


@pytest.mark.parametrize("who", ["person", "agent"])
def test_it_is_blotted_out_where_it_was_said(daemon: Daemon, who: str) -> None:
    with wire(daemon.socket) as c:
        define(c, "script", "script")
        define(c, "counting", "counting")
        if who == "agent":
            session = c.call("sessions/create", agent="script")["session_id"]
            steps = [["say", SECRET[:20]], ["say", SECRET[20:]]]
            given = {"text": "tell me", "data": steps}
            # What the script says stands in its input, which a person has written: another text to delete.
            run_id = c.call("runs/start", agent="script", input=given, session_id=session)["run_id"]
        else:
            session = c.call("sessions/create", agent="counting")["session_id"]
            run_id = c.call("sessions/prompt", session_id=session, text=SECRET)["run_id"]
        run = wait(c, run_id)
        assert run["status"] == "completed"
        turns = c.call("memory/list", filter={"session_id": session})["items"]
        about = [t["memory_id"] for t in turns if "Quux" in t["text"]]
        assert about
        c.subscribe(f"session:{session}", f"run:{run_id}", since={"pos": 0})
        done = c.call("memory/delete", memory_ids=about)
        assert done["redacted"] > 2
        messages = c.call("sessions/messages", session_id=session)["items"]
        assert "[deleted]" in [m["text"] for m in messages]
        events = c.call("events/read", stream=f"run:{run_id}", limit=1000)["events"]
        assert [e["type"] for e in events][-1] == "run.completed"
        if who == "person":
            assert "Quuxolomew" not in str(events)
            assert "Quuxolomew" not in str(c.call("runs/get", run_id=run_id))
            assert c.call("sessions/search", query="Quuxolomew")["items"] == []
            assert holding(daemon, *TRACES) == []
            with wire(daemon.socket) as late:
                late.subscribe("run:*", "session:*", since={"pos": 0})
                shown = [late.next_event()]
                while shown[-1]["type"] != "run.completed":
                    shown.append(late.next_event())
                assert "session.message" in [event["type"] for event in shown]
                assert "Quuxolomew" not in str(shown), "nor from what is still in memory"
        else:
            said = [e for e in events if e["type"] != "run.queued"]
            assert "Quuxolomew" not in str(said)
            assert SECRET[:20] not in str(said)
    daemon.stop()
    check(daemon)


def test_what_was_derived_goes_and_what_only_resembles_stays(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        source = add(c, SECRET)
        first = add(c, "somebody owns an umbrella", derived_from=[source])
        second = add(c, "umbrellas are owned", derived_from=[first])
        stays = add(c, "umbrellas are useful")
        done = c.call("memory/delete", memory_id=source)
        assert set(done["deleted"]) == {source, first, second}
        assert [m["memory_id"] for m in c.call("memory/list")["items"]] == [stays]


def test_a_namespace_is_cleared(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        for n in range(450):
            add(c, f"entry {n} {SECRET if n % 9 == 0 else ''}", "diary", session_id=f"s{n % 2}", kind="turn")
        add(c, "the same", "diary", kind="fact")
        add(c, "the same", "diary", kind="fact")
        add(c, "elsewhere", "other")
        embedded(c)
        assert c.call("memory/clear", namespace="diary", session_id="s1")["deleted"] == 225
        assert c.call("memory/stats", namespace="diary")["records"] == 226
        assert c.call("memory/clear", namespace="diary")["deleted"] == 227
        stats = c.call("memory/stats")
        assert (stats["records"], stats["namespaces"], stats["models"][0]["embedded"]) == (1, 1, 1)
        assert holding(daemon, *TRACES) == []
        assert c.call("memory/clear", namespace="diary") == {"deleted": 0}


def test_retention_lets_the_oldest_go(stopped_daemon: Daemon) -> None:
    config = '[retention."small:*"]\nmax_records = 5\n[retention.old]\nmax_age_days = 1\n'
    config += "[retention.large]\nmax_bytes = 100\n"
    (stopped_daemon.home / "witsd.toml").write_text(config)
    stopped_daemon.start()
    with wire(stopped_daemon.socket) as c:
        for n in range(12):
            add(c, f"entry {n:04d}", "small:a")
            add(c, f"entry {n:04d}", "large")
        add(c, "from long ago", "old", time="2020-01-01T00:00:00Z")
        add(c, "from today", "old")
        add(c, "from long ago", "kept", time="2020-01-01T00:00:00Z")
        bounds = {n["name"]: n["retention"] for n in c.call("memory/namespaces")["items"]}
        assert bounds["small:a"]["max_records"] == 5
    stopped_daemon.restart()  # it looks when it starts, and each minute
    with wire(stopped_daemon.socket) as c:
        deadline = time.monotonic() + 60
        while c.call("memory/stats")["records"] > 5 + 10 + 1 + 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        left = [m["text"] for m in c.call("memory/list", namespace="small:a")["items"]]
        assert left == [f"entry {n:04d}" for n in range(11, 6, -1)]
        assert len(c.call("memory/list", namespace="large")["items"]) == 10
        assert [m["text"] for m in c.call("memory/list", namespace="old")["items"]] == ["from today"]
        assert len(c.call("memory/list", namespace="kept")["items"]) == 1


def check(daemon: Daemon) -> None:
    """The file of a stopped daemon is sound, and its counts are right."""
    db: Any = apsw.Connection(str(daemon.home / "witsd.db"))
    try:
        assert db.pragma("integrity_check") == "ok"
        ((events, size),) = db.execute("SELECT events, bytes FROM journal")
        ((counted, summed),) = db.execute("SELECT count(*), COALESCE(sum(length(data)), 0) FROM events")
        assert (events, size) == (counted, summed)
        for name, count in db.execute("SELECT namespace_id, records FROM memory_namespaces").fetchall():
            sql = "SELECT count(*) FROM memories WHERE namespace_id = ? AND part_of IS NULL AND duplicate_of IS NULL"
            assert db.execute(sql, (name,)).get == count
    finally:
        db.close()
