"""``memory/*`` and ``blocks/*``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from witsd.values.spec import MemoryTrust
from witsd.values.wire.common import UNSET, Limit, Timestamp, UnsetType
from witsd.values.wire.system import Backup

#: ``agent:<name>``, ``session:<id>``, ``execution:<id>``, ``shared``, or any other name of this form.
Namespace = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@:/+-]{0,199}$")]
MemoryKind = Literal["turn", "fact", "preference", "summary", "document"]
MemoryMode = Literal["hybrid", "semantic", "keyword"]
MemoryInclude = Literal["superseded", "expired"]
Vector = Annotated[tuple[float, ...], Meta(min_length=1, max_length=8192)]
MemoryIds = Annotated[tuple[str, ...], Meta(max_length=1000)]
Short = Annotated[str, Meta(max_length=200)]
Seconds = Annotated[float, Meta(gt=0, le=3_153_600_000)]


class MemorySource(Struct, frozen=True, kw_only=True):
    """Where a text comes from."""

    tool: Short | UnsetType = UNSET
    file: Annotated[str, Meta(max_length=4096)] | UnsetType = UNSET
    url: Annotated[str, Meta(max_length=4096)] | UnsetType = UNSET


class MemoryAddParams(Struct, frozen=True, kw_only=True):
    """``kind``: a turn where a session or speaker is given, else a fact. ``time``: when it was said, now when absent.

    ``dedupe``: count a text that is there already instead of finding it twice; on except for turns. ``trust`` is what
    the caller has at most. ``supersedes``: the records that are no longer true; ``derived_from``: those it was made
    of, with which it goes. ``run_id``: the caller's run, by which ``memory/revert`` finds it.
    """

    namespace: Namespace
    text: str
    kind: MemoryKind | None = None
    metadata: dict[str, Any] | None = None
    speaker: Short = ""
    time: Timestamp | None = None
    session_id: Short | None = None
    source: MemorySource | None = None
    ttl_s: Seconds | None = None
    vector: Vector | None = None
    dedupe: bool | None = None
    trust: MemoryTrust | None = None
    supersedes: MemoryIds = ()
    derived_from: MemoryIds = ()
    valid_from: Timestamp | None = None
    valid_to: Timestamp | None = None
    run_id: Short | None = None
    idempotency_key: str | None = None


class MemoryAdded(Struct, frozen=True, kw_only=True):
    """``deduplicated``: the text was there already, and ``memory_id`` is the record that has it."""

    memory_id: str
    deduplicated: bool


class Memory(Struct, frozen=True, kw_only=True):
    """A record. ``metadata`` is the caller's own; what is absent was never said."""

    memory_id: str
    namespace: str
    kind: MemoryKind
    text: str
    metadata: dict[str, Any]
    #: Who wrote it down: an actor's label.
    author: str
    trust: MemoryTrust
    #: When it was said.
    time: Timestamp
    created_at: Timestamp
    updated_at: Timestamp
    #: Counts its changes, from 1.
    version: int
    #: How often the same was said again.
    duplicates: int
    #: How often it was recalled into a prompt.
    uses: int
    speaker: str = ""
    session_id: str | UnsetType = UNSET
    run_id: str | UnsetType = UNSET
    message_id: str | UnsetType = UNSET
    source: MemorySource | UnsetType = UNSET
    valid_from: Timestamp | UnsetType = UNSET
    valid_to: Timestamp | UnsetType = UNSET
    superseded_by: str | UnsetType = UNSET
    expires_at: Timestamp | UnsetType = UNSET
    #: The record that stands for this one: the same text.
    duplicate_of: str | UnsetType = UNSET
    #: An earlier record that says nearly the same.
    near_of: str | UnsetType = UNSET
    #: Into how many passages a long text was cut.
    chunks: int | UnsetType = UNSET


