"""One agent under supervision: a task that feeds what happens to ``lifecycle.step`` and does what it says."""

from __future__ import annotations

import logging
import math
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, aclosing
from pathlib import Path

import attrs
import msgspec
import trio

from witsd.journal.event import entry
from witsd.journal.journal import Journal
from witsd.supervise import environment
from witsd.supervise.container import Ceilings, Container, ContainerError
from witsd.supervise.containment import Containment
from witsd.supervise.lifecycle import (
    Broken,
    Effect,
    Elapsed,
    Exited,
    Input,
    Lifecycle,
    Ready,
    Stop,
    step,
)
from witsd.supervise.link import AgentLink, OpenLink
from witsd.supervise.logs import Logs
from witsd.supervise.process import Exit, Process, Spawner, SpawnError, spawn
from witsd.supervise.readiness import LogPattern, NotifySocket, notify_socket, probe_http, probe_tcp
from witsd.supervise.watch import Facts, Watch
from witsd.values.actor import Actor
from witsd.values.clock import Clock, rfc3339
from witsd.values.errors import WitsdError
from witsd.values.ids import AgentName, Ids, SessionId
from witsd.values.spec import AgentSpec
from witsd.values.wire.agents import Agent, AgentHealth
from witsd.values.wire.common import UNSET, Empty
from witsd.values.wire.event_types import AgentHealthData, AgentLogData, AgentStateData
from witsd.values.wire.native import (
    AgentIdentity,
    AgentInitializeParams,
    AgentInitializeResult,
    PingParams,
    PingResult,
)
from witsd.values.wire.system import PROTOCOL_VERSION

log = logging.getLogger("witsd.supervise")
_encode = msgspec.json.Encoder().encode

#: Once the leader is gone: how long its pipes may go on before they are closed, in seconds.
_DRAIN_S = 1.0
#: How long a tree may take to be gone once it is killed, in seconds.
_END_S = 5.0
#: Rubbish on stdout is reported in the agent's stream at most this often; every line is in its log.
_REPORT_EVERY_S = 60.0
_UPSERT = (
    "INSERT INTO agents(name, spec, state, health, reason, since_us, restarts, pid, start_time, boot_id, history) "
    "VALUES (?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT(name) DO UPDATE SET spec = excluded.spec, state = excluded.state, "
    "health = excluded.health, reason = excluded.reason, since_us = excluded.since_us, restarts = excluded.restarts, "
    "pid = excluded.pid, start_time = excluded.start_time, boot_id = excluded.boot_id, history = excluded.history"
)


def ceilings(spec: AgentSpec) -> Ceilings:
    """What the kernel is to hold the agent's tree to."""
    limits = spec.limits
    return Ceilings(memory_bytes=limits.memory_bytes, cpu_percent=limits.cpu_percent, tasks=limits.tasks)


@attrs.frozen(kw_only=True)
class Surroundings:
    """What all units share."""

    journal: Journal
    logs: Logs
    containment: Containment
    watch: Watch
    spawner: Spawner
    open_link: OpenLink
    clock: Clock
    ids: Ids
    jitter: Callable[[], float]
    mark: str
    socket: Path
    run_root: Path
    daemon_env: Mapping[str, str]
    assistant_command: Sequence[str]


