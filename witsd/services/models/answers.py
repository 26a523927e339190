"""What the wire formats of model servers have in common, sans I/O: how they go wrong, JSON that is an object."""

from __future__ import annotations

from typing import Any

import msgspec

#: An answer is text: one that passes this is a server gone wrong.
MAX_ANSWER_CHARS = 4 * 1024 * 1024


class WireError(Exception):
    """The server sent something else than the format says; the text says what."""


class StreamedError(Exception):
    """The server reported an error inside its answer; ``status`` where it named one."""

    def __init__(self, message: str, status: int | None) -> None:
        super().__init__(message)
        self.status = status


def error_text(raw: bytes) -> tuple[str, str]:
    """What an error's body says and the ``code`` it names, as far as it follows the format."""
    try:
        document = msgspec.json.decode(raw)
    except (ValueError, RecursionError):
        return raw.decode("utf-8", "replace"), ""
    error = document.get("error") if isinstance(document, dict) else None
    if isinstance(error, dict):
        code = error.get("code") or error.get("type") or ""
        return str(error.get("message") or ""), str(code)
    if isinstance(error, str):
        return error, ""
    return raw.decode("utf-8", "replace"), ""


def json_object(raw: bytes, what: str) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(raw)
    except (ValueError, RecursionError):
        raise WireError(f"{what} that is not JSON") from None
    if not isinstance(document, dict):
        raise WireError(f"{what} that is no JSON object")
    return document


def count(value: object) -> int:
    return value if type(value) is int and value >= 0 else 0
