"""A conversation as one lasting coroutine: fed a message for each run, alive between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import anyio

from witsd_client.errors import InvalidState, Overloaded, RequestCancelled, RunCancelled, is_run_cancelled
from witsd_client.generated import HistoryTurn, RunsExecuteParams, SessionSettings
from witsd_client.run import Run, current_run

if TYPE_CHECKING:
    from witsd_client.agent import Agent, AgentClient

#: Messages one session holds for a handler that is busy; the next is answered ``overloaded``.
MAX_WAITING = 64
#: Turns kept to rebuild a conversation whose coroutine has ended.
MAX_TURNS = 1000
#: How long a handler may take to come back for the next message after a run of its was cancelled.
INTERRUPT_GRACE_S = 5.0


class Message(Run):
    """One message of a conversation, and the run that answers it.

    The run is complete when ``reply`` has been called, when the handler comes back for the next message,
    or at the end of ``async with message:``. That block is the tidy form: an exception inside fails this run
    alone, a cancelled run leaves it at once whatever it waits for, and the conversation goes on::

        async for message in session:
            async with message:
                await message.say(await think_about(message.text))

    Without the block a cancelled run raises ``RunCancelled`` out of the library's own waits (``say``, calls
    to the daemon); if that leaves the handler, the handler is begun again with ``history``.
    """

    def __init__(self, agent: Agent, params: RunsExecuteParams, settle: Callable[[Message], None]) -> None:
        super().__init__(agent, params)
        self._settle = settle
        self._block: anyio.CancelScope | None = None
        self._failure: Exception | None = None
        self._output: Any = None
        #: Set when the outcome is known.
        self.settled = anyio.Event()
        #: Set when the handler has let go of it.
        self.left = anyio.Event()

    async def reply(self, text: str) -> None:
        """Say ``text`` and complete the run."""
        await self.say(text)
        self.finish()

    def finish(self, returned: Any = None) -> None:
        """Complete the run, with ``returned`` as its output instead of what was said. Once is enough."""
        if self.settled.is_set():
            return
        try:
            self._output = self.complete(returned)
        except Exception as error:  # noqa: BLE001 - the handler's result, reported as its failure
            self._failure = self.fail(error)
        self._set_settled()

    def abandon(self, error: BaseException) -> None:
        """Fail the run."""
        if not self.settled.is_set():
            self._failure = self.fail(error)
            self._set_settled()

    def cancel(self) -> None:
        super().cancel()
        if not self.settled.is_set():
            self._failure = RequestCancelled("cancelled as asked")
            self._set_settled()

    def result(self) -> Any:
        """The output. Raises what the run failed with."""
        if self._failure is not None:
            raise self._failure
        return self._output

    def _set_settled(self) -> None:
        self.settled.set()
        self._settle(self)

    async def __aenter__(self) -> Self:
        self.check()
        self._block = anyio.CancelScope()
        self._block.__enter__()
        self._scopes.add(self._block)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        assert self._block is not None
        self._scopes.discard(self._block)
        block, self._block = self._block, None
        if block.__exit__(kind, error, trace):
            return True
        if error is None:
            self.finish()
        elif isinstance(error, Exception):
            self.abandon(error)
        return isinstance(error, Exception) or is_run_cancelled(error)


class Session:
    """What a session's handler is given: ``async for message in session`` until the conversation is over."""

    def __init__(self, task: SessionTask) -> None:
        self._task = task
        self.session_id = task.session_id
        #: The turns before the first message this handler will see.
        self.history: list[HistoryTurn] = list(task.turns)

    @property
    def settings(self) -> SessionSettings:
        """What this conversation changes of its agent's definition, as of the latest message."""
        return self._task.settings

    @property
    def agent(self) -> Agent:
        return self._task.agent

    @property
    def client(self) -> AgentClient:
        return self._task.agent.client

    @property
    def options(self) -> Any:
        return self._task.agent.options

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        message = await self._task.next()
        current_run.set(message)
        if message is None:
            raise StopAsyncIteration
        return message


