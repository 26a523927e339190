"""Fixtures for tests that hurt the real daemon."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.daemon import Daemon


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """A daemon with a home of its own, not started; its log is shown when the test fails."""
    it = Daemon()
    try:
        yield it
    finally:
        it.remove_after_showing()
