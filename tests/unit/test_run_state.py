"""What a run holds in memory: its bounds."""

from __future__ import annotations

import pytest

from witsd.services.run_state import MAX_TEXT, LiveRun
from witsd.values.errors import LimitExceeded
from witsd.values.ids import AgentName, ItemId, RunId
from witsd.values.items import MessageItem
from witsd.values.wire.runs import RunInput


def live_run() -> LiveRun:
    return LiveRun(
        run_id=RunId("run_1"),
        agent=AgentName("a"),
        session_id=None,
        input=RunInput(),
        actor="owner",
        stream=True,
        timeout_s=None,
        created_us=0,
    )


def test_text_counts_once_when_its_item_completes() -> None:
    run = live_run()
    run.upsert(MessageItem(item_id=ItemId("m")))
    assert run.grow("m", "x" * MAX_TEXT)
    event, item, _ = run.upsert(MessageItem(item_id=ItemId("m"), status="completed"))
    assert event == "item.completed"
    assert isinstance(item, MessageItem)
    assert len(item.text) == MAX_TEXT
    with pytest.raises(LimitExceeded):
        run.upsert(MessageItem(item_id=ItemId("n"), text="x"))
