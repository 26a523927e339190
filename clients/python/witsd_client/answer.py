"""Following one run: as events, or as the text of its answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from msgspec import UNSET

from witsd_client.errors import ProtocolError, RunFailed
from witsd_client.generated import RUN_ENDED, Event, Run
from witsd_client.subscription import Resync, Subscription

if TYPE_CHECKING:
    from witsd_client.client import Client

_END_EVENTS = frozenset(f"run.{status}" for status in RUN_ENDED)


class RunStream:
    """Every event of one run from its beginning, ending with the event that ended it.

    Survives lost connections. Where the history of the run is no longer kept, a ``Resync`` comes instead,
    and the stream ends with it if the run is over.
    """

    def __init__(self, client: Client, run_id: str) -> None:
        self.run_id = run_id
        self._client = client
        self._stream = f"run:{run_id}"
        self._events: Subscription | None = None
        self._over = False

    def __aiter__(self) -> Self:
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop following; the run goes on."""
        self._over = True
        if self._events is not None:
            await self._events.aclose()

    async def __anext__(self) -> Event | Resync:
        if self._over:
            raise StopAsyncIteration
        if self._events is None:
            self._events = self._client.subscribe([self._stream], since={self._stream: 0})
        item = await anext(self._events)
        if isinstance(item, Resync):
            runs = item.snapshot.runs if item.snapshot else ()
            ended = any(run.run_id == self.run_id and run.status in RUN_ENDED for run in runs)
        else:
            ended = item.type in _END_EVENTS
        if ended:
            await self.aclose()
        return item


class Answer:
    """The text of an answer, piece by piece as it is produced; iteration ends when the run is over.

    Afterwards ``run`` is the finished run. Raises ``RunFailed`` where the run did not complete. Leaving the
    iteration leaves the run going: ``cancel`` ends it.
    """

    def __init__(self, client: Client, begin: Callable[[], Awaitable[str]]) -> None:
        self._client = client
        self._begin = begin
        self._stream: RunStream | None = None
        self._said: dict[str, str] = {}
        self._ready: list[str] = []
        #: Set once iteration (or ``start``) has begun.
        self.run_id: str | None = None
        #: Items that have ended, by id, as they came.
        self.items: dict[str, dict[str, Any]] = {}
        #: The run once it is over.
        self.run: Run | None = None

    def __aiter__(self) -> Self:
        return self

    async def start(self) -> str:
        """Start the run now; returns its id."""
        if self.run_id is None:
            self.run_id = await self._begin()
            self._stream = RunStream(self._client, self.run_id)
        return self.run_id

    async def text(self) -> str:
        """The whole answer. Waits for the end of the run."""
        return "".join([piece async for piece in self])

    async def cancel(self, reason: str = "") -> None:
        """End the run."""
        if self.run_id is not None:
            await self._client.call("runs/cancel", {"run_id": self.run_id, "reason": reason})

    async def aclose(self) -> None:
        """Stop following; the run goes on."""
        if self._stream is not None:
            await self._stream.aclose()

    async def __anext__(self) -> str:
        await self.start()
        assert self._stream is not None
        while not self._ready:
            try:
                item = await anext(self._stream)
            except StopAsyncIteration:
                await self._finish()
                raise
            if isinstance(item, Resync):
                await self._catch_up()
            else:
                self._take(item)
        return self._ready.pop(0)

    def _take(self, event: Event) -> None:
        data = event.data
        if event.type == "item.delta":
            item_id = data["item_id"]
            if item_id in self._said:
                self._said[item_id] += data["text"]
                self._ready.append(data["text"])
        elif event.type in ("item.started", "item.updated", "item.completed"):
            item = data["item"]
            if event.type == "item.completed":
                self.items[item["item_id"]] = item
            if item["type"] == "message" and item.get("role", "assistant") == "assistant":
                self._level(item["item_id"], item.get("text", ""))

    def _level(self, item_id: str, text: str) -> None:
        """Say what of an item's whole text has not been said yet."""
        said = self._said.setdefault(item_id, "")
        if text.startswith(said) and len(text) > len(said):
            self._ready.append(text[len(said) :])
            self._said[item_id] = text

    async def _catch_up(self) -> None:
        run = await self._client.runs.get(run_id=self._run_id())
        for item in run.items:
            if type(item).__name__ == "MessageItem" and getattr(item, "role", "") == "assistant":
                self._level(item.item_id, getattr(item, "text", ""))

    async def _finish(self) -> None:
        if self.run is None:
            self.run = await self._client.runs.get(run_id=self._run_id())
        run = self.run
        if run.status == "completed":
            return
        if run.status not in RUN_ENDED:
            raise ProtocolError(f"run {run.run_id} was said to be over and is {run.status}")
        if run.error is not UNSET:
            raise RunFailed(run.run_id, run.status, run.error.message, run.error.code, run.error.data)
        reason = f"the run was {run.status}" + (f": {run.reason}" if run.reason else "")
        raise RunFailed(run.run_id, run.status, reason)

    def _run_id(self) -> str:
        assert self.run_id is not None
        return self.run_id
