"""A tool: a function with a schema, made by the decorator ``tool``, and what it is given beside its arguments.

::

    class Args(Struct, frozen=True):
        text: Annotated[str, Meta(description="what to count the words of")]

    @tool(read_only=True, parallel=True)
    async def word_count(context: ToolContext, args: Args) -> int:
        \"\"\"How many words a text has.\"\"\"
        return len(args.text.split())

A plain function is one, too: ``def word_count(text: str) -> int``, whose schema comes from its signature and whose
descriptions come from lines ``text: ...`` of its docstring. One that is not ``async`` runs in a thread.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints, overload

import attrs
import msgspec
from witsd_client import signatures

from witsd.values.actor import Actor
from witsd.values.clock import Clock
from witsd.values.spec import AgentSpec
from witsd.values.wire.tools import Content, Policy, ResourceLink, ToolAnnotations

if TYPE_CHECKING:
    from witsd.services.tools.reach import Reach

#: What a call may take where neither tool nor caller says, in seconds.
TIMEOUT_S = 60.0
#: What a tool may answer with, in bytes of text; the rest is cut off, which the answer says.
OUTPUT_BYTES = 64 << 10
#: Calls of one tool at a time; more wait.
CONCURRENCY = 8


class ToolFailed(Exception):
    """The tool cannot do what it is asked: its text is for the model, which may try again in another way."""


class ToolContext(msgspec.Struct, frozen=True, kw_only=True):  # made for each call: the cheapest there is
    """Who calls, for what, and what of the daemon a tool may use."""

    actor: Actor
    #: Empty where it answers at once.
    call_id: str
    #: The run that the call is part of; None for a caller without one.
    run_id: str | None
    session_id: str | None
    #: The calling agent's definition; None for a person.
    agent: AgentSpec | None
    #: Where relative paths start, if anywhere.
    cwd: Path | None
    clock: Clock
    #: The other services.
    reach: Reach
    work_root: Path
    #: ``options`` of ``[tools.NAME]``, of the definition and the settings.
    options: Mapping[str, Any]

    @property
    def work(self) -> Path:
        """A folder of the run's own for what a tool leaves for the next; made by whoever uses it."""
        return self.work_root / (self.run_id or self.call_id)

    async def keep(self, name: str, media_type: str, data: bytes) -> ResourceLink | None:
        """Keep a file as an artifact of the run, to be linked in the answer; None where there is no run.

        Raises ``LimitExceeded``.
        """
        if self.run_id is None:
            return None
        kept = await self.reach.artifacts.keep(self.run_id, name, media_type, data)
        return ResourceLink(uri=f"artifact:{kept.artifact_id}", name=kept.name, mime_type=kept.media_type)


class Answer(msgspec.Struct, frozen=True):
    """What a tool answers where text or one value does not say it all."""

    content: tuple[Content, ...]
    structured: Any = msgspec.UNSET
    is_error: bool = False


#: ``(context, arguments) -> value``: text, anything that JSON can say, or an ``Answer``.
Runner = Callable[[ToolContext, Any], Awaitable[object]]
#: Raw arguments into what the tool takes. Raises ``msgspec.ValidationError``, or ``InvalidArguments``.
Reader = Callable[[dict[str, Any]], Any]


@attrs.frozen(kw_only=True)
class Tool:
    """One tool, as it is registered. ``policy`` is what holds where nobody has said anything of it."""

    name: str
    description: str
    input_schema: dict[str, Any]
    run: Runner
    read: Reader
    policy: Policy = "ask"
    read_only: bool = False
    parallel: bool = False
    source: str = "built in"
    #: Of its code, where that may change while its name stays: an approval is of this one.
    version: str = ""
    output_schema: dict[str, Any] | None = None
    timeout_s: float = TIMEOUT_S
    output_bytes: int = OUTPUT_BYTES
    concurrency: int = CONCURRENCY
    #: It answers at once: neither a time limit nor a place in a queue is worth their cost.
    instant: bool = False
    #: In patterns of arguments ``*`` stops at what a shell gives a meaning to.
    shell: bool = False
    #: Why it cannot be used now, given its options; empty where it can.
    unavailable: Callable[[Mapping[str, Any]], str] = lambda options: ""

    @property
    def annotations(self) -> ToolAnnotations:
        return ToolAnnotations(read_only=self.read_only, parallel=self.parallel)


