"""``blocks/*``: short texts that are always in an agent's prompt, written by people and by the agent itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import apsw
import attrs

from witsd.journal.journal import Journal, Tx
from witsd.values.actor import Actor
from witsd.values.clock import rfc3339
from witsd.values.errors import Conflict, LimitExceeded, NotFound, PermissionDenied
from witsd.values.wire import memory as wire

#: They are in every prompt: characters of one, how many an agent has, and how many versions of one are kept.
MAX_CHARACTERS = 4000
MAX_BLOCKS = 16
MAX_VERSIONS = 100

_COLUMNS = "b.agent, b.name, b.text, b.version, b.author, b.time_us"
_NEWEST = "b.version = (SELECT max(n.version) FROM blocks n WHERE n.agent = b.agent AND n.name = b.name)"


@attrs.define(eq=False)
class Blocks:
    """The service."""

    _journal: Journal
    #: The run that a caller writes for.
    _run_of: Callable[[Actor, str | None], str | None]

    async def list(self, actor: Actor, params: wire.BlocksListParams) -> wire.BlockPage:
        """By name; those that were emptied are left out."""
        _require(actor, params.agent)
        return wire.BlockPage(items=await self._journal.store.read(lambda db: of_agent(db, params.agent)))

    async def get(self, actor: Actor, params: wire.BlocksGetParams) -> wire.Block:
        _require(actor, params.agent)

        def look(db: apsw.Connection) -> wire.Block:
            which, values = (_NEWEST, ()) if params.version is None else ("b.version = ?", (params.version,))
            row = db.execute(
                f"SELECT {_COLUMNS} FROM blocks b WHERE b.agent = ? AND b.name = ? AND {which}",
                (params.agent, params.name, *values),
            ).fetchone()
            if row is None:
                raise NotFound(f"{params.agent} has no such block {params.name!r}", kind="block", id=params.name)
            return _view(row)

        return await self._journal.store.read(look)

    async def set(self, actor: Actor, params: wire.BlocksSetParams) -> wire.Block:
        """Raises ``LimitExceeded``, and ``Conflict`` where ``version`` is given and is another one by now."""
        _require(actor, params.agent)
        if len(params.text) > MAX_CHARACTERS:
            raise LimitExceeded(
                f"a block is in every prompt and has at most {MAX_CHARACTERS} characters, not {len(params.text)}: "
                "put the rest into memory/add",
                limit="block_characters",
                value=MAX_CHARACTERS,
            )

        run_id = self._run_of(actor, params.run_id)

        def work(tx: Tx) -> wire.Block:
            found = tx.execute(
                "SELECT max(version) FROM blocks WHERE agent = ? AND name = ?", (params.agent, params.name)
            )
            version = int(found[0][0] or 0)
            if params.version is not None and params.version != version:
                raise Conflict(f"the block is at version {version} by now: read it again", version=version)
            if not version:
                names = tx.execute("SELECT count(DISTINCT name) FROM blocks WHERE agent = ?", (params.agent,))[0][0]
                if int(names) >= MAX_BLOCKS:
                    raise LimitExceeded(
                        f"an agent has at most {MAX_BLOCKS} blocks: put it into one of them",
                        limit="blocks",
                        value=MAX_BLOCKS,
                    )
            row = (params.agent, params.name, params.text, version + 1, actor.label, tx.now_us)
            tx.execute(
                "INSERT INTO blocks(agent, name, text, version, author, time_us, run_id) VALUES (?,?,?,?,?,?,?)",
                (*row, run_id),
            )
            tx.execute(
                "DELETE FROM blocks WHERE agent = ? AND name = ? AND version <= ?",
                (params.agent, params.name, version + 1 - MAX_VERSIONS),
            )
            return _view(row)

        return await self._journal.write(work)


def of_agent(db: apsw.Connection, agent: str) -> tuple[wire.Block, ...]:
    """What is in the agent's prompt, by name."""
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM blocks b WHERE b.agent = ? AND {_NEWEST} AND b.text <> '' ORDER BY b.name", (agent,)
    )
    return tuple(_view(row) for row in rows)


def _view(row: Sequence[Any]) -> wire.Block:
    agent, name, text, version, author, time_us = row
    return wire.Block(
        agent=agent, name=name, text=text, version=version, author=author, updated_at=rfc3339(time_us)
    )


def _require(actor: Actor, agent: str) -> None:
    if actor.agent is not None and actor.agent != agent:
        raise PermissionDenied(f"{actor.label} has no part in the blocks of {agent}", needs=f"blocks:{agent}")
