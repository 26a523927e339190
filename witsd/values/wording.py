"""What msgspec says of a value that does not fit, in words that say what would."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from msgspec import inspect

from witsd.values.spec import NAME_PATTERN, NAME_RULE

_ENUM = re.compile(r"^Invalid enum value ('.*'|-?\d+)$", re.DOTALL)
_STEP = re.compile(r"\[[^\]]*\]|[^.\[\]]+")
#: Characters of a wrong value that are repeated to whoever sent it.
_SHOWN = 60


def reword(message: str, path: str, root: Any) -> str:
    """``message`` about the value at ``path`` (``restart.policy``, ``[0].name``) of a ``root``.

    A word that is none of the valid ones is answered with those, a bad name with the rule; the rest is left as it is.
    """
    if NAME_PATTERN in message:
        return NAME_RULE
    if wrong := _ENUM.match(message):
        values = list(dict.fromkeys(_literals(root, path)))
        if values:
            given = wrong[1] if len(wrong[1]) <= _SHOWN else f"{wrong[1][:_SHOWN]}…'"
            return f"{given} is not valid here: say {_either(values)}"
    return message


def _either(values: list[Any]) -> str:
    *most, last = (str(value) for value in values)
    return f"{', '.join(most)} or {last}" if most else last


def _literals(root: Any, path: str) -> Iterator[Any]:
    kinds = [inspect.type_info(root)]
    for step in _STEP.findall(path):
        kinds = [inner for kind in kinds for inner in _inside(kind, step)]
    for kind in kinds:
        for one in _alternatives(kind):
            if isinstance(one, inspect.LiteralType):
                yield from one.values


def _alternatives(kind: inspect.Type) -> Iterator[inspect.Type]:
    if isinstance(kind, inspect.Metadata):
        yield from _alternatives(kind.type)
    elif isinstance(kind, inspect.UnionType):
        for one in kind.types:
            yield from _alternatives(one)
    else:
        yield kind


def _inside(kind: inspect.Type, step: str) -> Iterator[inspect.Type]:
    """The types of what stands at ``step`` inside a ``kind``."""
    for one in _alternatives(kind):
        if isinstance(one, inspect.StructType | inspect.DataclassType):
            yield from (field.type for field in one.fields if field.encode_name == step)
        elif isinstance(one, inspect.ListType | inspect.VarTupleType) and step.startswith("["):
            yield one.item_type
        elif isinstance(one, inspect.DictType):
            yield one.value_type
