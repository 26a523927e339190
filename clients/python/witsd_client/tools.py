"""The tools that an agent brings: functions of its own that models and other agents call through the daemon."""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from witsd_client import signatures
from witsd_client.errors import InvalidParams, WitsdError

_encode = msgspec.json.Encoder(enc_hook=str).encode


class OfferedTool:
    """One tool: what the daemon is told of it, and what a call does."""

    def __init__(
        self,
        name: str,
        description: str,
        input_schema: Mapping[str, Any],
        handler: Callable[..., Any],
        *,
        kind: type[msgspec.Struct] | None = None,
        read_only: bool = False,
        parallel: bool = False,
    ) -> None:
        self.name = name
        self._handler = handler
        self._kind = kind
        self.definition = {
            "name": name,
            "description": description,
            "input_schema": dict(input_schema),
            "read_only": read_only,
            "parallel": parallel,
        }

    @classmethod
    def of(cls, function: Callable[..., Any], name: str = "", description: str = "", **says: bool) -> OfferedTool:
        """From a typed function: its signature is the schema, its docstring describes it and its arguments."""
        kind = signatures.arguments(function)
        said, _ = signatures.describe(function.__doc__)
        return cls(
            name or function.__name__, description or said, signatures.schema(kind), function, kind=kind, **says
        )

    async def call(
        self, arguments: dict[str, Any], in_thread: Callable[[Callable[[], Any]], Awaitable[Any]]
    ) -> dict[str, Any]:
        """Run it; an exception is an answer with ``is_error``. Raises ``InvalidParams`` for what does not fit."""
        named = self._read(arguments)
        try:
            if inspect.iscoroutinefunction(self._handler):
                value = await self._handler(**named)
            else:
                value = await in_thread(lambda: self._handler(**named))
                if inspect.isawaitable(value):
                    value = await value
        except WitsdError as error:
            return _text(error.message, is_error=True)
        except Exception as error:  # noqa: BLE001  the boundary: what a tool raises is its answer
            traceback.print_exception(error, file=sys.stderr)
            return _text(f"{type(error).__name__}: {error}", is_error=True)
        return answer(value)

    def _read(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if self._kind is None:
            return {"arguments": arguments} if self._takes_one() else arguments
        try:
            given = msgspec.convert(arguments, self._kind)
        except msgspec.ValidationError as error:
            raise InvalidParams(f"{self.name}: {error}", {"path": "arguments"}) from None
        return {name: getattr(given, name) for name in self._kind.__struct_fields__}

    def _takes_one(self) -> bool:
        return list(inspect.signature(self._handler).parameters) == ["arguments"]


def answer(value: Any) -> dict[str, Any]:
    """What a tool has returned as ``tools/call`` answers it: text as it is, what has that shape already, else JSON."""
    if value is None:
        return {"content": []}
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping) and isinstance(value.get("content"), list) and value.keys() <= _SHAPE:
        return dict(value)
    try:
        text = _encode(value).decode()
    except (TypeError, ValueError, RecursionError) as error:
        return _text(f"the tool returned what is no JSON: {error}", is_error=True)
    structured = msgspec.json.decode(text)
    return {**_text(text), "structured_content": structured if isinstance(structured, dict) else {"result": structured}}


def _text(text: str, *, is_error: bool = False) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": text}], "is_error": is_error}


_SHAPE = frozenset({"content", "structured_content", "is_error"})
