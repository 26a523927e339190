"""One agent under supervision: what happens is fed to ``lifecycle.step`` where it happens, and what that says is done.

Its task keeps the time and owns all that is done for it.
"""

from __future__ import annotations

import logging
import math

import attrs
import msgspec
import trio

from witsd.journal.event import entry
from witsd.supervise import external, order
from witsd.supervise.containment import Mechanism
from witsd.supervise.identity import Identity
from witsd.supervise.lifecycle import (
    Blocked,
    Cleared,
    Effect,
    Elapsed,
    Exited,
    Input,
    Lifecycle,
    Lost,
    Ready,
    Restarted,
    Sighted,
    Stop,
    step,
)
from witsd.supervise.limits import Held
from witsd.supervise.link import AgentLink
from witsd.supervise.living import Living
from witsd.supervise.process import Process
from witsd.supervise.surroundings import Surroundings
from witsd.values.actor import Actor
from witsd.values.clock import rfc3339
from witsd.values.ids import AgentName, SessionId
from witsd.values.spec import AgentSpec
from witsd.values.wire.agents import Agent, AgentContainer, AgentHealth
from witsd.values.wire.common import UNSET, UnsetType
from witsd.values.wire.event_types import AgentHealthData, AgentLogData, AgentStateData
from witsd.values.wire.models import ToolDefinition

log = logging.getLogger("witsd.supervise")
_encode = msgspec.json.Encoder().encode

#: Rubbish on stdout is reported in the agent's stream at most this often; every line is in its log.
_REPORT_EVERY_S = 60.0
_UPSERT = (
    "INSERT INTO agents(name, spec, state, health, reason, since_us, restarts, pid, start_time, boot_id, history) "
    "VALUES (?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT(name) DO UPDATE SET spec = excluded.spec, state = excluded.state, "
    "health = excluded.health, reason = excluded.reason, since_us = excluded.since_us, restarts = excluded.restarts, "
    "pid = excluded.pid, start_time = excluded.start_time, boot_id = excluded.boot_id, history = excluded.history"
)
_OF_A_TURN = (Cleared, Blocked)
#: What holds an agent's tree, as the wire has it.
_MECHANISMS: dict[Mechanism, AgentContainer] = {
    "cgroup v2": "cgroup-v2",
    "cgroup v1": "cgroup-v1",
    "process group": "process-group",
}


