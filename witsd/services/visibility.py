"""Who may read which stream, and the snapshot that a subscription begins with."""

from __future__ import annotations

from collections.abc import Sequence

import apsw

from witsd.journal.reading import is_exact, matches_any
from witsd.services import run_rows, session_rows
from witsd.services.memory.access import may_use
from witsd.services.runs import Runs
from witsd.supervise.supervisor import Supervisor
from witsd.values.actor import Actor, Scope
from witsd.values.ids import RunId
from witsd.values.wire.events import Snapshot

#: Finished sessions in a snapshot of a pattern: the latest; the rest is ``sessions/list``.
_SESSIONS = 200


def may_read(runs: Runs, actor: Actor, stream: str, db: apsw.Connection | None = None) -> bool:
    """A client reads by scope; an agent reads what is its own: its stream, its log, its runs and sessions.

    Of these without ``db`` only what is on now is known to be its own.
    """
    if actor.agent is None:
        if stream == "audit":
            return Scope.ADMIN in actor.scopes
        if stream.startswith("memory:"):
            return Scope.MEMORY in actor.scopes
        return Scope.READ in actor.scopes
    kind, _, name = stream.partition(":")
    if kind in ("agent", "log"):
        return name == actor.agent
    if kind == "memory":
        return may_use(actor, name, lambda session_id: _agent_of(db, session_id))
    if kind == "run":
        run = runs.book.live.get(RunId(name))
        if run is not None:
            return run.agent == actor.agent or run.actor == actor.label
        asked = run_rows.asked_by(db, name) if db is not None else None
        return asked is not None and (asked[0] == actor.agent or asked[1] == actor.label)
    if kind == "session":
        if db is not None:
            session = session_rows.find(db, name)
            return session is not None and session.agent == actor.agent
        return any(r.session_id == name and r.agent == actor.agent for r in list(runs.book.live.values()))
    return False


def _agent_of(db: apsw.Connection | None, session_id: str) -> str | None:
    session = None if db is None else session_rows.find(db, session_id)
    return None if session is None else session.agent


def snapshot(
    runs: Runs, supervisor: Supervisor, db: apsw.Connection, patterns: Sequence[str], actor: Actor
) -> Snapshot:
    """Agents, runs and sessions whose streams are asked for, as they are in this read transaction.

    A pattern with ``*`` brings the runs that are not over and the latest sessions; a run or session
    named outright is there whatever its age. Runs after a crash are read the same way: status is state.
    """

    def wanted(stream: str) -> bool:
        return matches_any(stream, patterns) and may_read(runs, actor, stream, db)

    agents = tuple(unit.view() for name, unit in sorted(supervisor.units.items()) if wanted(f"agent:{name}"))
    run_ids = [pattern[4:] for pattern in patterns if pattern.startswith("run:") and is_exact(pattern)]
    run_ids += [
        run_id
        for (run_id,) in db.execute("SELECT run_id FROM runs WHERE status IN ('queued', 'running', 'waiting')")
        if wanted(f"run:{run_id}")
    ]
    found_runs = [run_rows.load(db, run_id) for run_id in dict.fromkeys(run_ids)]
    session_ids = [p[8:] for p in patterns if p.startswith("session:") and is_exact(p)]
    if any(p.startswith("session:") or p == "*" for p in patterns):
        session_ids += [
            session_id
            for (session_id,) in db.execute(
                "SELECT session_id FROM sessions ORDER BY updated_us DESC LIMIT ?", (_SESSIONS,)
            )
            if wanted(f"session:{session_id}")
        ]
    sessions = [session_rows.find(db, session_id) for session_id in dict.fromkeys(session_ids)]
    return Snapshot(
        agents=agents,
        runs=tuple(run for run in found_runs if run is not None),
        sessions=tuple(session for session in sessions if session is not None),
    )
