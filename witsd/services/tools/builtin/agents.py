"""``agent_ask``: delegation. The other agent's run is a child of the caller's and spends its budget."""

from __future__ import annotations

from typing import Annotated

import msgspec
import trio
from msgspec import UNSET, Meta, Struct

from witsd.services.tools.tool import ToolContext, ToolFailed, tool
from witsd.values.ids import RunId
from witsd.values.wire.runs import RunIdParams, RunInput, RunsStartParams

#: How long another agent may take, in seconds.
ASK_S = 3600.0


class AskArgs(Struct, frozen=True):
    agent: Annotated[str, Meta(min_length=1, max_length=130, description="the name of the agent")]
    text: Annotated[str, Meta(min_length=1, max_length=500_000, description="what it is asked, with all it needs")]


@tool(policy="allow", parallel=True, timeout_s=ASK_S)
async def agent_ask(context: ToolContext, args: AskArgs) -> object:
    """Give another agent a piece of work, and wait for its answer."""
    runs = context.reach.runs
    given = RunInput(text=args.text, cwd=str(context.cwd) if context.cwd is not None else UNSET)
    params = RunsStartParams(agent=args.agent, input=given, stream=False, parent_run_id=context.run_id)
    run_id = (await runs.start(context.actor, params)).run_id
    live = runs.book.live.get(RunId(run_id))
    try:
        if live is not None:
            await live.done.wait()
    except trio.Cancelled:
        if live is not None:  # nobody waits for it any more
            runs.stop(live, "cancelled", f"{context.actor.label} has given up waiting")
        raise
    run = await runs.get(context.actor, RunIdParams(run_id=run_id))
    if run.status != "completed":
        why = run.error.message if run.error is not UNSET else run.reason
        raise ToolFailed(f"{args.agent}: the run was {run.status}{'' if why is UNSET else f': {why}'} ({run_id})")
    return run.output if isinstance(run.output, str) else msgspec.to_builtins(run.output)


TOOLS = (agent_ask,)
