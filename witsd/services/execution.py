"""Executing one run: get its agent up, hand the run over, and turn whatever happens into one outcome."""

from __future__ import annotations

import codecs
import math
import signal

import msgspec
import trio

from witsd.services import session_rows
from witsd.services.run_book import RunBook
from witsd.services.run_state import LiveRun
from witsd.supervise import limits
from witsd.supervise.output import copy
from witsd.supervise.process import Process, SpawnError
from witsd.supervise.supervisor import Lease, Supervisor
from witsd.values.actor import Actor
from witsd.values.clock import rfc3339
from witsd.values.errors import AgentFailed, Timeout, WitsdError
from witsd.values.ids import ItemId
from witsd.values.items import MessageItem
from witsd.values.wire.common import UNSET
from witsd.values.wire.native import (
    DeltaNotification,
    ItemNotification,
    RunsExecuteParams,
    RunsExecuteResult,
)
from witsd.values.wire.runs import ErrorInfo

#: How much of what an exec run printed to stderr goes into its error, in bytes.
_STDERR_TAIL = 2000
#: What an exec run may print, in bytes; beyond it the run fails.
_CHUNK = 64 << 10


async def execute(book: RunBook, supervisor: Supervisor, run: LiveRun, turn: trio.Event | None) -> None:
    """Run to its end. Never raises for what an agent does; always ends the run in exactly one way.

    ``turn`` is set once the agent has the run before this one: runs that could begin at the same moment
    reach the agent in the order they were asked for.
    """
    deadline = math.inf
    if run.timeout_s is not None:
        deadline = trio.current_time() + run.timeout_s
    timed_out = trio.move_on_at(deadline)
    try:
        with run.scope, timed_out:
            if turn is not None:
                await turn.wait()
            if supervisor.unit(run.agent).spec.run_per_request:
                await _in_a_process(book, supervisor, run)
            else:
                await _by_agent(book, supervisor, run)
    except WitsdError as error:
        if run.stop_as is None:
            run.error = ErrorInfo(code=error.code, message=error.message, data={**error.data, "run_id": run.run_id})
            await book.end(run, "failed")
            return
    if run.stop_as == "queued":
        return
    if run.stop_as is not None:
        await book.end(run, run.stop_as, run.stop_reason)
    elif timed_out.cancelled_caught:
        limit = _tell_limit(supervisor, run)
        late = Timeout(
            f"the run was not over after {run.timeout_s:g} s", limit=limit, value=run.timeout_s, agent=run.agent
        )
        run.error = ErrorInfo(code=late.code, message=late.message, data=dict(late.data))
        await book.end(run, "failed")
    elif run.scope.cancelled_caught:
        await book.end(run, "interrupted", "the daemon was stopped")
    else:
        await book.end(run, "completed")


def _tell_limit(supervisor: Supervisor, run: LiveRun) -> str:
    """Tell of the breach where it is the definition's limit. Returns the name of the setting that bounds the run."""
    unit = supervisor.units.get(run.agent)
    if unit is not None and run.timeout_s is not None and unit.spec.limits.run_timeout_s == run.timeout_s:
        breach = limits.run_timeout(unit.spec.limits, run.run_id, run.timeout_s)
        supervisor.shared.watch.breaches.tell(run.agent, breach)
        return "run_timeout_s"
    return "timeout_s"


async def _by_agent(book: RunBook, supervisor: Supervisor, run: LiveRun) -> None:
    """A native agent: one ``runs/execute`` whose answer ends the run."""
    async with supervisor.lease(run.agent) as lease:
        params = await _params(book, run, lease, supervisor.unit(run.agent).spec.history_messages)
        await book.started(run)
        if run.session_id is not None:
            lease.holds.add(run.session_id)
        run.handed.set()
        try:
            with supervisor.shared.lend(run.agent, run.run_id) as access:
                if access is not None:
                    params = msgspec.structs.replace(params, model_access=access)
                result = await lease.link.request("runs/execute", params, RunsExecuteResult)
        except trio.BrokenResourceError:
            reason = await lease.why_gone()
            raise AgentFailed(
                f"{run.agent} {reason} in the middle of the run. See: witsd agent logs {run.agent}",
                reason=reason,
            ) from None
        run.output = result.output


