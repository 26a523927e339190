"""Records as rows: how they are read, written and shown."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, get_args

import apsw
import attrs
import msgspec

from witsd.journal.journal import Tx
from witsd.values.clock import rfc3339
from witsd.values.errors import InvalidParams, LimitExceeded, NotFound
from witsd.values.spec import MemoryTrust
from witsd.values.wire import memory as wire
from witsd.values.wire.common import UNSET, UnsetType

#: A text may have so many bytes of UTF-8, its metadata so many of JSON.
MAX_TEXT_BYTES = 2 << 20
MAX_METADATA_BYTES = 16 << 10

#: Trust as a number, so that it can be compared.
TRUST: dict[str, int] = {name: rank for rank, name in enumerate(get_args(MemoryTrust))}
_TRUSTS: tuple[MemoryTrust, ...] = get_args(MemoryTrust)

_source = msgspec.json.Decoder(wire.MemorySource)
_encode = msgspec.json.Encoder().encode

COLUMNS = (
    "m.id, m.memory_id, n.name, m.kind, m.text, m.metadata, m.speaker, m.session_id, m.message_id, m.run_id, "
    "m.author, m.source, m.trust, m.time_us, m.created_us, m.updated_us, m.valid_from_us, m.valid_to_us, "
    "(SELECT s.memory_id FROM memories s WHERE s.id = m.superseded_by), m.expires_us, "
    "(SELECT s.memory_id FROM memories s WHERE s.id = m.duplicate_of), m.duplicates, "
    "(SELECT s.memory_id FROM memories s WHERE s.id = m.near_of), m.uses, m.version, m.indexed, m.part_of, "
    "m.place, m.starts, m.heading"
)
FROM = "memories m JOIN memory_namespaces n ON n.namespace_id = m.namespace_id"


@attrs.frozen(kw_only=True)
class Row:
    """A record as it stands in the database. Times in microseconds since 1970, UTC."""

    id: int
    memory_id: str | None
    namespace: str
    kind: wire.MemoryKind
    text: str
    metadata: str | None
    speaker: str
    session_id: str | None
    message_id: str | None
    run_id: str | None
    author: str
    source: str | None
    trust: int
    time_us: int
    created_us: int
    updated_us: int
    valid_from_us: int | None
    valid_to_us: int | None
    superseded_by: str | None
    expires_us: int | None
    duplicate_of: str | None
    duplicates: int
    near_of: str | None
    uses: int
    version: int
    indexed: int
    part_of: int | None
    place: int | None
    starts: int | None
    heading: str | None


_FIELDS = tuple(field.name for field in attrs.fields(Row))


def row(values: Sequence[Any]) -> Row:
    return Row(**dict(zip(_FIELDS, values, strict=True)))


def find(db: apsw.Connection, memory_id: str) -> Row | None:
    found = db.execute(f"SELECT {COLUMNS} FROM {FROM} WHERE m.memory_id = ?", (memory_id,)).fetchone()
    return None if found is None else row(found)


def load_tx(tx: Tx, memory_id: str) -> Row:
    """Raises ``NotFound``."""
    found = tx.execute(f"SELECT {COLUMNS} FROM {FROM} WHERE m.memory_id = ?", (memory_id,))
    if not found:
        raise missing(memory_id)
    return row(found[0])


def by_ids(db: apsw.Connection, ids: Iterable[int]) -> dict[int, Row]:
    """Rows by their ``id``; those that are not there are left out."""
    wanted = _encode(list(ids)).decode()
    sql = f"SELECT {COLUMNS} FROM {FROM} WHERE m.id IN (SELECT value FROM json_each(?))"
    return {values[0]: row(values) for values in db.execute(sql, (wanted,))}


def by_ids_tx(tx: Tx, ids: Iterable[int]) -> list[Row]:
    wanted = _encode(list(ids)).decode()
    sql = f"SELECT {COLUMNS} FROM {FROM} WHERE m.id IN (SELECT value FROM json_each(?)) ORDER BY m.id"
    return [row(values) for values in tx.execute(sql, (wanted,))]


def missing(memory_id: str) -> NotFound:
    return NotFound(f"there is no memory {memory_id!r}", kind="memory", id=memory_id)


# ---- as they are shown -----------------------------------------------------------------------------------


def view(r: Row, chunks: int = 0) -> wire.Memory:
    assert r.memory_id is not None
    return wire.Memory(
        memory_id=r.memory_id,
        namespace=r.namespace,
        kind=r.kind,
        text=r.text,
        metadata=metadata_of(r),
        author=r.author,
        trust=_TRUSTS[r.trust],
        time=rfc3339(r.time_us),
        created_at=rfc3339(r.created_us),
        updated_at=rfc3339(r.updated_us),
        version=r.version,
        duplicates=r.duplicates,
        uses=r.uses,
        speaker=r.speaker,
        session_id=r.session_id or UNSET,
        run_id=r.run_id or UNSET,
        message_id=r.message_id or UNSET,
        source=source_of(r),
        valid_from=moment(r.valid_from_us),
        valid_to=moment(r.valid_to_us),
        superseded_by=r.superseded_by or UNSET,
        expires_at=moment(r.expires_us),
        duplicate_of=r.duplicate_of or UNSET,
        near_of=r.near_of or UNSET,
        chunks=chunks or UNSET,
    )


def metadata_of(r: Row) -> dict[str, Any]:
    return msgspec.json.decode(r.metadata) if r.metadata else {}


def source_of(r: Row) -> wire.MemorySource | UnsetType:
    return _source.decode(r.source) if r.source else UNSET


def trust_of(r: Row) -> MemoryTrust:
    return _TRUSTS[r.trust]


def moment(us: int | None) -> str | UnsetType:
    return UNSET if us is None else rfc3339(us)


# ---- as they come in -------------------------------------------------------------------------------------


def micros(timestamp: str, path: str) -> int:
    """An RFC 3339 time in microseconds since 1970; one without a zone is UTC. Raises ``InvalidParams``."""
    try:
        moment = datetime.fromisoformat(timestamp)
        if moment.tzinfo is None:
            moment = datetime.fromisoformat(timestamp + "+00:00")
        # Not timestamp(), whose floats are off by some microseconds.
        since = moment - datetime.fromisoformat("1970-01-01T00:00:00+00:00")
    except (ValueError, OverflowError):
        raise InvalidParams(
            f"{path}: {timestamp[:40]!r} is no time: write it as 2026-01-31T09:05:07Z", path=path
        ) from None
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def checked_text(text: str, path: str = "params.text") -> str:
    """``text`` as it may be stored. Raises ``InvalidParams``, ``LimitExceeded``."""
    if not text.strip():
        raise InvalidParams(f"{path}: there is nothing to remember in an empty text", path=path)
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_TEXT_BYTES:
        raise LimitExceeded(
            f"a text of {size} bytes is too long for one memory ({MAX_TEXT_BYTES}): cut it into several",
            limit="memory_text",
            value=MAX_TEXT_BYTES,
        )
    if "\0" in text:
        raise InvalidParams(f"{path}: holds a NUL character: this is no text", path=path)
    return text


def encoded_metadata(metadata: dict[str, Any] | None, path: str = "params.metadata") -> str | None:
    """Metadata as stored. Raises ``LimitExceeded``."""
    if not metadata:
        return None
    data = _encode(metadata)
    if len(data) > MAX_METADATA_BYTES:
        raise LimitExceeded(
            f"{path}: {len(data)} bytes of metadata are too many ({MAX_METADATA_BYTES}): put them into the text",
            limit="memory_metadata",
            value=MAX_METADATA_BYTES,
        )
    return data.decode()


def fingerprint(namespace: str, kind: str, speaker: str, text: str) -> bytes:
    """What two records share that say the same: case, spaces and the full stop at the end do not matter."""
    alike = " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(".!。 ")
    return hashlib.sha256("\0".join((namespace, kind, speaker.casefold(), alike)).encode()).digest()[:16]


# ---- namespaces ------------------------------------------------------------------------------------------


def namespace_id(tx: Tx, name: str) -> int:
    """The number of a namespace, which is made when it is first written to."""
    found = tx.execute("SELECT namespace_id FROM memory_namespaces WHERE name = ?", (name,))
    if not found:
        found = tx.execute(
            "INSERT INTO memory_namespaces(name, created_us) VALUES (?, ?) RETURNING namespace_id", (name, tx.now_us)
        )
    return int(found[0][0])


def namespaces(db: apsw.Connection) -> dict[str, int]:
    """Name -> number of every namespace that has been written to."""
    return dict(db.execute("SELECT name, namespace_id FROM memory_namespaces"))
