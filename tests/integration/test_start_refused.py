"""A start that cannot be: one line that says what is in the way, and no traceback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.support.daemon import PATIENCE_S, Daemon


def put(name: str, text: str) -> Callable[[Daemon], object]:
    return lambda daemon: (daemon.home / name).write_text(text)


def setting(name: str, value: str) -> Callable[[Daemon], object]:
    return lambda daemon: daemon.env.update({name: value})


@pytest.mark.parametrize(
    ("prepare", "status", "says"),
    [
        (put("logs", ""), 1, "cannot make the folder"),
        (put("agents", ""), 1, "cannot write a first definition into"),
        (setting("WITSD_HOME", "/proc/witsd"), 1, "cannot make the folder /proc/witsd"),
        (setting("WITSD_LISTEN_UNIX", "~nosuchuser/x"), 2, "no such home folder"),
        (put("witsd.toml", '[listen]\nunix = "a\\u0000b"\n'), 1, "NUL"),
    ],
)
def test_what_is_in_the_way_is_said(
    stopped_daemon: Daemon, prepare: Callable[[Daemon], object], status: int, says: str
) -> None:
    prepare(stopped_daemon)
    ended = subprocess.run(
        [sys.executable, "-m", "witsd.daemon"],
        env=stopped_daemon.env,
        cwd=stopped_daemon.user_home,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert ended.returncode == status
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("witsd: ")
    assert says in last
    assert "Traceback" not in ended.stderr