async def _params(book: RunBook, run: LiveRun, lease: Lease, history_messages: int) -> RunsExecuteParams:
    """What the agent is told. A process that does not hold the conversation yet gets its history."""
    session_id = run.session_id
    history, settings = None, None
    if session_id is not None:
        fresh = session_id not in lease.holds
        past = await book.journal.store.read(
            lambda db: session_rows.context(db, session_id, run.run_id, history_messages)
        )
        settings = past.settings
        if fresh:
            history = past.turns
    deadline = None
    if run.timeout_s is not None:
        deadline = rfc3339(book.clock.wall_us() + int(run.timeout_s * 1e6))
    return RunsExecuteParams(
        run_id=run.run_id,
        input=run.input,
        session_id=session_id or UNSET,
        history=UNSET if history is None else history,
        settings=UNSET if settings is None else settings,
        stream=run.stream,
        deadline=deadline or UNSET,
    )


async def _in_a_process(book: RunBook, supervisor: Supervisor, run: LiveRun) -> None:
    """An exec agent with ``run_per_request``: input on stdin, output on stdout, the exit status the outcome."""
    unit = supervisor.unit(run.agent)
    asked_from = "" if run.input.cwd is UNSET else run.input.cwd
    watch, held = supervisor.shared.watch, None
    unit.lease()
    try:
        await book.started(run)
        run.handed.set()
        errors = bytearray()
        try:
            async with (
                supervisor.open_run_process(unit, asked_from, run.run_id) as tree,
                trio.open_nursery() as nursery,
            ):
                process = tree.process
                held = watch.began(
                    unit.spec, process.identity, tree.container, lambda: process.signal_group(signal.SIGKILL)
                )
                nursery.start_soon(_feed, process, run.input.text)
                nursery.start_soon(_keep_errors, supervisor, run, process, errors)
                nursery.start_soon(_relay, book, run, unit.actor, process)
                outcome = await process.watch()
                reason = watch.why(held, unit.spec.limits, str(outcome), clean=outcome.clean)
                await tree.end_rest()
                nursery.cancel_scope.deadline = trio.current_time() + 1
        except SpawnError as error:
            raise AgentFailed(f"{run.agent} could not be started: {error}", reason=str(error)) from error
        if not outcome.clean:
            tail = bytes(errors).decode(errors="replace").strip()
            raise AgentFailed(f"{run.agent} {reason}" + (f": {tail}" if tail else ""), reason=reason)
    finally:
        if held is not None:
            watch.ended(held)
        unit.release()


async def _feed(process: Process, text: str) -> None:
    try:
        await process.stdin.send_all(text.encode())
        await process.stdin.aclose()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # it does not read its input, which is its own affair


async def _relay(book: RunBook, run: LiveRun, actor: Actor, process: Process) -> None:
    """stdout becomes the text of one message."""
    item_id = ItemId(f"{run.run_id}.1")
    # A chunk may cut a character in two; what is not UTF-8 is replaced.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    try:
        while data := await process.stdout.receive_some(_CHUNK):
            text = decoder.decode(data)
            if text:
                book.delta(actor, DeltaNotification(run_id=run.run_id, item_id=item_id, text=text))
            await book.journal.wait_room()
    except (trio.ClosedResourceError, trio.BrokenResourceError):
        pass
    if run.has(item_id):
        done = MessageItem(item_id=item_id, status="completed")
        book.item(actor, ItemNotification(run_id=run.run_id, item=done))


async def _keep_errors(supervisor: Supervisor, run: LiveRun, process: Process, tail: bytearray) -> None:
    def heard(chunk: bytes) -> None:
        tail.extend(chunk)
        del tail[:-_STDERR_TAIL]

    await copy(process.stderr, supervisor.shared.logs.of(run.agent), "stderr", heard=heard)
