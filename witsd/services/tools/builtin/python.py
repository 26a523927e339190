"""``python``: code in the sandbox, as a script is run, with the value of its last expression."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from witsd.services.tools import code
from witsd.services.tools.tool import Answer, ToolContext, tool


class Args(Struct, frozen=True):
    code: Annotated[str, Meta(min_length=1, max_length=200_000, description="a whole script; print what is wanted")]
    stdin: Annotated[str, Meta(max_length=1 << 20, description="what input() and sys.stdin read")] = ""
    timeout_s: Annotated[float, Meta(gt=0, le=86_400)] | None = None


@tool(read_only=True, parallel=True, timeout_s=code.TIMEOUT_S, concurrency=4)
async def python(context: ToolContext, args: Args) -> Answer:
    """Run Python code: standard library only, no network, an empty folder. Returns what it prints, the value of the
    last expression, and the files that it writes. Nothing stays from one call to the next.
    """
    return await code.answer(
        context, await code.run(context, writes=False, time_s=args.timeout_s, stdin=args.stdin, code=args.code)
    )


TOOLS = (python,)
