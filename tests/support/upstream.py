"""A model server for tests that are not async: ``FakeOpenAI`` on a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trio

from tests.doubles.fake_openai import KEY, FakeOpenAI, open_fake_openai
from tests.support.daemon import Daemon

PATIENCE_S = 60.0


@contextmanager
def upstream(**settings: Any) -> Iterator[FakeOpenAI]:
    """Serve until the block ends. What it has seen may be read from here."""
    found: list[tuple[FakeOpenAI, trio.Event, trio.lowlevel.TrioToken]] = []
    begun = threading.Event()

    async def serve() -> None:
        async with open_fake_openai(**settings) as fake:
            over = trio.Event()
            found.append((fake, over, trio.lowlevel.current_trio_token()))
            begun.set()
            await over.wait()

    thread = threading.Thread(target=trio.run, args=(serve,), daemon=True)
    thread.start()
    assert begun.wait(PATIENCE_S), "the server did not start"
    fake, over, token = found[0]
    try:
        yield fake
    finally:
        token.run_sync_soon(over.set)
        thread.join(PATIENCE_S)


def configure(daemon: Daemon, fake: FakeOpenAI, *, name: str = "up", more: str = "", settings: str = "") -> None:
    """Write the ``witsd.toml`` of a daemon that is yet to start, with this server as provider ``name``."""
    key = daemon.home / f"{name}.key"
    key.write_text(KEY)
    key.chmod(0o600)
    provider = f'[providers.{name}]\nkind = "openai"\nbase_url = "{fake.base_url}"\napi_key_file = "{key}"\n{more}\n'
    with (daemon.home / "witsd.toml").open("a") as file:
        file.write(f"{settings}\n{provider}")
