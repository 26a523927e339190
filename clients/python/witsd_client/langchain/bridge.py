"""How LangChain's classes reach the daemon: from any thread, from any task on asyncio, in an agent or outside one."""

from __future__ import annotations

import asyncio
import atexit
import queue
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

from anyio.from_thread import BlockingPortal

from witsd_client.messages import Progress
from witsd_client.run import current_agent, current_run
from witsd_client.sync import SyncClient, connect

if TYPE_CHECKING:
    from witsd_client.agent import AgentClient
    from witsd_client.client import Client

T = TypeVar("T")


class Bridge:
    """Calls the daemon over ``client``, which lives in the event loop of ``portal``."""

    def __init__(self, client: Client | AgentClient, portal: BlockingPortal) -> None:
        self._client = client
        self._portal = portal

    def call(self, method: str, params: Mapping[str, Any], result_type: Any = Any) -> Any:
        """One call from a thread. Raises ``WitsdError``, and ``RuntimeError`` in the thread of the event loop."""
        return self._portal.call(partial(self._client.call, method, params, result_type))

    async def acall(self, method: str, params: Mapping[str, Any], result_type: Any = Any) -> Any:
        """One call from a task on asyncio; cancelling the task cancels the call."""
        return await self._here(partial(self._client.call, method, params, result_type))

    def stream(self, method: str, params: Mapping[str, Any], result_type: Any) -> Iterator[Progress | Any]:
        """What the call says while it goes on, each a ``Progress``; the last is its result."""
        news: queue.SimpleQueue[Progress | None] = queue.SimpleQueue()
        call = partial(self._client.call, method, params, result_type, progress=news.put)
        future: Future[Any] = self._portal.start_task_soon(call)
        future.add_done_callback(lambda _: news.put(None))
        try:
            while (item := news.get()) is not None:
                yield item
            yield future.result()
        finally:
            future.cancel()

    async def astream(
        self, method: str, params: Mapping[str, Any], result_type: Any
    ) -> AsyncIterator[Progress | Any]:
        """See ``stream``."""
        loop = asyncio.get_running_loop()
        news: asyncio.Queue[Progress | None] = asyncio.Queue()

        def tell(item: Progress | None) -> None:
            loop.call_soon_threadsafe(news.put_nowait, item)

        call = partial(self._client.call, method, params, result_type, progress=tell)
        task = asyncio.ensure_future(self._here(call))
        task.add_done_callback(lambda _: tell(None))
        try:
            while (item := await news.get()) is not None:
                yield item
            yield await task
        finally:
            task.cancel()

    async def _here(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            future = self._portal.start_task_soon(call)
        except RuntimeError:  # this is the portal's own event loop: no need of it
            return await call()
        return await asyncio.wrap_future(future)


def bridge(client: SyncClient | None = None) -> Bridge:
    """Over ``client``; else, in an agent, over its own connection; else over one made for this process."""
    if client is not None:
        return Bridge(client.asynchronous, client.portal)
    run = current_run.get()
    agent = current_agent.get() if run is None else run.agent
    if agent is not None:
        return Bridge(agent.client, agent.portal)
    shared = _shared_client()
    return Bridge(shared.asynchronous, shared.portal)


def current_run_id() -> str | None:
    """The run that this is done for, if any."""
    run = current_run.get()
    return None if run is None else run.run_id


@cache
def _shared_client() -> SyncClient:
    stack = ExitStack()
    client = stack.enter_context(connect())
    atexit.register(stack.close)
    return client
