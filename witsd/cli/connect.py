"""From a command to the daemon and back: one connection, and errors as words and exit statuses.

Exit statuses: 0 done, 1 failed, 2 usage, 3 no daemon, 130 interrupted from the keyboard.
"""

from __future__ import annotations

import difflib
import errno
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from witsd.cli.base import FAILED, NO_DAEMON
from witsd.cli.output import say
from witsd.cli.text import neutral, one_line, to_json

if TYPE_CHECKING:
    import trio
    from witsd_client import Client

T = TypeVar("T")

#: How long a command is silent while the daemon does not answer.
SLOW_S = 2.0

_CANNOT_WRITE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
#: What to do next, by error code. Codes, because messages may change.
_NEXT: Mapping[int, str] = {
    -32601: "This daemon does not know that method: is it older than this command? See `witsd status`.",
    -32003: "The caller lacks a scope or a grant: see `witsd token list`, or [grants] of the agent.",
    -32004: "Present a token, or use the Unix socket as the user who runs the daemon.",
    -32006: "Try again, or give it more time.",  # `_more_time` knows better of some
    -32011: "See which models are there and why one is not: `witsd model list`.",
}
_LISTED: Mapping[str, str] = {
    "agent": "witsd agent list",
    "run": "witsd run list",
    "session": "witsd session list",
    "token": "witsd token list",
    "memory": "witsd memory list",
    "model": "witsd model list",
}


