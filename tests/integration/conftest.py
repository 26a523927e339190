"""Fixtures for tests against the real daemon."""

from __future__ import annotations

from collections.abc import Iterator

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
