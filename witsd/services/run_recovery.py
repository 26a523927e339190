"""What becomes, after a start, of runs that were not over when the daemon ended."""

from __future__ import annotations

import apsw

from witsd.journal.event import Event
from witsd.journal.reading import position, read_stream
from witsd.services import paying, run_rows
from witsd.services.run_state import LiveRun
from witsd.services.runs import Runs
from witsd.values.errors import NotFound
from witsd.values.ids import RunId
from witsd.values.wire import runs as wire


async def recover(runs: Runs) -> None:
    """Interrupt what was running, queue again what was queued, and cancel what nobody waits for any more."""
    book, units = runs.book, runs.supervisor.units

    def look(db: apsw.Connection) -> tuple[list[LiveRun], dict[RunId, list[Event]], dict[RunId, wire.Run]]:
        found = run_rows.unfinished(db)
        pos, _ = position(db)
        begun = [run for run in found if run.status != "queued"]
        events = {run.run_id: read_stream(db, run.stream_name, 0, pos, 1 << 40) for run in begun}
        parents = {run.parent for run in found if run.parent is not None}
        rows = {parent: row for parent in parents if (row := run_rows.load(db, parent)) is not None}
        return found, events, rows

    found, events, parents = await book.journal.store.read(look)
    for run in found:
        unit = units.get(run.agent)
        run.remember = unit is None or unit.spec.memory == "on"
        parent = parents.get(run.parent) if run.parent is not None else None
        paying.open_account(book, run, () if parent is None else paying.reopened(book, parent))
        if run.status != "queued":
            run.refold(events[run.run_id])
            run.payers[0].add(run.usage)  # its agent's account has been kept by itself
            for account in run.payers:
                account.enter()
            await book.end(run, "interrupted", "the daemon ended while it ran")
        elif parent is not None and parent.status != "completed":
            await book.end(run, "cancelled", f"the run that delegated it, {run.parent}, was interrupted")
        elif unit is not None:
            runs.enqueue(run)
        else:
            run.error = wire.ErrorInfo(
                code=NotFound.code, message=f"its agent {run.agent} is gone", data={"name": NotFound.name}
            )
            await book.end(run, "failed")
