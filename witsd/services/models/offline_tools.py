"""How ``offline`` uses tools: which one the words ask for, with which arguments, and what it answered."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from witsd.services.models.arithmetic import find_expression
from witsd.services.models.offline_text import fenced, words
from witsd.values.wire.common import UNSET
from witsd.values.wire.models import ChatMessage, ToolCall, ToolDefinition

_TIME_WORDS = frozenset({"time", "clock", "now", "date", "today"})
_PYTHON = re.compile(
    r"(?i)\b(?:run|execute|eval(?:uate)?)\b[^:\n`]{0,40}\b(?:python|code|this|script)\b[^:\n`]{0,20}:?"
)
_SERIES = re.compile(
    r"(?i)\b(sum|product|list|mean|average)\s+of\s+(?:all\s+|the\s+)*(?:first\s+(\d{1,7})\s+)?"
    r"(squares?|cubes?|even\s+numbers?|odd\s+numbers?|primes?(?:\s+numbers?)?|(?:whole\s+|natural\s+)?numbers?|integers?)"
    r"(?:\s+(?:from|between)\s+(\d{1,7})\s+(?:to|and|through|until)\s+(\d{1,7})|\s+(?:up\s+to|below)\s+(\d{1,7}))?"
)
#: Kind of number -> the term, and which n count.
_TERMS = {
    "square": ("n ** 2", ""),
    "cube": ("n ** 3", ""),
    "even": ("n", " if n % 2 == 0"),
    "odd": ("n", " if n % 2"),
    "prime": ("n", " if n > 1 and all(n % d for d in range(2, int(n ** 0.5) + 1))"),
}
_SEARCH = re.compile(
    r"(?is)^\W*(?:please\s+)?(?:search|look\s+(?:in|through|up\s+in))\s+(?:your|the|my)?\s*memor(?:y|ies)\s*(?:for|about)?\s*:?\s*(.+)$"
    r"|^\W*what\s+(?:do|did)\s+you\s+(?:remember|know)\s+(?:about|of)\s+(.+)$"
    r"|^\W*(?:please\s+)?recall\s+(.+)$"
)
_REMEMBER = re.compile(
    r"(?is)^\W*(?:please\s+)?(?:remember|memori[sz]e|note|store)\s*(?:that|this)?\s*[:,]?\s+(.+)$"
)
_LEAD = re.compile(
    r"(?i)^[\s:,]*(?:please\b|the\b|tool\b|with\b|on\b|for\b|to\b|of\b|about\b|using\b|and\b|a\b|an\b|in\b|[:,])[\s:,]*"
)


def asked_tool(
    text: str, tools: Sequence[ToolDefinition], call_id: str, *, asks_time: bool
) -> ToolCall | str | None:
    """The call that ``text`` asks for; a sentence where one is asked for but cannot be made; else None."""
    by_name = {tool.name: tool for tool in tools}
    calculator = by_name.get("calculator")
    if calculator is not None and (expression := find_expression(text)) is not None:
        return _call(calculator, expression, call_id, prefer=("expression", "input"))
    if asks_time:
        for tool in tools:
            if _TIME_WORDS & set(_parts(tool.name)) and not _required(tool):
                return ToolCall(id=call_id, name=tool.name, arguments="{}")
    for pattern, name, prefer in (
        (_SEARCH, "memory_search", ("query", "text")),
        (_REMEMBER, "memory_add", ("text", "content")),
    ):
        match = pattern.match(text)
        memory = by_name.get(name)
        if match and memory is not None:
            subject = next(group for group in match.groups() if group).strip(" ?.!\n")
            return _call(memory, subject, call_id, prefer=prefer)
    python = by_name.get("python")
    if python is not None and (code := series_code(text)) is not None:
        return _call(python, code, call_id, prefer=("code",))
    if _PYTHON.search(text):
        code = next(iter(fenced(text)), "") or _PYTHON.split(text, maxsplit=1)[1].strip().strip("`").strip()
        for tool in tools:
            if {"python", "code"} & set(_parts(tool.name)) and code:
                return _call(tool, code, call_id, prefer=("code", "source", "script"))
    return _named_tool(text, tools, call_id)


def series_code(text: str) -> str | None:
    """Python for a sum, product, mean or list of a series (``sum of squares from 1 to 10``); None where none is."""
    found = _SERIES.search(text)
    if found is None:
        return None
    what, first, kind, low, high, most = found.groups()
    if not (first or high or most):
        return None
    term, condition = next((t for name, t in _TERMS.items() if name in kind.lower()), ("n", ""))
    last = high or most or first
    series = f"[{term} for n in range({int(low or 1)}, {int(last)} + 1){condition}]"
    match what.lower():
        case "sum":
            return f"sum({series})"
        case "product":
            return f"import math\nmath.prod({series})"
        case "list":
            return series
    return f"import statistics\nstatistics.mean({series})"


def _named_tool(text: str, tools: Sequence[ToolDefinition], call_id: str) -> ToolCall | str | None:
    """Any tool whose name is said: ``use word_count on this``, ``word count: ...``."""
    best: tuple[int, ToolDefinition, int] | None = None
    for tool in tools:
        spelt = r"[\s_-]+".join(re.escape(part) for part in _parts(tool.name))
        lead = r"(?:use|call|run|try|invoke)\s+(?:the\s+)?(?:tool\s+)?"
        # One plain word occurs by chance: it has to be asked for.
        many = len(_parts(tool.name)) > 1
        pattern = rf"(?i)\b{lead}[`'\"]?{spelt}\b[`'\"]?" + (
            rf"|\b{spelt}\b" if many else rf"|^\W*{spelt}\s*:"
        )
        match = re.search(pattern, text) if spelt else None
        if match and (best is None or len(tool.name) > best[0]):
            best = (len(tool.name), tool, match.end())
    if best is None:
        return None
    _, tool, end = best
    rest = text[end:].strip()
    while (shorter := _LEAD.sub("", rest, count=1)) != rest:
        rest = shorter
    return _call(tool, rest.strip(" \n"), call_id, prefer=())


def _call(tool: ToolDefinition, subject: str, call_id: str, *, prefer: Sequence[str]) -> ToolCall | str:
    """The tool's arguments from its schema: numbers from the numbers said, one text from the rest."""
    properties = tool.input_schema.get("properties")
    fields: dict[str, Any] = properties if isinstance(properties, dict) else {}
    required = _required(tool)
    arguments: dict[str, Any] = {}
    numbers = [float(found) for found in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w.])", subject)]
    quoted = [a or b for a, b in re.findall(r'"([^"]+)"|“([^”]+)”', subject)]
    target = next((name for name in prefer if name in fields), None)
    if target is None and not fields and prefer:
        target = prefer[0]
    if target is not None:
        arguments[target] = subject
    for name in (*required, *(field for field in fields if not required and len(fields) == 1)):
        schema = fields.get(name)
        schema = schema if isinstance(schema, dict) else {}
        if name in arguments:
            continue
        choices = schema.get("enum")
        if isinstance(choices, list):
            said = set(words(subject))
            chosen = next((choice for choice in choices if str(choice).lower() in said), None)
            if chosen is not None:
                arguments[name] = chosen
        elif schema.get("type") in ("number", "integer"):
            if numbers:
                number = numbers.pop(0)
                arguments[name] = int(number) if number.is_integer() else number
        elif schema.get("type") in ("string", None) and subject:
            arguments[name] = quoted.pop(0) if quoted else subject
    missing = [name for name in required if name not in arguments]
    if missing:
        needs = ", ".join(missing)
        return f"To use {tool.name} I need {needs}: say “use {tool.name}: …” with what it should work on."
    return ToolCall(id=call_id, name=tool.name, arguments=msgspec.json.encode(arguments).decode())


