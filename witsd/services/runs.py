"""``runs/*``: work is queued durably, handed to its agent in order, and ends in exactly one way.

A run is a row from the moment it is accepted. What is queued survives a restart of the daemon and is
executed then; what was running when the daemon died is ``interrupted`` with its items kept.
"""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import apsw
import attrs
import trio

from witsd.journal.journal import Journal, Tx
from witsd.services import paying, questions, run_rows, session_rows
from witsd.services.budgets import Budgets, wall_left_s
from witsd.services.deltas import Deltas
from witsd.services.execution import execute
from witsd.services.idempotency import once
from witsd.services.run_book import RunBook
from witsd.services.run_state import LiveRun
from witsd.supervise.supervisor import Supervisor
from witsd.values.actor import Actor
from witsd.values.clock import Clock
from witsd.values.errors import (
    AgentFailed,
    InternalError,
    InvalidParams,
    InvalidState,
    NotFound,
    Overloaded,
    PermissionDenied,
    Timeout,
    WitsdError,
)
from witsd.values.ids import AgentName, Ids, RunId, SessionId
from witsd.values.spec import Budget
from witsd.values.wire import runs as wire
from witsd.values.wire.common import UNSET, Empty
from witsd.values.wire.native import SessionClosedNotification

log = logging.getLogger("witsd.runs")

#: Runs that may wait for one agent.
MAX_QUEUED = 1000


