"""Everything runs on trio and on asyncio, against a fake daemon that speaks the wire to the letter."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_daemon import FakeDaemon


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[FakeDaemon]:
    """A fake daemon on a Unix socket; ``daemon.path`` is where."""
    fake = FakeDaemon(tmp_path / "witsd.sock")
    async with anyio.create_task_group() as tasks:
        await fake.listen(tasks)
        yield fake
        # To cancel a read at the moment in which the other side hangs up is an error of anyio's on asyncio.
        await fake.until(lambda: not fake.peers)
        tasks.cancel_scope.cancel()
