"""``memory_search``, ``memory_add``, ``memory_delete``: the memory of the calling agent, within its grants."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from witsd.services.tools.tool import ToolContext, tool
from witsd.values.wire import memory as wire

#: Where a person's call looks and writes when it names no namespace.
_SHARED = "shared"
Namespace = Annotated[
    str | None, Meta(description="one of its namespaces, as in shared; its own where none is named")
]


class SearchArgs(Struct, frozen=True):
    query: Annotated[str, Meta(min_length=1, max_length=4000, description="words or a question")]
    namespace: Annotated[str | None, Meta(description="one of its namespaces; all that it may read otherwise")] = None
    limit: Annotated[int, Meta(ge=1, le=50)] = 8


@tool(read_only=True, parallel=True)
async def memory_search(context: ToolContext, args: SearchArgs) -> dict[str, object]:
    """Find what was said or noted before, by words and by meaning."""
    params = wire.MemorySearchParams(query=args.query, limit=args.limit, namespace=args.namespace)
    found = await context.reach.memory.asking.search(context.actor, params)
    items = [
        {
            "memory_id": hit.memory_id,
            "text": hit.text,
            "time": hit.time,
            "namespace": hit.namespace,
            **({"speaker": hit.speaker} if hit.speaker else {}),
        }
        for hit in found.items
    ]
    return {"items": items}


class AddArgs(Struct, frozen=True):
    text: Annotated[str, Meta(min_length=1, max_length=20_000, description="what to remember, in a full sentence")]
    namespace: Namespace = None


@tool(policy="allow")
async def memory_add(context: ToolContext, args: AddArgs) -> dict[str, object]:
    """Note something to be remembered in later conversations."""
    params = wire.MemoryAddParams(
        namespace=args.namespace or _own(context), text=args.text, kind="fact", run_id=context.run_id
    )
    added = await context.reach.memory.add(context.actor, params)
    return {"memory_id": added.memory_id, "known_already": added.deduplicated}


class DeleteArgs(Struct, frozen=True):
    memory_id: Annotated[str, Meta(min_length=1, max_length=100, description="as memory_search has it")]


@tool
async def memory_delete(context: ToolContext, args: DeleteArgs) -> dict[str, object]:
    """Forget one memory for good."""
    await context.reach.memory.delete(context.actor, wire.MemoryDeleteParams(memory_id=args.memory_id))
    return {"deleted": args.memory_id}


def _own(context: ToolContext) -> str:
    return _SHARED if context.actor.agent is None else f"agent:{context.actor.agent}"


TOOLS = (memory_search, memory_add, memory_delete)
