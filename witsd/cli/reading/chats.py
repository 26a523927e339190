"""Conversations as items: our own sessions, ChatGPT's ``conversations.json``, and plain lists of messages."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from witsd.cli.reading.decoding import decoded
from witsd.cli.reading.found import Unreadable

_SPEAKER = ("speaker", "role", "author", "name", "from", "sender", "user")
_TEXT = ("text", "content", "message", "body", "parts")
_TIME = ("time", "timestamp", "created_at", "create_time", "date", "ts", "sent_at")
_LIST = ("messages", "chat_messages", "conversation", "turns")


class Repeats:
    """Names for texts that have none: by what they say and how often it was said before."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._said: Counter[str] = Counter()

    def name(self, *about: str) -> dict[str, Any]:
        digest = hashlib.sha256("\0".join(about).encode("utf-8", "replace")).hexdigest()[:32]
        self._said[digest] += 1
        return {"key": f"{self._file}#{digest}", "part": self._said[digest] - 1}


def parsed(data: bytes) -> Any:
    """A JSON document. Raises ``Unreadable``."""
    try:
        return json.loads(decoded(data))
    except RecursionError:
        raise Unreadable("this JSON is nested too deeply") from None
    except ValueError as error:
        raise Unreadable(f"this is no JSON ({error})") from None


def conversations(value: Any, file: str, namespace: str) -> Iterator[dict[str, Any]] | None:
    """The turns of all conversations in a JSON document, or None where it holds none."""
    if isinstance(value, dict) and isinstance(value.get("conversations"), list):
        value = value["conversations"]
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not value:
        return None
    if all(isinstance(one, dict) and isinstance(one.get("mapping"), dict) for one in value):
        return _all(value, _chatgpt, file, namespace)
    if all(isinstance(one, dict) and _messages(one) is not None for one in value):
        return _all(value, lambda one: _messages(one) or [], file, namespace)
    if any(is_message(one) for one in value):
        return _turns(value, {}, Repeats(file), file, namespace)
    return None


def is_message(value: Any) -> bool:
    """Whether it says who said what."""
    return isinstance(value, dict) and bool(_speaker(value)) and bool(_text(value).strip())


def _messages(conversation: dict[str, Any]) -> list[Any] | None:
    for name in _LIST:
        if isinstance(conversation.get(name), list):
            return list(conversation[name])
    return None


def _all(found: list[dict[str, Any]], messages: Any, file: str, namespace: str) -> Iterator[dict[str, Any]]:
    repeats = Repeats(file)
    for one in found:
        yield from _turns(messages(one), one, repeats, file, namespace)


def _chatgpt(conversation: dict[str, Any]) -> list[Any]:
    """The messages of the branch that was open last, first to last."""
    nodes: dict[str, Any] = conversation["mapping"]
    at = conversation.get("current_node")
    if at not in nodes:
        leaves = [name for name, node in nodes.items() if isinstance(node, dict) and not node.get("children")]
        at = leaves[-1] if leaves else None
    found: list[Any] = []
    seen: set[Any] = set()
    while isinstance(at, str) and at not in seen and isinstance(nodes.get(at), dict):
        seen.add(at)
        message = nodes[at].get("message")
        if isinstance(message, dict) and _speaker(message) in ("user", "assistant"):
            found.append(message)
        at = nodes[at].get("parent")
    return found[::-1]


def _turns(
    messages: list[Any], about: dict[str, Any], repeats: Repeats, file: str, namespace: str
) -> Iterator[dict[str, Any]]:
    session = _first(about, ("conversation_id", "session_id", "id", "uuid"))
    title = str(_first(about, ("title", "name")) or "")[:200]
    begun = _moment(_first(about, _TIME))
    for message in messages:
        if is_message(message):
            yield turn(message, repeats, file, namespace, session=str(session or ""), title=title, begun=begun)


def turn(
    message: dict[str, Any],
    repeats: Repeats,
    file: str,
    namespace: str,
    *,
    session: str = "",
    title: str = "",
    begun: str | None = None,
) -> dict[str, Any]:
    """One message as an item. ``begun``: its time where it has none of its own."""
    speaker, text = _speaker(message)[:200], _text(message).strip()
    time = _moment(_first(message, _TIME)) or begun
    own = _first(message, ("message_id", "id", "uuid"))
    session = str(message.get("session_id") or session)
    # A conversation is by itself, although it has no name: its file's.
    session = session[:200] or "file:" + hashlib.sha256(file.encode()).hexdigest()[:24]
    named = repeats.name(session, str(own)) if own else repeats.name(session, speaker, text, time or "")
    item = {
        "namespace": namespace, "text": text, "kind": "turn", "speaker": speaker, "session_id": session,
        "source": {"file": file}, **named,
    }  # fmt: skip
    if time:
        item["time"] = time
    if title:
        item["metadata"] = {"title": title}
    return item


def _first(value: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((value[name] for name in names if value.get(name) not in (None, "")), None)


def _speaker(message: dict[str, Any]) -> str:
    said = _first(message, _SPEAKER)
    if isinstance(said, dict):
        said = _first(said, ("name", "role", "username", "first_name")) if "role" not in said else said["role"]
    return " ".join(said.split()) if isinstance(said, str) else ""


def _text(message: dict[str, Any]) -> str:
    return _flat(_first(message, _TEXT), 0)


def _flat(value: Any, depth: int) -> str:
    """Text, also where it stands in parts (``[{"type": "text", "text": ...}]``, ``{"parts": [...]}``)."""
    if isinstance(value, str):
        return value
    if depth > 4:
        return ""
    if isinstance(value, list):
        return "\n".join(filter(None, (_flat(one, depth + 1) for one in value)))
    if isinstance(value, dict):
        return _flat(_first(value, _TEXT), depth + 1)
    return ""


def _moment(value: Any) -> str | None:
    """A time as the protocol has it: from RFC 3339, or from seconds or milliseconds since 1970."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            try:
                moment = datetime.fromisoformat(value)
            except ValueError:
                return None
            moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
            return moment.isoformat().replace("+00:00", "Z")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return datetime.fromtimestamp(value / 1000 if value > 1e11 else value, UTC).isoformat().replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return None
