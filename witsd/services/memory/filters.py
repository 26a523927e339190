"""The filter language: JSON in, a condition on the table ``memories m`` and its values out. Values are always bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from witsd.services.memory.records import TRUST, micros
from witsd.values.errors import InvalidParams, LimitExceeded

#: Filters nest no deeper, and hold no more conditions in all.
MAX_DEPTH = 16
MAX_CONDITIONS = 256
#: Values that ``in`` may list.
MAX_VALUES = 1000

#: Fields of a record, and what SQL calls them. Times and trust are numbers there.
_TEXT = {
    "memory_id": "m.memory_id",
    "kind": "m.kind",
    "speaker": "m.speaker",
    "session_id": "m.session_id",
    "run_id": "m.run_id",
    "author": "m.author",
    "source.tool": "json_extract(m.source, '$.tool')",
    "source.file": "json_extract(m.source, '$.file')",
    "source.url": "json_extract(m.source, '$.url')",
}
_TIMES = {
    "time": "m.time_us",
    "created_at": "m.created_us",
    "updated_at": "m.updated_us",
    "valid_from": "m.valid_from_us",
    "valid_to": "m.valid_to_us",
    "expires_at": "m.expires_us",
}
_NUMBERS = {"uses": "m.uses", "duplicates": "m.duplicates"}
_OPERATORS = ("eq", "ne", "in", "gt", "lt", "exists")


@attrs.frozen
class Condition:
    """SQL and the values of its question marks."""

    sql: str
    values: tuple[Any, ...]


def live(now_us: int, include: Sequence[str] = (), least_trust: int = 0) -> Condition:
    """What is found unless more is asked for: what holds now, has not expired, and may be trusted so far."""
    sql, values = ["1"], []
    if "superseded" not in include:
        sql.append("m.superseded_by IS NULL AND COALESCE(m.valid_to_us > ?, 1) AND COALESCE(m.valid_from_us <= ?, 1)")
        values += [now_us, now_us]
    if "expired" not in include:
        sql.append("COALESCE(m.expires_us > ?, 1)")
        values.append(now_us)
    if least_trust:
        sql.append("m.trust >= ?")
        values.append(least_trust)
    return Condition(" AND ".join(sql), tuple(values))


def but_recent(live: Condition, session_id: str, messages: int) -> Condition:
    """``live`` without the newest ``messages`` of a session, which the prompt has anyway."""
    return Condition(
        f"{live.sql} AND NOT (m.session_id IS ? AND COALESCE(m.message_id IN (SELECT q.message_id FROM messages q "
        "WHERE q.session_id = ? ORDER BY q.n DESC LIMIT ?), 0))",
        (*live.values, session_id, session_id, messages),
    )


@attrs.define
class _Budget:
    left: int = MAX_CONDITIONS


def compiled(given: Mapping[str, Any] | None) -> Condition | None:
    """The condition a filter means; None for none. Raises ``InvalidParams`` naming the place, ``LimitExceeded``."""
    if not given:
        return None
    return _all_of(given, "params.filter", 1, _Budget())


def _all_of(given: Any, path: str, depth: int, budget: _Budget) -> Condition:
    if depth > MAX_DEPTH:
        raise LimitExceeded(f"a filter nests at most {MAX_DEPTH} deep", limit="filter_depth", value=MAX_DEPTH)
    if not isinstance(given, Mapping):
        raise _wrong(path, "is an object: {FIELD: {OP: VALUE}}, or and, or, not")
    parts = []
    for name, value in given.items():
        here = f"{path}.{name}"
        if name in ("and", "or"):
            if not isinstance(value, list) or not value:
                raise _wrong(here, "is a list of one filter or more")
            inner = [_all_of(one, f"{here}[{n}]", depth + 1, budget) for n, one in enumerate(value)]
            parts.append(_joined(inner, f" {name.upper()} "))
        elif name == "not":
            inner_one = _all_of(value, here, depth + 1, budget)
            # What is neither so nor not so, for want of a value, is not so.
            parts.append(Condition(f"NOT COALESCE({inner_one.sql}, 0)", inner_one.values))
        else:
            parts.append(_field(name, value, here, budget))
    return _joined(parts, " AND ") if parts else Condition("1", ())


def _joined(parts: list[Condition], word: str) -> Condition:
    return Condition(
        "(" + word.join(part.sql for part in parts) + ")", tuple(v for part in parts for v in part.values)
    )


def _field(name: str, value: Any, path: str, budget: _Budget) -> Condition:
    sql, before, read = _column(name, path)
    operators = value if isinstance(value, Mapping) else {"eq": value}
    if not operators:
        raise _wrong(path, f"needs an operator: {', '.join(_OPERATORS)}")
    parts = []
    for operator, operand in operators.items():
        budget.left -= 1
        if budget.left < 0:
            raise LimitExceeded(
                f"a filter has at most {MAX_CONDITIONS} conditions", limit="filter_conditions", value=MAX_CONDITIONS
            )
        parts.append(_compare(sql, before, operator, operand, f"{path}.{operator}", read))
    return _joined(parts, " AND ")


def _column(name: str, path: str) -> tuple[str, tuple[Any, ...], Callable[[Any, str], Any]]:
    """SQL for a field, the values that it takes itself, and how an operand of it is read."""
    if name in _TEXT:
        return _TEXT[name], (), _text
    if name in _TIMES:
        return _TIMES[name], (), _time
    if name in _NUMBERS:
        return _NUMBERS[name], (), _scalar
    if name == "trust":
        return "m.trust", (), _trust
    head, dot, key = name.partition(".")
    if head == "metadata" and dot and key:
        if set('"\\\0') & set(key) or not all(key.split(".")):
            raise _wrong(path, "a key holds neither quotes, backslashes nor NUL, and no empty part")
        inner = "".join(f'."{part}"' for part in key.split("."))
        # A key with a dot in it is found before the path that it may also be.
        paths = (f'$."{key}"', f"${inner}")
        return "COALESCE(json_extract(m.metadata, ?), json_extract(m.metadata, ?))", paths, _scalar
    known = ", ".join([*_TEXT, *_TIMES, *_NUMBERS, "trust"])
    raise _wrong(path, f"there is no such field. The fields are {known}, and metadata.KEY")


def _compare(
    sql: str, own: tuple[Any, ...], operator: str, operand: Any, path: str, read: Callable[[Any, str], Any]
) -> Condition:
    """``own``: the values that ``sql`` takes itself, each time it stands in the condition."""
    match operator:
        case "eq":
            return Condition(f"{sql} IS ?", (*own, read(operand, path)))
        case "ne":
            return Condition(f"{sql} IS NOT ?", (*own, read(operand, path)))
        case "in":
            if not isinstance(operand, list):
                raise _wrong(path, "is a list of values")
            if len(operand) > MAX_VALUES:
                raise LimitExceeded(f"in lists at most {MAX_VALUES} values", limit="filter_values", value=MAX_VALUES)
            if not operand:
                return Condition("0", ())
            marks = ", ".join("?" * len(operand))
            values = (read(v, f"{path}[{n}]") for n, v in enumerate(operand))
            return Condition(f"{sql} IN ({marks})", (*own, *values))
        case "gt" | "lt":
            value = read(operand, path)
            if value is None or isinstance(value, bool):
                raise _wrong(path, "compares with a number, a text or a time")
            # Of one kind only: to SQLite every text is larger than every number.
            kinds = "('text')" if isinstance(value, str) else "('integer', 'real')"
            sign = ">" if operator == "gt" else "<"
            return Condition(f"(typeof({sql}) IN {kinds} AND {sql} {sign} ?)", (*own, *own, value))
        case "exists":
            if not isinstance(operand, bool):
                raise _wrong(path, "is true or false")
            return Condition(f"{sql} IS {'NOT ' if operand else ''}NULL", own)
        case _:
            raise _wrong(path, f"is no operator; there are {', '.join(_OPERATORS)}")


def _scalar(value: Any, path: str) -> Any:
    if value is None or isinstance(value, (str, bool, float)):
        return value
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        return value
    raise _wrong(path, "is a text, a number, true, false or null")


def _text(value: Any, path: str) -> Any:
    if value is None or isinstance(value, str):
        return value
    raise _wrong(path, "is a text")


def _time(value: Any, path: str) -> Any:
    if value is None:
        return None
    if not isinstance(value, str):
        raise _wrong(path, "is a time such as 2026-01-31T09:05:07Z")
    return micros(value, path)


def _trust(value: Any, path: str) -> int:
    if isinstance(value, str) and value in TRUST:
        return TRUST[value]
    raise _wrong(path, f"is one of {', '.join(TRUST)}")


def _wrong(path: str, what: str) -> InvalidParams:
    return InvalidParams(f"{path}: {what}", path=path)
