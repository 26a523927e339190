"""A function's signature and docstring as the JSON Schema of its arguments.

For tools: those of an agent (``Agent.tool``) and those that the daemon loads. Types are what msgspec knows:
``str``, ``int``, ``float``, ``bool``, ``list[T]``, ``dict[str, T]``, ``Literal``, ``T | None``, classes of attrs,
dataclasses and ``msgspec.Struct``, each with ``Annotated[T, msgspec.Meta(...)]`` for bounds and descriptions.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_type_hints

import msgspec
from msgspec import Meta

_DEFS = "#/$defs/"
#: ``name: what it is`` or ``name (type): what it is``, one line of a docstring for each argument.
_FIELD = re.compile(r"^\s*(?::param\s+)?(\w+)(?:\s*\([^)]*\))?\s*:\s+(\S.*)$")


def describe(doc: str | None) -> tuple[str, dict[str, str]]:
    """A docstring as the text that says what the function does, and what it says of each argument.

    A paragraph becomes one line, as who reads it wraps it anew; what begins with a bullet or is indented stays a line.
    """
    text: list[str] = []
    fields: dict[str, str] = {}
    for line in inspect.cleandoc(doc or "").splitlines():
        found = _FIELD.match(line)
        if found and (text or fields):
            fields[found[1]] = found[2].strip()
        elif line.strip() not in ("Args:", "Arguments:", "Parameters:"):
            goes_on = text and text[-1] and line[:1].strip() and line[0] not in "-*"
            if goes_on:
                text[-1] += f" {line}"
            else:
                text.append(line.rstrip())
    return "\n".join(text).strip(), fields


def arguments(function: Callable[..., Any], *, skip: int = 0) -> type[msgspec.Struct]:
    """A struct of the function's parameters but the first ``skip``.

    Raises ``TypeError`` for what cannot be given by name.
    """
    hints = get_type_hints(function, include_extras=True)
    _, said = describe(function.__doc__)
    fields: list[Any] = []
    for parameter in list(inspect.signature(function).parameters.values())[skip:]:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"{function.__name__}: *args, **kwargs and positional-only parameters cannot be a tool's")
        hint = hints.get(parameter.name, Any)
        if parameter.name in said:
            hint = Annotated[hint, Meta(description=said[parameter.name])]
        if parameter.default is parameter.empty:
            fields.append((parameter.name, hint))
        else:
            fields.append((parameter.name, hint, parameter.default))
    return msgspec.defstruct(_title(function.__name__), fields, kw_only=True, forbid_unknown_fields=True)


def schema(kind: Any) -> dict[str, Any]:
    """The JSON Schema of ``kind``, in one piece as model providers want it, without its class's name."""
    (whole,), definitions = msgspec.json.schema_components((kind,), ref_template=_DEFS + "{name}")
    inlined: dict[str, Any] = _inline(whole, definitions, ())
    if inlined.get("type") == "object" and "properties" in inlined:
        inlined.pop("title", None)
        inlined.pop("description", None)
        inlined["additionalProperties"] = False
    return inlined


def _inline(value: Any, definitions: Mapping[str, Any], within: tuple[str, ...]) -> Any:
    if isinstance(value, list):
        return [_inline(one, definitions, within) for one in value]
    if not isinstance(value, dict):
        return value
    name = str(value.get("$ref", "")).removeprefix(_DEFS)
    if name:
        if name in within:
            raise TypeError(f"{name} contains itself, which no schema in one piece can say")
        rest = {key: one for key, one in value.items() if key != "$ref"}
        return {**_inline(definitions[name], definitions, (*within, name)), **rest}
    return {key: _inline(one, definitions, within) for key, one in value.items()}


def _title(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_")) or "Arguments"