@attrs.define(eq=False)
class Runs:
    """The service. Made by ``open_runs``, whose nursery executes the runs."""

    book: RunBook
    supervisor: Supervisor
    _nursery: trio.Nursery
    _queues: dict[AgentName, deque[LiveRun]] = attrs.field(factory=lambda: defaultdict(deque))
    _running: dict[AgentName, int] = attrs.field(factory=lambda: defaultdict(int))
    #: For each agent, what the last run that began sets once the agent has it.
    _handed: dict[AgentName, trio.Event] = attrs.field(factory=dict)
    _busy: set[SessionId] = attrs.field(factory=set)
    _closing: bool = False

    # ---- asking for work ------------------------------------------------------------------------------

    async def start(self, actor: Actor, params: wire.RunsStartParams) -> wire.RunStarted:
        """Accept a run: it is durable when this returns, and starts when its agent has room."""
        if actor.agent is not None:
            actor.require_grant("agents", params.agent)
            if params.session_id is not None:
                raise PermissionDenied(
                    f"{actor.label} may not speak in a session: start the run without session_id", needs="session"
                )
        if params.parent_run_id is not None and actor.agent is None:
            raise InvalidParams(
                "parent_run_id is for agents, which delegate: leave it out", path="params.parent_run_id"
            )
        parent = paying.run_of(self.book, actor, params.parent_run_id, field="parent_run_id")
        given = wire.RunInput(text=params.input) if isinstance(params.input, str) else params.input
        run = self.new_run(
            params.agent,
            given,
            actor,
            session_id=params.session_id,
            stream=params.stream,
            timeout_s=params.timeout_s,
            budget=params.budget,
            parent=parent,
        )

        def work(tx: Tx) -> tuple[wire.RunStarted, bool]:
            def make() -> wire.RunStarted:
                if isinstance(run, WitsdError):
                    raise run
                if run.session_id is not None:
                    session = session_rows.require(tx, run.session_id, run.agent)
                    if params.stream is None and isinstance(session.settings.stream, bool):
                        run.stream = session.settings.stream
                    if given.text:
                        session_rows.add_question(tx, run, self.book.ids)
                self.book.insert(tx, run)
                return wire.RunStarted(run_id=run.run_id)

            return once(tx, actor.identity, "runs/start", params.idempotency_key, params, wire.RunStarted, make)

        def accepted(answer: tuple[wire.RunStarted, bool]) -> None:
            if answer[1] and isinstance(run, LiveRun):
                self.enqueue(run)

        return (await self.book.journal.write(work, then=accepted))[0]

    def _check_accepts(self, agent: str) -> None:
        """Raise what a caller should hear now and not from a run that fails later."""
        if self._closing:
            raise Overloaded("the daemon is stopping: try again when it is back", retry_after_ms=2000)
        unit = self.supervisor.obtain(agent)
        if unit.spec.kind == "external":
            raise InvalidState(f"{agent} is watched and nothing else: it takes no requests", state=unit.life.state)
        if unit.spec.kind == "exec" and not unit.spec.run_per_request:
            raise InvalidState(
                f"{agent} is a service: it runs by itself and takes no requests. "
                "For an agent that answers set run_per_request = true, or write a native one",
                state=unit.life.state,
            )
        if unit.life.state == "failed":
            raise AgentFailed(
                f"{agent} has failed: it {unit.life.reason}. Mend it, then: witsd agent start {agent}",
                reason=unit.life.reason,
            )
        if unit.life.state == "inactive" and not unit.life.wanted and unit.spec.start != "on_demand":
            raise InvalidState(f"{agent} is stopped: witsd agent start {agent}", state="inactive")
        if len(self._queues[AgentName(agent)]) >= MAX_QUEUED:
            raise Overloaded(f"{MAX_QUEUED} runs are waiting for {agent} already", retry_after_ms=5000)

    def new_run(
        self,
        agent: str,
        given: wire.RunInput,
        actor: Actor,
        *,
        session_id: str | None,
        stream: bool | None,
        timeout_s: float | None,
        budget: Budget | None = None,
        parent: LiveRun | None = None,
    ) -> LiveRun | WitsdError:
        """A run yet to be inserted, or why there can be none now.

        Not raised, for a call that is repeated with its ``idempotency_key`` gets its first answer all the same.
        """
        try:
            self._check_accepts(agent)
            depth = paying.check_depth(parent) if parent is not None else 0
        except WitsdError as refusal:
            return refusal
        spec = self.supervisor.unit(agent).spec
        run = LiveRun(
            run_id=RunId(self.book.ids.new("run")),
            agent=AgentName(agent),
            session_id=SessionId(session_id) if session_id else None,
            input=given,
            actor=actor.label,
            stream=spec.stream if stream is None else stream,
            remember=spec.memory == "on",
            timeout_s=timeout_s or spec.limits.run_timeout_s or None,
            created_us=self.book.clock.wall_us(),
            parent=parent.run_id if parent is not None else None,
            budget=self.book.budgets.for_run(AgentName(agent), budget),
            depth=depth,
        )
        paying.open_account(self.book, run, paying.payers(self.book, actor, parent))
        return run

    # ---- the queue ------------------------------------------------------------------------------------

    def enqueue(self, run: LiveRun) -> None:
        if run.session_id is not None:
            self.book.remembered()
        self.book.live[run.run_id] = run
        self._queues[run.agent].append(run)
        self._pump(run.agent)

    def _pump(self, agent: AgentName) -> None:
        """Start what may start: within the agent's concurrency, one at a time for each session, in order."""
        if self._closing:
            return
        unit = self.supervisor.units.get(agent)
        room = (unit.spec.limits.concurrency if unit else 1) - self._running[agent]
        queue = self._queues[agent]
        waiting: deque[LiveRun] = deque()
        while queue and room > 0:
            run = queue.popleft()
            if run.session_id is not None and run.session_id in self._busy:
                waiting.append(run)
                continue
            if run.session_id is not None:
                self._busy.add(run.session_id)
            room -= 1
            self._running[agent] += 1
            self._nursery.start_soon(self._execute, run, self._handed.get(agent))
            self._handed[agent] = run.handed
        queue.extendleft(reversed(waiting))

    async def _execute(self, run: LiveRun, turn: trio.Event | None) -> None:
        self._nursery.start_soon(self._bound, run)
        try:
            await execute(self.book, self.supervisor, run, turn)
        except Exception:  # the boundary: what goes wrong with one run stays with it
            log.exception("run.bug run=%s agent=%s", run.run_id, run.agent)
            await self._give_up(run)
        finally:
            run.handed.set()
            self._running[run.agent] -= 1
            if run.session_id is not None:
                self._busy.discard(run.session_id)
            if run.stop_as == "queued":  # back where it can be cancelled for as long as the daemon is still there
                run.stop_as = None
                self._queues[run.agent].appendleft(run)
            self._pump(run.agent)
            if run.status != "completed":
                self._end_delegated(run)

    def _end_delegated(self, run: LiveRun) -> None:
        """Nobody waits for what it has delegated any more."""
        for child in [child for child in self.book.live.values() if child.parent == run.run_id]:
            self.stop(child, "cancelled", f"the run that delegated it, {run.run_id}, was {run.status}")

    async def _bound(self, run: LiveRun) -> None:
        """Fail the run once a budget of wall time that pays for it is used up."""
        while not run.done.is_set():
            left, account = wall_left_s(run.payers)
            if account is None:
                return
            if left <= 0:
                self.book.overspent(run, account.exhausted("wall_s"))
                return
            with trio.move_on_after(max(left, 0.01)):
                await run.done.wait()

    async def _give_up(self, run: LiveRun) -> None:
        """End a run that a bug of ours, or the disk, has stopped."""
        run.error = wire.ErrorInfo(
            code=InternalError.code,
            message="an internal error; the daemon's log has it",
            data={"name": InternalError.name, "retryable": False, "run_id": run.run_id},
        )
        try:
            await self.book.end(run, "failed")
        except Exception:  # and where its end cannot be written either, the next daemon ends it
            log.exception("run.bug run=%s agent=%s", run.run_id, run.agent)
            self.book.live.pop(run.run_id, None)
            run.done.set()

    def stop(self, run: LiveRun, status: wire.RunStatus, reason: str) -> None:
        """Make a run end as ``status``; it is over once ``done`` is set."""
        self.book.stop(run, status, reason)
        if run in self._queues[run.agent]:
            self._queues[run.agent].remove(run)
            self._nursery.start_soon(self.book.end, run, status, reason)

    @property
    def executing(self) -> int:
        """How many runs their agents are working on."""
        return sum(self._running.values())

    async def end_all_of(self, agent: str, reason: str, *, wait: bool = True) -> None:
        """Cancel every run of an agent and, unless told not to ``wait``, return when they are over."""
        ending = [run for run in self.book.live.values() if run.agent == agent]
        for run in ending:
            self.stop(run, "cancelled", reason)
        for run in ending if wait else ():
            await run.done.wait()

    def forget_session(self, session_id: str) -> None:
        """What agents still hold of this conversation is no longer true."""
        closed = SessionClosedNotification(session_id=session_id)
        for unit in self.supervisor.units.values():
            unit.holds.discard(SessionId(session_id))
            if unit.link is not None:
                unit.link.notify("notifications/session_closed", closed)

    async def request_input(self, actor: Actor, params: wire.InputsRequestParams) -> wire.InputsRequestResult:
        """Ask a person on behalf of a run, and wait for ``runs/respond``."""
        run = self.book.of_agent(actor, params.run_id)
        if run is None:
            raise NotFound("there is no such run of this agent", kind="run", id=params.run_id)
        return await questions.ask(self.book, run, actor, params)

    async def respond(self, actor: Actor, params: wire.RunsRespondParams) -> Empty:
        """Answer an input request; raises ``NotFound`` when it is not open (any more)."""
        run = await self._require(actor, params.run_id)
        if not isinstance(run, LiveRun) or not questions.answer(run, params):
            raise NotFound(f"the run has no open question {params.request_id!r}", kind="input", id=params.request_id)
        return Empty()

    # ---- looking at runs ------------------------------------------------------------------------------

    async def get(self, actor: Actor, params: wire.RunIdParams) -> wire.Run:
        run = await self._require(actor, params.run_id)
        return run.view() if isinstance(run, LiveRun) else run

    async def list(self, actor: Actor, params: wire.RunsListParams) -> wire.RunPage:
        """Latest first, without items."""
        before = cursor_number(params.cursor)
        rows = await self.book.journal.store.read(
            lambda db: run_rows.page(
                db,
                before_n=before,
                limit=params.limit,
                agent=params.agent,
                session_id=params.session_id,
                status=params.status,
            )
        )
        more = len(rows) == params.limit
        return wire.RunPage(items=tuple(run for _, run in rows), next_cursor=str(rows[-1][0]) if more else UNSET)

    async def wait(self, actor: Actor, params: wire.RunsWaitParams) -> wire.Run:
        """The run once it is over. Raises ``Timeout`` when it is not over in time; it goes on then."""
        run = await self._require(actor, params.run_id)
        if isinstance(run, wire.Run):
            return run
        with trio.move_on_after(params.timeout_s or float("inf")):
            await run.done.wait()
            return run.view()
        raise Timeout(f"the run is still {run.status} after {params.timeout_s:g} s; it goes on", limit="wait")

    async def cancel(self, actor: Actor, params: wire.RunsCancelParams) -> wire.Run:
        """End a run; returns it as it ended. No error for one that is over."""
        run = await self._require(actor, params.run_id)
        if isinstance(run, wire.Run):
            return run
        self.stop(run, "cancelled", params.reason or f"cancelled by {actor.label}")
        await run.done.wait()
        return run.view()

    async def _require(self, actor: Actor, run_id: str) -> LiveRun | wire.Run:
        """An agent sees its own runs and those it started; everybody else is bound by scopes."""
        live = self.book.live.get(RunId(run_id))
        if live is not None:
            _check_visible(actor, live.agent, live.actor)
            return live

        def look(db: apsw.Connection) -> tuple[wire.Run | None, tuple[str, str] | None]:
            return run_rows.load(db, run_id), run_rows.asked_by(db, run_id)

        found, asked = await self.book.journal.store.read(look)
        if found is None or asked is None:
            raise NotFound(f"there is no run {run_id!r}", kind="run", id=run_id)
        _check_visible(actor, *asked)
        return found

    # ---- start and end of the daemon ------------------------------------------------------------------

    async def close(self, patience: trio.CancelScope) -> None:
        """Take no more work, let what runs finish within ``patience``, interrupt the rest. Queued runs stay queued."""
        self._closing = True
        for run in self.book.live.values():
            if run.status == "queued" and run not in self._queues[run.agent]:
                self.book.stop(run, "queued", "")  # waits for its agent: the next daemon takes it up again
        running = [run for run in self.book.live.values() if run.status != "queued"]
        with patience:
            for run in running:
                await run.done.wait()
            return
        for run in running:
            if not run.done.is_set():
                self.stop(run, "interrupted", "the daemon was stopped")
        for run in running:
            await run.done.wait()


def _check_visible(actor: Actor, agent: str, asked_by: str) -> None:
    if actor.agent is None or agent == actor.agent or asked_by == actor.label:
        return
    raise PermissionDenied(f"{actor.label} may not see this run", needs="grants.agents")


def cursor_number(cursor: str | None) -> int | None:
    """A list's cursor as the number it is; raises ``InvalidParams`` for one that was made up."""
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        raise InvalidParams("not a cursor: give back next_cursor as it came", path="params.cursor")
    return int(cursor)


@asynccontextmanager
async def open_runs(
    journal: Journal, supervisor: Supervisor, clock: Clock, ids: Ids, budgets: Budgets
) -> AsyncIterator[Runs]:
    """Execute runs for as long as the block lasts. Call ``close`` before leaving it."""
    deltas = Deltas(journal)

    def record(run: LiveRun, duration_ms: float) -> None:
        if run.agent in supervisor.units:  # nothing is kept of one that has been removed
            supervisor.shared.watch.record(run.agent, duration_ms, error=run.status == "failed")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(deltas.run)
        runs = Runs(RunBook(journal, clock, ids, deltas, budgets, record), supervisor, nursery)
        supervisor.in_effect.on_defined = runs._pump
        yield runs
        nursery.cancel_scope.cancel()
