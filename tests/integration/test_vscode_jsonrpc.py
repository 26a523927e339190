"""An editor's JSON-RPC library talks to the daemon over the Unix socket that shell scripts use."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest

from tests.support.daemon import PATIENCE_S, ROOT, Daemon

JS = ROOT / "tests" / "js"


@pytest.fixture
def node() -> str:
    """The node program, or a skip that says what is missing."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("node is not installed")
    if not (JS / "node_modules" / "vscode-jsonrpc").is_dir():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("npm is not installed, and tests/js has no vscode-jsonrpc")
        done = subprocess.run([npm, "ci", "--silent"], cwd=JS, capture_output=True, text=True, timeout=120)
        if done.returncode != 0:
            pytest.skip(f"`npm ci` in tests/js failed: {done.stderr.strip()[-300:]}")
    return found


@pytest.fixture
def got(node: str, daemon: Daemon) -> dict[str, Any]:
    """What the client saw."""
    command = [node, str(JS / "vscode_client.cjs"), str(daemon.socket)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_vscode_jsonrpc_over_the_unix_socket(got: dict[str, Any]) -> None:
    assert got["ping"] == {}
    assert "assistant" in [agent["name"] for agent in got["agents"]["items"]]

    assert got["unknown_method"]["code"] == -32601
    assert got["invalid_params"]["code"] == -32602
    assert got["invalid_params"]["data"]["path"] == "params.name"
    assert got["not_found"]["code"] == -32002
    assert got["not_found"]["data"]["id"] == "x-nowhere"

    (created,) = [event for event in got["events"] if event["type"] == "session.created"]
    assert created["subscription_id"] == got["subscription"]["subscription_id"]
    assert created["stream"] == f"session:{got['session']['session_id']}"
    assert created["seq"] == 1
    assert created["data"]["session"]["title"] == "Grüße 𝄞"

    assert got["after_foreign_notification"] == {}
