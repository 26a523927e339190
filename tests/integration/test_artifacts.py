"""Artifacts: files of runs, who may have them, how large they may be and how long they stay."""

from __future__ import annotations

import base64
import sys
from typing import Any

import pytest

from tests.support.daemon import PATIENCE_S, Daemon
from tests.support.tools import define_caller

MAKER = """
import base64
from pathlib import Path
from witsd_client import Agent

agent = Agent("maker")

@agent.run
async def make(run):
    put = run.client.artifacts.put
    if run.text == "large":
        await put(run_id=run.run_id, name="large.bin", data=base64.b64encode(bytes(3000)).decode())
    if run.text.startswith("path "):
        await put(run_id=run.run_id, name="p", path=run.text[5:])
    if run.text == "other":
        return [one.name for one in (await run.client.artifacts.list(run_id=run.run_id)).items]
    Path(agent.run_dir, "made.txt").write_text("made")
    await put(run_id=run.run_id, name="../up/notes.md", text="one")
    await put(run_id=run.run_id, name="notes.md", text="two")
    made = await put(run_id=run.run_id, name="made.txt", path=str(Path(agent.run_dir, "made.txt")))
    return made.artifact_id

agent.serve()
"""


@pytest.fixture
def maker(stopped_daemon: Daemon) -> Daemon:
    daemon = stopped_daemon
    (daemon.home / "witsd.toml").write_text("[artifacts]\nmax_bytes = 2048\nrun_bytes = 4096\n")
    daemon.start()
    program = daemon.home / "maker.py"
    program.write_text(MAKER)
    daemon.call("agents/define", spec={"name": "maker", "kind": "native", "command": [sys.executable, str(program)]})
    return daemon


def ran(daemon: Daemon, text: str, agent: str = "maker") -> Any:
    run_id = daemon.call("runs/start", agent=agent, input=text)["run_id"]
    return daemon.call("runs/wait", run_id=run_id, timeout_s=PATIENCE_S)


def test_what_a_run_has_made_is_listed_and_got_after_a_restart(maker: Daemon) -> None:
    run = ran(maker, "make")
    assert run["status"] == "completed", run
    items = [item for item in run["items"] if item["type"] == "artifact"]
    assert [(item["name"], item["media_type"]) for item in items] == [
        ("notes.md", "text/markdown"),
        ("notes.md", "text/markdown"),
        ("made.txt", "text/plain"),
    ]
    maker.restart()
    listed = maker.call("artifacts/list", run_id=run["run_id"])["items"]
    assert [one["name"] for one in listed] == ["made.txt", "notes.md", "notes.md"]
    latest = maker.call("artifacts/get", run_id=run["run_id"], name="notes.md")
    assert base64.b64decode(latest["data"]) == b"two"
    piece = maker.call("artifacts/get", artifact_id=f"artifact:{run['output']}", offset=1, length=2)
    assert (base64.b64decode(piece["data"]), piece["more"]) == (b"ad", True)


def test_what_is_too_large_or_not_its_own_is_refused(maker: Daemon) -> None:
    assert ran(maker, "large")["error"]["data"]["limit"] == "artifacts.max_bytes"
    secret = maker.home / "witsd.db"
    assert ran(maker, f"path {secret}")["error"]["code"] == -32602
    made = ran(maker, "make")
    define_caller(maker, "other")
    answer = maker.ask(
        {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "artifacts/put",
            "params": {"run_id": made["run_id"], "name": "late", "text": "x"},
        }
    )
    assert answer["error"]["code"] == -32005
