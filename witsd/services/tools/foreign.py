"""Tools whose code is elsewhere: an agent's. Their schemas are any JSON Schema, checked by the library for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import trio

from witsd.services.tools.tool import Answer, Tool, ToolContext, ToolFailed
from witsd.supervise.supervisor import Supervisor
from witsd.values.errors import Timeout, WitsdError
from witsd.values.wire.models import ToolDefinition
from witsd.values.wire.tools import AgentToolCallParams, ToolsCallResult

#: Errors of one set of arguments that are told together.
_SHOWN = 3
#: What checking one set of arguments may take: steps, and seconds for one regular expression.
_STEPS, _PATTERN_S = 100_000, 0.1
#: Keywords that jsonschema checks in ways which cannot be bounded.
_REFUSED = ("patternProperties", "unevaluatedProperties", "unevaluatedItems")
_canonical = msgspec.json.Encoder(order="deterministic").encode


class BadArguments(ValueError):
    """Arguments that do not fit the schema; ``path`` names the first field, as in ``items[0].name``."""

    def __init__(self, message: str, path: str) -> None:
        super().__init__(message)
        self.path = path


def agent_tool(supervisor: Supervisor, agent: str, name: str, definition: ToolDefinition) -> Tool:
    """The tool that ``agent`` calls ``definition.name``: a call goes to its process, which is started for it."""

    async def run(context: ToolContext, arguments: dict[str, Any]) -> object:
        if context.actor.agent == agent:
            raise ToolFailed("an agent does not call its own tool through the daemon")
        params = AgentToolCallParams(
            name=definition.name, arguments=arguments, call_id=context.call_id, actor=context.actor.label
        )
        async with supervisor.lease(agent) as lease:
            try:
                result = await lease.link.request("tools/call", params, ToolsCallResult)
            except trio.BrokenResourceError:
                raise ToolFailed(f"{agent} {await lease.why_gone()} while its tool ran") from None
            except Timeout:
                raise
            except WitsdError as error:
                raise ToolFailed(f"{agent}: {error.message}") from error
        return Answer(result.content, result.structured_content, result.is_error)

    return Tool(
        name=name,
        description=definition.description,
        input_schema=definition.input_schema or {"type": "object", "properties": {}},
        run=run,
        read=schema_reader(definition.input_schema),
        policy="allow" if definition.read_only else "ask",
        read_only=definition.read_only,
        parallel=definition.parallel,
        source=f"agent:{agent}",
    )


def schema_reader(schema: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function that lets through what fits ``schema`` and raises ``BadArguments`` for the rest.

    jsonschema is loaded at the first call; references to anything outside the schema are refused, never fetched.
    The schema is an agent's, and is checked in the daemon's own loop: one that would take long is given up.
    """
    validator: Any = None
    steps = 0

    def counted(check: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps > _STEPS:
                raise _TooLongError(f"checking them takes more than {_STEPS} steps")
            return check(*args)

        return counting

    def read(arguments: dict[str, Any]) -> dict[str, Any]:
        nonlocal validator, steps
        if not schema:
            return arguments
        import jsonschema
        import referencing
        import referencing.exceptions

        try:
            if validator is None:
                kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
                kind.check_schema(schema)
                text = msgspec.json.encode(schema).decode()
                if used := [name for name in _REFUSED if f'"{name}":' in text]:
                    raise BadArguments(f"the tool's own schema uses {used[0]}, which is not checked here", "")
                checks = {**kind.VALIDATORS, "pattern": _pattern, "uniqueItems": _unique}
                bounded = jsonschema.validators.extend(kind, {name: counted(one) for name, one in checks.items()})
                validator = bounded(schema, registry=referencing.Registry())
            steps = 0
            wrong = sorted(validator.iter_errors(arguments), key=lambda error: error.json_path)
        except (_TooLongError, RecursionError) as error:
            raise BadArguments(f"the tool's own schema takes too long: {error}", "") from None
        except (jsonschema.SchemaError, referencing.exceptions.Unresolvable) as error:
            raise BadArguments(f"the tool's own schema is wrong: {getattr(error, 'message', error)}", "") from None
        if wrong:
            told = "; ".join(f"{_path(one)}: {one.message}"[:300] for one in wrong[:_SHOWN])
            raise BadArguments(told, _path(wrong[0]))
        return arguments

    return read


class _TooLongError(Exception):
    """Checking is given up."""


def _pattern(validator: Any, wanted: str, value: Any, schema: Any) -> Iterator[Any]:
    import jsonschema
    import regex

    if not isinstance(value, str):
        return
    try:
        if regex.search(wanted, value, timeout=_PATTERN_S) is None:
            yield jsonschema.ValidationError(f"{value!r} does not match {wanted!r}")
    except TimeoutError:
        raise _TooLongError(f"the regular expression {wanted!r}") from None
    except regex.error as error:
        raise _TooLongError(f"{wanted!r} is no regular expression: {error}") from None


def _unique(validator: Any, wanted: bool, value: Any, schema: Any) -> Iterator[Any]:
    import jsonschema

    if wanted and isinstance(value, list) and len({_canonical(one) for one in value}) < len(value):
        yield jsonschema.ValidationError("has the same element twice")


def _path(error: Any) -> str:
    path = str(error.json_path).removeprefix("$").removeprefix(".")
    if error.validator == "required":  # names the object, not the field that is missing
        missing = next((name for name in error.validator_value if name not in error.instance), "")
        return f"{path}.{missing}" if path else str(missing)
    return path
