"""A daemon whose model plays rules, for tests that reach it as programs do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from witsd_client.sync import SyncClient, connect

from tests.support.daemon import Daemon

HERE = Path(__file__).parent

SETTINGS = f"""
[models]
default = "demo"

[providers.demo]
kind = "scripted"
script = "{HERE / "rules.toml"}"
models = ["demo", "another"]
"""


@pytest.fixture(scope="session")
def daemon() -> Iterator[Daemon]:
    it = Daemon()
    (it.home / "witsd.toml").write_text(SETTINGS)
    try:
        it.start()
        yield it
    finally:
        it.remove_after_showing()


@pytest.fixture(scope="session")
def client(daemon: Daemon) -> Iterator[SyncClient]:
    with connect(daemon.socket) as it:
        yield it
