"""``approvals/*``: a person is asked before a tool acts. A request is a row and an event, and outlives the daemon."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apsw
import attrs
import msgspec
import trio

from witsd.journal.event import Entry, entry
from witsd.journal.journal import Journal, Ticket, Tx
from witsd.services.memory.records import micros
from witsd.services.run_state import LiveRun
from witsd.services.runs import cursor_number
from witsd.values.actor import Actor
from witsd.values.clock import Clock, rfc3339
from witsd.values.errors import Conflict, InvalidParams, NotFound
from witsd.values.ids import Ids
from witsd.values.spec import ToolPolicy
from witsd.values.wire import approvals as wire
from witsd.values.wire.common import UNSET, Empty

#: How long a request waits for an answer, in seconds.
EXPIRES_S = 86_400.0
#: Requests that may wait at a time; beyond it, calls that need one are refused.
MAX_PENDING = 1000
_encode = msgspec.json.Encoder(order="deterministic").encode
_COLUMNS = (
    "n, approval_id, status, tool, arguments, actor, agent, hash, cwd, run_id, session_id, executed, created_us, "
    "expires_us, resolved_us, resolved_by"
)


@attrs.frozen(kw_only=True)
class Request:
    """A call that wants to be approved."""

    approval_id: str
    tool: str
    arguments: dict[str, Any]
    actor: Actor
    hash: bytes
    cwd: str | None
    run: LiveRun | None


@attrs.define(eq=False)
class Approvals:
    """The service. ``load`` first."""

    _journal: Journal
    _clock: Clock
    _ids: Ids
    #: agent -> the rules that hold for it.
    _rules: dict[str, list[wire.ToolRule]] = attrs.field(factory=dict)
    #: Whoever waits for an answer, by approval.
    _waiting: dict[str, trio.Event] = attrs.field(factory=dict)

    async def load(self) -> None:
        """Read the rules."""
        for rule in await self._journal.store.read(_load_rules):
            self._rules.setdefault(rule.agent, []).append(rule)

    # ---- methods --------------------------------------------------------------------------------------

    async def list(self, actor: Actor, params: wire.ApprovalsListParams) -> wire.ApprovalPage:
        """Latest first."""
        before = cursor_number(params.cursor)
        await self._journal.write(self._expire)
        found = await self._journal.store.read(lambda db: _page(db, before, params.limit, params.status))
        return wire.ApprovalPage(
            items=tuple(approval for _, approval in found),
            next_cursor=str(found[-1][0]) if len(found) == params.limit else UNSET,
        )

    async def resolve(self, actor: Actor, params: wire.ApprovalsResolveParams) -> wire.Approval:
        """Answer a request, once. Raises ``NotFound``, ``Conflict`` where it is answered or over already."""
        def work(tx: Tx) -> tuple[wire.Approval, wire.ToolRule | None]:
            self._expire(tx)
            before, agent = _find(tx, params.approval_id)
            if before is None:
                raise NotFound(
                    f"there is no approval {params.approval_id!r}", kind="approval", id=params.approval_id
                )
            if before.status != "pending":
                who = "" if before.resolved_by is UNSET else f" by {before.resolved_by}"
                raise Conflict(f"it is {before.status} already{who}", status=before.status)
            approval = self._close(tx, before, "allowed" if params.decision == "allow" else "denied", actor.label)
            rule = self._rule(tx, actor, params, approval, agent)
            return approval, rule

        def then(done: tuple[wire.Approval, wire.ToolRule | None]) -> None:
            approval, rule = done
            if rule is not None:
                self._rules.setdefault(rule.agent, []).append(rule)
            self._wake(approval.approval_id)

        return (await self._journal.write(work, then=then))[0]

    async def rules(self, actor: Actor, params: wire.ApprovalsRulesParams) -> wire.ToolRulePage:
        """In the order in which they were made."""
        rules = sorted((rule for rules in self._rules.values() for rule in rules), key=lambda rule: rule.rule_id)
        if params.cursor is not None:
            rules = [rule for rule in rules if rule.rule_id > params.cursor]
        page = rules[: params.limit]
        return wire.ToolRulePage(
            items=tuple(page), next_cursor=page[-1].rule_id if len(rules) > len(page) else UNSET
        )

    async def revoke(self, actor: Actor, params: wire.RuleIdParams) -> Empty:
        """From here on the rule holds for nothing. Raises ``NotFound``."""
        rules = next((rules for rules in self._rules.values() if any(r.rule_id == params.rule_id for r in rules)), None)
        if rules is None:
            raise NotFound(f"there is no rule {params.rule_id!r}", kind="rule", id=params.rule_id)

        def gone(_: object) -> None:
            rules[:] = [rule for rule in rules if rule.rule_id != params.rule_id]

        delete = ("DELETE FROM tool_rules WHERE rule_id = ?", (params.rule_id,))
        await self._journal.write(lambda tx: tx.execute(*delete), then=gone)
        return Empty()

    # ---- what tools ask -------------------------------------------------------------------------------

    def rules_for(self, agent: str, tool: str, arguments: dict[str, Any]) -> Sequence[ToolPolicy]:
        """The remembered answers that hold for this call, the newest first."""
        rules = self._rules.get(agent)
        if not rules:
            return ()
        return [
            ToolPolicy(policy=rule.policy, patterns=rule.patterns)
            for rule in reversed(rules)
            if rule.tool == tool and (rule.arguments is UNSET or _encode(rule.arguments) == _encode(arguments))
        ]

    def request(self, tx: Tx, wanted: Request) -> wire.Approval:
        """The row and the event of a request, in the caller's transaction."""
        run = wanted.run
        expires = tx.now_us + int(EXPIRES_S * 1e6)
        tx.execute(
            "INSERT INTO approvals(approval_id, status, tool, arguments, actor, agent, hash, cwd, run_id, session_id, "
            "executed, created_us, expires_us) VALUES (?,'pending',?,?,?,?,?,?,?,?,'no',?,?)",
            (
                wanted.approval_id,
                wanted.tool,
                _encode(wanted.arguments),
                wanted.actor.label,
                wanted.actor.agent or "",
                wanted.hash,
                wanted.cwd,
                run.run_id if run else None,
                run.session_id if run else None,
                tx.now_us,
                expires,
            ),
        )
        approval, _ = _find(tx, wanted.approval_id)
        assert approval is not None
        tx.emit(_event("approval.requested", approval))
        return approval

    async def wait(self, approval_id: str) -> wire.Approval:
        """Return once it is answered, or over."""
        while True:
            event = self._waiting.setdefault(approval_id, trio.Event())
            approval = await self.get(approval_id)
            if approval.status != "pending":
                self._waiting.pop(approval_id, None)
                return approval
            left_s = (micros(approval.expires_at, "expires_at") - self._clock.wall_us()) / 1e6
            with trio.move_on_after(max(0.01, left_s)):
                await event.wait()
                continue
            await self._journal.write(self._expire)

    async def get(self, approval_id: str) -> wire.Approval:
        """Raises ``NotFound``."""
        found = await self._journal.store.read(
            lambda db: db.execute(f"SELECT {_COLUMNS} FROM approvals WHERE approval_id = ?", (approval_id,)).fetchone()
        )
        if found is None:
            raise NotFound(f"there is no approval {approval_id!r}", kind="approval", id=approval_id)
        return _view(found)

    async def cancel(self, approval_id: str) -> None:
        """Nobody wants to call any more. Answered already is no error."""
        await self.cancel_nowait(approval_id).wait()

    def cancel_nowait(self, approval_id: str) -> Ticket[None]:
        """``cancel``, which is under way then."""

        def work(tx: Tx) -> None:
            before, _ = _find(tx, approval_id)
            if before is not None and before.status == "pending":
                self._close(tx, before, "cancelled", "")

        self._waiting.pop(approval_id, None)
        return self._journal.write_nowait(work)

    # ---- rows -----------------------------------------------------------------------------------------

    def recover(self, tx: Tx) -> None:
        """After a start: nobody waits any more but those who can come back with their key."""
        rows = tx.execute(
            f"SELECT {_COLUMNS} FROM approvals a WHERE status = 'pending' AND NOT EXISTS "
            "(SELECT 1 FROM tool_calls c WHERE c.approval_id = a.approval_id AND c.key IS NOT NULL)"
        )
        for row in rows:
            self._close(tx, _view(row), "cancelled", "")
        self._expire(tx)

    def _expire(self, tx: Tx) -> None:
        rows = tx.execute(
            f"SELECT {_COLUMNS} FROM approvals WHERE status = 'pending' AND expires_us <= ?", (tx.now_us,)
        )
        for row in rows:
            self._close(tx, _view(row), "expired", "")

    def _close(self, tx: Tx, approval: wire.Approval, status: wire.ApprovalStatus, by: str) -> wire.Approval:
        tx.execute(
            "UPDATE approvals SET status = ?, resolved_us = ?, resolved_by = ? WHERE approval_id = ?",
            (status, tx.now_us, by or None, approval.approval_id),
        )
        closed, _ = _find(tx, approval.approval_id)
        assert closed is not None
        tx.emit(_event("approval.resolved", closed))
        return closed

    def _rule(
        self, tx: Tx, actor: Actor, params: wire.ApprovalsResolveParams, approval: wire.Approval, agent: str
    ) -> wire.ToolRule | None:
        if params.remember is None and not params.patterns:
            return None
        if not agent:
            raise InvalidParams("a rule is for an agent, and this call is not one's", path="params.remember")
        rule = wire.ToolRule(
            rule_id=self._ids.new("rule"),
            agent=agent,
            tool=approval.tool,
            policy=params.decision,
            author=actor.label,
            created_at=rfc3339(tx.now_us),
            patterns=params.patterns,
            arguments=approval.arguments if params.remember == "call" and not params.patterns else UNSET,
        )
        arguments = None if rule.arguments is UNSET else _encode(rule.arguments)
        patterns = _encode(rule.patterns)
        tx.execute(
            "INSERT INTO tool_rules VALUES (?,?,?,?,?,?,?,?)",
            (rule.rule_id, agent, rule.tool, rule.policy, patterns, arguments, rule.author, tx.now_us),
        )
        return rule

    def _wake(self, approval_id: str) -> None:
        event = self._waiting.pop(approval_id, None)
        if event is not None:
            event.set()


