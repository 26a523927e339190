"""``sessions/*``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from witsd.values.wire.common import UNSET, Limit, Timestamp, UnsetType

SessionStatus = Literal["idle", "running", "waiting"]
WhileRunning = Literal["enqueue", "interrupt", "reject"]
Title = Annotated[str, Meta(max_length=200)]


class SessionSettings(Struct, frozen=True, kw_only=True):
    """What this conversation changes of its agent's definition; absent means as defined."""

    model: str | None | UnsetType = UNSET
    system: str | None | UnsetType = UNSET
    stream: bool | None | UnsetType = UNSET
    memory: Literal["on", "off"] | None | UnsetType = UNSET
    tools: tuple[str, ...] | None | UnsetType = UNSET


class Session(Struct, frozen=True, kw_only=True):
    session_id: str
    agent: str
    title: str
    status: SessionStatus
    settings: SessionSettings
    messages: int
    created_at: Timestamp
    updated_at: Timestamp
    #: The run it is working on.
    run_id: str | UnsetType = UNSET
    #: The session it was forked from.
    parent_id: str | UnsetType = UNSET
    #: What made it, in its maker's word: ``ask`` for a single question.
    origin: str = ""


class SessionPage(Struct, frozen=True, kw_only=True):
    items: tuple[Session, ...]
    next_cursor: str | UnsetType = UNSET


class Attachment(Struct, frozen=True, kw_only=True):
    """A text file that goes with a message."""

    name: str
    text: str
    media_type: str = "text/plain"


class Message(Struct, frozen=True, kw_only=True):
    """One turn of the conversation; ``n`` counts from 1 within its session."""

    message_id: str
    session_id: str
    n: int
    role: Literal["user", "assistant", "system"]
    #: Who said it: an agent's name, or the caller's label.
    author: str
    text: str
    created_at: Timestamp
    status: Literal["completed", "failed", "cancelled", "interrupted"] = "completed"
    run_id: str | UnsetType = UNSET
    #: The model that wrote it, where the agent said so.
    model: str | UnsetType = UNSET
    attachments: tuple[Attachment, ...] | UnsetType = UNSET


class MessagePage(Struct, frozen=True, kw_only=True):
    """In the order they were said. ``next_cursor`` leads on in the direction of travel."""

    items: tuple[Message, ...]
    next_cursor: str | UnsetType = UNSET


class SessionsCreateParams(Struct, frozen=True, kw_only=True):
    agent: str
    title: Title = ""
    settings: SessionSettings | None = None
    origin: Annotated[str, Meta(max_length=40)] = ""
    idempotency_key: str | None = None


class SessionIdParams(Struct, frozen=True, kw_only=True):
    session_id: str


class SessionsListParams(Struct, frozen=True, kw_only=True):
    """Latest first."""

    cursor: str | None = None
    limit: Limit = 100
    agent: str | None = None


class SessionsPromptParams(Struct, frozen=True, kw_only=True):
    session_id: str
    text: str
    attachments: tuple[Attachment, ...] = ()
    while_running: WhileRunning = "enqueue"
    cwd: str | None = None
    idempotency_key: str | None = None


class PromptResult(Struct, frozen=True, kw_only=True):
    run_id: str
    message_id: str


class SessionsMessagesParams(Struct, frozen=True, kw_only=True):
    """Without ``before`` and ``after``: the newest page. Both are a message's ``n`` as text."""

    session_id: str
    before: str | None = None
    after: str | None = None
    limit: Limit = 100


class SessionsUpdateParams(Struct, frozen=True, kw_only=True):
    """A setting given as null goes back to the agent's definition."""

    session_id: str
    title: Title | None = None
    settings: SessionSettings | None = None


class SessionsSearchParams(Struct, frozen=True, kw_only=True):
    query: str
    agent: str | None = None
    session_id: str | None = None
    cursor: str | None = None
    limit: Limit = 20


class SearchHit(Struct, frozen=True, kw_only=True):
    session_id: str
    title: str
    message: Message
    #: The words around the match, each match between ``[`` and ``]``.
    snippet: str


class SearchPage(Struct, frozen=True, kw_only=True):
    items: tuple[SearchHit, ...]
    next_cursor: str | UnsetType = UNSET


class SessionsForkParams(Struct, frozen=True, kw_only=True):
    """A new session with the messages up to and including ``message_id`` (all when absent)."""

    session_id: str
    message_id: str | None = None
    title: Title | None = None


class SessionsExportParams(Struct, frozen=True, kw_only=True):
    session_id: str
    format: Literal["jsonl", "markdown"] = "jsonl"
    cursor: str | None = None


class SessionsExportResult(Struct, frozen=True, kw_only=True):
    """One piece of the export; ask on with ``next_cursor`` until there is none."""

    format: str
    text: str
    next_cursor: str | UnsetType = UNSET


class SessionsTypingParams(Struct, frozen=True, kw_only=True):
    session_id: str
    typing: bool


class HistoryTurn(Struct, frozen=True, kw_only=True):
    """A message as an agent gets it in ``runs/execute.history``."""

    role: str
    text: str
    data: Any = UNSET
