"""``artifacts/*``: files that runs have made: each a file beside the database, with a row that names it."""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import mimetypes
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apsw
import attrs
import trio

from witsd.journal.journal import Journal, Tx
from witsd.services import run_rows
from witsd.services.run_book import RunBook
from witsd.services.run_state import LiveRun
from witsd.services.runs import cursor_number
from witsd.services.tools.beneath import folder, open_beneath
from witsd.values.actor import Actor, Scope
from witsd.values.clock import Clock, rfc3339
from witsd.values.config import Artifacts as Settings
from witsd.values.errors import InvalidParams, InvalidState, LimitExceeded, NotFound, PermissionDenied
from witsd.values.ids import Ids, ItemId
from witsd.values.items import ArtifactItem
from witsd.values.wire import artifacts as wire
from witsd.values.wire.common import UNSET
from witsd.values.wire.native import ItemNotification

log = logging.getLogger("witsd.artifacts")

_COLUMNS = "n, artifact_id, run_id, name, media_type, bytes, sha256, created_us"
#: How often what is too old or too much is looked for, in seconds.
_EVERY_S = 600.0
_SLICE = 500
#: How old a file is that should have a row, in seconds.
_UNKNOWN_S = 3600.0


@attrs.define(eq=False)
class Artifacts:
    """The service; ``folder`` is made when the first comes."""

    _journal: Journal
    _book: RunBook
    _clock: Clock
    _ids: Ids
    _folder: Path
    #: Each agent's ``run_dir`` is in it, under its name.
    _run_root: Path
    _settings: Settings

    # ---- methods --------------------------------------------------------------------------------------

    async def put(self, actor: Actor, params: wire.ArtifactsPutParams) -> wire.Artifact:
        """Raises ``NotFound`` (run), ``InvalidParams``, ``PermissionDenied`` (path), ``LimitExceeded``."""
        given = [value for value in (params.text, params.data, params.path) if value is not None]
        if len(given) != 1:
            raise InvalidParams("give one of params.text, params.data and params.path", path="params.data")
        if params.path is not None:
            data = await trio.to_thread.run_sync(self._read, actor, params.path)
        elif params.data is not None:
            try:
                data = base64.b64decode(params.data, validate=True)
            except (binascii.Error, ValueError) as error:
                raise InvalidParams(f"params.data is no base64: {error}", path="params.data") from None
        else:
            data = (params.text or "").encode("utf-8", "surrogatepass")
        if actor.agent is not None:
            run = self._book.of_agent(actor, params.run_id)
            if run is None:
                raise NotFound(f"there is no run {params.run_id!r} of {actor.label} that is on", kind="run")
        else:
            await self._check_run(params.run_id)
        media_type = params.media_type or mimetypes.guess_type(params.name)[0]
        if not media_type:
            media_type = "text/plain" if params.text is not None else "application/octet-stream"
        return await self.keep(params.run_id, params.name, media_type, data)

    async def get(self, actor: Actor, params: wire.ArtifactsGetParams) -> wire.ArtifactPiece:
        """A piece of one. Raises ``NotFound``, also where its file is gone."""
        if (params.artifact_id is None) == (params.run_id is None or params.name is None):
            raise InvalidParams("give params.artifact_id, or params.run_id and params.name", path="params.artifact_id")
        artifact = await self._journal.store.read(lambda db: _find(db, params))
        if artifact is None or not await self._may_see(actor, artifact.run_id):
            what = params.artifact_id or params.name
            raise NotFound(f"there is no artifact {what!r}", kind="artifact", id=what)

        def piece() -> bytes:
            with (self._folder / artifact.artifact_id).open("rb") as file:
                file.seek(params.offset)
                return file.read(params.length)

        try:
            data = await trio.to_thread.run_sync(piece)
        except OSError as error:
            raise NotFound(
                f"the file of {artifact.name!r} is gone: {error.strerror}", kind="artifact", id=artifact.artifact_id
            ) from None
        return wire.ArtifactPiece(
            artifact=artifact,
            data=base64.b64encode(data).decode(),
            offset=params.offset,
            more=params.offset + len(data) < artifact.bytes,
        )

    async def list(self, actor: Actor, params: wire.ArtifactsListParams) -> wire.ArtifactPage:
        """An agent names a run of its own."""
        before = cursor_number(params.cursor)
        if actor.agent is not None and (params.run_id is None or not await self._may_see(actor, params.run_id)):
            raise PermissionDenied(f"{actor.label} sees the artifacts of its own runs: give run_id", needs="run")
        rows = await self._journal.store.read(
            lambda db: db.execute(
                f"SELECT {_COLUMNS} FROM artifacts WHERE n < ? AND (? IS NULL OR run_id = ?) ORDER BY n DESC LIMIT ?",
                (1 << 62 if before is None else before, params.run_id, params.run_id, params.limit),
            ).fetchall()
        )
        return wire.ArtifactPage(
            items=tuple(map(_view, rows)),
            next_cursor=str(rows[-1][0]) if len(rows) == params.limit else UNSET,
        )

    # ---- keeping --------------------------------------------------------------------------------------

    async def keep(self, run_id: str, name: str, media_type: str, data: bytes) -> wire.Artifact:
        """Write it down as an artifact of the run, which gets an item for it while it is on."""
        name = Path(name).name or "artifact"
        if len(data) > self._settings.max_bytes:
            raise LimitExceeded(
                f"{name} has {len(data)} bytes, and an artifact may have {self._settings.max_bytes} "
                "(artifacts.max_bytes of witsd.toml)",
                limit="artifacts.max_bytes",
                value=self._settings.max_bytes,
            )
        artifact_id = self._ids.new("artifact")
        digest = hashlib.sha256(data).hexdigest()
        await trio.to_thread.run_sync(self._write, artifact_id, data)

        def insert(tx: Tx) -> wire.Artifact:
            used = tx.execute("SELECT COALESCE(sum(bytes), 0) FROM artifacts WHERE run_id = ?", (run_id,))[0][0]
            if used + len(data) > self._settings.run_bytes:
                raise LimitExceeded(
                    f"the artifacts of a run may have {self._settings.run_bytes} bytes (artifacts.run_bytes)",
                    limit="artifacts.run_bytes",
                    value=self._settings.run_bytes,
                )
            tx.execute(
                "INSERT INTO artifacts(artifact_id, run_id, name, media_type, bytes, sha256, created_us) "
                "VALUES (?,?,?,?,?,?,?)",
                (artifact_id, run_id, name, media_type, len(data), digest, tx.now_us),
            )
            return wire.Artifact(
                artifact_id=artifact_id,
                run_id=run_id,
                name=name,
                media_type=media_type,
                bytes=len(data),
                sha256=digest,
                created_at=rfc3339(tx.now_us),
            )

        try:
            artifact = await self._journal.write(insert)
        except trio.Cancelled:
            raise  # the row may be written yet: a file that gets none is swept
        except BaseException:
            (self._folder / artifact_id).unlink(missing_ok=True)
            raise
        run = self._book.live.get(run_id)  # type: ignore[call-overload]
        if run is not None:
            self._show(run, artifact)
        return artifact

    def _show(self, run: LiveRun, artifact: wire.Artifact) -> None:
        item = ArtifactItem(
            item_id=ItemId(artifact.artifact_id),
            status="completed",
            name=artifact.name,
            media_type=artifact.media_type,
            path=str(self._folder / artifact.artifact_id),
            artifact_id=artifact.artifact_id,
        )
        actor = Actor(kind="agent", label=f"agent:{run.agent}", agent=run.agent)
        self._book.item(actor, ItemNotification(run_id=run.run_id, item=item))

    def _read(self, actor: Actor, path: str) -> bytes:
        """The file, no larger than it may be. Blocking."""
        try:
            if actor.agent is not None:
                root = self._run_root / actor.agent
                with folder(root) as descriptor:
                    opened = open_beneath(descriptor, os.path.relpath(path, root), os.O_RDONLY | os.O_NONBLOCK)
            elif Scope.ADMIN in actor.scopes:
                opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            else:
                raise PermissionDenied(f"{actor.label} may not have files copied: give data", needs=Scope.ADMIN.value)
            with os.fdopen(opened, "rb") as file:
                if not stat.S_ISREG(os.fstat(opened).st_mode):
                    raise InvalidParams(f"params.path: {path} is no ordinary file", path="params.path")
                return file.read(self._settings.max_bytes + 1)
        except OSError as error:
            raise InvalidParams(f"params.path: {path}: {error.strerror}", path="params.path") from None

    def _write(self, artifact_id: str, data: bytes) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(self._folder / artifact_id, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
        except OSError as error:
            (self._folder / artifact_id).unlink(missing_ok=True)
            raise LimitExceeded(
                f"the artifact cannot be written ({error.strerror}): free some space and try again",
                limit="disk",
                value=0,
            ) from error

    # ---- who, and how long ----------------------------------------------------------------------------

    async def _check_run(self, run_id: str) -> None:
        if run_id in self._book.live:
            return
        if await self._journal.store.read(lambda db: run_rows.asked_by(db, run_id)) is None:
            raise NotFound(f"there is no run {run_id!r}", kind="run", id=run_id)
        raise InvalidState("the run is over: nothing can be added to it", state="over")

    async def _may_see(self, actor: Actor, run_id: str) -> bool:
        if actor.agent is None:
            return True
        asked = await self._journal.store.read(lambda db: run_rows.asked_by(db, run_id))
        return asked is not None and (asked[0] == actor.agent or asked[1] == actor.label)

    async def keep_up(self) -> None:
        """Delete what is too old, or too much, for ever."""
        while True:
            try:
                await self.tidy()
            except (apsw.Error, LimitExceeded, OSError) as error:
                log.error("artifacts.upkeep_failed error=%s", error)
            await trio.sleep(_EVERY_S)

    async def tidy(self) -> int:
        """How many have gone: the rows first, for a file without one is found by nobody and swept here."""
        older_than = self._clock.wall_us() - int(self._settings.max_age_days * 86_400e6)

        def due(tx: Tx) -> list[str]:
            rows = tx.execute(
                "SELECT artifact_id FROM "
                "(SELECT artifact_id, n, created_us, sum(bytes) OVER (ORDER BY n DESC) AS total FROM artifacts) "
                "WHERE created_us < ? OR total > ? ORDER BY n LIMIT ?",
                (older_than, self._settings.total_bytes, _SLICE),
            )
            for (artifact_id,) in rows:
                tx.execute("DELETE FROM artifacts WHERE artifact_id = ?", (artifact_id,))
            return [artifact_id for (artifact_id,) in rows]

        gone: list[str] = []
        while found := await self._journal.write(due):
            gone += found

        await trio.to_thread.run_sync(self._remove, gone)
        old = await trio.to_thread.run_sync(self._old)
        for start in range(0, len(old), _SLICE):
            names = old[start : start + _SLICE]
            known = await self._journal.store.read(lambda db, names=names: _known(db, names))  # type: ignore[misc]
            await trio.to_thread.run_sync(self._remove, [name for name in names if name not in known])
        return len(gone)

    def _old(self) -> Sequence[str]:
        """The files that have had the time to get a row. Blocking."""
        before_s = self._clock.wall_us() / 1e6 - _UNKNOWN_S
        try:
            with os.scandir(self._folder) as entries:
                return [one.name for one in entries if one.stat(follow_symlinks=False).st_mtime < before_s]
        except FileNotFoundError:
            return []  # none was made so far

    def _remove(self, names: Sequence[str]) -> None:
        for name in names:
            (self._folder / name).unlink(missing_ok=True)


def _find(db: apsw.Connection, params: wire.ArtifactsGetParams) -> wire.Artifact | None:
    if params.artifact_id is not None:
        sql, values = "artifact_id = ?", (params.artifact_id.removeprefix("artifact:"),)
    else:
        sql, values = "run_id = ? AND name = ?", (params.run_id, params.name)  # type: ignore[assignment]
    row = db.execute(f"SELECT {_COLUMNS} FROM artifacts WHERE {sql} ORDER BY n DESC LIMIT 1", values).fetchone()
    return None if row is None else _view(row)


def _known(db: apsw.Connection, names: Sequence[str]) -> set[str]:
    marks = ",".join("?" * len(names))
    return {name for (name,) in db.execute(f"SELECT artifact_id FROM artifacts WHERE artifact_id IN ({marks})", names)}


def _view(row: Sequence[Any]) -> wire.Artifact:
    _, artifact_id, run_id, name, media_type, size, sha256, created = row
    return wire.Artifact(
        artifact_id=artifact_id,
        run_id=run_id,
        name=name,
        media_type=media_type,
        bytes=size,
        sha256=sha256,
        created_at=rfc3339(created),
    )
