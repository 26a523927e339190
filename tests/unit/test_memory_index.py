"""What the text index holds of records and their neighbours, however they came into it."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.support.journal import journal_at, table
from witsd.journal.journal import Journal, Tx
from witsd.services.memory import index, records, store

_WORDS = ["lemon", "otter", "lantern", "gravel", "violin", "saddle"]
_LONG = "\n\n".join(f"# Part {n}\n\n{f'A sentence about {_WORDS[n % 6]}. ' * 40}" for n in range(6))


def turn(number: int, chance: Random) -> store.New:
    return store.New(
        memory_id=f"mem_{number}",
        namespace=chance.choice(("agent:a", "agent:b")),
        kind="turn",
        text=_LONG if chance.random() < 0.1 else f"{chance.choice(_WORDS)} number {number}",
        author="me",
        trust=2,
        speaker="Ada",
        session_id=chance.choice(("s", "t", None)),
        dedupe=False,
    )


async def in_index(journal: Journal) -> list[tuple[Any, ...]]:
    # Without the day on which it was: tests also run at midnight.
    rows = await table(journal, "SELECT rowid, ns, own, around FROM memory_fts ORDER BY rowid")
    return [(rowid, ns, own.split(" ", 5)[-1], around) for rowid, ns, own, around in rows]


@pytest.mark.parametrize("at_once", [3, 50])
async def test_many_at_once_are_indexed_as_one_by_one(tmp_path: Path, at_once: int) -> None:
    found = []
    for name, size in (("one", 1), ("many", at_once)):
        async with journal_at(tmp_path / f"{name}.db") as journal:
            chance = Random(3)
            turns = [turn(number, chance) for number in range(50)]
            for first in range(0, len(turns), size):

                def work(tx: Tx, batch: list[store.New] = turns[first : first + size]) -> None:
                    for new in batch:
                        store.add(tx, new)

                await journal.write(work)
            found.append(await in_index(journal))
    assert len(found[0]) > 50
    assert found[0] == found[1]


async def test_what_changes_and_goes_in_one_batch_is_indexed_as_it_ends(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "j.db") as journal:

        def add(tx: Tx) -> None:
            for number, word in enumerate(_WORDS):
                new = store.New(
                    memory_id=f"mem_{number}", namespace="shared", kind="turn", text=word, author="me", trust=2,
                    session_id="s", dedupe=False,
                )  # fmt: skip
                store.add(tx, new)

        def change(tx: Tx) -> None:
            add(tx)
            store.update(tx, records.load_tx(tx, "mem_1"), {"text": "badger"}, "me", None, None)
            store.erase(tx, [records.load_tx(tx, "mem_3").id], "asked")

        await journal.write(change)
        rows = [(own.split()[-1], around.split("\n")) for _, _, own, around in await in_index(journal)]
        assert rows == [
            ("lemon", ["badger", "lantern"]),
            ("badger", ["lemon", "lantern", "violin"]),
            ("lantern", ["lemon", "badger", "violin", "saddle"]),
            ("violin", ["badger", "lantern", "saddle"]),
            ("saddle", ["lantern", "violin"]),
        ]


async def test_one_of_an_undone_ticket_is_passed_over(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "j.db") as journal:

        def wrong(tx: Tx) -> None:
            store.add(tx, turn(1, Random(1)))
            index.refresh(tx, 77)
            raise LookupError

        with pytest.raises(LookupError):
            await journal.write(wrong)
        await journal.write(lambda tx: index.put(tx, 77))
        assert await in_index(journal) == []
