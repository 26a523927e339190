"""What the daemon does not import when it starts: frameworks, and what is made for people.

``asyncio`` is not in the list although nothing here uses it: ``jsonrpcserver`` imports it. That no module
of the daemon imports it itself is for ruff and import-linter.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

#: Name -> why the daemon must start without it.
ABSENT = {
    "anyio": "the daemon is trio's; only the client runs on either loop",
    "click": "the command line's",
    "httpx": "loaded at the first call to a model provider",
    "jsonschema": "jsonrpcserver's check of whole messages, which ``codec`` does instead",
    "langchain": "lives in an adapter process",
    "langchain_core": "lives in an adapter process",
    "mcp": "lives in an adapter process",
    "numpy": "nothing here computes with arrays",
    "pydantic": "msgspec is the codec",
    "rich": "the command line's",
    "torch": "lives in an adapter process",
    "trio_websocket": "loaded at the first WebSocket connection",
    "witsd.adapters": "programs of their own",
    "witsd.cli": "a client",
}

LIST_MODULES = "import json, sys, witsd.daemon; print(json.dumps(sorted(sys.modules)))"


def imported(code: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.fixture(scope="module")
def modules() -> set[str]:
    return imported(LIST_MODULES)


@pytest.mark.parametrize("name", ABSENT)
def test_the_daemon_does_not_import(modules: set[str], name: str) -> None:
    assert name not in modules, ABSENT[name]


def test_the_list_of_modules_is_real(modules: set[str]) -> None:
    assert {"witsd.daemon", "trio", "apsw", "msgspec"} <= modules
    assert "rich" in imported(LIST_MODULES.replace("witsd.daemon", "witsd.daemon, rich"))