Function = Callable[..., Any]


@overload
def tool(function: Function, /) -> Tool: ...
@overload
def tool(
    *,
    name: str = "",
    description: str = "",
    policy: Policy | None = None,
    read_only: bool = False,
    parallel: bool = False,
    **limits: Any,
) -> Callable[[Function], Tool]: ...
def tool(
    function: Function | None = None,
    /,
    *,
    name: str = "",
    description: str = "",
    policy: Policy | None = None,
    read_only: bool = False,
    parallel: bool = False,
    **limits: Any,
) -> Any:
    """Decorator: make a function a tool. ``policy`` is ``allow`` for one that is ``read_only``, else ``ask``.

    ``limits``: ``timeout_s``, ``output_bytes``, ``concurrency``, ``instant``, ``unavailable``, ``source`` of ``Tool``.
    Raises ``TypeError`` for a function that cannot be a tool.
    """

    def make(function: Function) -> Tool:
        run, kind = _bound(function)
        said, _ = signatures.describe(function.__doc__)
        return Tool(
            name=name or function.__name__,
            description=description or said,
            input_schema=signatures.schema(kind),
            run=run,
            read=_reader(kind),
            policy=policy or ("allow" if read_only else "ask"),
            read_only=read_only,
            parallel=parallel,
            **limits,
        )

    return make if function is None else make(function)


def _bound(function: Function) -> tuple[Runner, Any]:
    """How to call it with a context and its arguments, and the type of those."""
    hints = get_type_hints(function, globalns=_names(function), include_extras=True)
    names = list(inspect.signature(function).parameters)
    takes_context = bool(names) and hints.get(names[0]) is ToolContext
    rest = names[1:] if takes_context else names
    whole = len(rest) == 1 and (attrs.has(kind := hints.get(rest[0], object)) or _is_struct(kind))
    arguments = hints[rest[0]] if whole else signatures.arguments(function, skip=int(takes_context))
    is_async = inspect.iscoroutinefunction(function)

    async def run(context: ToolContext, given: Any) -> object:
        import trio

        before = (context,) if takes_context else ()
        named = {} if whole else {key: getattr(given, key) for key in rest}
        args = (*before, given) if whole else before
        if is_async:
            return await function(*args, **named)
        # A thread cannot be ended: it is left to itself when the call is given up.
        return await trio.to_thread.run_sync(lambda: function(*args, **named), abandon_on_cancel=True)

    async def run_whole(context: ToolContext, given: Any) -> object:
        return await function(context, given)

    return (run_whole if is_async and whole and takes_context else run), arguments


def _names(function: Function) -> dict[str, Any]:
    return {**getattr(function, "__globals__", {}), "ToolContext": ToolContext}


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


class UnknownArgument(ValueError):
    """An argument that the tool does not have; ``name`` is what it was called."""

    def __init__(self, name: str, known: frozenset[str]) -> None:
        super().__init__(f"there is no argument {name!r}: it takes {', '.join(sorted(known)) or 'none'}")
        self.name = name


def _reader(kind: Any) -> Reader:
    known = frozenset(field.name for field in (attrs.fields(kind) if attrs.has(kind) else msgspec.structs.fields(kind)))

    def read(given: dict[str, Any]) -> Any:
        if not given.keys() <= known:
            raise UnknownArgument(next(name for name in given if name not in known), known)
        return msgspec.convert(given, kind)

    return read