def _event(type_: str, approval: wire.Approval) -> Entry:
    stream = "approvals" if approval.run_id is UNSET else f"run:{approval.run_id}"
    return entry(stream, type_, wire.ApprovalData(approval=approval))


def _find(tx: Tx, approval_id: str) -> tuple[wire.Approval | None, str]:
    """The approval and its agent's name."""
    rows = tx.execute(f"SELECT {_COLUMNS} FROM approvals WHERE approval_id = ?", (approval_id,))
    return (_view(rows[0]), rows[0][6]) if rows else (None, "")


def _page(
    db: apsw.Connection, before: int | None, limit: int, status: str | None
) -> list[tuple[int, wire.Approval]]:
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM approvals WHERE n < ? AND (? IS NULL OR status = ?) ORDER BY n DESC LIMIT ?",
        (1 << 62 if before is None else before, status, status, limit),
    )
    return [(row[0], _view(row)) for row in rows]


def _view(row: Sequence[Any]) -> wire.Approval:
    _, approval_id, status, tool, arguments, actor, _, hash_, cwd, run_id, session_id, executed, *times = row
    created, expires, resolved, resolved_by = times
    return wire.Approval(
        approval_id=approval_id,
        status=status,
        tool=tool,
        arguments=msgspec.json.decode(arguments),
        actor=actor,
        hash=hash_.hex(),
        executed=executed,
        cwd=cwd or UNSET,
        run_id=run_id or UNSET,
        session_id=session_id or UNSET,
        created_at=rfc3339(created),
        expires_at=rfc3339(expires),
        resolved_at=UNSET if resolved is None else rfc3339(resolved),
        resolved_by=resolved_by or UNSET,
    )


def _load_rules(db: apsw.Connection) -> list[wire.ToolRule]:
    return [
        wire.ToolRule(
            rule_id=rule_id,
            agent=agent,
            tool=tool,
            policy=policy,
            patterns=tuple(msgspec.json.decode(patterns)),
            arguments=UNSET if arguments is None else msgspec.json.decode(arguments),
            author=author,
            created_at=rfc3339(created),
        )
        for rule_id, agent, tool, policy, patterns, arguments, author, created in db.execute(
            "SELECT * FROM tool_rules ORDER BY rule_id"
        )
    ]
