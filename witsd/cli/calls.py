"""A tool call on one line, as it is shown beside an answer."""

from __future__ import annotations

from typing import Any

from witsd.cli.text import to_json

#: Characters of one argument, and of what was answered.
_ARGUMENT, _RESULT = 80, 160


def call_line(item: dict[str, Any]) -> str:
    """``calculator(expression="15 * 23 + 17") = 362``; an error says so."""
    given = arguments_line(item.get("arguments", {}))
    if "result" not in item:
        return f"{item['tool']}({given}) was {item['status']}"
    result = _value(item["result"])
    sign = "failed:" if item.get("is_error") else "="
    return f"{item['tool']}({given}) {sign} {_short(result, _RESULT) or 'nothing'}"


def arguments_line(arguments: dict[str, Any]) -> str:
    """``path="a.txt", lines=3``"""
    return ", ".join(f"{name}={_short(to_json(value), _ARGUMENT)}" for name, value in arguments.items())


def asks_line(approval: dict[str, Any]) -> str:
    """What a person is asked about a call, all of it: what is not seen cannot be allowed."""
    where = f" in {approval['cwd']}" if approval.get("cwd") else ""
    given = "".join(f"\n    {name}: {_whole(value)}" for name, value in approval["arguments"].items())
    return f"{approval['actor'].removeprefix('agent:')} wants to use {approval['tool']}{where}{given}"


def _whole(value: Any) -> str:
    text = value if isinstance(value, str) else to_json(value)
    return text.replace("\n", "\n      ")


def answer_of(line: str) -> dict[str, Any] | None:
    """``y``, ``n``, ``a`` (always) or ``never`` as the answer to an approval; None where it is none of them."""
    match line.strip().lower():
        case "y" | "yes" | "allow":
            return {"decision": "allow"}
        case "n" | "no" | "deny":
            return {"decision": "deny"}
        case "a" | "always":
            return {"decision": "allow", "remember": "tool"}
        case "never":
            return {"decision": "deny", "remember": "tool"}
    return None


CHOICES = "allow it? y: this once, n: no, a: always this tool, never"


def _value(result: Any) -> str:
    if isinstance(result, dict):
        said = next((name for name in ("value", "text", "result") if result.get(name) not in (None, "")), None)
        if said is not None or len(result) == 1:
            result = result[said] if said is not None else next(iter(result.values()))
    text = result if isinstance(result, str) else to_json(result)
    return text.removeprefix("error: ")


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
