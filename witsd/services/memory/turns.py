"""Turns of conversations, recorded by themselves: each message, raw, in the transaction that writes it."""

from __future__ import annotations

from witsd.journal.journal import Tx
from witsd.services.memory import contradictions, records, store
from witsd.services.memory.recall import without_recalled
from witsd.services.memory.records import TRUST
from witsd.values.ids import Ids
from witsd.values.wire.sessions import Message


def record(tx: Tx, agent: str, message: Message, ids: Ids) -> None:
    """Remember a message in its agent's namespace. What of it was recalled from memory is left out.

    A person's words are a person's; whoever else spoke is believed as far as an agent is.
    """
    text = without_recalled(message.text).replace("\0", "").strip()
    if not text:
        return
    by_agent = message.role != "user" or message.author.startswith("agent:")
    author = f"agent:{agent}" if message.role == "assistant" else message.author
    rowid, _ = store.add(
        tx,
        store.New(
            memory_id=ids.new("mem"),
            namespace=f"agent:{agent}",
            kind="turn",
            text=text[: records.MAX_TEXT_BYTES // 4],
            author=author,
            trust=TRUST["agent" if by_agent else "person"],
            speaker=message.author,
            session_id=message.session_id,
            message_id=message.message_id,
            run_id=message.run_id if isinstance(message.run_id, str) else None,
            time_us=tx.now_us,
            dedupe=False,
        ),
    )
    if not by_agent:
        contradictions.settle(tx, rowid, text, ids)