@attrs.define(eq=False)
class Unit:
    """An agent and, while it has one, its process. ``run`` is its task; everybody else just tells it."""

    spec: AgentSpec
    shared: Surroundings
    others: order.Neighbours
    life: Lifecycle = Lifecycle()
    health: AgentHealth = "unknown"
    #: Its process, from before it is forked until it is reaped.
    living: Living | None = None
    #: The processes of an agent that gets one for each run, by pid.
    run_processes: dict[int, Process] = attrs.field(factory=dict)
    #: The process that an external one is, or was last.
    sighted: Identity | None = None
    since_us: int = 0
    #: The tools it offered when it was last started, maybe to the daemon before this one.
    offers: tuple[ToolDefinition, ...] = ()
    #: Counts processes, so that what was said to one is known not to have reached the next.
    generation: int = 0
    #: Runs that hold it up; an on-demand agent with none is stopped after ``idle_stop_s``.
    leases: int = 0
    last_exit: str = ""
    _idle_since: float = 0.0
    #: What it is told while it handles something, or before its task has begun.
    _inbox: list[Input] = attrs.field(factory=list)
    _handling: bool = False
    #: Of its task, once that has begun.
    _nursery: trio.Nursery | None = None
    _begun: trio.Event = attrs.field(factory=trio.Event)
    _timer: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _changed: trio.Event = attrs.field(factory=trio.Event)
    #: Which wait for others this is, so that what an earlier one found is known to be old.
    _turn: int = 0
    _waiting: trio.CancelScope | None = None
    _watched: Held | None = None
    _following: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _over: trio.Event = attrs.field(factory=trio.Event)
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _reported: dict[str, float] = attrs.field(factory=dict)
    _encoded: tuple[AgentSpec | None, bytes] = (None, b"")

    @property
    def name(self) -> AgentName:
        return AgentName(self.spec.name)

    @property
    def actor(self) -> Actor:
        """What the agent is to the method table: itself, with its grants."""
        return Actor(kind="agent", label=f"agent:{self.name}", agent=self.name, grants=self.spec.grants)

    @property
    def process(self) -> Process | None:
        return self.living.process if self.living else None

    @property
    def link(self) -> AgentLink | None:
        """How its process is spoken to, once it has answered."""
        return self.living.link if self.living else None

    @property
    def holds(self) -> set[SessionId]:
        """The sessions that its process keeps in memory; any other has to be told of its past."""
        return self.living.holds if self.living else set()

    @property
    def has_process(self) -> bool:
        """False for an exec agent that gets a process for each run."""
        return not self.spec.run_per_request

    def tell(self, event: Input) -> None:
        """Something has happened or is wanted. Handled in order, and now: only what its handling tells has to wait."""
        if self._over.is_set():
            return
        self._inbox.append(event)
        if self._nursery is not None and not self._handling:
            self._handle_all(self._nursery)

    async def ask(self, event: Input) -> None:
        """Tell, and return once the state says what it makes of it."""
        self.tell(event)
        await self.settle()

    async def settle(self) -> None:
        """Return once everything told so far has been handled: at once, unless its task has yet to begin."""
        if self._inbox and not self._over.is_set():
            await self._begun.wait()

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
            pid=self._pid(),
            reason=life.reason or UNSET,
            container=UNSET if self.process is None else _MECHANISMS[self.shared.containment.name],
        )

    def _pid(self) -> int | UnsetType:
        if self.process is not None:
            return self.process.pid
        return self.sighted.pid if self.sighted is not None and self.life.state == "active" else UNSET

    @property
    def restarts(self) -> int:
        return self.life.restarts

    @property
    def silence_s(self) -> float | None:
        """Seconds since it last wrote anything; None while it has no process."""
        if self.living is None or self.living.process is None:
            return None
        return self.shared.clock.monotonic() - self.living.last_word

    # ---- the unit's task ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Supervise until cancelled. Only ever one process: a new one is spawned after the last is reaped."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    await trio.lowlevel.checkpoint_if_cancelled()
                    self._nursery = nursery
                    try:
                        if self.spec.kind == "external":
                            nursery.start_soon(self._follow)
                        self._handle_all(nursery)
                        self._begun.set()
                        await self._keep_time()
                    finally:
                        self._nursery = None  # nothing is begun any more
        finally:
            self._over.set()
            if order.is_up(self):  # whoever waits for it is not to wait for ever
                self.life = Lifecycle(reason="was removed")
            self._changed.set()
            self._begun.set()

    async def end(self) -> None:
        """End the task, and with it a process that is still there."""
        self._scope.cancel()
        await self._over.wait()

    async def _keep_time(self) -> None:
        """Tell, for ever, when a deadline has passed and when nobody has needed it for long enough."""
        while True:
            with trio.CancelScope() as self._timer:
                self._set_timer()
                await trio.sleep_forever()
            if self.life.deadline is not None and self.shared.clock.monotonic() >= self.life.deadline:
                self.tell(Elapsed())
            elif self._is_idle():
                self.tell(Stop("idle"))

    def _set_timer(self) -> None:
        wake_at = self._wake_at()
        if wake_at != math.inf:
            wake_at = trio.current_time() + max(0.0, wake_at - self.shared.clock.monotonic())
        if self._timer.deadline != wake_at:
            self._timer.deadline = wake_at

    def _wake_at(self) -> float:
        if self.life.deadline is not None:
            return self.life.deadline
        return self._idle_since + self.spec.idle_stop_s if self._may_idle() else math.inf

    def _may_idle(self) -> bool:
        return (
            self.spec.start == "on_demand"
            and self.life.state == "active"
            and not self.leases
            and not any(order.is_up(other) for other in self.others.requiring(self.name))
        )

    def _is_idle(self) -> bool:
        return self._may_idle() and self.shared.clock.monotonic() >= self._idle_since + self.spec.idle_stop_s

    def lease(self) -> None:
        self.leases += 1

    def release(self) -> None:
        self.leases -= 1
        self.let_go()

    def let_go(self) -> None:
        """Somebody who needed it does not any more: the idle clock starts."""
        self._idle_since = self.shared.clock.monotonic()
        self._set_timer()

    def _handle_all(self, nursery: trio.Nursery) -> None:
        self._handling = True
        try:
            while self._inbox:
                self._handle(self._inbox.pop(0), nursery)
        finally:
            self._handling = False
        self._set_timer()

    def _handle(self, event: Input, nursery: trio.Nursery) -> None:
        if isinstance(event, _OF_A_TURN) and event.turn != self._turn:
            return
        if self.spec.kind == "external" and isinstance(event, Restarted):
            self._following.cancel()  # its definition names another process
        before = self.life
        self.life, effects = step(before, event, self.spec, self.shared.clock.monotonic(), self.shared.jitter())
        if self.life.state != before.state:
            self._idle_since = self.shared.clock.monotonic()
            self.since_us = self.shared.clock.wall_us()
        for effect in effects:
            match effect:
                case Effect.AWAIT:
                    self._turn += 1
                    nursery.start_soon(self._wait_for_others, self._turn)
                case Effect.SPAWN:
                    self.generation += 1
                    if self.has_process:
                        self.living = Living(self, self.shared)
                        nursery.start_soon(self._live, self.living)
                    else:
                        self.tell(Ready())
                case Effect.STOP:
                    # Those that need it go first; what is broken cannot wait for anybody, and is soon back.
                    if isinstance(event, Stop) and self.others.following(self.name):
                        nursery.start_soon(self._stop_in_order, self.living, self.generation)
                    else:
                        self._end_process(self.living, nursery)
        if self._waiting is not None and not self.life.awaiting:
            self._waiting.cancel()
        if before.state != self.life.state and not order.is_up(self):
            self.others.let_go(self.spec.requires)
        if (self.life.state, self.life.reason) != (before.state, before.reason):
            log.info("agent.%s agent=%s reason=%s", self.life.state, self.name, self.life.reason or "-")
            self.record(publish=True)
            self._changed.set()
            self._changed = trio.Event()

    async def _follow(self) -> None:
        """Watch a process that is not ours; anew whenever the definition names another."""
        try:
            while True:
                with trio.CancelScope() as self._following:
                    await external.follow(self)
                self.lost("is looked for")
                self.sighted = None
        finally:
            self._unwatch()

    def _unwatch(self) -> None:
        if self._watched is not None:
            self.shared.watch.ended(self._watched)
            self._watched = None

    def found(self, identity: Identity) -> None:
        """What is watched is there."""
        again = self.sighted is not None and self.sighted != identity
        self.sighted = identity
        held = external.Uncontained(self.spec.name)
        self._watched = self.shared.watch.began(self.spec, identity, held, lambda: None)
        self.set_health("ok")
        self.tell(Sighted(again))

    def lost(self, reason: str) -> None:
        """What is watched is not there."""
        self._unwatch()
        self.last_exit = reason
        self.set_health("unknown")
        self.tell(Lost(reason))

    async def _wait_for_others(self, turn: int) -> None:
        if turn != self._turn or not self.life.awaiting:
            return  # it was stopped in the same moment
        with trio.CancelScope() as waiting:
            self._waiting = waiting
            await order.before_start(self, self.others, turn)
        if self._waiting is waiting:  # else the next wait has begun
            self._waiting = None

    async def _stop_in_order(self, living: Living | None, generation: int) -> None:
        await order.before_stop(self, self.others)
        if generation == self.generation:  # it may have ended by itself, and be there again
            async with trio.open_nursery() as nursery:
                self._end_process(living, nursery)

    def _end_process(self, living: Living | None, nursery: trio.Nursery) -> None:
        if living is not None:
            living.stop(nursery)
        elif not self.has_process:
            self.tell(Exited("stopped", failure=False))
        # else: it is gone, and its end is on its way to us

    def record(self, *, publish: bool) -> None:
        """Write the row that a restarted daemon reads, with the event if there is something to tell."""
        life, process, history = self.life, self.process, b"[]"
        identity = process.identity if process else self.sighted
        if life.exits:
            now, wall = self.shared.clock.monotonic(), self.shared.clock.wall_us()
            # Monotonic times mean nothing to the next daemon: exits are kept in wall time.
            history = _encode([wall - int((now - t) * 1e6) for t in life.exits])
        row = (
            self.spec.name,
            self._spec_json(),
            life.state,
            self.health,
            life.reason,
            self.since_us,
            life.restarts,
            identity.pid if identity else None,
            identity.start_time if identity else None,
            identity.boot_id if identity else None,
            history,
        )
        if not publish:
            self.shared.journal.append_nowait(statements=((_UPSERT, row),))
            return
        data = AgentStateData(
            name=self.spec.name,
            state=life.state,
            restarts=life.restarts,
            pid=self._pid(),
            reason=life.reason or UNSET,
        )
        event = entry(f"agent:{self.name}", "agent.state", data)
        self.shared.journal.append_nowait(event, statements=((_UPSERT, row),))

    def _spec_json(self) -> bytes:
        """The definition as it is stored: written with each change of state, and encoded once."""
        spec, encoded = self._encoded
        if spec is not self.spec:
            encoded = _encode(self.spec)
            self._encoded = (self.spec, encoded)
        return encoded

    # ---- its process ----------------------------------------------------------------------------------

    async def _live(self, living: Living) -> None:
        """One process from fork to reaping; its end is told exactly once."""
        try:
            ended = await living.run()
        except Exception:  # the boundary: what goes wrong with one agent stays with it
            log.exception("agent.bug agent=%s", self.name)
            ended = Exited("met an internal error, which the daemon's log has", failure=True)
        self.last_exit, self.living = ended.reason, None
        self.tell(ended)

    def set_health(self, health: AgentHealth) -> None:
        """What its proof of life says."""
        if health == self.health:
            return
        self.health = health
        data = AgentHealthData(name=self.spec.name, health=health)
        self.shared.journal.append_nowait(
            entry(f"agent:{self.name}", "agent.health", data),
            statements=(("UPDATE agents SET health = ? WHERE name = ?", (health, self.spec.name)),),
        )

    def offer(self, tools: tuple[ToolDefinition, ...]) -> None:
        """Keep what it offers: a call of one of its tools starts it, also after a restart of the daemon."""
        if tools != self.offers:
            self.offers = tools
            sql = "INSERT OR REPLACE INTO agent_tools VALUES (?,?)"
            self.shared.journal.append_nowait(statements=((sql, (self.spec.name, _encode(tools))),))

    def warn(self, what: str, text: str, count: int = 1) -> None:
        """Put a warning into the agent's stream, each kind of it at most once a minute."""
        now = self.shared.clock.monotonic()
        if now - self._reported.get(what, -math.inf) < _REPORT_EVERY_S:
            return
        self._reported[what] = now
        data = AgentLogData(name=self.spec.name, level="warning", text=text, count=count)
        self.shared.journal.append_nowait(entry(f"agent:{self.name}", "agent.log", data))

