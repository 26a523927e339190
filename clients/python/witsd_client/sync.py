"""The client for programs without an event loop: the same methods, each waiting till it is done.

::

    from witsd_client.sync import connect

    with connect() as client:
        for text in client.ask("assistant", "What can you do?"):
            print(text, end="")

The event loop runs in a thread of its own. The client may be used by any number of threads.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

from witsd_client.answer import Answer
from witsd_client.client import RECONNECT_TIMEOUT_S, Client
from witsd_client.client import connect as connect_async
from witsd_client.generated import Event
from witsd_client.subscription import Resync
from witsd_client.threads import SyncApi

if TYPE_CHECKING:
    from witsd_client.connection import OnProgress

T = TypeVar("T")


class SyncStream(Generic[T]):
    """Iterates over what an asynchronous stream yields; ``close`` or ``with`` ends it."""

    def __init__(self, portal: BlockingPortal, stream: Any) -> None:
        self._portal = portal
        self._stream = stream

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        done, value = self._portal.call(self._next)
        if done:
            raise StopIteration
        result: T = value
        return result

    async def _next(self) -> tuple[bool, Any]:
        # StopAsyncIteration cannot leave a coroutine.
        try:
            return False, await anext(self._stream)
        except StopAsyncIteration:
            return True, None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop following."""
        self._portal.call(self._stream.aclose)


class SyncAnswer(SyncStream[str]):
    """See ``witsd_client.Answer``."""

    _stream: Answer

    @property
    def run_id(self) -> str | None:
        return self._stream.run_id

    @property
    def run(self) -> Any:
        """The run once it is over."""
        return self._stream.run

    @property
    def items(self) -> dict[str, dict[str, Any]]:
        return self._stream.items

    def text(self) -> str:
        """The whole answer. Waits for the end of the run."""
        return "".join(self)

    def cancel(self, reason: str = "") -> None:
        """End the run."""
        self._portal.call(self._stream.cancel, reason)


class SyncClient:
    """See ``witsd_client.Client``; ``client.agents``, ``client.runs`` and so on are here too."""

    def __init__(self, client: Client, portal: BlockingPortal) -> None:
        self._client = client
        self._portal = portal
        api = SyncApi(client, self._do)
        self.system: SyncApi = api.system
        self.agents: SyncApi = api.agents
        self.runs: SyncApi = api.runs
        self.sessions: SyncApi = api.sessions
        self.events: SyncApi = api.events
        self.models: SyncApi = api.models
        self.memory: SyncApi = api.memory
        self.blocks: SyncApi = api.blocks
        self.auth: SyncApi = api.auth
        self.tokens: SyncApi = api.tokens

    @property
    def epoch(self) -> str:
        return self._client.epoch

    @property
    def asynchronous(self) -> Client:
        """The client beneath, for use in the event loop of ``portal``."""
        return self._client

    @property
    def portal(self) -> BlockingPortal:
        """Reaches the event loop, from any thread but its own."""
        return self._portal

    def call(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        result_type: Any = Any,
        *,
        progress: OnProgress | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """Call any method by name. ``progress`` is called in the event loop's thread: it must not wait."""
        return self._do(
            lambda: self._client.call(method, params, result_type, progress=progress, timeout_s=timeout_s)
        )

    def subscribe(
        self,
        streams: str | Sequence[str],
        since: Mapping[str, int] | None = None,
        types: Sequence[str] | None = None,
        snapshot: bool = False,
        *,
        epoch: str | None = None,
    ) -> SyncStream[Event | Resync]:
        """Follow streams; see ``Client.subscribe``."""

        async def make() -> Any:
            return self._client.subscribe(streams, since, types, snapshot, epoch=epoch)

        return SyncStream(self._portal, self._do(make))

    def stream_run(self, run_id: str) -> SyncStream[Event | Resync]:
        """Every event of a run from its beginning to its end."""
        return SyncStream(self._portal, self._client.stream_run(run_id))

    def ask(
        self, agent: str, text: str, cwd: str | None = None, session_id: str | None = None
    ) -> SyncAnswer:
        """Ask an agent, and iterate over the text of its answer as it is produced."""
        return SyncAnswer(self._portal, self._client.ask(agent, text, cwd, session_id))

    def _do(self, function: Callable[[], Awaitable[Any]]) -> Any:
        return self._portal.call(function)


@contextmanager
def connect(
    target: str | os.PathLike[str] | None = None,
    *,
    token: str | None = None,
    reconnect_timeout_s: float = RECONNECT_TIMEOUT_S,
    backend: str | None = None,
) -> Iterator[SyncClient]:
    """Connect to the daemon for as long as the block lasts. See ``witsd_client.connect``."""
    if backend is None:
        backend = "trio" if importlib.util.find_spec("trio") else "asyncio"
    with start_blocking_portal(backend) as portal:
        opened = connect_async(target, token=token, reconnect_timeout_s=reconnect_timeout_s)
        with portal.wrap_async_context_manager(opened) as client:
            yield SyncClient(client, portal)
