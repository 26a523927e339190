"""Events as they come, as plain dictionaries: what ``events -f``, ``logs -f``, ``ask`` and ``chat`` read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from witsd_client.client import Client


async def events(
    client: Client,
    streams: Sequence[str],
    *,
    since: Mapping[str, int] | None = None,
    types: Sequence[str] | None = None,
) -> AsyncIterator[dict[str, Any]]:
    """What happens on ``streams`` after ``since``, without end; the client resumes after a drop."""
    async for event in client.subscribe(
        list(streams), since=dict(since) if since is not None else None, types=list(types) if types else None
    ):
        yield plain(event)


async def run_events(client: Client, run_id: str) -> AsyncIterator[dict[str, Any]]:
    """A run's events from its first to the one that ends it."""
    async for event in client.stream_run(run_id):
        yield plain(event)


def plain(event: Any) -> dict[str, Any]:
    """An event as the wire has it, without what belongs to the subscription."""
    import msgspec

    fields: dict[str, Any] = msgspec.to_builtins(event)
    fields.pop("subscription_id", None)
    return fields
