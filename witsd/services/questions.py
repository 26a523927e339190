"""Input requests: an agent asks a person in the middle of a run, and waits."""

from __future__ import annotations

import math

import msgspec
import trio

from witsd.journal.event import Entry, entry
from witsd.journal.journal import Tx
from witsd.services import run_rows, session_rows
from witsd.services.run_book import RunBook
from witsd.services.run_state import LiveRun
from witsd.values.actor import Actor
from witsd.values.errors import InvalidState, Timeout
from witsd.values.ids import ItemId
from witsd.values.items import InputRequestItem
from witsd.values.wire import event_types as types
from witsd.values.wire import runs as wire
from witsd.values.wire.common import UNSET


async def ask(book: RunBook, run: LiveRun, actor: Actor, params: wire.InputsRequestParams) -> wire.InputsRequestResult:
    """Put the question and wait for its answer.

    Raises ``Timeout`` after ``timeout_s`` without one, ``InvalidState`` when the run ends meanwhile.
    """
    request_id = book.ids.new("input")
    send, receive = trio.open_memory_channel[object](1)
    item = InputRequestItem(
        item_id=ItemId(request_id), request_id=request_id, message=params.message, schema=params.schema or UNSET
    )
    event, _, n = run.upsert(item)
    run.questions[request_id] = send
    run.status = "waiting"
    asked = types.InputRequestedData(
        run_id=run.run_id, request_id=request_id, message=params.message, schema=params.schema
    )

    def begin(tx: Tx) -> None:
        tx.execute(*run_rows.item_statement(run.run_id, n, item))
        tx.emit(
            entry(run.stream_name, event, types.ItemData(run_id=run.run_id, item=item)),
            entry(run.stream_name, "input.requested", asked),
        )
        _write_status(tx, run)

    response: object = UNSET
    answered = False
    try:
        await book.journal.write(begin, keep=True)
        with trio.move_on_after(params.timeout_s or math.inf):
            response = await receive.receive()
            answered = True
    except trio.EndOfChannel:
        raise InvalidState("the run is over: nobody will answer", state=run.status) from None
    finally:
        del run.questions[request_id]
        _go_on(run)
        closed = msgspec.structs.replace(item, status="completed" if answered else "cancelled", response=response)
        if run.upsert(closed)[0]:
            resolved = types.InputResolvedData(run_id=run.run_id, request_id=request_id)
            book.journal.append_nowait(
                entry(run.stream_name, "item.completed", types.ItemData(run_id=run.run_id, item=closed)),
                entry(run.stream_name, "input.resolved", resolved),
                *_status_entries(run),
                statements=(run_rows.item_statement(run.run_id, n, closed), *_status_statements(run)),
            )
    if not answered:
        raise Timeout("nobody answered in time")
    return wire.InputsRequestResult(response=response)


def begin_waiting(book: RunBook, run: LiveRun) -> None:
    """A person is to decide something: the run and its session show that they wait."""
    run.status = "waiting"
    book.journal.append_nowait(*_status_entries(run), statements=_status_statements(run))


def end_waiting(book: RunBook, run: LiveRun) -> None:
    """It is decided, or not to be: the run goes on unless it waits for something else."""
    if _go_on(run):
        book.journal.append_nowait(*_status_entries(run), statements=_status_statements(run))


def _go_on(run: LiveRun) -> bool:
    if run.status != "waiting" or run.questions or run.approvals:
        return False
    run.status = "running"
    return True


def answer(run: LiveRun, params: wire.RunsRespondParams) -> bool:
    """Hand the answer over; False when that question is not open."""
    question = run.questions.get(params.request_id)
    if question is None:
        return False
    try:
        question.send_nowait(params.response)
    except trio.WouldBlock:
        return False  # somebody else was first
    return True


def _status_statements(run: LiveRun) -> list[tuple[str, tuple[object, ...]]]:
    statements: list[tuple[str, tuple[object, ...]]] = [
        ("UPDATE runs SET status = ? WHERE run_id = ? AND ended_us IS NULL", (run.status, run.run_id))
    ]
    if run.session_id is not None:
        statements.append(
            (
                "UPDATE sessions SET status = ? WHERE session_id = ? AND run_id = ?",
                (run.status, run.session_id, run.run_id),
            )
        )
    return statements


def _status_entries(run: LiveRun) -> list[Entry]:
    if run.session_id is None or run.status not in ("running", "waiting"):
        return []
    data = types.SessionStatusData(session_id=run.session_id, status=run.status, run_id=run.run_id)
    return [entry(f"session:{run.session_id}", "session.status", data)]


def _write_status(tx: Tx, run: LiveRun) -> None:
    tx.execute("UPDATE runs SET status = ? WHERE run_id = ?", (run.status, run.run_id))
    if run.session_id is not None:
        session_rows.set_status(tx, run.session_id, "waiting", run.run_id)
