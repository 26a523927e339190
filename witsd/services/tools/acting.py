"""Calls of tools that act: a person is asked where the policy says so, and each is begun once."""

from __future__ import annotations

from typing import Any, Literal

import attrs
import trio

from witsd.journal.event import entry
from witsd.journal.journal import Journal, Tx
from witsd.services import questions
from witsd.services.approvals import MAX_PENDING, Approvals, Request
from witsd.services.run_book import RunBook
from witsd.services.run_state import LiveRun
from witsd.services.tools import ledger
from witsd.values.actor import Actor
from witsd.values.errors import InvalidState, Overloaded, PermissionDenied, Timeout
from witsd.values.ids import Ids, ItemId
from witsd.values.items import ApprovalItem
from witsd.values.wire.approvals import Approval, ToolInterruptedData
from witsd.values.wire.common import UNSET
from witsd.values.wire.native import ItemNotification
from witsd.values.wire.tools import ToolsCallResult

#: What writing down the end of a wait may take, in seconds.
_WRITE_S = 10.0


@attrs.frozen(kw_only=True)
class Call:
    """One call that is to act."""

    call_id: str
    tool: str
    arguments: dict[str, Any]
    actor: Actor
    cwd: str | None
    run: LiveRun | None
    ask: bool
    key: str | None
    timeout_s: float | None
    #: Of the tool's code, where that may change while its name stays.
    version: str = ""

    @property
    def hash(self) -> bytes:
        return ledger.digest(self.tool, self.version, self.arguments, self.cwd, self.actor)


@attrs.frozen
class Begun:
    """It may act now; ``call_id`` is the row's, which a call with the same key before may have made."""

    call_id: str


@attrs.frozen
class _Wait:
    kind: Literal["approval", "other"]
    id: str
    fresh: bool = False


