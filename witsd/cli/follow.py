"""Events as they come, as plain dictionaries: what ``events -f``, ``logs -f``, ``ask`` and ``chat`` read."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from witsd_client import Client, Event, Resync

#: Of lines of JSON, from the least to the gravest.
LEVELS = ("debug", "info", "warning", "error", "critical")
RUN_ENDED = ("completed", "failed", "cancelled", "interrupted")


async def events(
    client: Client,
    streams: Sequence[str],
    *,
    since: Mapping[str, int] | None = None,
    types: Sequence[str] | None = None,
) -> AsyncGenerator[dict[str, Any], None]:
    """What happens on ``streams`` after ``since``, without end; the client resumes after a drop.

    Where history could not go on there is one ``{"type": "resync", "reason", "pos", ...}``.
    """
    async with client.subscribe(list(streams), since=since, types=types) as subscription:
        async for event in subscription:
            yield plain(event)


async def log_lines(
    client: Client, agent: str, tail: int, *, follow: bool, level: str | None = None
) -> AsyncGenerator[dict[str, Any], None]:
    """The last ``tail`` lines an agent has written, ``{seq, time, source, text, level?}`` each; then those it writes.

    With ``level`` only those that say they are at least so grave.
    """
    stream = f"log:{agent}"
    newest = (await client.call("agents/logs", {"name": agent, "tail": 1}))["lines"]
    last = newest[-1]["seq"] if newest else 0
    if tail:
        params = {"name": agent, "tail": tail, **({"level": level} if level else {})}
        for line in (await client.call("agents/logs", params))["lines"]:
            yield line
            last = max(last, line["seq"])
    if not follow:
        return
    wanted = LEVELS[LEVELS.index(level) :] if level else ()
    async with aclosing(events(client, [stream], since={stream: last})) as following:
        async for event in following:
            if event["type"] == "log.line" and (level is None or event["data"].get("level") in wanted):
                yield {"seq": event["seq"], "time": event["time"], **event["data"]}


async def run_events(client: Client, run_id: str) -> AsyncGenerator[dict[str, Any], None]:
    """A run's events from its first to the one that ends it.

    Where they are no longer kept, the run's present state takes their place, told as events.
    """
    async with client.stream_run(run_id) as stream:
        async for event in stream:
            told = plain(event)
            if told["type"] != "resync":
                yield told
                continue
            for state in _as_events(await client.call("runs/get", {"run_id": run_id})):
                yield state


def plain(event: Event | Resync) -> dict[str, Any]:
    """An event as ``events/read`` shows it: without what belongs to the subscription it came by."""
    import msgspec
    from witsd_client import Resync

    fields: dict[str, Any] = msgspec.to_builtins(event)
    if isinstance(event, Resync):
        fields.pop("snapshot")
        return {"type": "resync", **fields}
    fields.pop("subscription_id", None)
    return fields


def _as_events(run: dict[str, Any]) -> Iterator[dict[str, Any]]:
    about = {"stream": f"run:{run['run_id']}", "time": run.get("ended_at") or run["created_at"]}
    for item in run["items"]:
        kind = "item.updated" if item.get("status", "in_progress") == "in_progress" else "item.completed"
        yield {**about, "type": kind, "data": {"run_id": run["run_id"], "item": item}}
    if run["status"] in RUN_ENDED:
        data = {key: run[key] for key in ("run_id", "output", "error", "reason", "usage") if key in run}
        yield {**about, "type": f"run.{run['status']}", "data": data}
