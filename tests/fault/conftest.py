"""Fixtures for tests that hurt the real daemon."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.support.daemon import Daemon
from tests.support.processes import of_daemon


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """A daemon with a home of its own, not started; its log is shown when the test fails."""
    it = Daemon()
    try:
        yield it
    finally:
        it.remove_after_showing()
        # A test that failed between a kill and the next start leaves what only that start would have swept away.
        for pid in of_daemon(it.home):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
