"""The agent SDK: makes a function an agent that the daemon starts, feeds and stops.

::

    agent = Agent("echo")

    @agent.run
    async def echo(run):
        for word in run.text.split():
            await run.say(word + " ")

    agent.serve()
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, TypeVar, overload

import anyio
import anyio.abc
import anyio.from_thread
import msgspec
from msgspec import UNSET, Raw

from witsd_client.connection import Connection, OnProgress, open_connection
from witsd_client.errors import (
    AgentFailed,
    InvalidState,
    MethodNotFound,
    RequestCancelled,
    RunCancelled,
    WitsdError,
)
from witsd_client.generated import (
    PROTOCOL_VERSION,
    AgentIdentity,
    AgentInitializeParams,
    AgentToolCallParams,
    Api,
    Grants,
    ModelsCompleteParams,
    ModelsEmbedParams,
    ModelsEmbedResult,
    PingParams,
    RunsExecuteParams,
    SessionClosedNotification,
)
from witsd_client.run import Run, current_agent, current_run
from witsd_client.session import Session, SessionTask
from witsd_client.taskgroups import open_background
from witsd_client.threads import SyncRun, SyncSession, run_in_own_thread
from witsd_client.tools import OfferedTool
from witsd_client.transport import DescriptorTransport, Transport

T = TypeVar("T")
H = TypeVar("H", bound=Callable[..., Any])

#: Conversations whose handlers are kept alive; beyond it, the one longest idle is ended and begun again
#: from its turns when it goes on.
MAX_LIVE_SESSIONS = 256


class AgentClient(Api):
    """The daemon as an agent may use it: within its grants, over its own stdin and stdout."""

    def __init__(self, agent: Agent) -> None:
        super().__init__(self.call)
        self._agent = agent

    @overload
    async def call(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        progress: OnProgress | None = None,
        timeout_s: float | None = None,
    ) -> Any: ...
    @overload
    async def call(
        self,
        method: str,
        params: Mapping[str, Any] | None,
        result_type: type[T],
        *,
        progress: OnProgress | None = None,
        timeout_s: float | None = None,
    ) -> T: ...
    async def call(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        result_type: Any = Any,
        *,
        progress: OnProgress | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """Call any method by name; see ``Client.call``. Ends with ``RunCancelled`` when the run does."""
        connection = self._agent.connection
        run = current_run.get()
        if run is None:
            return await connection.request(
                method, params or {}, result_type, progress=progress, timeout_s=timeout_s
            )
        with run.interruptible():
            return await connection.request(
                method, params or {}, result_type, progress=progress, timeout_s=timeout_s
            )


class Agent:
    """An agent: handlers, what it says of itself, and ``serve``.

    A handler is an ``async def``, or a plain function that gets a thread of its own. An exception in it fails
    that run and no other; raise a ``WitsdError`` to choose the code.
    """

    def __init__(self, name: str, *, version: str = "") -> None:
        self.version = version
        self._name = name
        self._run_handler: Callable[[Any], Any] | None = None
        self._session_handler: Callable[[Any], Any] | None = None
        self._embed_handler: Callable[[Any], Any] | None = None
        self._prepare_handler: Callable[[], Any] | None = None
        self._complete_handler: Callable[[Any], Any] | None = None
        self._skills: list[dict[str, Any]] = []
        self._tools: dict[str, OfferedTool] = {}
        self._sessions: dict[str, SessionTask] = {}
        self._connection: Connection | None = None
        self._tasks: anyio.abc.TaskGroup | None = None
        self._portal: anyio.from_thread.BlockingPortal | None = None
        self._ending = False
        self.client = AgentClient(self)
        #: From the daemon's ``initialize``: who this agent is there.
        self.identity: AgentIdentity | None = None
        self.grants = Grants()
        #: A private folder, emptied when this process ends.
        self.run_dir = ""

    # ---- declaring ------------------------------------------------------------------------------------

    def run(self, handler: H) -> H:
        """Decorator: ``handler(run)`` does one piece of work. What it returns is the output."""
        self._run_handler = handler
        return handler

    def session(self, handler: H) -> H:
        """Decorator: ``handler(session)`` leads one conversation, for as long as it lasts."""
        self._session_handler = handler
        return handler

    def complete(self, handler: H) -> H:
        """Decorator: ``handler(request)`` answers a call of a model; ``request`` is that of ``models/complete``.

        It returns a ``ModelsCompleteResult`` or a dict like one, in one piece. A provider of kind ``langchain``
        names the agent: ``[providers.mine] kind = "langchain"``, ``agent = "NAME"``.
        """
        self._complete_handler = handler
        return handler

    def prepare(self, handler: H) -> H:
        """Decorator: ``handler()`` is called once the daemon has said who this agent is (``agent.options``), and
        before the agent says what it can do: the place to load what is heavy, and to declare tools by options.
        What it raises is why the agent cannot start.
        """
        self._prepare_handler = handler
        return handler

    def embed(self, handler: H) -> H:
        """Decorator: ``handler(request)`` turns ``request.texts`` into vectors, one for each, in their order.

        It returns a ``ModelsEmbedResult`` or the vectors alone, lists of numbers of one length. Memory takes
        the agent as its embedder: ``witsd memory reindex --embedder NAME``.
        """
        self._embed_handler = handler
        return handler

    def skill(
        self, name: str, description: str = "", input_schema: Mapping[str, Any] | None = None
    ) -> None:
        """Declare something this agent can do; others find it by it."""
        skill: dict[str, Any] = {"name": name, "description": description}
        if input_schema is not None:
            skill["input_schema"] = dict(input_schema)
        self._skills.append(skill)

    @overload
    def tool(self, function: H) -> H: ...
    @overload
    def tool(
        self, *, name: str = ..., description: str = ..., read_only: bool = ..., parallel: bool = ...
    ) -> Callable[[H], H]: ...
    def tool(
        self,
        function: Any = None,
        *,
        name: str = "",
        description: str = "",
        read_only: bool = False,
        parallel: bool = False,
    ) -> Any:
        """Decorator: a typed function becomes a tool that this agent brings, as ``AGENT__NAME``.

        Its signature is the schema; its docstring says what it does and, in lines ``argument: ...``, what each
        argument is. ``read_only``: it changes nothing, so that nobody need be asked before a call. ``parallel``:
        several calls may run at once. A plain function runs in a thread. What it returns is the answer: text, or
        anything that JSON can say; what it raises is told to the model.
        """

        def add(function: H) -> H:
            tool = OfferedTool.of(function, name, description, read_only=read_only, parallel=parallel)
            self._tools[tool.name] = tool
            return function

        return add if function is None else add(function)

    def add_tool(
        self,
        name: str,
        description: str,
        input_schema: Mapping[str, Any],
        handler: Callable[..., Any],
        *,
        read_only: bool = False,
        parallel: bool = False,
    ) -> None:
        """Bring a tool with a schema of its own: ``handler(arguments)``, or a function that takes them by name."""
        self._tools[name] = OfferedTool(
            name, description, input_schema, handler, read_only=read_only, parallel=parallel
        )

    # ---- what handlers may ask ------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The name in the agent's definition; before ``initialize`` the one given here."""
        return self.identity.name if self.identity else self._name

    @property
    def options(self) -> Mapping[str, Any]:
        """``[options]`` of the definition."""
        return self.identity.options if self.identity else {}

    @property
    def stream(self) -> bool:
        """False where the definition wants no deltas."""
        return self.identity.stream if self.identity else True

    @property
    def remembers(self) -> bool:
        """``memory`` of the definition: whether what is said to this agent is remembered by itself."""
        return self.identity is None or self.identity.memory == "on"

    @property
    def history_messages(self) -> int:
        """How many messages of a conversation the definition wants it to go by; the rest is for memory."""
        return self.identity.history_messages if self.identity else 200

    # ---- running --------------------------------------------------------------------------------------

    def serve(self, *, backend: Literal["trio", "asyncio"] | None = None) -> None:
        """Serve the daemon on stdin and stdout until it says ``shutdown`` or hangs up.

        ``backend`` is what runs the async handlers; None means trio where it is installed, else asyncio.
        From here on anything printed goes to stderr, which the daemon keeps as this agent's log.
        """
        if sys.stdin is not None and sys.stdin.isatty():
            sys.stderr.write(
                f"{self._name} is a witsd agent and waits for JSON-RPC on stdin. To use it:\n"
                f"  witsd agent add {self._name} -- python {sys.argv[0]}\n  witsd ask {self._name} hello\n"
            )
        transport = DescriptorTransport(*_take_stdio())
        if backend is None:
            backend = "trio" if importlib.util.find_spec("trio") else "asyncio"
        try:
            anyio.run(self.serve_on, transport, backend=backend)
        except KeyboardInterrupt:
            raise SystemExit(130) from None

    async def serve_on(self, transport: Transport) -> None:
        """Serve over any transport; returns after ``shutdown`` or when the other side hangs up."""
        self._ending = False
        current_agent.set(self)  # before there are tasks, which take it over
        async with (
            open_connection(transport, self._handle, self._notified) as connection,
            open_background() as tasks,
            anyio.from_thread.BlockingPortal() as portal,
        ):
            self._connection, self._tasks, self._portal = connection, tasks, portal
            try:
                await connection.wait_closed()
            finally:
                self._sessions.clear()
                await portal.stop(cancel_remaining=True)

    @property
    def connection(self) -> Connection:
        if self._connection is None:
            raise RuntimeError("the agent is not being served: call this from a handler")
        return self._connection

    @property
    def tasks(self) -> anyio.abc.TaskGroup:
        assert self._tasks is not None
        return self._tasks

    @property
    def portal(self) -> anyio.from_thread.BlockingPortal:
        assert self._portal is not None
        return self._portal

    # ---- what the daemon says -------------------------------------------------------------------------

    def _handle(self, method: str, params: Raw) -> Callable[[], Awaitable[Any]]:
        match method:
            case "runs/execute":
                return self._admit(msgspec.json.decode(params, type=RunsExecuteParams))
            case "models/embed":
                return self._embedding(msgspec.json.decode(params, type=ModelsEmbedParams))
            case "tools/call":
                return self._tool_call(msgspec.json.decode(params, type=AgentToolCallParams))
            case "models/complete":
                return self._completing(msgspec.json.decode(params, type=ModelsCompleteParams))
            case "ping":
                return _answering({"nonce": msgspec.json.decode(params, type=PingParams).nonce})
            case "initialize":
                return self._initializing(msgspec.json.decode(params, type=AgentInitializeParams))
            case "shutdown":
                if not self._ending:
                    self._ending = True
                    self.tasks.start_soon(self._wind_down)
                return _answering({})
        raise MethodNotFound(f"an agent has no method {method}")

    def _initializing(self, params: AgentInitializeParams) -> Callable[[], Awaitable[Any]]:
        self.identity, self.grants, self.run_dir = params.agent, params.grants, params.run_dir
        handler = self._prepare_handler

        async def answer() -> dict[str, Any]:
            try:
                if inspect.iscoroutinefunction(handler):
                    await handler()
                elif handler is not None:
                    await run_in_own_thread(self.portal, handler, "prepare")
            except WitsdError:
                raise
            except Exception as error:
                traceback.print_exc()  # its log has the whole of it
                raise AgentFailed(f"{type(error).__name__}: {error}") from error
            return self._introduction()

        return answer

    def _introduction(self) -> dict[str, Any]:
        return {
            "protocol_version": PROTOCOL_VERSION,
            "agent_info": {"name": self._name, "version": self.version},
            "capabilities": {
                "sessions": self._session_handler is not None,
                "embeddings": self._embed_handler is not None,
                "completions": self._complete_handler is not None,
            },
            "tools": [tool.definition for tool in self._tools.values()],
            "skills": self._skills,
        }

    def _notified(self, method: str, params: Raw) -> None:
        if method == "notifications/session_closed":
            closed = msgspec.json.decode(params, type=SessionClosedNotification)
            task = self._sessions.pop(closed.session_id, None)
            if task is not None:
                task.close()

    async def _wind_down(self) -> None:
        """Let the work in progress come to its end, then leave."""
        await self.connection.wait_served()
        for task in self._sessions.values():
            task.close()
        await self.connection.flush()
        self.connection.close("shutdown")

    # ---- work -----------------------------------------------------------------------------------------

    def _admit(self, params: RunsExecuteParams) -> Callable[[], Awaitable[Any]]:
        if self._ending:
            raise InvalidState("the agent is stopping", {"state": "stopping"})
        with_session = params.session_id is not UNSET
        if self._session_handler is not None and (with_session or self._run_handler is None):
            task = self._session_task(params)
            message = task.admit(params)

            async def converse() -> Any:
                try:
                    return {"output": await task.answer(message)}
                finally:
                    if not with_session:
                        task.close()

            return converse
        if self._run_handler is None:
            raise InvalidState("this agent has no handler", {"state": "active"})
        handler = self._run_handler
        return lambda: self._execute(handler, Run(self, params))

    async def _execute(self, handler: Callable[[Any], Any], run: Run) -> Any:
        current_run.set(run)
        try:
            returned = await self._call(handler, run, SyncRun, f"run {run.run_id}")
            return {"output": run.complete(returned)}
        except anyio.get_cancelled_exc_class():
            run.cancel()
            raise
        except RunCancelled:
            run.cancel()
            raise RequestCancelled("cancelled as asked") from None
        except Exception as error:
            raise run.fail(error) from error

    def _embedding(self, params: ModelsEmbedParams) -> Callable[[], Awaitable[Any]]:
        handler = self._embed_handler
        if handler is None:
            raise MethodNotFound(f"{self.name} does not embed: it has no handler marked @agent.embed")

        async def answer() -> ModelsEmbedResult:
            try:
                if inspect.iscoroutinefunction(handler):
                    returned = await handler(params)
                else:
                    returned = await run_in_own_thread(self.portal, lambda: handler(params), "embed")
            except WitsdError:
                raise
            except Exception as error:
                traceback.print_exc()  # its log has the whole of it
                raise AgentFailed(f"{type(error).__name__}: {error}") from error
            if isinstance(returned, ModelsEmbedResult):
                return returned
            vectors = tuple(tuple(float(x) for x in vector) for vector in returned)
            dimensions = len(vectors[0]) if vectors else 0
            return ModelsEmbedResult(vectors=vectors, dimensions=dimensions, model=self.name)

        return answer

    def _tool_call(self, params: AgentToolCallParams) -> Callable[[], Awaitable[Any]]:
        tool = self._tools.get(params.name)
        if tool is None:
            raise MethodNotFound(f"{self.name} has no tool {params.name!r}")

        def in_thread(function: Callable[[], Any]) -> Awaitable[Any]:
            return run_in_own_thread(self.portal, function, f"tool {params.name}")

        return lambda: tool.call(params.arguments, in_thread)

    def _completing(self, params: ModelsCompleteParams) -> Callable[[], Awaitable[Any]]:
        handler = self._complete_handler
        if handler is None:
            raise MethodNotFound(f"{self.name} is no model: it has no handler marked @agent.complete")

        async def answer() -> Any:
            try:
                if inspect.iscoroutinefunction(handler):
                    return await handler(params)
                return await run_in_own_thread(self.portal, lambda: handler(params), "complete")
            except WitsdError:
                raise
            except Exception as error:
                traceback.print_exc()  # its log has the whole of it
                raise AgentFailed(f"{type(error).__name__}: {error}") from error

        return answer

    def _session_task(self, params: RunsExecuteParams) -> SessionTask:
        if params.session_id is UNSET:
            return SessionTask(self, params.run_id, ())
        known = self._sessions.pop(params.session_id, None)
        if params.history is not UNSET and known is not None:
            known.end()
            known = None
        if known is None:
            history = () if params.history is UNSET else params.history
            known = SessionTask(self, params.session_id, history)
        self._sessions[params.session_id] = known  # the latest stands last
        self._end_idle()
        return known

    def _end_idle(self) -> None:
        live = [task for task in self._sessions.values() if task.running]
        for task in live[: max(0, len(live) - MAX_LIVE_SESSIONS)]:
            task.rest()

    async def run_session(self, session: Session) -> None:
        """Run the session handler to its end."""
        assert self._session_handler is not None
        await self._call(self._session_handler, session, SyncSession, f"session {session.session_id}")

    async def _call(
        self, handler: Callable[[Any], Any], given: Any, sync_face: Callable[[Any], Any], name: str
    ) -> Any:
        if inspect.iscoroutinefunction(handler):
            return await handler(given)
        return await run_in_own_thread(self.portal, lambda: handler(sync_face(given)), name)


def _answering(result: Any) -> Callable[[], Awaitable[Any]]:
    async def answer() -> Any:
        return result

    return answer


def _take_stdio() -> tuple[int, int]:
    """Take stdin and stdout for the protocol, and leave nothing there that a stray print could spoil."""
    sys.stdout.flush()
    ours = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return ours