class Failed(Exception):
    """A command that could not do its work: what to tell the person, and the exit status."""

    def __init__(self, message: str, *, hint: str = "", status: int = FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.status = status


def run(main: Callable[[Client], Awaitable[T]]) -> T:
    """Run ``main`` with a connection to the daemon, under trio; its own exception comes out bare."""
    import trio
    from witsd_client import connect

    async def connected() -> T:
        async with trio.open_nursery() as nursery:
            answered = trio.Event()
            nursery.start_soon(_tell_of_waiting, answered)
            async with connect(client_name="witsd") as client:
                answered.set()
                return await main(client)

    try:
        return trio.run(connected)
    except BaseExceptionGroup as group:
        raise bare(group) from None


async def _tell_of_waiting(answered: trio.Event) -> None:
    """Say once why nothing happens, where nobody reads standard error as JSON."""
    import trio

    with trio.move_on_after(SLOW_S):
        await answered.wait()
    context = click.get_current_context(silent=True)
    if not answered.is_set() and not (context and context.params.get("as_json")):
        say("the daemon has not answered yet: it starts, stops or is being replaced; waiting", err=True)


def follow(main: Callable[[Client], Awaitable[None]]) -> None:
    """``run`` for what goes on until Ctrl-C, which is then its regular end."""
    try:
        run(main)
    except KeyboardInterrupt:
        return


def call(method: str, params: Mapping[str, Any] | None = None) -> Any:
    """One request over a connection of its own; the result as plain JSON values."""

    async def one(client: Client) -> Any:
        return await client.call(method, dict(params or {}))

    return run(one)


def pages(method: str, params: Mapping[str, Any], limit: int | None) -> dict[str, Any]:
    """A list as one page, gathered until it has ``limit`` items (None: all): ``{items, next_cursor?}``."""

    async def collect(client: Client) -> dict[str, Any]:
        items: list[Any] = []
        wanted = {k: v for k, v in params.items() if v is not None}
        while True:
            left = 1000 if limit is None else min(limit - len(items), 1000)
            page = await client.call(method, {**wanted, "limit": left})
            items += page["items"]
            cursor = page.get("next_cursor")
            if cursor is None or (limit is not None and len(items) >= limit):
                return {**page, "items": items}
            wanted["cursor"] = cursor

    return run(collect)


def bare(error: BaseException) -> BaseException:
    """The one exception inside nested groups of one; of several, a keyboard interrupt or the first."""
    while isinstance(error, BaseExceptionGroup):
        inner = error.exceptions
        error = next((e for e in inner if _contains_interrupt(e)), inner[0])
    return error


def _contains_interrupt(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_contains_interrupt(e) for e in error.exceptions)
    return isinstance(error, KeyboardInterrupt)


def report(error: Exception, *, as_json: bool) -> int:
    """Say on standard error what went wrong and what to do next. Returns the exit status.

    Raises ``error`` again when it is none that a caller can be expected to meet: that is a bug.
    """
    from witsd_client.errors import ClientError, ConnectionLost, DaemonNotRunning, WitsdError

    if isinstance(error, DaemonNotRunning):
        reason = f" ({error.reason})" if error.reason else ""
        message = f"no daemon answers at {error.target}{reason}; start it: `witsd up`"
        details = {"name": "no_daemon", "target": error.target}
        return _print(Failed(message, status=NO_DAEMON), as_json, details)
    if isinstance(error, Failed):
        return _print(error, as_json, {})
    if isinstance(error, WitsdError):
        failed = Failed(error.message, hint=hint_for(error.code, error.data))
        return _print(failed, as_json, {"code": error.code, "data": dict(error.data)})
    if isinstance(error, ConnectionLost):
        failed = Failed(str(error), hint="is the daemon still up? `witsd status`")
        return _print(failed, as_json, {"name": "connection_lost"})
    if isinstance(error, ClientError):
        return _print(Failed(str(error)), as_json, {})
    if isinstance(error, UnicodeEncodeError):  # an argument that is no UTF-8, or half a surrogate pair in JSON
        return _print(Failed("what was given is no Unicode text, so it cannot be sent"), as_json, {})
    if isinstance(error, OSError) and error.errno in _CANNOT_WRITE:
        # Nothing more goes there, not even what Python would flush at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return _print(Failed(f"the output cannot be written: {error.strerror}"), as_json, {})
    raise error


def hint_for(code: int, data: Mapping[str, Any]) -> str:
    """What a person can do about an error of the daemon, or an empty string."""
    if code == -32002:
        kind, missing = str(data.get("kind", "")), str(data.get("id", ""))
        listing = _LISTED.get(kind)
        near = _near_agents(missing) if kind == "agent" else []
        if near:
            return "did you mean " + " or ".join(near) + "?"
        return f"see `{listing}`" if listing else ""
    if code == -32601 and data.get("near"):
        return ""  # the message names it
    if code == -32001 and data.get("retry_after_ms") is not None:
        return f"try again in {data['retry_after_ms']} ms"
    if code == -32603 and data.get("log_id"):
        return f"a fault of the daemon: its log tells more under {data['log_id']}"
    if code == -32602 and data.get("path"):
        return f"the field is {data['path']}"
    if code == -32005 and data.get("state") == "failed":
        return "see why: `witsd agent list`"
    if code == -32006:
        return _more_time(data) or _NEXT[code]
    return _NEXT.get(code, "")


def _more_time(data: Mapping[str, Any]) -> str:
    """Which setting gives more time to what came too late; empty where none is known."""
    match data.get("limit"):
        case "run_timeout_s":
            return f"raise run_timeout_s under [limits] in the definition of {data.get('agent', 'the agent')}"
        case "timeout_s":
            return "whoever started the run gave it that long: start it with a larger timeout_s, or without"
        case "wait":
            return "wait longer with a larger `--timeout`, or without it for as long as it takes"
    return ""


def _near_agents(name: str) -> list[str]:
    """Agents whose names resemble ``name``; all of them when there are few and none does."""
    from witsd_client.errors import ClientError

    try:
        names = [agent["name"] for agent in pages("agents/list", {}, None)["items"]]
    except ClientError:
        return []  # the first error is the one to show
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return near or (names if len(names) <= 3 else [])


def _print(failed: Failed, as_json: bool, details: Mapping[str, Any]) -> int:
    sys.stdout.flush()
    if as_json:
        say(to_json({"error": {"message": failed.message, **details}}), err=True)
        return failed.status
    say(f"witsd: {neutral(failed.message)}", err=True)
    if failed.hint:
        say(f"       {one_line(failed.hint)}", err=True)
    return failed.status
