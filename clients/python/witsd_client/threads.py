"""The blocking face of runs and sessions, for handlers that are plain functions in threads of their own."""

from __future__ import annotations

import contextvars
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import anyio
import anyio.from_thread

from witsd_client.errors import RunCancelled, is_run_cancelled
from witsd_client.memory import SyncMemory

if TYPE_CHECKING:
    from witsd_client.generated import HistoryTurn, ItemStatus, SessionSettings
    from witsd_client.run import Run
    from witsd_client.session import Message, Session

T = TypeVar("T")


class SyncApi:
    """The daemon's methods, blocking: ``api.runs.get(run_id=...)`` and ``api.call(...)``.

    ``do`` runs an async function in the event loop and returns its result.
    """

    def __init__(self, target: Any, do: Callable[[Callable[[], Awaitable[Any]]], Any]) -> None:
        self._target = target
        self._do = do

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if inspect.iscoroutinefunction(value):

            def call(*args: Any, **kwargs: Any) -> Any:
                return self._do(lambda: value(*args, **kwargs))

            return call
        return SyncApi(value, self._do)


class SyncRun:
    """A ``Run`` for any thread but the event loop's: the same names, each waiting till it is done.

    Every method raises ``RunCancelled`` once the run is cancelled; ``check`` does so for work that calls
    nothing else.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._run, name)

    # For the reader and the type checker: what ``__getattr__`` gives.
    if TYPE_CHECKING:
        run_id: str
        session_id: str | None
        text: str
        cwd: str | None
        files: tuple[str, ...]
        data: Any
        stream: bool
        cancelled: bool
        said: str
        options: Mapping[str, Any]
        history: tuple[HistoryTurn, ...]
        settings: SessionSettings

        def check(self) -> None: ...

    @property
    def client(self) -> SyncApi:
        """The daemon's methods, within this agent's grants."""
        return SyncApi(self._run.client, self._do)

    @property
    def memory(self) -> SyncMemory:
        """What this agent remembers: ``run.memory.add("...")``, ``run.memory.search("...")``."""
        return SyncMemory(self._run.memory, self._do)

    def say(self, text: str) -> None:
        """Add to the answer."""
        self._do(lambda: self._run.say(text))

    def think(self, text: str) -> None:
        """Add to the reasoning that is shown apart from the answer."""
        self._do(lambda: self._run.think(text))

    def item(
        self, item_type: str, *, item_id: str | None = None, status: ItemStatus = "completed", **fields: Any
    ) -> str:
        """Insert or replace an item, and return its id."""
        return self._do(lambda: self._run.item(item_type, item_id=item_id, status=status, **fields))

    def delta(self, item_id: str, text: str) -> None:
        """Append to the ``text`` of an item made with ``item``."""
        self._do(lambda: self._run.delta(item_id, text))

    def log(self, level: Literal["debug", "info", "warning", "error"], text: str) -> None:
        """Keep a line with the run."""
        self._do(lambda: self._run.log(level, text))

    def usage(self, **figures: Any) -> None:
        """Count what a model call used: see ``Run.usage``."""
        self._do(lambda: self._run.usage(**figures))

    def tool(self, name: str, /, **arguments: Any) -> Any:
        """Call a tool: see ``Run.tool``."""
        return self._do(lambda: self._run.tool(name, **arguments))

    def ask_user(
        self, message: str, schema: Mapping[str, Any] | None = None, timeout_s: float | None = None
    ) -> Any:
        """Ask a person, and wait for the response."""
        return self._do(lambda: self._run.ask_user(message, schema, timeout_s))

    def _do(self, function: Callable[[], Awaitable[T]]) -> T:
        return in_loop(self._run.agent.portal, self._run, function)


class SyncMessage(SyncRun):
    """A ``Message`` for a thread: ``with message:`` bounds its handling, as ``async with`` does there."""

    _run: Message

    def reply(self, text: str) -> None:
        """Say ``text`` and complete the run."""
        self._do(lambda: self._run.reply(text))

    def __enter__(self) -> Self:
        self._run.check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None:
            call_in_loop(self._run.agent.portal, self._run.finish)
        elif isinstance(error, Exception):
            call_in_loop(self._run.agent.portal, lambda: self._run.abandon(error))
        return isinstance(error, Exception) or is_run_cancelled(error)


class SyncSession:
    """A ``Session`` for a thread: ``for message in session``."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.session_id = session.session_id
        self.history = session.history

    @property
    def settings(self) -> SessionSettings:
        return self._session.settings

    @property
    def options(self) -> Mapping[str, Any]:
        options: Mapping[str, Any] = self._session.options
        return options

    def __iter__(self) -> Iterator[SyncMessage]:
        while True:
            message = in_loop(self._session.agent.portal, None, self._session._task.next)
            if message is None:
                return
            yield SyncMessage(message)


def in_loop(
    portal: anyio.from_thread.BlockingPortal, run: Run | None, function: Callable[[], Awaitable[T]]
) -> T:
    """Await ``function()`` in the event loop; raises ``RunCancelled`` when ``run`` is cancelled meanwhile."""

    async def guarded() -> tuple[bool, T | RunCancelled]:
        # What is no Exception would end the portal: it travels as a value.
        try:
            if run is None:
                return True, await function()
            with run.interruptible():
                return True, await function()
        except RunCancelled as cancelled:
            return False, cancelled

    try:
        good, value = portal.call(guarded)
    except CancelledError:
        raise RunCancelled("the agent is ending") from None
    except RuntimeError as error:
        if "portal" in str(error):
            raise RunCancelled("the agent has ended") from None
        raise
    if not good:
        assert isinstance(value, RunCancelled)
        raise value
    return value  # type: ignore[return-value]


def call_in_loop(portal: anyio.from_thread.BlockingPortal, function: Callable[[], None]) -> None:
    """Call ``function`` in the event loop and wait until it is done."""

    async def call() -> None:
        function()

    in_loop(portal, None, call)


async def run_in_own_thread(
    portal: anyio.from_thread.BlockingPortal, function: Callable[[], T], name: str
) -> T:
    """Run ``function`` in a thread of its own and wait for it; a caller that is cancelled leaves it behind.

    The thread is a daemon: one that never ends does not keep the process alive.
    """
    done = anyio.Event()
    outcome: list[tuple[bool, Any]] = []

    def work() -> None:
        try:
            outcome.append((True, function()))
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            outcome.append((False, error))
        try:
            portal.start_task_soon(done.set)
        except RuntimeError:
            pass  # the loop has ended: nobody waits

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(work,), name=name, daemon=True).start()
    await done.wait()
    good, value = outcome[0]
    if not good:
        raise value
    result: T = value
    return result
