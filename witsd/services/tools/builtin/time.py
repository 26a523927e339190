"""``time``: what the clock says, anywhere."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from typing import Annotated

from msgspec import Meta, Struct

from witsd.services.tools.tool import ToolContext, ToolFailed, tool


class Args(Struct, frozen=True):
    zone: Annotated[
        str, Meta(max_length=64, description="a zone such as Europe/Berlin, UTC, or local for this machine's")
    ] = "local"


@tool(name="time", read_only=True, parallel=True, instant=True)
async def time_tool(context: ToolContext, args: Args) -> dict[str, object]:
    """The date and the time of day now."""
    now = datetime.fromtimestamp(context.clock.wall_us() / 1e6, UTC)
    if args.zone == "local":
        there = now.astimezone()
    elif args.zone.upper() in ("UTC", "Z"):
        there = now
    else:
        there = now.astimezone(_zone(args.zone))
    return {
        "time": there.isoformat(timespec="seconds"),
        "weekday": f"{there:%A}",
        "zone": str(there.tzinfo),
        "unix": int(there.timestamp()),
    }


def _zone(name: str) -> tzinfo:
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ToolFailed(f"there is no time zone {name!r}: say one such as Europe/Berlin or America/New_York") from None


TOOLS = (time_tool,)
