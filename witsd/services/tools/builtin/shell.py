"""``shell``: a command in the sandbox that may write where the caller may; a person is asked unless a pattern fits."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from witsd.services.tools import code
from witsd.services.tools.tool import Answer, ToolContext, tool


class Args(Struct, frozen=True):
    command: Annotated[str, Meta(min_length=1, max_length=100_000, description="for sh; in the working folder")]
    stdin: Annotated[str, Meta(max_length=1 << 20)] = ""
    timeout_s: Annotated[float, Meta(gt=0, le=86_400)] | None = None


@tool(policy="ask", timeout_s=code.TIMEOUT_S, concurrency=4, shell=True)  # noqa: S604 - a field of the tool
async def shell(context: ToolContext, args: Args) -> Answer:
    """Run a shell command. It sees the system's programs and the granted folders, and no network."""
    argv = ("/bin/sh", "-c", args.command)
    return await code.answer(
        context, await code.run(context, writes=True, time_s=args.timeout_s, stdin=args.stdin, argv=argv)
    )


TOOLS = (shell,)
