"""Getting conversations out: full-text search, JSON Lines and Markdown."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

import apsw
import msgspec

from witsd.services import session_rows as rows
from witsd.values.wire import sessions as wire
from witsd.values.wire.common import UNSET

_encode = msgspec.json.Encoder().encode

#: Messages, and characters, in one piece of an export.
_PIECE_MESSAGES = 200
_PIECE_CHARACTERS = 1 << 20
_WORD = re.compile(r"\w+")


def fts_query(text: str) -> str:
    """The words of ``text`` as an FTS5 query that wants them all; operators and quotes mean nothing."""
    # Composed, for a combining accent is no word character and would cut its word in two.
    words = dict.fromkeys(_WORD.findall(unicodedata.normalize("NFC", text)))
    return " ".join(f'"{word}"' for word in words)


def search(db: apsw.Connection, params: wire.SessionsSearchParams, offset: int) -> wire.SearchPage:
    query = fts_query(params.query)
    if not query:
        return wire.SearchPage(items=())
    values: list[Any] = [query]
    where = "messages_fts MATCH ?"
    if params.agent is not None:
        where += " AND s.agent = ?"
        values.append(params.agent)
    if params.session_id is not None:
        where += " AND m.session_id = ?"
        values.append(params.session_id)
    found: list[Any] = db.execute(
        f"SELECT {rows.MESSAGE_COLUMNS}, s.title, snippet(messages_fts, 0, '[', ']', '…', 16) "
        "FROM messages_fts JOIN messages m ON m.id = messages_fts.rowid "
        f"JOIN sessions s ON s.session_id = m.session_id WHERE {where} "
        "ORDER BY rank, m.id DESC LIMIT ? OFFSET ?",
        (*values, params.limit, offset),
    ).fetchall()
    hits = tuple(
        wire.SearchHit(session_id=row[1], title=row[-2], message=rows.message_view(row[:-2]), snippet=row[-1])
        for row in found
    )
    more = len(hits) == params.limit
    return wire.SearchPage(items=hits, next_cursor=str(offset + len(hits)) if more else UNSET)


def export(db: apsw.Connection, params: wire.SessionsExportParams, after: int) -> wire.SessionsExportResult:
    """The piece that follows message number ``after``; the first one begins with the session itself."""
    session = rows.load(db, params.session_id)
    markdown = params.format == "markdown"
    parts = [_title(session) if markdown else _line(session)] if after == 0 else []
    size = 0
    last = after
    found = db.execute(
        f"SELECT {rows.MESSAGE_COLUMNS} FROM messages m WHERE m.session_id = ? AND m.n > ? ORDER BY m.n",
        (params.session_id, after),
    )
    for count, row in enumerate(found):
        if count == _PIECE_MESSAGES or size > _PIECE_CHARACTERS:
            return wire.SessionsExportResult(format=params.format, text="".join(parts), next_cursor=str(last))
        message = rows.message_view(row)
        parts.append(_section(message) if markdown else _line(message))
        size += len(parts[-1])
        last = message.n
    return wire.SessionsExportResult(format=params.format, text="".join(parts))


def _line(value: Any) -> str:
    return _encode(value).decode() + "\n"


def _title(session: wire.Session) -> str:
    title = " ".join(session.title.split()) or session.session_id
    return f"# {title}\n\nWith {session.agent}, begun {session.created_at}.\n"


def _section(message: wire.Message) -> str:
    note = "" if message.status == "completed" else f" ({message.status})"
    text = f"\n## {message.author}{note}, {message.created_at}\n\n{message.text}\n"
    if message.attachments is not UNSET:
        for attachment in message.attachments:
            fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", attachment.text)), default=2))
            text += f"\n{attachment.name}:\n\n{fence}\n{attachment.text}\n{fence}\n"
    return text