def tool_answer(messages: Sequence[ChatMessage]) -> str:
    """An answer from the tool messages that end the conversation."""
    results: list[ChatMessage] = []
    calls: dict[str, ToolCall] = {}
    for message in reversed(messages):
        if message.role == "tool":
            results.append(message)
            continue
        if message.tool_calls is not UNSET:
            calls = {call.id: call for call in message.tool_calls}
        break
    lines = []
    for result in reversed(results):
        call = calls.get(result.tool_call_id) if result.tool_call_id is not UNSET else None
        said = readable(result.content)
        if call is None:
            lines.append(f"The tool answered: {said}")
        elif call.name == "calculator":
            expression = _argument(call, "expression")
            lines.append(f"{expression} = {said}" if expression else f"The result is {said}")
        elif call.name == "memory_add" and "memory_id" in said:
            lines.append(f"Noted: {_argument(call, 'text').rstrip('.')}. I will remember it.")
        elif call.name == "time" and (moment := _moment(said)):
            lines.append(moment)
        elif call.name == "python" and "\n" not in said and not said.startswith("error"):
            lines.append(f"The result is {said}")
        else:
            lines.append(
                f"{call.name} answered: {said}" if said else f"{call.name} is done; it answered nothing."
            )
    return "\n".join(lines)


def readable(content: str) -> str:
    """A tool's answer as a person reads it: the value of an object that holds just one, else as it is."""
    try:
        value = msgspec.json.decode(content)
    except (ValueError, RecursionError):
        return content.strip()
    while isinstance(value, dict):
        inner = [
            value[key]
            for key in ("result", "value", "text", "answer", "items", "structured_content", "content")
            if key in value
        ]
        if not inner:
            break
        value = next((one for one in inner if one is not None), None)
    if (
        isinstance(value, list)
        and value
        and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in value)
    ):
        return "\n".join(f"- {part['text']}" for part in value) if len(value) > 1 else str(value[0]["text"])
    if isinstance(value, str):
        return value.strip()
    if value == [] or value is None:
        return "nothing"
    return msgspec.json.encode(value).decode()


def _moment(said: str) -> str:
    """What the tool ``time`` answers, in a sentence; empty for anything else."""
    try:
        value = msgspec.json.decode(said)
        return f"It is {value['time'][11:16]} on {value['weekday']}, {value['time'][:10]} ({value['zone']})."
    except (ValueError, TypeError, KeyError):
        return ""


def _argument(call: ToolCall, name: str) -> str:
    try:
        arguments = msgspec.json.decode(call.arguments)
    except ValueError:
        return ""
    return str(arguments.get(name, "")) if isinstance(arguments, dict) else ""


def _parts(name: str) -> list[str]:
    return [part.lower() for part in re.split(r"[_\W]+|(?<=[a-z])(?=[A-Z])", name) if part]


def _required(tool: ToolDefinition) -> tuple[str, ...]:
    required = tool.input_schema.get("required")
    return tuple(name for name in required if isinstance(name, str)) if isinstance(required, list) else ()