class MemorySearchParams(Struct, frozen=True, kw_only=True):
    """Without a namespace: all that the caller may read. ``vector`` is the query's, else it is embedded here.

    ``filter``: ``{FIELD: {OP: VALUE}}`` with the operators eq, ne, in, gt, lt and exists (``{FIELD: VALUE}`` is eq), or
    ``{"and": [...]}``, ``{"or": [...]}``, ``{"not": ...}``; several fields must all fit. FIELD is kind, speaker,
    session_id, run_id, author, trust, time, created_at, memory_id, source.tool, source.file, source.url, or
    ``metadata.KEY``.
    """

    query: str = ""
    namespace: Namespace | None = None
    namespaces: Annotated[tuple[Namespace, ...], Meta(max_length=1000)] | None = None
    limit: Annotated[int, Meta(ge=1, le=200)] = 10
    mode: MemoryMode = "hybrid"
    filter: dict[str, Any] | None = None
    vector: Vector | None = None
    min_score: float | None = None
    include: tuple[MemoryInclude, ...] = ()
    cursor: str | None = None


class MemoryPassage(Struct, frozen=True, kw_only=True):
    """The part of a long record that was found: chunk ``n`` from 1, at character ``start``."""

    n: int
    start: int
    heading: str = ""


class MemoryHit(Struct, frozen=True, kw_only=True):
    """A record that was found, and why: ``parts`` sum up to ``score``; ``matched`` are the words it shares."""

    memory_id: str
    namespace: str
    kind: MemoryKind
    #: The record's text, or of a long one the ``passage``.
    text: str
    score: float
    parts: dict[str, float]
    matched: tuple[str, ...]
    metadata: dict[str, Any]
    author: str
    trust: MemoryTrust
    time: Timestamp
    created_at: Timestamp
    speaker: str = ""
    session_id: str | UnsetType = UNSET
    run_id: str | UnsetType = UNSET
    source: MemorySource | UnsetType = UNSET
    duplicates: int = 0
    valid_to: Timestamp | UnsetType = UNSET
    superseded_by: str | UnsetType = UNSET
    expires_at: Timestamp | UnsetType = UNSET
    passage: MemoryPassage | UnsetType = UNSET


class MemorySearchResult(Struct, frozen=True, kw_only=True):
    """Best first. ``degraded`` says why meaning did not count where it was to."""

    items: tuple[MemoryHit, ...]
    next_cursor: str | UnsetType = UNSET
    degraded: str | UnsetType = UNSET


class MemoryContextParams(Struct, frozen=True, kw_only=True):
    """What a prompt should carry. With ``session_id``, what of it is in the prompt anyway is left out."""

    query: str
    max_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] = 1000
    session_id: Short | None = None
    namespaces: Annotated[tuple[Namespace, ...], Meta(max_length=1000)] | None = None
    filter: dict[str, Any] | None = None


class MemoryContextResult(Struct, frozen=True, kw_only=True):
    """``text`` is to be put into the prompt as it is: its marks keep it from being remembered again.

    ``tokens`` is an estimate, on the high side. ``items`` are the hits it was made of, in the order of ``text``.
    """

    text: str
    items: tuple[MemoryHit, ...]
    tokens: int


class MemoryIdParams(Struct, frozen=True, kw_only=True):
    memory_id: str


class MemoryUpdateParams(Struct, frozen=True, kw_only=True):
    """What is absent stays. ``ttl_s`` counts from now; null means for ever. ``metadata`` replaces the old one whole."""

    memory_id: str
    text: str | UnsetType = UNSET
    metadata: dict[str, Any] | UnsetType = UNSET
    kind: MemoryKind | UnsetType = UNSET
    ttl_s: Seconds | None | UnsetType = UNSET
    valid_to: Timestamp | None | UnsetType = UNSET
    trust: MemoryTrust | UnsetType = UNSET
    vector: Vector | None = None
    run_id: Short | None = None
    #: The version the change is meant for: another one is a conflict.
    version: int | None = None


class MemoryListParams(Struct, frozen=True, kw_only=True):
    """Latest first. ``filter`` as in ``memory/search``."""

    namespace: Namespace | None = None
    kind: MemoryKind | None = None
    session_id: Short | None = None
    filter: dict[str, Any] | None = None
    include: tuple[MemoryInclude | Literal["duplicates"], ...] = ()
    cursor: str | None = None
    limit: Limit = 100


