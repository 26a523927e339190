"""A database from before there was memory: its sessions and runs are there, and are remembered from now on."""

from __future__ import annotations

from pathlib import Path

import apsw

from tests.integration.test_memory import found
from tests.support.agents import define, wait
from tests.support.daemon import Daemon
from tests.support.memory import check, embedded
from tests.support.wire import Wire, wire
from witsd.journal.migrations import STEPS, migrate


def made_old(path: Path) -> None:
    """Put in place of the database at ``path`` what its first version would have been."""
    old = apsw.Connection(":memory:")
    migrate(old, ":memory:", STEPS[:1])
    old.execute("ATTACH ? AS new", (str(path),))
    # What belongs to a text index is written by triggers.
    tables = "SELECT name FROM main.sqlite_schema WHERE type = 'table' AND name NOT LIKE '%\\_fts%' ESCAPE '\\'"
    for (table,) in old.execute(tables).fetchall():
        columns = ", ".join(name for (name,) in old.execute("SELECT name FROM pragma_table_info(?)", (table,)))
        old.execute(f"DELETE FROM main.{table}")
        old.execute(f"INSERT INTO main.{table}({columns}) SELECT {columns} FROM new.{table}")
    old.execute("DELETE FROM main.meta WHERE key LIKE 'memory.%'")
    old.execute("DETACH new")
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
    old.execute("VACUUM INTO ?", (str(path),))
    old.close()


def say(c: Wire, session_id: str, text: str) -> None:
    assert wait(c, c.call("sessions/prompt", session_id=session_id, text=text)["run_id"])["status"] == "completed"


def test_a_database_of_the_first_version_is_taken_over(daemon: Daemon, tmp_path: Path) -> None:
    with wire(daemon.socket) as c:
        define(c, "counting", "counting", start="on_demand")
        session = c.call("sessions/create", agent="counting", title="long ago")["session_id"]
        say(c, session, "the walnut tree was planted")
    daemon.stop()
    made_old(daemon.home / "witsd.db")
    daemon.start()
    with wire(daemon.socket) as c:
        define(c, "counting", "counting", start="on_demand")
        assert c.call("memory/stats")["records"] == 0
        assert [s["title"] for s in c.call("sessions/list")["items"]] == ["long ago"]
        messages = c.call("sessions/messages", session_id=session)["items"]
        assert [m["role"] for m in messages] == ["user", "assistant"]
        assert c.call("runs/list")["items"][0]["status"] == "completed"
        assert c.call("sessions/search", query="walnut")["items"]
        # What is said from now on is remembered, in the conversation that went on before.
        say(c, session, "the walnut tree was felled")
        assert found(c, "walnut", filter={"session_id": session, "speaker": "owner"}) == ["the walnut tree was felled"]
        assert [m["seq"] for m in c.call("events/read", stream=f"session:{session}")["events"]]
        # What was said before comes in when it is asked to.
        exported = tmp_path / "talk.jsonl"
        exported.write_text(daemon.cli("session", "export", session).stdout)
        done = daemon.cli("memory", "import", "-N", "agent:counting", str(exported))
        assert done.returncode == 0, done.stderr
        assert any("planted" in text for text in found(c, "walnut planted"))
        embedded(c)
        assert any("planted" in text for text in found(c, "walnut planted", mode="semantic"))
        c.call("blocks/set", agent="counting", name="human", text="likes trees")
    assert daemon.stop() == 0
    check(daemon)
