"""The life of one process of an agent that stays: from its fork until its tree is gone.

It speaks with the process, keeps what it writes, has it prove that it lives, and stops it when told. What that means
for the agent is for its unit to say, which is told by ``Keeper.tell``.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from contextlib import aclosing
from functools import partial
from typing import Protocol

import attrs
import trio

from witsd.supervise import limits
from witsd.supervise.ears import not_silent
from witsd.supervise.lifecycle import Broken, Exited, Input, Ready
from witsd.supervise.limits import Held
from witsd.supervise.link import AgentLink
from witsd.supervise.output import Pace, copy
from witsd.supervise.process import Pipe, Process, SpawnError
from witsd.supervise.readiness import LogPattern, NotifySocket, probe_http, probe_tcp
from witsd.supervise.surroundings import Surroundings
from witsd.supervise.tree import Tree, clear, open_tree
from witsd.values.actor import Actor
from witsd.values.errors import WitsdError
from witsd.values.ids import SessionId
from witsd.values.spec import AgentSpec
from witsd.values.wire.agents import AgentHealth
from witsd.values.wire.common import Empty
from witsd.values.wire.models import ToolDefinition
from witsd.values.wire.native import (
    AgentIdentity,
    AgentInitializeParams,
    AgentInitializeResult,
    PingParams,
    PingResult,
)
from witsd.values.wire.system import PROTOCOL_VERSION

log = logging.getLogger("witsd.supervise")

#: Once the leader is gone: how long its pipes may go on before they are closed, in seconds.
_DRAIN_S = 1.0


class Keeper(Protocol):
    """What a process needs of its unit."""

    @property
    def spec(self) -> AgentSpec:
        """The definition as it is now: a change of policy alone reaches a process that runs."""

    @property
    def actor(self) -> Actor:
        """What the agent is to the method table."""

    def tell(self, event: Input) -> None:
        """Something has happened."""

    def set_health(self, health: AgentHealth) -> None:
        """Its proof of life has changed."""

    def warn(self, what: str, text: str, count: int = 1) -> None:
        """Something to be seen in its stream, each kind now and then."""

    def record(self, *, publish: bool) -> None:
        """Write down which process it is."""

    def offer(self, tools: tuple[ToolDefinition, ...]) -> None:
        """It has said which tools it has."""


@attrs.define(eq=False)
class Living:
    """One process. ``run`` is its whole life; everything else just looks or tells."""

    keeper: Keeper
    shared: Surroundings
    #: Its process and all that it starts, while there are any.
    tree: Tree | None = None
    #: How it is spoken to, once a native agent has answered ``initialize``.
    link: AgentLink | None = None
    #: The sessions that it keeps in memory; any other has to be told of its past.
    holds: set[SessionId] = attrs.field(factory=set)
    #: When it last wrote anything, monotonic seconds.
    last_word: float = 0.0
    #: It is to stop as soon as it is there: it was told so while it was being forked.
    _unwanted: bool = False
    _held: Held | None = None
    #: What begins to read those of its pipes that were silent at first.
    _silent: dict[int, Callable[[], None]] = attrs.field(factory=dict)
    #: Over once it has had its time to end by itself.
    _grace: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _pace: Pace = attrs.field(init=False)
    _pattern: LogPattern | None = None
    _said_ready: trio.Event = attrs.field(factory=trio.Event)
    #: Set, and replaced, whenever its watchdog hears from it.
    _fed: trio.Event = attrs.field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        # The limits are the keeper's as they are now: a change reaches the process that runs.
        self._pace = Pace(lambda: self.keeper.spec.limits.output_bytes_per_s, self.shared.clock, self._slowed)

    @property
    def process(self) -> Process | None:
        return self.tree.process if self.tree else None

    async def run(self) -> Exited:
        """From fork to reaping; how it ended. Cancelled: it is killed."""
        spec = self.keeper.spec
        if spec.ready.when == "log":
            self._pattern = LogPattern(spec.ready.pattern)
        try:
            async with open_tree(spec, self.shared) as tree:
                try:
                    return await self._attend(tree, spec)
                finally:
                    # What it wrote is read, its pipes are about to be closed: nobody is to speak to it any more.
                    self.link = None
        except SpawnError as error:  # of the fork: nothing else raises it
            reason = f"could not be started: {error}"
            await self.shared.logs.of(spec.name).write("witsd", [reason.encode()])
            return Exited(reason, failure=True)
        finally:
            if self.tree is not None:
                if self._held is not None:
                    self.shared.watch.ended(self._held)
                self.tree = None
                self.keeper.set_health("unknown")
                await clear(self.shared.run_root / spec.name)

    async def _attend(self, tree: Tree, spec: AgentSpec) -> Exited:
        process, self.tree = tree.process, tree
        self.last_word = self.shared.clock.monotonic()
        self._held = held = self.shared.watch.began(
            spec, process.identity, tree.container, lambda: process.signal_group(signal.SIGKILL)
        )
        self.keeper.record(publish=False)  # its identity, before it can leave anything behind
        async with trio.open_nursery() as nursery:
            try:
                self._listen(process.pipes[2], "stderr", nursery)
                if spec.kind != "exec":
                    nursery.start_soon(self._talk, process)
                else:
                    self._listen(process.pipes[1], "stdout", nursery)
                    if spec.ready.when == "started" and not spec.ready.after_s and not spec.health.watchdog_s:
                        self.keeper.tell(Ready())  # as most: there is nothing to wait for
                    else:
                        nursery.start_soon(self._await_ready, spec)
                    if tree.notify is not None:
                        nursery.start_soon(self._hear, tree.notify)
                if self._unwanted:
                    self.stop(nursery)
                with self._grace:
                    await process.watch()
                if process.exit is None:
                    await self._insist(tree)
                status = await process.watch()
                reason = self.shared.watch.why(held, self.keeper.spec.limits, str(status), clean=status.clean)
                self._pace.lift()
                await tree.end_rest()
            finally:
                self._hear_out()
            if nursery.child_tasks:
                # What it wrote last is still in the pipes; somebody it passed them to may hold them open for ever.
                nursery.cancel_scope.deadline = trio.current_time() + _DRAIN_S
        return Exited(reason, failure=not status.clean)

    async def _insist(self, tree: Tree) -> None:
        """It has had its time."""
        log.warning("agent.killed agent=%s after_s=%g", self.keeper.spec.name, self.keeper.spec.stop.grace_s)
        if not await tree.kill():
            self.keeper.warn(
                "stays",
                "cannot be ended: it runs as another user, whose processes witsd may not signal. End it "
                f"yourself (process {tree.process.pid}), or have it stay the user that runs witsd",
            )

    def stop(self, nursery: trio.Nursery) -> None:
        """Ask, then insist: what ``[stop] grace_s`` bounds, from the first word to SIGKILL."""
        if self.tree is None:  # it is being forked right now, or was never there
            self._unwanted = True
            return
        self.tree.process.signal_group(signal.SIGCONT)  # one that was stopped hears of it too
        self._grace.deadline = trio.current_time() + self.keeper.spec.stop.grace_s
        if self.link is not None:
            nursery.start_soon(self._ask_to_stop, self.tree.process, self.link)
        else:
            self.tree.process.signal_group(signal.SIGTERM)

    async def _ask_to_stop(self, process: Process, link: AgentLink) -> None:
        with trio.move_on_after(self.keeper.spec.stop.grace_s / 2):
            try:
                await link.request("shutdown", Empty(), Empty)
            except (WitsdError, trio.BrokenResourceError):
                pass  # it is told again by its stdin closing
            process.stdin.close()
            await process.exited.wait()
            return
        process.signal_group(signal.SIGTERM)

    async def _await_ready(self, spec: AgentSpec) -> None:
        """Tell when an exec agent is ready, in the way its definition says, and guard its life from then on."""
        ready = self.keeper.spec.ready
        match ready.when:
            case "started":
                await trio.sleep(ready.after_s)
            case "log":
                assert self._pattern is not None
                await self._pattern.seen.wait()
            case "tcp":
                await probe_tcp(ready.address)
            case "http":
                await probe_http(ready.url)
            case "notify":
                await self._said_ready.wait()
        self.keeper.tell(Ready())
        if spec.health.watchdog_s:
            await self._guard(spec.health.watchdog_s)

    async def _hear(self, notify: NotifySocket) -> None:
        """What it says of itself (sd_notify(3)), as long as it lives: nobody is to wait for us to listen."""
        async with aclosing(notify.messages()) as messages:
            async for message in messages:
                if message.get("READY") == "1":
                    self._said_ready.set()
                if message.get("WATCHDOG") == "1":
                    self._fed.set()
                    self._fed = trio.Event()

    async def _guard(self, within_s: float) -> None:
        """``hung`` once WATCHDOG=1 has not come for that long; ``ok`` when it comes."""
        while True:
            with trio.move_on_after(within_s) as late:
                await self._fed.wait()
            if not late.cancelled_caught:
                self.keeper.set_health("ok")
                continue
            self.keeper.set_health("hung")
            if self.keeper.spec.health.action == "restart":
                self.keeper.tell(Broken(f"sent no WATCHDOG=1 within {within_s:g} s"))
                return
            await self._fed.wait()
            self.keeper.set_health("ok")

    # ---- a native agent -------------------------------------------------------------------------------

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
            self.shared.open_link(stream, self.keeper.actor, rubbish.append, pace) as link,
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
        self.keeper.tell(Broken("closed its stdout but went on running"))

    async def _greet(self, link: AgentLink) -> None:
        try:
            result = await link.request("initialize", self._introduction(), AgentInitializeResult)
        except WitsdError as error:
            self.keeper.tell(Broken(f"answered initialize with an error: {error.message}"))
            return
        if result.protocol_version != PROTOCOL_VERSION:
            self.keeper.tell(Broken(f"speaks protocol {result.protocol_version!r}, not {PROTOCOL_VERSION!r}"))
            return
        self.link = link
        self.keeper.offer(result.tools)
        self.keeper.set_health("ok")
        self.keeper.tell(Ready())

    def _introduction(self) -> AgentInitializeParams:
        spec = self.keeper.spec
        return AgentInitializeParams(
            protocol_version=PROTOCOL_VERSION,
            agent=AgentIdentity(
                name=spec.name,
                kind=spec.kind,
                description=spec.description,
                options=spec.options,
                stream=spec.stream,
                memory=spec.memory,
                history_messages=spec.history_messages,
            ),
            run_dir=str(self.shared.run_root / spec.name),
            grants=spec.grants,
        )

    async def _prove_life(self, link: AgentLink) -> None:
        """Ask the agent's work loop for a nonce, again and again; one that does not answer is ``hung``."""
        health = self.keeper.spec.health
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
            self.keeper.set_health("ok" if alive else "hung")
            if not alive and health.action == "restart":
                self.keeper.tell(Broken(f"did not answer a ping within {health.timeout_s:g} s"))
                return

    # ---- what it writes -------------------------------------------------------------------------------

    def _listen(self, pipe: Pipe, source: str, nursery: trio.Nursery) -> None:
        """Keep what comes through a pipe: in a task of its own, from the first word on."""

        self._silent[pipe.fd] = begin = partial(nursery.start_soon, self._copy, pipe, source)
        self.shared.ears.wait(pipe.fd, begin)

    def _hear_out(self) -> None:
        """Nothing more is waited for in pipes that were silent; what is in them now is kept as well."""
        silent = {pipe: begin for pipe, begin in self._silent.items() if self.shared.ears.forget(pipe)}
        for pipe in not_silent(silent.keys()):
            silent[pipe]()

    async def _copy(self, pipe: Pipe, source: str) -> None:
        """Keep every line of a pipe. A child that writes faster than that waits for its pipe."""
        sink = self.shared.logs.of(self.keeper.spec.name)
        await copy(pipe.stream, sink, source, pace=self._pace, heard=self._heard, kept=self._kept)

    def _slowed(self, rate: float) -> None:
        self.shared.watch.breaches.tell(self.keeper.spec.name, limits.output(self.keeper.spec.limits, rate))

    def _heard(self, chunk: bytes) -> None:
        self.last_word = self.shared.clock.monotonic()

    def _kept(self, text: bytes) -> None:
        if self._pattern is not None and not self._pattern.seen.is_set():
            self._pattern.look(text.split(b"\n"))

    async def _keep_rubbish(self, rubbish: list[bytes]) -> None:
        lines, rubbish[:] = list(rubbish), []
        await self.shared.logs.of(self.keeper.spec.name).write("stdout", lines)
        self.keeper.warn(
            "rubbish",
            "writes lines to stdout that are not JSON-RPC; they are kept in its log. Print to stderr instead",
            len(lines),
        )