@attrs.define(eq=False)
class Acting:
    """What ``Tools`` asks before a tool acts, and tells after."""

    _journal: Journal
    _approvals: Approvals
    _book: RunBook
    _ids: Ids
    #: Calls that act now, for those who came with the same key.
    _running: dict[str, trio.Event] = attrs.field(factory=dict)

    async def begin(self, call: Call) -> Begun | ToolsCallResult:
        """Return once it may act, or with what the call of this key has answered before.

        Raises ``PermissionDenied`` where a person says no, ``Timeout`` with ``approval_id`` where nobody has said
        anything in time, ``InvalidState`` where it may have been executed before.
        """
        while True:
            step = await self._stepped(call)
            if isinstance(step, Begun | ToolsCallResult):
                return step
            if step.kind == "other":
                await self._other(step.id)
            else:
                await self._answer(call, step.id)

    def end(self, call_id: str, result: ToolsCallResult | None) -> None:
        """It has answered; None: it was given up, and nobody knows how far it came."""
        statements = ledger.end_statements(call_id, "interrupted" if result is None else "done", result)
        self._journal.append_nowait(statements=statements)
        event = self._running.pop(call_id, None)
        if event is not None:
            event.set()

    async def recover(self) -> None:
        """After a start: tell of calls that the last daemon left in the middle. None is run again."""

        def work(tx: Tx) -> None:
            rows = tx.execute("SELECT call_id, tool, actor, run_id FROM tool_calls WHERE state = 'running'")
            for call_id, tool, actor, run_id in rows:
                for statement in ledger.end_statements(call_id, "interrupted", None):
                    tx.execute(*statement)
                data = ToolInterruptedData(call_id=call_id, tool=tool, actor=actor, run_id=run_id or UNSET)
                tx.emit(entry(f"run:{run_id}" if run_id else "approvals", "tool.interrupted", data))
            self._approvals.recover(tx)
            tx.execute("DELETE FROM tool_calls WHERE state = 'waiting' AND key IS NULL")

        await self._journal.write(work, keep=True)

    async def _stepped(self, call: Call) -> Begun | ToolsCallResult | _Wait:
        """One step. It is written also where the caller goes while it waits for that: then it is taken back."""
        gone = False

        def then(step: Begun | ToolsCallResult | _Wait) -> None:
            match step:
                case Begun(call_id) if gone:
                    self._journal.append_nowait(statements=ledger.undone_statements(call_id))
                case Begun(call_id):
                    self._running[call_id] = trio.Event()
                case _Wait(kind="approval", fresh=True, id=approval_id) if gone and call.key is None:
                    self._approvals.cancel_nowait(approval_id)

        try:
            return await self._journal.write(lambda tx: self._step(tx, call), then=then)
        except trio.Cancelled:
            gone = True
            raise

    # ---- one step, in a transaction -------------------------------------------------------------------

    def _step(self, tx: Tx, call: Call) -> Begun | ToolsCallResult | _Wait:
        known = ledger.find(tx, call.actor, call.key, call.hash) if call.key is not None else None
        if known is None:
            rows = tx.execute("SELECT state, approval_id FROM tool_calls WHERE call_id = ?", (call.call_id,))
            if not rows:
                ledger.insert(tx, call.call_id, call.actor, call.key, call.hash, call.tool, _run_id(call))
                rows = [("waiting", None)]
            known = ledger.Entry(call.call_id, rows[0][0], rows[0][1], None)
        match known.state:
            case "done":
                assert known.result is not None
                return known.result
            case "interrupted":
                raise InvalidState(
                    f"{call.tool} was called with this idempotency_key before, and was given up in the middle: it may "
                    "have been executed. Look whether it was, and call again with a fresh key where it was not",
                    state="may_have_executed",
                    may_have_executed=True,
                )
            case "running":
                return _Wait("other", known.call_id)
        if call.ask:
            answer = self._approved(tx, call, known)
            if answer is not None:
                return answer
        if ledger.begin(tx, known.call_id, call.actor, call.tool):
            return Begun(known.call_id)
        return _Wait("other", known.call_id)

    def _approved(self, tx: Tx, call: Call, known: ledger.Entry) -> _Wait | None:
        """None where a person has said yes to exactly this."""
        status = ""
        if known.approval_id is not None:
            rows = tx.execute(
                "SELECT status, hash, expires_us FROM approvals WHERE approval_id = ?", (known.approval_id,)
            )
            if rows and rows[0][1] == call.hash:
                status = rows[0][0]
                if rows[0][2] <= tx.now_us and status != "denied":
                    status = "expired"
        if status == "allowed":
            return None
        if status == "pending":
            assert known.approval_id is not None
            return _Wait("approval", known.approval_id)
        if status == "denied":
            raise PermissionDenied(f"{call.tool}: a person has refused this call", needs="approval")
        if status == "expired" and call.key is None:
            raise Timeout(f"{call.tool}: nobody has answered in time", approval_id=known.approval_id)
        waiting = tx.execute("SELECT count(*) FROM approvals WHERE status = 'pending'")[0][0]
        if waiting >= MAX_PENDING:
            raise Overloaded(f"{waiting} calls wait for an approval already: witsd approval list", retry_after_ms=5000)
        approval_id = self._ids.new("approval")
        wanted = Request(
            approval_id=approval_id,
            tool=call.tool,
            arguments=call.arguments,
            actor=call.actor,
            hash=call.hash,
            cwd=call.cwd,
            run=call.run,
        )
        self._approvals.request(tx, wanted)
        tx.execute("UPDATE tool_calls SET approval_id = ? WHERE call_id = ?", (approval_id, known.call_id))
        return _Wait("approval", approval_id, fresh=True)

    # ---- waiting --------------------------------------------------------------------------------------

    async def _other(self, call_id: str) -> None:
        event = self._running.get(call_id)
        if event is not None:
            await event.wait()
        else:  # its end is on its way to the database
            await trio.sleep(0.01)

    async def _answer(self, call: Call, approval_id: str) -> None:
        """Wait for a person, which shows in the run. Raises ``Timeout`` with the approval's id."""
        answered = None
        begun = self._show(call, approval_id)
        try:
            with trio.move_on_after(call.timeout_s if call.timeout_s is not None else float("inf")):
                answered = await self._approvals.wait(approval_id)
        finally:
            if answered is None and call.key is None:
                # Nobody can come back for it.
                with trio.CancelScope(shield=True, deadline=trio.current_time() + _WRITE_S):
                    await self._approvals.cancel(approval_id)
            self._hide(call, begun, answered)
        if answered is None:
            raise Timeout(
                f"{call.tool}: nobody has allowed or denied it within {call.timeout_s:g} s: "
                f"witsd approval allow {approval_id}",
                approval_id=approval_id,
            )
        if answered.status == "cancelled":
            raise InvalidState(f"{call.tool}: the request was cancelled", state="cancelled")

    def _show(self, call: Call, approval_id: str) -> ApprovalItem | None:
        run = call.run
        if run is None:
            return None
        item = ApprovalItem(
            item_id=ItemId(approval_id), approval_id=approval_id, tool=call.tool, arguments=call.arguments
        )
        self._book.item(call.actor, ItemNotification(run_id=run.run_id, item=item))
        run.approvals.add(approval_id)
        questions.begin_waiting(self._book, run)
        return item

    def _hide(self, call: Call, begun: ApprovalItem | None, answered: Approval | None) -> None:
        run = call.run
        if run is None or begun is None:
            return
        decision = "" if answered is None else answered.status
        item = ApprovalItem(
            item_id=begun.item_id,
            approval_id=begun.approval_id,
            tool=begun.tool,
            arguments=begun.arguments,
            decision=decision,
            status="completed" if decision in ("allowed", "denied") else "cancelled",
        )
        self._book.item(call.actor, ItemNotification(run_id=run.run_id, item=item))
        run.approvals.discard(begun.approval_id)
        questions.end_waiting(self._book, run)


def _run_id(call: Call) -> str | None:
    return call.run.run_id if call.run is not None else None
