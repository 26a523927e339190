"""A shell one-liner is a client: ``nc`` that half-closes the Unix socket and waits for the answer."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from tests.support.daemon import PATIENCE_S, Daemon


@pytest.fixture
def nc() -> str:
    """OpenBSD's netcat, the one with ``-U``; or a skip that says so."""
    found = shutil.which("nc")
    if found is None:
        pytest.skip("nc is not installed")
    usage = subprocess.run([found, "-h"], capture_output=True, text=True, timeout=10)
    if "-U" not in usage.stdout + usage.stderr:
        pytest.skip("this nc has no -U: install netcat-openbsd")
    return found


def test_printf_into_nc_gets_an_answer(nc: str, daemon: Daemon) -> None:
    line = r"""printf '{"jsonrpc":"2.0","id":1,"method":"agents/list"}\n' | "$0" -U -q1 "$WITSD_HOME/witsd.sock" """
    done = subprocess.run(
        ["/bin/sh", "-c", line, nc], env=daemon.env, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    (answer,) = done.stdout.splitlines()
    assert json.loads(answer)["id"] == 1
    assert [agent["name"] for agent in json.loads(answer)["result"]["items"]] == ["assistant"]
