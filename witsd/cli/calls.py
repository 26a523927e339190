"""A tool call on one line, as it is shown beside an answer."""

from __future__ import annotations

from typing import Any

from witsd.cli.text import to_json

#: Characters of one argument, and of what was answered.
_ARGUMENT, _RESULT = 80, 160


def call_line(item: dict[str, Any]) -> str:
    """``calculator(expression="15 * 23 + 17") = 362``; an error says so."""
    given = ", ".join(f"{name}={_short(to_json(value), _ARGUMENT)}" for name, value in item["arguments"].items())
    if "result" not in item:
        return f"{item['tool']}({given}) was {item['status']}"
    result = _value(item["result"])
    sign = "failed:" if item.get("is_error") else "="
    return f"{item['tool']}({given}) {sign} {_short(result, _RESULT) or 'nothing'}"


def _value(result: Any) -> str:
    if isinstance(result, dict) and len(result) == 1:
        (result,) = result.values()
    text = result if isinstance(result, str) else to_json(result)
    return text.removeprefix("error: ")


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