@attrs.define(eq=False)
class Unit:
    """An agent and, while it has one, its process. ``run`` is its task; everything else just tells it."""

    spec: AgentSpec
    shared: Surroundings
    life: Lifecycle = Lifecycle()
    health: AgentHealth = "unknown"
    process: Process | None = None
    #: What holds its whole tree, while there is one.
    container: Container | None = None
    #: The processes of an agent that gets one for each run, by pid.
    run_processes: dict[int, Process] = attrs.field(factory=dict)
    link: AgentLink | None = None
    since_us: int = 0
    #: Counts processes, so that what was said to one is known not to have reached the next.
    generation: int = 0
    #: The sessions that its process keeps in memory; any other has to be told of its past.
    holds: set[SessionId] = attrs.field(factory=set)
    #: Runs that hold it up; an on-demand agent with none is stopped after ``idle_stop_s``.
    leases: int = 0
    last_exit: str = ""
    #: When it last wrote anything, monotonic seconds.
    last_word: float = 0.0
    _limit_passed: str = ""
    _pattern: LogPattern | None = None
    _idle_since: float = 0.0
    _inbox: list[tuple[Input, trio.Event | None]] = attrs.field(factory=list)
    _told: trio.Event = attrs.field(factory=trio.Event)
    _changed: trio.Event = attrs.field(factory=trio.Event)
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _reported: dict[str, float] = attrs.field(factory=dict)

    @property
    def name(self) -> AgentName:
        return AgentName(self.spec.name)

    @property
    def actor(self) -> Actor:
        """What the agent is to the method table: itself, with its grants."""
        return Actor(kind="agent", label=f"agent:{self.name}", agent=self.name, grants=self.spec.grants)

    @property
    def has_process(self) -> bool:
        """False for an exec agent that gets a process for each run."""
        return not self.spec.run_per_request

    def tell(self, event: Input) -> None:
        """Something has happened or is wanted. Never waits; handled in order by the unit's task."""
        self._inbox.append((event, None))
        self._told.set()

    async def ask(self, event: Input) -> None:
        """Tell, and return once the state says what it makes of it."""
        handled = trio.Event()
        self._inbox.append((event, handled))
        self._told.set()
        await handled.wait()

    async def settle(self) -> None:
        """Return once everything told so far has been handled."""
        if self._inbox:
            event, handled = self._inbox[-1]
            handled = handled or trio.Event()
            self._inbox[-1] = (event, handled)
            await handled.wait()

    async def wait_change(self) -> None:
        """Return at the next change of state."""
        await self._changed.wait()

    def view(self) -> Agent:
        """The agent as the wire shows it."""
        life = self.life
        return Agent(
            name=self.spec.name,
            kind=self.spec.kind,
            state=life.state,
            health=self.health,
            since=rfc3339(self.since_us),
            restarts=life.restarts,
            spec=self.spec,
            pid=self.process.pid if self.process else UNSET,
            reason=life.reason or UNSET,
        )

    def facts(self) -> Facts:
        """What the watch looks at beside the samples."""
        return Facts(
            spec=self.spec,
            restarts=self.life.restarts,
            silence_s=self.shared.clock.monotonic() - self.last_word if self.process else None,
            kept=self.shared.containment.controllers,
            end=self._end_for_limit,
        )

    def _end_for_limit(self, reason: str) -> None:
        if self.process is not None and not self._limit_passed:
            self._limit_passed = reason
            self.process.signal_group(signal.SIGKILL)  # its end takes the rest of the tree along

    # ---- the unit's task ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Supervise until cancelled. Only ever one process: a new one is spawned after the last is reaped."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    while True:
                        event, handled = await self._next()
                        self._handle(event, nursery)
                        if handled is not None:
                            handled.set()
        finally:
            for _, handled in self._inbox:  # told in the moment it was removed
                if handled is not None:
                    handled.set()

    def end(self) -> None:
        """End the task; for a unit whose process is gone."""
        self._scope.cancel()

    async def _next(self) -> tuple[Input, trio.Event | None]:
        while not self._inbox:
            self._told = trio.Event()
            wake_at = self._wake_at()
            with trio.move_on_at(trio.current_time() + max(0.0, wake_at - self.shared.clock.monotonic())):
                await self._told.wait()
            if self._inbox:
                break
            if self.life.deadline is not None and self.shared.clock.monotonic() >= self.life.deadline:
                return Elapsed(), None
            if self._is_idle():
                return Stop("idle"), None
        return self._inbox.pop(0)

    def _wake_at(self) -> float:
        if self.life.deadline is not None:
            return self.life.deadline
        if self.spec.start == "on_demand" and self.life.state == "active" and not self.leases:
            return self._idle_since + self.spec.idle_stop_s
        return math.inf

    def _is_idle(self) -> bool:
        return (
            self.spec.start == "on_demand"
            and self.life.state == "active"
            and not self.leases
            and self.shared.clock.monotonic() >= self._idle_since + self.spec.idle_stop_s
        )

    def lease(self) -> None:
        self.leases += 1

    def release(self) -> None:
        self.leases -= 1
        self._idle_since = self.shared.clock.monotonic()
        self._told.set()  # the idle clock has started

    def _handle(self, event: Input, nursery: trio.Nursery) -> None:
        before = self.life
        self.life, effects = step(before, event, self.spec, self.shared.clock.monotonic(), self.shared.jitter())
        if self.life.state != before.state:
            self._idle_since = self.shared.clock.monotonic()
            self.since_us = self.shared.clock.wall_us()
        for effect in effects:
            match effect:
                case Effect.SPAWN:
                    self.generation += 1
                    if self.has_process:
                        nursery.start_soon(self._live)
                    else:
                        self.tell(Ready())
                case Effect.STOP:
                    if self.process is not None:
                        nursery.start_soon(self._stop, self.process)
                    elif not self.has_process:
                        self.tell(Exited("stopped", failure=False))
                    # else: it is being forked right now; _live looks again once it is there
        if (self.life.state, self.life.reason) != (before.state, before.reason):
            log.info("agent.%s agent=%s reason=%s", self.life.state, self.name, self.life.reason or "-")
            self.record(publish=True)
            self._changed.set()
            self._changed = trio.Event()

    def record(self, *, publish: bool) -> None:
        """Write the row that a restarted daemon reads, with the event if there is something to tell."""
        life, identity = self.life, self.process.identity if self.process else None
        now, wall = self.shared.clock.monotonic(), self.shared.clock.wall_us()
        # Monotonic times mean nothing to the next daemon: exits are kept in wall time.
        history = [wall - int((now - t) * 1e6) for t in life.exits]
        row = (
            self.spec.name,
            _encode(self.spec),
            life.state,
            self.health,
            life.reason,
            self.since_us,
            life.restarts,
            identity.pid if identity else None,
            identity.start_time if identity else None,
            identity.boot_id if identity else None,
            _encode(history),
        )
        data = AgentStateData(
            name=self.spec.name,
            state=life.state,
            restarts=life.restarts,
            pid=identity.pid if identity else UNSET,
            reason=life.reason or UNSET,
        )
        entries = (entry(f"agent:{self.name}", "agent.state", data),) if publish else ()
        self.shared.journal.append_nowait(*entries, statements=((_UPSERT, row),))

    # ---- one process ----------------------------------------------------------------------------------

    async def _live(self) -> None:
        """One process from fork to reaping; its end is told exactly once."""
        try:
            ended = await self._one_process()
        except Exception:  # the boundary: what goes wrong with one agent stays with it
            log.exception("agent.bug agent=%s", self.name)
            ended = Exited("met an internal error, which the daemon's log has", failure=True)
        self.tell(ended)

    async def _one_process(self) -> Exited:
        with ExitStack() as stack:
            return await self._contained_process(stack)

    async def _contained_process(self, stack: ExitStack) -> Exited:
        shared, spec = self.shared, self.spec
        run_dir = shared.run_root / spec.name
        env = environment.build(spec, mark=shared.mark, socket=shared.socket, run_dir=run_dir, daemon=shared.daemon_env)
        command = list(spec.command) if spec.kind != "assistant" else list(shared.assistant_command)
        try:
            run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            container = await trio.to_thread.run_sync(shared.containment.create, spec.name, ceilings(spec))
        except (ContainerError, OSError) as error:
            return await self._not_started(error)
        self._pattern = LogPattern(spec.ready.pattern) if spec.ready.when == "log" else None
        notify = None
        try:
            if spec.ready.when == "notify":
                notify = stack.enter_context(notify_socket(run_dir, lambda pid: pid in container.pids()))
                env["NOTIFY_SOCKET"] = str(notify.path)
            process = await spawn(
                shared.spawner,
                command,
                cwd=environment.working_folder(spec),
                env=env,
                container=container,
                open_files=spec.limits.open_files,
            )
        except (SpawnError, OSError) as error:
            await trio.to_thread.run_sync(container.remove)
            return await self._not_started(error)
        self.process, self.container = process, container
        self.holds = set()
        self._limit_passed, self.last_word = "", shared.clock.monotonic()
        shared.watch.began(spec.name, process.identity, f"{container.join[0]}/cgroup.procs" if container.join else None)
        self.record(publish=False)  # its identity, before it can leave anything behind
        exit_status: Exit | None = None
        reason = ""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._copy, process.stderr, "stderr")
                if spec.kind == "exec":
                    nursery.start_soon(self._copy, process.stdout, "stdout")
                    nursery.start_soon(self._await_ready, self._pattern, notify)
                else:
                    nursery.start_soon(self._talk, process)
                if self.life.state == "stopping":  # it was stopped while being forked
                    nursery.start_soon(self._stop, process)
                exit_status = await process.watch()
                reason = await trio.to_thread.run_sync(self._why, exit_status, container)
                # Whoever is left of its tree goes now, while the zombie keeps the number ours.
                process.signal_group(signal.SIGKILL)
                await container.end(_END_S)
                # What it wrote last is still in the pipes; somebody it passed them to may hold them open for ever.
                nursery.cancel_scope.deadline = trio.current_time() + _DRAIN_S
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _END_S):
                if exit_status is None:  # we are being cancelled
                    process.signal_group(signal.SIGKILL)
                    exit_status = await process.watch()
                    await container.end(_END_S)
                await process.aclose_pipes()
            process.reap()
            shared.watch.ended(spec.name)
            self.process = self.container = None
            self.link = None
            self.last_exit = reason or (str(exit_status) if exit_status else "did not end")
            self._set_health("unknown")
            shutil.rmtree(run_dir, ignore_errors=True)
        return Exited(self.last_exit, failure=not exit_status.clean)

    async def _not_started(self, error: Exception) -> Exited:
        reason = self.last_exit = f"could not be started: {error}"
        await self.shared.logs.of(self.spec.name).write("witsd", [reason.encode()])
        return Exited(reason, failure=True)

    def _why(self, status: Exit, container: Container) -> str:
        """How it ended, with the limit that ended it where one did."""
        if self._limit_passed:
            return self._limit_passed
        if container.oom_kills():
            return f"was killed for want of memory (oom): its limit is {self.spec.limits.memory_bytes} bytes"
        return str(status)

    async def _await_ready(self, pattern: LogPattern | None, notify: NotifySocket | None) -> None:
        """Tell when an exec agent is ready, in the way its definition says."""
        ready = self.spec.ready
        match ready.when:
            case "started":
                await trio.sleep(ready.after_s)
            case "log":
                assert pattern is not None
                await pattern.seen.wait()
            case "tcp":
                await probe_tcp(ready.address)
            case "http":
                await probe_http(ready.url)
            case "notify":
                assert notify is not None
                async with aclosing(notify.messages()) as messages:
                    async for message in messages:
                        if message.get("READY") == "1":
                            break
        self.tell(Ready())

    async def _talk(self, process: Process) -> None:
        """Speak the protocol with a native agent until its stdout ends."""
        stream = trio.StapledStream(process.stdin, process.stdout)
        rubbish: list[bytes] = []

        async def pace() -> None:
            self.last_word = self.shared.clock.monotonic()
            if rubbish:
                await self._keep_rubbish(rubbish)
            await self.shared.journal.wait_room()

        async with (
            trio.open_nursery() as nursery,
            self.shared.open_link(stream, self.actor, rubbish.append, pace) as link,
        ):
            try:
                await self._greet(link)
                nursery.start_soon(self._prove_life, link)
            except trio.BrokenResourceError:
                pass  # it ended before it had answered: its exit says why
            await link.wait_closed()
            self.link = None
            nursery.cancel_scope.cancel()
        if rubbish:
            await self._keep_rubbish(rubbish)
        # Without stdout it cannot be spoken to. If it is about to exit anyway, the exit says more.
        with trio.move_on_after(_DRAIN_S):
            await process.exited.wait()
            return
        self.tell(Broken("closed its stdout but went on running"))

    async def _greet(self, link: AgentLink) -> None:
        try:
            result = await link.request("initialize", self._introduction(), AgentInitializeResult)
        except WitsdError as error:
            self.tell(Broken(f"answered initialize with an error: {error.message}"))
            return
        if result.protocol_version != PROTOCOL_VERSION:
            self.tell(Broken(f"speaks protocol {result.protocol_version!r}, not {PROTOCOL_VERSION!r}"))
            return
        self.link = link
        self._set_health("ok")
        self.tell(Ready())

    def _introduction(self) -> AgentInitializeParams:
        spec = self.spec
        return AgentInitializeParams(
            protocol_version=PROTOCOL_VERSION,
            agent=AgentIdentity(
                name=spec.name,
                kind=spec.kind,
                description=spec.description,
                options=spec.options,
                stream=spec.stream,
            ),
            run_dir=str(self.shared.run_root / spec.name),
            grants=spec.grants,
        )

    async def _prove_life(self, link: AgentLink) -> None:
        """Ask the agent's work loop for a nonce, again and again; one that does not answer is ``hung``."""
        health = self.spec.health
        while health.interval_s:
            await trio.sleep(health.interval_s)
            nonce = self.shared.ids.new("nonce")
            try:
                answer = await link.request("ping", PingParams(nonce=nonce), PingResult, timeout_s=health.timeout_s)
                alive = answer.nonce == nonce
            except WitsdError:
                alive = False
            except trio.BrokenResourceError:
                return
            self._set_health("ok" if alive else "hung")
            if not alive and health.action == "restart":
                self.tell(Broken(f"did not answer a ping within {health.timeout_s:g} s"))
                return

    def _set_health(self, health: AgentHealth) -> None:
        if health == self.health:
            return
        self.health = health
        data = AgentHealthData(name=self.spec.name, health=health)
        self.shared.journal.append_nowait(
            entry(f"agent:{self.name}", "agent.health", data),
            statements=(("UPDATE agents SET health = ? WHERE name = ?", (health, self.spec.name)),),
        )

    async def _stop(self, process: Process) -> None:
        """Ask, then insist: what ``[stop] grace_s`` bounds, from the first word to SIGKILL."""
        grace = self.spec.stop.grace_s
        with trio.move_on_after(grace / 2 if self.link is not None else 0):
            if self.link is not None:
                try:
                    await self.link.request("shutdown", Empty(), Empty)
                except (WitsdError, trio.BrokenResourceError):
                    pass  # it is told again by its stdin closing
                await process.stdin.aclose()
                await process.exited.wait()
                return
        process.signal_group(signal.SIGTERM)
        with trio.move_on_after(grace / 2 if self.link is not None else grace):
            await process.exited.wait()
            return
        log.warning("agent.killed agent=%s after_s=%g", self.name, grace)
        process.signal_group(signal.SIGKILL)

    # ---- what it writes -------------------------------------------------------------------------------

    async def _copy(self, stream: trio.lowlevel.FdStream, source: str) -> None:
        """Keep every line of a pipe. A child that writes faster than that waits for its pipe."""
        sink = self.shared.logs.of(self.spec.name)
        rest = b""
        try:
            while data := await stream.receive_some(64 << 10):
                self.last_word = self.shared.clock.monotonic()
                *lines, rest = (rest + data).split(b"\n")
                if len(rest) > 64 << 10:  # no newline in sight: keep it in pieces
                    lines.append(rest)
                    rest = b""
                if lines:
                    await sink.write(source, lines)
                    if self._pattern is not None:
                        self._pattern.look(lines)
        except (trio.ClosedResourceError, trio.BrokenResourceError, OSError):
            pass
        if rest:
            await sink.write(source, [rest])

    async def _keep_rubbish(self, rubbish: list[bytes]) -> None:
        lines, rubbish[:] = list(rubbish), []
        await self.shared.logs.of(self.spec.name).write("stdout", lines)
        self.warn(
            "rubbish",
            "writes lines to stdout that are not JSON-RPC; they are kept in its log. Print to stderr instead",
            len(lines),
        )

    def warn(self, what: str, text: str, count: int = 1) -> None:
        """Put a warning into the agent's stream, each kind of it at most once a minute."""
        now = self.shared.clock.monotonic()
        if now - self._reported.get(what, -math.inf) < _REPORT_EVERY_S:
            return
        self._reported[what] = now
        data = AgentLogData(name=self.spec.name, level="warning", text=text, count=count)
        self.shared.journal.append_nowait(entry(f"agent:{self.name}", "agent.log", data))


__all__ = ["Surroundings", "Unit"]
