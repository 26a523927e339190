"""Files of artifacts that no row names: what a crash between the two leaves behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.doubles.clock import FakeClock
from tests.support.journal import journal_at
from witsd.services.artifacts import Artifacts
from witsd.values.config import Artifacts as Settings
from witsd.values.ids import TimeOrderedIds


async def test_an_old_file_without_a_row_goes(tmp_path: Path) -> None:
    clock = FakeClock()
    folder = tmp_path / "artifacts"
    now_s = clock.wall_us() / 1e6
    async with journal_at(tmp_path / "j.db") as journal:
        book: Any = None
        ids = TimeOrderedIds(clock.wall_us)
        artifacts = Artifacts(journal, book, clock, ids, folder, tmp_path, Settings())
        assert await artifacts.tidy() == 0, "before there is a folder, too"
        folder.mkdir()
        for name, age_s in (("known", 7200), ("orphan", 7200), ("young", 60)):
            (folder / name).write_text(name)
            os.utime(folder / name, (now_s - age_s, now_s - age_s))
        row = ("known", "run_1", "n", "text/plain", 5, "", clock.wall_us())
        insert = (
            "INSERT INTO artifacts(artifact_id, run_id, name, media_type, bytes, sha256, created_us) "
            "VALUES (?,?,?,?,?,?,?)"
        )
        await journal.write(lambda tx: tx.execute(insert, row))
        assert await artifacts.tidy() == 0
        assert sorted(path.name for path in folder.iterdir()) == ["known", "young"]
