"""Blotting a text out of what else the database holds: messages, runs, their items, and the events of all of these."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apsw
import attrs
import msgspec

from witsd.journal.journal import Tx

#: What stands in its place.
BLOT = "[deleted]"
#: A shorter text is blotted out only where it came from, and there only where it stands alone: it may be anybody's.
_TELLING = 16
#: Texts looked for in one pass through the events.
_AT_ONCE = 20
#: Where tools keep what they were given and have answered: table, key, columns of JSON.
_TOOLS = (
    ("approvals", "approval_id", ("arguments",)),
    ("tool_calls", "call_id", ("result",)),
    ("tool_rules", "rule_id", ("patterns", "arguments")),
)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


@attrs.frozen
class Gone:
    """A text that goes, and where it came from."""

    text: str
    session_id: str | None
    run_id: str | None
    message_id: str | None

    @property
    def parts(self) -> tuple[str, ...]:
        """The whole, and the messages that a turn of an agent was put together from."""
        return (self.text, *self.text.split("\n\n"))


@attrs.frozen(kw_only=True)
class Places:
    """Rows that hold one of the texts: positions of events, and row ids (items: run and item; tools: place in
    ``_TOOLS`` and key).
    """

    events: tuple[int, ...]
    messages: tuple[int, ...]
    runs: tuple[int, ...]
    items: tuple[tuple[str, str], ...]
    tools: tuple[tuple[int, str], ...]


def search(db: apsw.Connection, gone: Sequence[Gone]) -> Places:
    """Where the texts stand. Reads through everything, for which it takes about a second for each gigabyte."""
    events: set[int] = set()
    messages: set[int] = set()
    runs: set[int] = set()
    items: set[tuple[str, str]] = set()
    tools: set[tuple[int, str]] = set()
    for one in gone:
        for stream in filter(None, (f"session:{one.session_id}", f"run:{one.run_id}")):
            events.update(
                pos
                for (pos,) in db.execute(
                    "SELECT e.pos FROM streams s JOIN events e ON e.stream_id = s.stream_id WHERE s.name = ?", (stream,)
                )
            )
        if one.message_id is not None:
            messages.update(i for (i,) in db.execute("SELECT id FROM messages WHERE message_id = ?", (one.message_id,)))
        if one.run_id is not None:
            runs.update(n for (n,) in db.execute("SELECT n FROM runs WHERE run_id = ?", (one.run_id,)))
            items.update(db.execute("SELECT run_id, item_id FROM items WHERE run_id = ?", (one.run_id,)))
            for place, (table, key, _) in enumerate(_TOOLS[:2]):
                of_run = db.execute(f"SELECT {key} FROM {table} WHERE run_id = ?", (one.run_id,))
                tools.update((place, str(found)) for (found,) in of_run)
    telling = list(dict.fromkeys(one.text for one in gone if len(one.text) >= _TELLING))
    for start in range(0, len(telling), _AT_ONCE):
        texts = telling[start : start + _AT_ONCE]
        needles = [_encode(text)[1:-1] for text in texts]
        events.update(pos for (pos,) in _holding(db, "SELECT pos FROM events", ("data",), needles))
        items.update(_holding(db, "SELECT run_id, item_id FROM items", ("data",), needles))
        runs.update(n for (n,) in _holding(db, "SELECT n FROM runs", ("input", "output", "error"), needles))
        for place, (table, key, columns) in enumerate(_TOOLS):
            holding = _holding(db, f"SELECT {key} FROM {table}", columns, needles)
            tools.update((place, str(found)) for (found,) in holding)
        messages.update(i for (i,) in _holding(db, "SELECT id FROM messages", ("text",), texts))
        messages.update(i for (i,) in _holding(db, "SELECT id FROM messages", ("attachments",), needles))
    return Places(
        events=tuple(sorted(events)),
        messages=tuple(messages),
        runs=tuple(runs),
        items=tuple(sorted(items)),
        tools=tuple(sorted(tools)),
    )


def _holding(
    db: apsw.Connection, select: str, columns: Sequence[str], needles: Sequence[Any]
) -> Iterable[tuple[Any, ...]]:
    where = " OR ".join(f"instr({column}, ?)" for column in columns for _ in needles)
    return db.execute(f"{select} WHERE {where}", [needle for _ in columns for needle in needles])


def blot_events(tx: Tx, gone: Sequence[Gone], positions: Sequence[int]) -> dict[int, bytes]:
    """Rewrite these events where they hold one of the texts; returns what has changed, by position."""
    blotted = _Blotter(gone)
    changed: dict[int, bytes] = {}
    grown = 0
    streamed: set[tuple[int, str]] = set()
    for pos in positions:
        row = tx.execute("SELECT stream_id, type, data FROM events WHERE pos = ?", (pos,))
        if not row:
            continue
        stream_id, kind, data = row[0]
        if kind == "item.delta":
            continue  # a piece of a text: by its item, below
        new = blotted.data(data)
        if new is None:
            continue
        changed[pos] = new
        grown += len(new) - len(data)
        tx.execute("UPDATE events SET data = ? WHERE pos = ?", (new, pos))
        item = _decode(data).get("item") if kind.startswith("item.") else None
        if item is not None:
            streamed.add((stream_id, item.get("item_id", "")))
    for stream_id, item_id in streamed:
        for pos, data in tx.execute(
            "SELECT pos, data FROM events WHERE stream_id = ? AND type = 'item.delta'", (stream_id,)
        ):
            delta = _decode(data)
            if delta.get("item_id") == item_id and delta.get("text"):
                new = _encode(delta | {"text": ""})
                changed[pos] = new
                grown += len(new) - len(data)
                tx.execute("UPDATE events SET data = ? WHERE pos = ?", (new, pos))
    tx.execute("UPDATE journal SET bytes = bytes + ?", (grown,))
    return changed


def blot_rows(tx: Tx, gone: Sequence[Gone], places: Places) -> int:
    """Rewrite messages, runs, items and what tools keep; returns how many have changed."""
    blotted = _Blotter(gone)
    count = 0
    for rowid in places.messages:
        for text, attachments in tx.execute("SELECT text, attachments FROM messages WHERE id = ?", (rowid,)):
            new_text = blotted.string(text)
            new_files = blotted.data(attachments) if attachments else None
            if new_text != text or new_files is not None:
                count += 1
                tx.execute(
                    "UPDATE messages SET text = ?, attachments = ? WHERE id = ?",
                    (new_text, attachments if new_files is None else new_files, rowid),
                )
    for n in places.runs:
        for columns in tx.execute("SELECT input, output, error FROM runs WHERE n = ?", (n,)):
            new = [blotted.data(data) if data else None for data in columns]
            if any(new):
                count += 1
                kept = [old if value is None else value for old, value in zip(columns, new, strict=True)]
                tx.execute("UPDATE runs SET input = ?, output = ?, error = ? WHERE n = ?", (*kept, n))
    for run_id, item_id in places.items:
        for (data,) in tx.execute("SELECT data FROM items WHERE run_id = ? AND item_id = ?", (run_id, item_id)):
            changed = blotted.data(data)
            if changed is not None:
                count += 1
                tx.execute("UPDATE items SET data = ? WHERE run_id = ? AND item_id = ?", (changed, run_id, item_id))
    for place, row in places.tools:
        table, key, names = _TOOLS[place]
        for held in tx.execute(f"SELECT {', '.join(names)} FROM {table} WHERE {key} = ?", (row,)):
            fresh = [blotted.data(data) if data else None for data in held]
            for name, value in zip(names, fresh, strict=True):
                if value is not None:
                    tx.execute(f"UPDATE {table} SET {name} = ? WHERE {key} = ?", (value, row))
            count += any(fresh)
    # The title of a session may be the beginning of the text.
    for one in gone:
        found = tx.execute("SELECT session_id, title FROM sessions WHERE session_id = ?", (one.session_id,))
        for session_id, title in found:
            beginning = title.removesuffix("…").strip()
            if beginning and " ".join(one.text.split()).startswith(beginning):
                tx.execute("UPDATE sessions SET title = ? WHERE session_id = ?", (BLOT, session_id))
                count += 1
    return count


class _Blotter:
    """Takes texts out of JSON values, whatever their shape."""

    def __init__(self, gone: Sequence[Gone]) -> None:
        self._whole = {part.strip() for one in gone for part in one.parts if part.strip()}
        self._inside = sorted({one.text for one in gone if len(one.text) >= _TELLING}, key=len, reverse=True)
        # A session is called after the beginning of its first message.
        self._titles = tuple(" ".join(one.text.split()) for one in gone)

    def string(self, text: str) -> str:
        if text.strip() in self._whole:
            return BLOT
        for part in self._inside:
            if part in text:
                text = text.replace(part, BLOT)
        return text

    def data(self, data: bytes) -> bytes | None:
        """The JSON without the texts; None where it has none of them."""
        value = _decode(data)
        new = self._value(value)
        return None if new == value else _encode(new)

    def _value(self, value: Any, key: str = "") -> Any:
        match value:
            case str():
                if key == "title" and len(value) > 1 and self._begins(value):
                    return BLOT
                return self.string(value) if key not in _NAMES else value
            case dict():
                return {name: self._value(inner, name) for name, inner in value.items()}
            case list():
                return [self._value(inner) for inner in value]
            case _:
                return value

    def _begins(self, title: str) -> bool:
        beginning = title.removesuffix("…").strip()
        return any(text.startswith(beginning) for text in self._titles)


#: Fields that are no one's words: a text that happens to be ``user`` must not take the role away.
_NAMES = frozenset({
    "type", "role", "status", "agent", "author", "run_id", "session_id", "message_id", "item_id", "created_at",
    "updated_at", "model", "tool", "name", "media_type", "origin",
})  # fmt: skip


def slices(positions: Sequence[int], size: int = 500) -> Iterator[Sequence[int]]:
    for start in range(0, len(positions), size):
        yield positions[start : start + size]
