"""Memory as an agent's handler sees it: ``await run.memory.add("...")``, ``await run.memory.search("...")``.

Each method works in the agent's own namespace (``agent:<name>``) unless another is named, which its definition must
grant. Whatever else memory can do is in ``run.client.memory`` and ``run.client.blocks``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import UNSET

from witsd_client.errors import NotFound

if TYPE_CHECKING:
    from witsd_client.generated import Block, MemoryAdded, MemoryContextResult, MemoryHit, MemoryKind, MemoryMode
    from witsd_client.run import Run

T = TypeVar("T")


class AgentMemory:
    """What an agent remembers. What a run adds is noted as that run's, so that ``memory/revert`` can take it back."""

    def __init__(self, run: Run) -> None:
        self._run = run

    @property
    def namespace(self) -> str:
        """The agent's own."""
        return f"agent:{self._run.agent.name}"

    async def add(
        self,
        text: str,
        *,
        namespace: str | None = None,
        kind: MemoryKind | None = None,
        metadata: Mapping[str, Any] | None = None,
        supersedes: tuple[str, ...] = (),
        ttl_s: float | None = None,
    ) -> MemoryAdded:
        """Remember ``text``: durable when this returns, and found from then on.

        ``supersedes`` are ids of what it makes untrue; after ``ttl_s`` seconds it is forgotten.
        """
        return await self._run.client.memory.add(
            namespace=namespace or self.namespace,
            text=text,
            kind=kind,
            metadata=None if metadata is None else dict(metadata),
            supersedes=supersedes or UNSET,
            ttl_s=ttl_s,
            run_id=self._run.run_id,
        )

    async def search(
        self,
        query: str,
        *,
        namespace: str | None = None,
        everywhere: bool = False,
        limit: int = 10,
        mode: MemoryMode = "hybrid",
        filter: Mapping[str, Any] | None = None,  # noqa: A002 - the protocol's name
    ) -> tuple[MemoryHit, ...]:
        """What fits ``query``, best first, each with why. ``everywhere``: in all that the agent may read."""
        found = await self._run.client.memory.search(
            query=query,
            namespace=None if everywhere else namespace or self.namespace,
            limit=limit,
            mode=mode,
            filter=None if filter is None else dict(filter),
        )
        return found.items

    async def context(self, query: str, *, max_tokens: int = 1000) -> MemoryContextResult:
        """What a prompt should carry, of all the agent may read: ``.text`` goes into it as it is.

        What of this conversation is in the prompt anyway (``agent.history_messages``) is left out.
        """
        return await self._run.client.memory.context(
            query=query, max_tokens=max_tokens, session_id=self._run.session_id
        )

    async def delete(self, memory_id: str) -> None:
        """Forget a record, without a trace."""
        await self._run.client.memory.delete(memory_id=memory_id)

    async def blocks(self) -> dict[str, str]:
        """The texts that are always in this agent's prompt, by name."""
        found = await self._run.client.blocks.list(agent=self._run.agent.name)
        return {block.name: block.text for block in found.items}

    async def block(self, name: str) -> str:
        """One of them; empty where there is none."""
        try:
            return (await self._run.client.blocks.get(agent=self._run.agent.name, name=name)).text
        except NotFound:
            return ""

    async def set_block(self, name: str, text: str) -> Block:
        """Write one of them; an empty text takes it away."""
        return await self._run.client.blocks.set(
            agent=self._run.agent.name, name=name, text=text, run_id=self._run.run_id
        )


class SyncMemory:
    """``AgentMemory`` for a handler in a thread: the same methods, each waiting till it is done."""

    def __init__(self, memory: AgentMemory, do: Callable[[Callable[[], Awaitable[T]]], T]) -> None:
        self._memory = memory
        self._do: Callable[[Callable[[], Awaitable[Any]]], Any] = do
        self.namespace = memory.namespace

    def add(
        self,
        text: str,
        *,
        namespace: str | None = None,
        kind: MemoryKind | None = None,
        metadata: Mapping[str, Any] | None = None,
        supersedes: tuple[str, ...] = (),
        ttl_s: float | None = None,
    ) -> MemoryAdded:
        """Remember ``text``."""
        added: MemoryAdded = self._do(
            lambda: self._memory.add(
                text, namespace=namespace, kind=kind, metadata=metadata, supersedes=supersedes, ttl_s=ttl_s
            )
        )
        return added

    def search(
        self,
        query: str,
        *,
        namespace: str | None = None,
        everywhere: bool = False,
        limit: int = 10,
        mode: MemoryMode = "hybrid",
        filter: Mapping[str, Any] | None = None,  # noqa: A002 - the protocol's name
    ) -> tuple[MemoryHit, ...]:
        """What fits ``query``, best first."""
        found: tuple[MemoryHit, ...] = self._do(
            lambda: self._memory.search(
                query, namespace=namespace, everywhere=everywhere, limit=limit, mode=mode, filter=filter
            )
        )
        return found

    def context(self, query: str, *, max_tokens: int = 1000) -> MemoryContextResult:
        """What a prompt should carry."""
        found: MemoryContextResult = self._do(lambda: self._memory.context(query, max_tokens=max_tokens))
        return found

    def delete(self, memory_id: str) -> None:
        """Forget a record, without a trace."""
        self._do(lambda: self._memory.delete(memory_id))

    def blocks(self) -> dict[str, str]:
        """The texts that are always in this agent's prompt, by name."""
        found: dict[str, str] = self._do(self._memory.blocks)
        return found

    def block(self, name: str) -> str:
        """One of them; empty where there is none."""
        text: str = self._do(lambda: self._memory.block(name))
        return text

    def set_block(self, name: str, text: str) -> Block:
        """Write one of them; an empty text takes it away."""
        block: Block = self._do(lambda: self._memory.set_block(name, text))
        return block
