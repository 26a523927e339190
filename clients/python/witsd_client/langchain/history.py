"""The messages of a conversation of LangChain's, kept in the daemon's memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import BaseMessage, message_to_dict, messages_from_dict

from witsd_client.generated import Memory, MemoryPage
from witsd_client.langchain.bridge import Bridge, bridge
from witsd_client.run import current_run
from witsd_client.sync import SyncClient

#: Under which keys of a record's metadata the conversation and the message as it was stand.
SESSION_KEY, MESSAGE_KEY = "conversation", "message"
_PAGE = 1000
_SPEAKERS = {"human": "user", "ai": "assistant"}


class WitsChatMessageHistory(BaseChatMessageHistory):
    """The conversation ``session_id``: durable, in order, and found again by ``witsd memory search`` like all memory.

    ``namespace``: an agent's own, and ``langchain`` outside of one.
    """

    def __init__(
        self, session_id: str, *, namespace: str | None = None, client: SyncClient | None = None
    ) -> None:
        self.session_id = session_id
        self._given = namespace
        self._client = client

    @property
    def namespace(self) -> str:
        """Where the messages are."""
        run = current_run.get()
        return self._given or ("langchain" if run is None else f"agent:{run.agent.name}")

    @property
    def messages(self) -> list[BaseMessage]:  # type: ignore[override]
        """From the first to the last. Not from a coroutine: see ``aget_messages``."""
        return _messages(self._records())

    async def aget_messages(self) -> list[BaseMessage]:
        """See ``messages``."""
        return _messages(await self._arecords())

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Keep messages, behind those that are there."""
        for message in messages:
            self._bridge.call("memory/add", self._record(message))

    async def aadd_messages(self, messages: Sequence[BaseMessage]) -> None:
        """See ``add_messages``."""
        for message in messages:
            await self._bridge.acall("memory/add", self._record(message))

    def clear(self) -> None:
        """Delete the conversation without a trace."""
        if found := self._records():
            self._bridge.call("memory/delete", _deletion(found))

    async def aclear(self) -> None:
        """See ``clear``."""
        if found := await self._arecords():
            await self._bridge.acall("memory/delete", _deletion(found))

    @property
    def _bridge(self) -> Bridge:
        return bridge(self._client)

    def _record(self, message: BaseMessage) -> dict[str, Any]:
        text = str(message.text) or f"[{message.type}]"
        return {
            "namespace": self.namespace,
            "kind": "turn",
            "speaker": _SPEAKERS.get(message.type, message.type),
            "text": text,
            "metadata": {SESSION_KEY: self.session_id, MESSAGE_KEY: message_to_dict(message)},
            "dedupe": False,
        }

    def _page(self, cursor: str | None) -> dict[str, Any]:
        wanted = {f"metadata.{SESSION_KEY}": {"eq": self.session_id}}
        page: dict[str, Any] = {"namespace": self.namespace, "filter": wanted, "limit": _PAGE}
        return page if cursor is None else {**page, "cursor": cursor}

    def _records(self) -> list[Memory]:
        found: list[Memory] = []
        cursor: str | None = None
        while True:
            page = self._bridge.call("memory/list", self._page(cursor), MemoryPage)
            found += page.items
            cursor = page.next_cursor or None
            if cursor is None:
                return found[::-1]

    async def _arecords(self) -> list[Memory]:
        found: list[Memory] = []
        cursor: str | None = None
        while True:
            page = await self._bridge.acall("memory/list", self._page(cursor), MemoryPage)
            found += page.items
            cursor = page.next_cursor or None
            if cursor is None:
                return found[::-1]


def _messages(records: list[Memory]) -> list[BaseMessage]:
    return messages_from_dict([record.metadata[MESSAGE_KEY] for record in records])


def _deletion(found: list[Memory]) -> dict[str, Any]:
    return {"memory_ids": [memory.memory_id for memory in found], "redact": False}