class SessionTask:
    """Runs the handler of one conversation, and begins it again from its turns when it has ended."""

    def __init__(self, agent: Agent, session_id: str, history: tuple[HistoryTurn, ...]) -> None:
        self.agent = agent
        self.session_id = session_id
        self.turns: deque[HistoryTurn] = deque(history, MAX_TURNS)
        self.settings = SessionSettings()
        self.running = False
        self._waiting: deque[Message] = deque()
        self._current: Message | None = None
        self._taken = 0
        self._closed = False
        self._resting = False
        self._changed = anyio.Event()
        self._scope = anyio.CancelScope()

    @property
    def busy(self) -> bool:
        return bool(self._waiting) or (self._current is not None and not self._current.left.is_set())

    def admit(self, params: RunsExecuteParams) -> Message:
        """Put a message in line for the handler. Raises ``Overloaded`` when too many wait."""
        if len(self._waiting) >= MAX_WAITING:
            raise Overloaded("too many messages wait in this session", {"retry_after_ms": 1000})
        message = Message(self.agent, params, self._note)
        self._waiting.append(message)
        self._wake()
        if not self.running:
            self._begin()
        return message

    async def answer(self, message: Message) -> Any:
        """Wait for the outcome of ``message`` and return the output; being cancelled cancels its run."""
        try:
            await message.settled.wait()
        except anyio.get_cancelled_exc_class():
            message.cancel()
            if message is self._current and not message.left.is_set():
                self.agent.tasks.start_soon(self._hurry, message)
            raise
        return message.result()

    def close(self) -> None:
        """The conversation is over: the handler's loop ends after the message it is at."""
        self._closed = True
        self._wake()

    def rest(self) -> None:
        """End an idle handler; the next message begins it again from the turns."""
        if not self.busy:
            self._resting = True
            self._wake()

    def end(self) -> None:
        """End the handler for good, in the middle of a message if need be."""
        self.close()
        if self.busy:
            if self._current is not None:
                self._current.cancel()
            self._scope.cancel()

    async def next(self) -> Message | None:
        """For the handler: done with the message before; the next one, or None at the end."""
        self._leave()
        while True:
            while self._waiting:
                message = self._waiting.popleft()
                if not message.cancelled:
                    self._current, self.settings = message, message.settings
                    self._taken += 1
                    return message
            if self._closed or self._resting:
                return None
            self._changed = anyio.Event()
            await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()

    def _leave(self) -> None:
        if self._current is not None:
            self._current.finish()
            self._current.left.set()
            self._current = None

    def _note(self, message: Message) -> None:
        """Keep the turns of a message that is settled."""
        self.turns.append(HistoryTurn(role="user", text=message.text))
        if said := message.said:
            self.turns.append(HistoryTurn(role="assistant", text=said))

    def _begin(self) -> None:
        self.running = True
        self._resting = False
        self._taken = 0
        self._scope = anyio.CancelScope()
        self.agent.tasks.start_soon(self._run)

    async def _run(self) -> None:
        failure: BaseException | None = None
        try:
            with self._scope:
                await self.agent.run_session(Session(self))
        except (Exception, RunCancelled, BaseExceptionGroup) as error:
            # The boundary: a handler's failure is its run's.
            if not isinstance(error, Exception) and not is_run_cancelled(error):
                raise
            failure = error
        finally:
            self.running = False
        if self._current is not None and failure is not None:
            self._current.abandon(failure)
        self._leave()
        if self._closed:
            for message in self._waiting:
                message.abandon(InvalidState("the session is closed", {"state": "closed"}))
            self._waiting.clear()
        elif self._waiting:
            if self._taken == 0:
                # It would end again at once, for ever.
                ended = "the agent's session handler ended without taking a message"
                self._waiting.popleft().abandon(failure or InvalidState(ended, {"state": "ended"}))
            if self._waiting:
                self._begin()

    async def _hurry(self, message: Message) -> None:
        """A cancelled run must not hold up its session: end a handler that does not come back."""
        scope = self._scope
        with anyio.move_on_after(INTERRUPT_GRACE_S):
            await message.left.wait()
            return
        scope.cancel()