class MemoryPage(Struct, frozen=True, kw_only=True):
    items: tuple[Memory, ...]
    next_cursor: str | UnsetType = UNSET


class MemoryChange(Struct, frozen=True, kw_only=True):
    """One change of a record: ``before`` are the fields it changed, as they were."""

    version: int
    change: Literal["added", "updated", "superseded", "restored"]
    actor: str
    time: Timestamp
    run_id: str | UnsetType = UNSET
    before: dict[str, Any] | UnsetType = UNSET


class MemoryHistoryResult(Struct, frozen=True, kw_only=True):
    """Oldest first."""

    items: tuple[MemoryChange, ...]


class MemoryDeleteParams(Struct, frozen=True, kw_only=True):
    """``memory_id`` or ``memory_ids``. With what was derived from them; nothing of the text stays in the database.

    ``redact``: the same text is blotted out of the sessions, runs and events that have it, too. For this the caller
    needs the scope ``chat``; an agent, which has none, deletes memories only.
    """

    memory_id: str | None = None
    memory_ids: MemoryIds = ()
    redact: bool = True


class MemoryDeleteResult(Struct, frozen=True, kw_only=True):
    """``deleted``: the records that are gone. ``redacted``: in how many messages, items and events the text stood.

    ``backups``: copies of the database made earlier, which were not touched.
    """

    deleted: tuple[str, ...]
    redacted: int = 0
    backups: tuple[Backup, ...] = ()


class MemoryClearParams(Struct, frozen=True, kw_only=True):
    """All records of a namespace, or those of one of its sessions, or those said before a moment."""

    namespace: Namespace
    session_id: Short | None = None
    before: Timestamp | None = None


class MemoryClearResult(Struct, frozen=True, kw_only=True):
    deleted: int


class MemoryRevertParams(Struct, frozen=True, kw_only=True):
    run_id: str


class MemoryRevertResult(Struct, frozen=True, kw_only=True):
    """``deleted``: what the run wrote and what derives from it. ``restored``: records it had changed or closed."""

    deleted: tuple[str, ...]
    restored: tuple[str, ...]


class MemoryItem(Struct, frozen=True, kw_only=True):
    """A record on its way in or out; a line of an export is one. What is absent was never said.

    ``key`` and ``part`` name what it comes from (a file and the nth piece of it): the same text under the same name is
    known and not written again, another one takes the place of the record that was. ``memory_id`` is kept where it is
    free. ``vectors``: base64 of int8, one for the record or one for each of its passages.
    """

    namespace: Namespace
    text: str
    kind: MemoryKind
    memory_id: Short | UnsetType = UNSET
    key: Annotated[str, Meta(max_length=4096)] | UnsetType = UNSET
    part: Annotated[int, Meta(ge=0)] = 0
    metadata: dict[str, Any] | UnsetType = UNSET
    speaker: Short = ""
    time: Timestamp | UnsetType = UNSET
    created_at: Timestamp | UnsetType = UNSET
    author: Short | UnsetType = UNSET
    trust: MemoryTrust | UnsetType = UNSET
    session_id: Short | UnsetType = UNSET
    message_id: Short | UnsetType = UNSET
    run_id: Short | UnsetType = UNSET
    source: MemorySource | UnsetType = UNSET
    valid_from: Timestamp | UnsetType = UNSET
    valid_to: Timestamp | UnsetType = UNSET
    expires_at: Timestamp | UnsetType = UNSET
    superseded_by: Short | UnsetType = UNSET
    supersedes: MemoryIds = ()
    derived_from: MemoryIds = ()
    uses: Annotated[int, Meta(ge=0)] = 0
    vectors: tuple[str, ...] = ()


class MemoryWhole(Struct, frozen=True, kw_only=True):
    """All of ``key`` has come in, and it has so many parts by now: those beyond are closed."""

    namespace: Namespace
    key: Annotated[str, Meta(max_length=4096)]
    parts: Annotated[int, Meta(ge=0)]


