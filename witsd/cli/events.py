"""``witsd events``: what has happened, and what happens now."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import click

from witsd.cli.base import Verb
from witsd.cli.connect import follow as forever
from witsd.cli.connect import run
from witsd.cli.output import emit_json_line, note, say
from witsd.cli.text import clock_time, neutral, one_line, to_json

if TYPE_CHECKING:
    from witsd_client import Client

#: How far back recent events of a pattern are looked for, in positions of the journal.
WINDOW = 2000
#: The end of the past not being visible to this caller, silence for this long is taken for it.
SILENCE_S = 1.0


@click.command(cls=Verb)
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens; resumes after a drop.")
@click.option("--stream", "streams", multiple=True, metavar="P",
              help="Only these streams, as in run:* or agent:digest. May be given more than once.")
@click.option("--type", "types", multiple=True, metavar="T",
              help="Only these types, as in run.completed. May be given more than once.")
@click.option("--since", type=click.IntRange(min=0), metavar="POS",
              help="Begin after this position; --json shows it as pos.")
@click.option("-n", "--limit", type=click.IntRange(min=1), default=50, show_default=True,
              help="How many recent ones, when neither -f nor --since is given.")
def events(
    follow: bool, streams: tuple[str, ...], types: tuple[str, ...], since: int | None, limit: int,
    as_json: bool,
) -> None:
    """What has happened, or with -f what happens. With --json one line an event."""
    if any(stream.startswith("log:") for stream in streams):
        raise click.UsageError("what an agent writes is shown by `witsd agent logs NAME [-f]`")
    if follow:
        forever(lambda client: _follow(client, streams or ("*",), types, since, as_json))
        return
    for event in run(lambda client: _past(client, streams or ("*",), types, since, limit)):
        _say_event(event, as_json)


async def _follow(
    client: Client, streams: tuple[str, ...], types: tuple[str, ...], since: int | None, as_json: bool
) -> None:
    from witsd.cli import follow

    start = None if since is None else {"pos": since}
    async with aclosing(follow.events(client, streams, since=start, types=types or None)) as stream:
        async for event in stream:
            _say_event(event, as_json)


async def _past(
    client: Client, streams: tuple[str, ...], types: tuple[str, ...], since: int | None, limit: int
) -> list[dict[str, Any]]:
    """The events up to now: after ``since``, or the last ``limit`` of them."""
    kept: deque[dict[str, Any]] = deque(maxlen=limit if since is None else None)
    ends = await client.call("events/subscribe", {"streams": list(streams)})
    await client.call("events/unsubscribe", {"subscription_id": ends["subscription_id"]})
    if since is None and not any("*" in stream for stream in streams):
        found = [e for s in streams for e in await _tail(client, s, ends["cursors"].get(s, 0), limit)]
        kept.extend(sorted(found, key=lambda e: e.get("pos", 0)))
        return [event for event in kept if not types or event["type"] in types]
    after = max(ends["pos"] - WINDOW, 0) if since is None else since
    async with aclosing(_until(client, after, ends["pos"])) as past:
        async for event in past:
            wanted = any(fnmatchcase(event["stream"], pattern) for pattern in streams)
            if wanted and (not types or event["type"] in types):
                kept.append(event)
    return list(kept)


async def _tail(client: Client, stream: str, last: int, limit: int) -> list[dict[str, Any]]:
    """The last events of one stream, however long ago they were."""
    from witsd_client.errors import ResyncRequired

    params = {"stream": stream, "after_seq": max(last - limit, 0), "limit": min(limit, 1000)}
    try:
        found: list[dict[str, Any]] = (await client.call("events/read", params))["events"]
    except ResyncRequired as error:  # what is kept begins later
        params["after_seq"] = max(int(error.data.get("first_seq", 1)) - 1, 0)
        found = (await client.call("events/read", params))["events"]
    return found


async def _until(client: Client, after: int, end: int) -> AsyncGenerator[dict[str, Any], None]:
    """Every event after position ``after`` up to ``end``.

    All streams are asked for, whatever is wanted of them: so the last one is seen to be the last.
    """
    import trio

    from witsd.cli import follow

    if after >= end:
        return
    async with aclosing(follow.events(client, ["*"], since={"pos": after})) as stream:
        while True:
            event: dict[str, Any] | None = None
            with trio.move_on_after(SILENCE_S):
                event = await anext(stream, None)
            if event is None:
                return
            if event["type"] == "resync":
                note(f"what is kept does not reach back that far: {event['reason']}")
                return
            if event.get("pos", 0) <= end:
                yield event
            if event.get("pos", 0) >= end:
                return


def _say_event(event: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit_json_line(event)
        return
    if event["type"] == "resync":
        note(f"events are missing here: {event['reason']}")
        return
    seq = f"#{event['seq']}" if "seq" in event else ""
    head = f"{clock_time(event['time'])}  {event['stream']}{seq}  {event['type']}"
    say(neutral(f"{head}  {one_line(_brief(event['data']), 160)}".rstrip()))


def _brief(data: Any) -> str:
    """What of an event's data is worth a line: ``key=value`` for what is short, JSON for the rest."""
    if not isinstance(data, dict):
        return to_json(data)
    given = ((key, value) for key, value in data.items() if value not in (None, ""))
    return " ".join(f"{key}={value if isinstance(value, str) else to_json(value)}" for key, value in given)
