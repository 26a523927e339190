"""When a history is a new one, so that no cursor of the old one is taken for good."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.journal import journal_at
from witsd.journal import epoch
from witsd.journal.store import open_store


class Machine:
    """Starts of the daemon on one database, each with the epoch it would take if one were due."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.starts = 0

    async def start(self, boot: str, synchronous: str = "FULL", *, clean: bool) -> str:
        """The epoch it came up with; stopped in order where ``clean``."""
        self.starts += 1
        async with open_store(self.path) as store:
            name = await store.write(epoch.begin, boot, synchronous, f"epoch {self.starts}")
        async with journal_at(self.path) as journal:
            if clean:
                await journal.write(epoch.end_cleanly)
        return name


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "j.db")


async def test_a_new_database_gets_one_and_keeps_it(machine: Machine) -> None:
    for boot in ("monday", "monday", "tuesday"):
        assert await machine.start(boot, clean=True) == "epoch 1"


@pytest.mark.parametrize("synchronous", ["OFF", "NORMAL"])
async def test_power_cut_below_full_makes_a_new_one(machine: Machine, synchronous: str) -> None:
    assert await machine.start("monday", synchronous, clean=False) == "epoch 1"
    assert await machine.start("tuesday", synchronous, clean=True) == "epoch 2"
    assert await machine.start("wednesday", synchronous, clean=True) == "epoch 2"


@pytest.mark.parametrize("synchronous", ["FULL", "EXTRA"])
async def test_power_cut_with_full_loses_nothing(machine: Machine, synchronous: str) -> None:
    assert await machine.start("monday", synchronous, clean=False) == "epoch 1"
    assert await machine.start("tuesday", synchronous, clean=False) == "epoch 1"


async def test_a_crash_of_the_daemon_alone_loses_nothing(machine: Machine) -> None:
    """The machine stayed up, so what SQLite had written is in the kernel's hands."""
    assert await machine.start("monday", "OFF", clean=False) == "epoch 1"
    assert await machine.start("monday", "OFF", clean=False) == "epoch 1"


async def test_a_clean_stop_counts_once(machine: Machine) -> None:
    assert await machine.start("monday", "NORMAL", clean=True) == "epoch 1"
    assert await machine.start("tuesday", "NORMAL", clean=False) == "epoch 1"
    assert await machine.start("wednesday", "NORMAL", clean=False) == "epoch 3"


async def test_what_counts_is_how_it_was_written_and_not_how_it_will_be(machine: Machine) -> None:
    assert await machine.start("monday", "NORMAL", clean=False) == "epoch 1"
    assert await machine.start("tuesday", "FULL", clean=False) == "epoch 2"
    assert await machine.start("wednesday", "NORMAL", clean=False) == "epoch 2", "written with FULL until now"
    assert await machine.start("thursday", "NORMAL", clean=False) == "epoch 4"