class MemoryImportParams(Struct, frozen=True, kw_only=True):
    """All of it or nothing. ``model`` and ``digest``: of the vectors, which others than of the model in use are not."""

    items: Annotated[tuple[MemoryItem, ...], Meta(max_length=1000)]
    whole: Annotated[tuple[MemoryWhole, ...], Meta(max_length=1000)] = ()
    model: str | None = None
    digest: str | None = None


class MemoryImportResult(Struct, frozen=True, kw_only=True):
    """``added`` records are new, ``known`` ones were there, ``closed`` ones no longer hold."""

    added: int
    known: int
    closed: int


class MemoryExportParams(Struct, frozen=True, kw_only=True):
    """JSON Lines can be imported again, Markdown is for reading. Without a namespace: all of them."""

    namespace: Namespace | None = None
    format: Literal["jsonl", "markdown"] = "jsonl"
    vectors: bool = False
    cursor: str | None = None


class MemoryExportResult(Struct, frozen=True, kw_only=True):
    """A piece of the text; the next one is asked for by ``next_cursor``. ``records``: how many are in this one."""

    text: str
    records: int
    next_cursor: str | UnsetType = UNSET


class MemoryNamespacesParams(Struct, frozen=True, kw_only=True):
    cursor: str | None = None
    limit: Limit = 100


class MemoryRetention(Struct, frozen=True, kw_only=True):
    """What of a namespace is kept; 0 is no bound. The oldest go first."""

    max_age_days: float = 0
    max_records: int = 0
    max_bytes: int = 0


class MemoryNamespace(Struct, frozen=True, kw_only=True):
    name: str
    records: int
    #: Of text.
    bytes: int
    created_at: Timestamp
    retention: MemoryRetention


class MemoryNamespacePage(Struct, frozen=True, kw_only=True):
    items: tuple[MemoryNamespace, ...]
    next_cursor: str | UnsetType = UNSET


class MemoryStatsParams(Struct, frozen=True, kw_only=True):
    """Without a namespace: all that the caller may read."""

    namespace: Namespace | None = None


class MemoryModel(Struct, frozen=True, kw_only=True):
    """An embedding model whose vectors are stored."""

    model: str
    digest: str
    dimensions: int
    state: Literal["current", "building"]
    embedded: int


class MemoryStats(Struct, frozen=True, kw_only=True):
    """``to_embed``: passages found by their words only, so far; ``trouble``: why none is embedded at the moment."""

    records: int
    bytes: int
    namespaces: int
    kinds: dict[str, int]
    duplicates: int
    near_duplicates: int
    superseded: int
    expired: int
    chunks: int
    to_embed: int
    embedder: str
    models: tuple[MemoryModel, ...]
    trouble: str | UnsetType = UNSET


class MemoryReindexParams(Struct, frozen=True, kw_only=True):
    """``embedder``: the one to use from now on: hash, the name of an agent that embeds, or PROVIDER/MODEL.

    Without it all that is stored is embedded anew by the one in use. Earlier vectors are searched until that is done.
    """

    embedder: str | None = None


class Block(Struct, frozen=True, kw_only=True):
    """A text that is always in its agent's prompt."""

    agent: str
    name: str
    text: str
    version: int
    author: str
    updated_at: Timestamp


class BlocksListParams(Struct, frozen=True, kw_only=True):
    agent: str


class BlockPage(Struct, frozen=True, kw_only=True):
    items: tuple[Block, ...]
    next_cursor: str | UnsetType = UNSET


class BlocksGetParams(Struct, frozen=True, kw_only=True):
    """``version``: an earlier one."""

    agent: str
    name: str
    version: int | None = None


class BlocksSetParams(Struct, frozen=True, kw_only=True):
    """An empty ``text`` takes the block out of the prompt. ``version``: the one the change is meant for."""

    agent: str
    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
    text: str
    version: int | None = None
    run_id: Short | None = None
