"""A run in memory while it is not over: its items, their growing text, and what it has used."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import attrs
import msgspec
import trio

from witsd.journal.event import Event
from witsd.services.budgets import Account, least
from witsd.values.clock import rfc3339
from witsd.values.errors import InvalidState, LimitExceeded
from witsd.values.ids import AgentName, RunId, SessionId
from witsd.values.items import TEXT_ITEMS, Item, ItemStatus, MessageItem, UsageItem
from witsd.values.spec import Budget
from witsd.values.wire.budgets import BudgetState, Left
from witsd.values.wire.common import UNSET, UnsetType
from witsd.values.wire.event_types import ItemData, ItemDeltaData
from witsd.values.wire.runs import ErrorInfo, Run, RunInput, RunStatus, Usage

#: All text of one run together, in bytes of UTF-8. A run holds it twice, in items and output, and must fit into a
#: message (4 MiB by default) with room for what JSON escapes; what is larger belongs into a file.
MAX_TEXT = 3 << 19
MAX_ITEMS = 100_000
_MOST_COST = sys.float_info.max


@attrs.define(eq=False)
class _Slot:
    """An item and the text that deltas have added since it was last upserted."""

    item: Item
    n: int
    parts: list[str] = attrs.field(factory=list)

    def whole(self) -> Item:
        if self.parts and isinstance(self.item, TEXT_ITEMS):
            self.item = msgspec.structs.replace(self.item, text=self.item.text + "".join(self.parts))
            self.parts = []
        return self.item


@attrs.define(eq=False, kw_only=True)
class LiveRun:
    """One run from ``queued`` to its end."""

    run_id: RunId
    agent: AgentName
    session_id: SessionId | None
    input: RunInput
    actor: str
    stream: bool
    timeout_s: float | None
    created_us: int
    #: Whether its agent's definition has its turns remembered.
    remember: bool = True
    status: RunStatus = "queued"
    started_us: int | None = None
    ended_us: int | None = None
    output: object = UNSET
    error: ErrorInfo | None = None
    reason: str = ""
    usage: Usage = Usage()
    #: The model that wrote the answer, as its usage items say.
    model: str = ""
    #: Cancels the work; ``stop_as`` says what that makes of the run.
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    stop_as: RunStatus | None = None
    stop_reason: str = ""
    #: Set once its agent has it, or it will never have it: the next in line follows then.
    handed: trio.Event = attrs.field(factory=trio.Event)
    done: trio.Event = attrs.field(factory=trio.Event)
    #: Open input requests: request_id -> where the answer goes.
    questions: dict[str, trio.MemorySendChannel[object]] = attrs.field(factory=dict)
    #: Approvals that its tool calls wait for.
    approvals: set[str] = attrs.field(factory=set)
    #: The run that delegated it.
    parent: RunId | None = None
    #: What it may spend by itself, and the accounts that pay for it: its own first.
    budget: Budget = Budget()
    payers: tuple[Account, ...] = ()
    #: Calls of models and tools that are on for it; it ends when they have.
    calls: set[trio.CancelScope] = attrs.field(factory=set)
    calls_over: trio.Event = attrs.field(factory=trio.Event)
    #: How many runs have delegated one another up to this one.
    depth: int = 0
    #: What its budget was at its end.
    final: BudgetState | UnsetType | None = None
    #: Nothing more is to be begun for it.
    ending: bool = False
    _slots: dict[str, _Slot] = attrs.field(factory=dict)
    _text: int = 0

    @property
    def stream_name(self) -> str:
        return f"run:{self.run_id}"

    @contextmanager
    def calling(self) -> Iterator[None]:
        """While a model or a tool is called for it. Raises ``InvalidState`` where the run ends meanwhile."""
        if self.ending:
            raise InvalidState("the run that this call is for is over", state=self.status)
        with trio.CancelScope() as scope:
            self.calls.add(scope)
            try:
                yield
            finally:
                self.calls.discard(scope)
                if self.ending and not self.calls:
                    self.calls_over.set()
        if scope.cancelled_caught:
            raise InvalidState("the run that this call was for is over", state=self.status)

    def upsert(self, item: Item) -> tuple[str, Item, int]:
        """Insert or replace; returns the event type this makes, the item as it now is, and its place.

        An item that was completed stays so: what comes later for it is ignored (event type empty).
        """
        slot = self._slots.get(item.item_id)
        sent = _size(item.text) if isinstance(item, TEXT_ITEMS) else 0
        if slot is None:
            if len(self._slots) >= MAX_ITEMS:
                raise LimitExceeded("the run has too many items", limit="items", value=MAX_ITEMS)
            slot = self._slots[item.item_id] = _Slot(item, len(self._slots) + 1)
            event = "item.started" if item.status == "in_progress" else "item.completed"
        else:
            if slot.item.status != "in_progress":
                return "", slot.item, slot.n
            before = slot.whole()
            if isinstance(item, TEXT_ITEMS) and not item.text and isinstance(before, TEXT_ITEMS):
                item = msgspec.structs.replace(item, text=before.text)
            slot.item = item
            event = "item.updated" if item.status == "in_progress" else "item.completed"
        self._count(sent)  # what deltas have brought already does not count twice
        if isinstance(item, UsageItem) and event == "item.completed":
            self.usage = msgspec.structs.replace(
                self.usage,
                input_tokens=self.usage.input_tokens + item.input_tokens,
                output_tokens=self.usage.output_tokens + item.output_tokens,
                calls=self.usage.calls + item.calls,
                # Beyond all numbers there is only infinity, which JSON cannot say.
                cost_usd=max(-_MOST_COST, min(self.usage.cost_usd + item.cost_usd, _MOST_COST)),
            )
            self.model = item.model or self.model
        return event, item, slot.n

    def has(self, item_id: str) -> bool:
        return item_id in self._slots

    def grow(self, item_id: str, text: str) -> bool:
        """Append to an open item's text; False where there is nothing to append to."""
        slot = self._slots.get(item_id)
        if slot is None or slot.item.status != "in_progress" or not isinstance(slot.item, TEXT_ITEMS):
            return False
        self._count(_size(text))
        slot.parts.append(text)
        return True

    def _count(self, size: int) -> None:
        self._text += size
        if self._text > MAX_TEXT:
            raise LimitExceeded(
                f"the run has produced more than {MAX_TEXT} bytes of text: write it to a file instead",
                limit="run_text",
                value=MAX_TEXT,
            )

    def items(self) -> tuple[Item, ...]:
        return tuple(slot.whole() for slot in self._slots.values())

    def close_items(self, status: ItemStatus) -> list[tuple[Item, int]]:
        """Give every open item its final status; returns those, each with its place."""
        closed = []
        for slot in self._slots.values():
            if slot.item.status == "in_progress":
                slot.item = msgspec.structs.replace(slot.whole(), status=status)
                closed.append((slot.item, slot.n))
        return closed

    def said(self) -> str:
        """What the agent said: its messages, a blank line between them."""
        texts = [
            item.text
            for item in self.items()
            if isinstance(item, MessageItem) and item.role == "assistant" and item.text
        ]
        return "\n\n".join(texts)

    def refold(self, events: Iterable[Event]) -> None:
        """Bring the items back from the run's own events, as after a crash."""
        for event in events:
            if event.type == "item.delta":
                delta = msgspec.json.decode(event.data, type=ItemDeltaData)
                self.grow(delta.item_id, delta.text)
            elif event.type in ("item.started", "item.updated", "item.completed"):
                self.upsert(msgspec.json.decode(event.data, type=ItemData).item)

    def budget_state(self) -> BudgetState | UnsetType:
        """What it has spent and may yet; nothing where no budget counts and nothing was spent on models."""
        if self.final is not None:
            return self.final
        if not self.payers:
            return UNSET
        spent, left = self.payers[0].spent, least(self.payers)
        if left == Left() and not (spent.calls or spent.tokens or spent.cost_usd):
            return UNSET
        return BudgetState(spent=spent, left=left, limit=UNSET if self.budget == Budget() else self.budget)

    def view(self) -> Run:
        return Run(
            run_id=self.run_id,
            agent=self.agent,
            session_id=self.session_id or UNSET,
            status=self.status,
            input=self.input,
            output=self.output,
            error=self.error or UNSET,
            reason=self.reason or UNSET,
            items=self.items(),
            usage=self.usage,
            parent_run_id=self.parent or UNSET,
            budget=self.budget_state(),
            created_at=rfc3339(self.created_us),
            started_at=_moment(self.started_us),
            ended_at=_moment(self.ended_us),
        )


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _moment(wall_us: int | None) -> str | UnsetType:
    return UNSET if wall_us is None else rfc3339(wall_us)
