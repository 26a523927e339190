"""One piece of work, as an agent's handler sees it: what was asked, and how to answer while working."""

from __future__ import annotations

import itertools
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

import anyio
import msgspec
from msgspec import UNSET

from witsd_client.errors import AgentFailed, LimitExceeded, RequestCancelled, RunCancelled, WitsdError
from witsd_client.generated import HistoryTurn, RunInput, RunsExecuteParams, SessionSettings, TextContent
from witsd_client.memory import AgentMemory

if TYPE_CHECKING:
    from witsd_client.agent import Agent, AgentClient
    from witsd_client.generated import ItemStatus
    from witsd_client.threads import SyncRun

#: What one message to the daemon may have; a longer one would never be answered.
MAX_OUTPUT_BYTES = (4 << 20) - 4096

#: The run that the present task works on, so that waits for the daemon end when it is cancelled.
current_run: ContextVar[Run | None] = ContextVar("current_run", default=None)
#: The agent that the present task belongs to, also where no run is under way.
current_agent: ContextVar[Agent | None] = ContextVar("current_agent", default=None)


class Run:
    """A run. Its methods may be awaited by any task of the handler; threads use ``run.sync``.

    When the run is cancelled, a handler of ``agent.run`` is cancelled as any task is. In a session the wait
    in progress raises ``RunCancelled`` instead, so that the conversation lives on: see ``Message``.
    """

    def __init__(self, agent: Agent, params: RunsExecuteParams) -> None:
        self.agent = agent
        self.run_id = params.run_id
        #: The conversation this belongs to, if any.
        self.session_id = None if params.session_id is UNSET else params.session_id
        self.input: RunInput = params.input
        #: What was asked.
        self.text = params.input.text
        #: Where relative paths in ``text`` are meant to start.
        self.cwd = None if params.input.cwd is UNSET else params.input.cwd
        self.files: tuple[str, ...] = () if params.input.files is UNSET else params.input.files
        #: Whatever a program gave beside the text.
        self.data: Any = None if params.input.data is UNSET else params.input.data
        #: The turns before this one, where the daemon gave them.
        self.history: tuple[HistoryTurn, ...] = () if params.history is UNSET else params.history
        self.settings = SessionSettings() if params.settings is UNSET else params.settings
        #: False: nobody wants deltas, and ``say`` sends none.
        self.stream = params.stream and agent.stream
        #: RFC 3339; the daemon ends the run then.
        self.deadline = None if params.deadline is UNSET else params.deadline
        #: Where models are found as OpenAI's API has them, and this run's key; None where the daemon has no HTTP.
        self.model_access = None if params.model_access is UNSET else params.model_access
        self.cancelled = False
        self.over = False
        self._numbers = itertools.count(1)
        self._texts: dict[str, tuple[str, list[str]]] = {}
        self._scopes: set[anyio.CancelScope] = set()

    @property
    def options(self) -> Mapping[str, Any]:
        """``[options]`` of the agent's definition."""
        return self.agent.options

    @property
    def client(self) -> AgentClient:
        """The daemon's methods, within this agent's grants."""
        return self.agent.client

    @property
    def memory(self) -> AgentMemory:
        """What this agent remembers: ``await run.memory.add("...")``, ``await run.memory.search("...")``."""
        return AgentMemory(self)

    @property
    def sync(self) -> SyncRun:
        """This run for use from another thread: the same methods, blocking."""
        from witsd_client.threads import SyncRun

        return SyncRun(self)

    @property
    def said(self) -> str:
        """The answer so far."""
        return "".join(self._texts["message"][1]) if "message" in self._texts else ""

    async def tool(self, name: str, /, **arguments: Any) -> Any:
        """Call a tool; the call shows in the run. Returns its value: what is structured, else its text.

        Raises ``AgentFailed`` where the tool itself fails or refuses its input, and the error of the call for an
        unknown tool (``NotFound``), arguments that do not fit (``InvalidParams``), a missing grant or a person's no
        (``PermissionDenied``), ``Timeout``.
        """
        result = await self.client.tools.call(name=name, arguments=arguments, run_id=self.run_id)
        text = "\n".join(part.text for part in result.content if isinstance(part, TextContent))
        if result.is_error:
            raise AgentFailed(f"{name}: {text}", {"reason": text, "tool": name})
        if result.structured_content is UNSET:
            return text
        value = result.structured_content
        return value["result"] if isinstance(value, dict) and value.keys() == {"result"} else value

    # ---- answering ------------------------------------------------------------------------------------

    async def say(self, text: str) -> None:
        """Add to the answer. Waits only when the daemon does not keep up."""
        await self._add("message", text)

    async def think(self, text: str) -> None:
        """Add to the reasoning that is shown apart from the answer."""
        await self._add("thought", text)

    async def item(
        self,
        item_type: str,
        *,
        item_id: str | None = None,
        status: ItemStatus = "completed",
        **fields: Any,
    ) -> str:
        """Insert or replace an item, and return its id: give it back to replace the item later.

        ``item_type`` is one of the protocol's, and ``fields`` are those of the type: ``tool`` and
        ``arguments`` of a ``tool_call``, ``name`` and ``data`` of a ``custom`` item.
        """
        item_id = item_id or self._new_id()
        item = {"item_id": item_id, "type": item_type, "status": status, **fields}
        await self._notify("notifications/item", {"run_id": self.run_id, "item": item})
        return item_id

    async def delta(self, item_id: str, text: str) -> None:
        """Append to the ``text`` of an item made with ``item``."""
        await self._notify(
            "notifications/delta", {"run_id": self.run_id, "item_id": item_id, "text": text}
        )

    async def log(self, level: Literal["debug", "info", "warning", "error"], text: str) -> None:
        """Keep a line with the run."""
        await self.item("log", level=level, text=text)

    async def usage(
        self,
        *,
        model: str = "",
        input_tokens: int = 0,
        output_tokens: int = 0,
        calls: int = 1,
        cost_usd: float = 0,
    ) -> None:
        """Count what a model call used, in tokens and US dollars."""
        await self.item(
            "usage",
            model=model,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            calls=calls,
            cost_usd=cost_usd,
        )

    async def ask_user(
        self, message: str, schema: Mapping[str, Any] | None = None, timeout_s: float | None = None
    ) -> Any:
        """Ask a person, and wait for the response. ``schema`` is a JSON Schema for it.

        Raises ``Timeout`` when nobody has responded after ``timeout_s``.
        """
        params: dict[str, Any] = {"run_id": self.run_id, "message": message}
        if schema is not None:
            params["schema"] = dict(schema)
        if timeout_s is not None:
            params["timeout_s"] = timeout_s
        with self.interruptible():
            return (await self.agent.connection.request("inputs/request", params))["response"]

    def check(self) -> None:
        """Raise ``RunCancelled`` if the run has been cancelled: for long work that waits for nothing."""
        if self.cancelled:
            raise RunCancelled(f"run {self.run_id} was cancelled")

    # ---- for the agent --------------------------------------------------------------------------------

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A wait inside ends with ``RunCancelled`` when the run is cancelled from outside its task."""
        self.check()
        with anyio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                yield
            finally:
                self._scopes.discard(scope)
        if scope.cancelled_caught:
            self.check()

    def cancel(self) -> None:
        """End the run as cancelled, and interrupt what it waits for."""
        if not self.over:
            self.cancelled = True
            self._close_texts("cancelled")
            self.over = True
        for scope in tuple(self._scopes):
            scope.cancel()

    def complete(self, returned: Any = None) -> Any:
        """End the run and return its output: what the handler returned, else what it said."""
        if isinstance(returned, str) and returned and not self._texts.get("message"):
            # An answer that was returned and not said is an answer all the same.
            self._texts["message"] = (self._new_id(), [returned])
        output = self.said if returned is None else returned
        size = len(msgspec.json.encode(output))
        if size > MAX_OUTPUT_BYTES:
            raise LimitExceeded(
                f"the output has {size} bytes, more than the {MAX_OUTPUT_BYTES} that one message may carry: "
                "give it as an artifact item with a path",
                {"limit": "message_bytes", "value": MAX_OUTPUT_BYTES},
            )
        self._close_texts("completed")
        self.over = True
        return output

    def fail(self, error: BaseException) -> WitsdError:
        """End the run as failed; the traceback goes to stderr. Returns what the daemon is told."""
        if self.cancelled:
            return RequestCancelled("cancelled as asked")
        self._close_texts("failed")
        self.over = True
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if isinstance(error, WitsdError):
            return error
        traceback.print_exception(error, file=sys.stderr)
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        if isinstance(error, RuntimeError) and "event loop" in str(error) and not _under_asyncio():
            reason += ' (async handlers run under trio here: agent.serve(backend="asyncio") runs them under asyncio)'
        return AgentFailed(reason[:2000], {"run_id": self.run_id, "reason": reason[:2000]})

    async def _add(self, kind: str, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError(f"say and think take text, not {type(text).__name__}: wrap it in str()")
        known = self._texts.get(kind)
        if known is None:
            self._may_speak()
            known = self._texts[kind] = (self._new_id(), [])
            await self._notify("notifications/item", self._text_item(kind, "in_progress"))
        item_id, said = known
        self._may_speak()
        if text:
            said.append(text)
            if self.stream:
                await self.delta(item_id, text)

    def _close_texts(self, status: ItemStatus) -> None:
        connection = self.agent.connection
        for kind in self._texts:
            if sum(map(len, self._texts[kind][1])) < MAX_OUTPUT_BYTES // 6:
                # Longer ones might not fit a message; the daemon has their deltas and closes them itself.
                connection.notify_nowait("notifications/item", self._text_item(kind, status, whole=True))

    def _text_item(self, kind: str, status: str, *, whole: bool = False) -> dict[str, Any]:
        item_id, said = self._texts[kind]
        item = {"item_id": item_id, "type": kind, "status": status, "text": "".join(said) if whole else ""}
        if kind == "message":
            item["role"] = "assistant"
        return {"run_id": self.run_id, "item": item}

    async def _notify(self, method: str, params: dict[str, Any]) -> None:
        self._may_speak()
        with self.interruptible():
            await self.agent.connection.notify(method, params)

    def _may_speak(self) -> None:
        self.check()
        if self.over:
            raise RuntimeError(f"run {self.run_id} is over: nothing can be added to it")

    def _new_id(self) -> str:
        return f"{self.run_id}.{next(self._numbers)}"


def _under_asyncio() -> bool:
    import asyncio  # only here: under trio nothing else loads it

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
