"""JSON Lines as items: an export of memory or of a session, chats, or plain ``{"text": ...}``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from witsd.cli.reading import chats
from witsd.cli.reading.decoding import decoded
from witsd.cli.reading.found import MAX_BYTES, File, Unreadable

#: What of a plain line is taken over.
_FIELDS = frozenset({"text", "kind", "metadata", "speaker", "time", "session_id", "source", "valid_from", "valid_to"})
_LONGEST = 16 << 20

#: ``(place, why)`` of what cannot be taken.
OnBad = Callable[[str, str], None]


def items(file: File, namespace: str | None, bad: OnBad) -> Iterator[tuple[str, dict[str, Any]]]:
    """``(place, item)``, the place being ``file:line``. A line that is none is told to ``bad``.

    The first line of an export of memory comes as it is: it says which model the vectors are of.
    """
    repeats = chats.Repeats(str(file.path))
    title = ""
    with file.path.open("rb") as stream:
        for number, line, whole in _lines(stream, file):
            place = f"{file.path}:{number}"
            try:
                value = _parsed(line, whole)
                if isinstance(value, dict) and "agent" in value and "session_id" in value and "text" not in value:
                    title = str(value.get("title") or "")[:200]
                    continue
                found = list(_items(value, str(file.path), namespace, repeats, title))
            except Unreadable as error:
                bad(place, str(error))
                continue
            for one in found:
                yield place, one


def _items(
    value: Any, file: str, namespace: str | None, repeats: chats.Repeats, title: str
) -> Iterator[dict[str, Any]]:
    shared = namespace or "shared"
    if not isinstance(value, dict):
        raise Unreadable("this is no JSON object")
    if "witsd_memory" in value:
        if value["witsd_memory"] != 1:
            raise Unreadable(f"an export of form {value['witsd_memory']}, which this witsd does not know: update it")
        yield value
        return
    if isinstance(value.get("memory_id"), str) and isinstance(value.get("text"), str) and "kind" in value:
        yield {"namespace": shared, **value} if namespace is None else {**value, "namespace": namespace}
        return
    if "message_id" in value and "session_id" in value and isinstance(value.get("text"), str):
        if not value["text"].strip():
            return  # a turn that was broken off before it said anything
        message = {**value, "speaker": value.get("author") or value.get("role")}
        yield chats.turn(message, repeats, file, shared, title=title)
        return
    if chats.is_message(value):
        yield chats.turn(value, repeats, file, shared)
        return
    talks = chats.conversations(value, file, shared)
    if talks is not None:
        yield from talks
        return
    text = value.get("text")
    if not isinstance(text, str) or not text.strip():
        raise Unreadable('it has no "text"')
    item = {name: value[name] for name in _FIELDS if value.get(name) is not None}
    named = repeats.name(text, str(value.get("time")), str(value.get("speaker")))
    yield {"kind": "fact", "source": {"file": file}, **item, "namespace": shared, **named}


def _lines(stream: BinaryIO, file: File) -> Iterator[tuple[int, bytes, bool]]:
    """``(number, line, whether it is whole)``, without empty ones."""
    start = stream.read(4)
    stream.seek(0)
    if start[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in start:
        if file.size > MAX_BYTES:
            raise Unreadable("a file of this size must be UTF-8")
        for number, text in enumerate(decoded(stream.read()).split("\n"), 1):
            if text.strip():
                yield number, text.encode(), True
        return
    number = 0
    while line := stream.readline(_LONGEST):
        number += 1
        whole = line.endswith(b"\n")
        if not whole and len(line) == _LONGEST:
            while (rest := stream.readline(_LONGEST)) and not rest.endswith(b"\n"):
                pass
            yield number, b"", False
            continue
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if line.strip():
            yield number, line, whole


def _parsed(line: bytes, whole: bool) -> Any:
    if not line:
        raise Unreadable(f"the line has more than {_LONGEST >> 20} MB")
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise Unreadable("the line is no UTF-8") from None
    except RecursionError:
        raise Unreadable("the line is nested too deeply") from None
    except ValueError as error:
        cut = "" if whole else ", cut off at the end of the file?"
        raise Unreadable(f"the line is no JSON ({error}){cut}") from None
