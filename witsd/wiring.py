"""The composition root: every part is made here and handed to those that need it, from the bottom up."""

from __future__ import annotations

import logging
import os
import random  # noqa: TID251 - this is where randomness becomes a parameter
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import msgspec
import trio
from trio import TaskStatus  # type: ignore[attr-defined, unused-ignore]
from witsd_client.paths import Paths

from witsd import __version__
from witsd.door.auth import EVERYWHERE
from witsd.door.door import Door, open_door
from witsd.door.exchange import without_streams
from witsd.door.identity import Identifier
from witsd.door.listen import UnixSocket
from witsd.door.metrics import render
from witsd.door.openai_door import OpenAIDoor
from witsd.journal import epoch
from witsd.journal.cipher import configured
from witsd.journal.event import entry
from witsd.journal.journal import Journal, Tx, open_journal
from witsd.journal.store import StorageError, open_store
from witsd.journal.upkeep import Retention, keep_up
from witsd.notify import Notifier
from witsd.rpc.agent_link import AgentLinks
from witsd.rpc.dispatch import Dispatcher
from witsd.rpc.methods import Services, method_table, notification_table
from witsd.services import visibility
from witsd.services.access import open_access
from witsd.services.agents import Agents
from witsd.services.approvals import Approvals
from witsd.services.artifacts import Artifacts
from witsd.services.backup import Backups
from witsd.services.budgets import open_budgets
from witsd.services.events import open_events
from witsd.services.memory.blocks import Blocks
from witsd.services.memory.memory import open_memory
from witsd.services.model_keys import ModelKeys
from witsd.services.models.agent_provider import attach
from witsd.services.models.discover import open_models
from witsd.services.models.embedders import Embedders
from witsd.services.models.keys import tool_key
from witsd.services.models.metering import Meter
from witsd.services.run_recovery import recover
from witsd.services.runs import open_runs
from witsd.services.sessions import Sessions
from witsd.services.system import System
from witsd.services.tools.acting import Acting
from witsd.services.tools.defined import Defined
from witsd.services.tools.reach import Reach
from witsd.services.tools.registry import Registry
from witsd.services.tools.tools import Tools
from witsd.supervise import definitions
from witsd.supervise.containment import Containment, find
from witsd.supervise.ears import open_ears
from witsd.supervise.identity import boot_id
from witsd.supervise.logs import Logs, LogSettings
from witsd.supervise.process import become_supervisor, open_spawner
from witsd.supervise.sandbox import Sandboxes
from witsd.supervise.supervisor import Supervisor, open_supervisor
from witsd.supervise.surroundings import Surroundings
from witsd.supervise.watch import Watch
from witsd.values.actor import Actor
from witsd.values.clock import Clock, SystemClock
from witsd.values.config import Settings, Source
from witsd.values.errors import LimitExceeded, Overloaded
from witsd.values.ids import AgentName, TimeOrderedIds
from witsd.values.spec import AgentBudget, AgentSpec, Grants
from witsd.values.wire.common import UNSET
from witsd.values.wire.event_types import AuditData, SystemData
from witsd.values.wire.system import LimitsInfo, Listening

log = logging.getLogger("witsd")

#: How long connections may take to get what is on its way to them when the daemon stops.
_FAREWELL_S = 2.0
#: Who has connected just before the daemon hands over has as long for a first request and its answer.
_NEWCOMERS_S = 1.0
#: What the parts of a stop that wait for nobody may take.
_STOP_S = 60.0


class Sockets(msgspec.Struct, frozen=True):
    """What has been claimed before anything else was touched."""

    unix: UnixSocket
    http: trio.SocketListener | None


@attrs.define(eq=False)
class Daemon:
    """The running parts that the end needs in its own order."""

    journal: Journal
    supervisor: Supervisor
    services: Services
    door: Door
    clock: Clock

    def listening(self) -> Listening:
        return Listening(unix=str(self.door.unix), http=self.door.http or UNSET)

    async def reload_on_hangup(
        self, manager: Notifier, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with trio.open_signal_receiver(signal.SIGHUP) as signals:
            task_status.started()
            async for _ in signals:
                manager.reloading(self.clock)
                try:
                    changed, errors = await self.supervisor.in_effect.reload()
                # A folder that cannot be read, no descriptor left, a stop: all stays as it is.
                except (OSError, Overloaded) as failed:
                    log.error("daemon.reload_failed error=%s", failed)
                    manager.ready("listening")
                    continue
                log.info("daemon.reloaded changed=%s", ",".join(changed) or "-")
                for error in errors:
                    log.error("definition.bad file=%s line=%d message=%s", error.file, error.line, error.message)
                await self._say_what_waits_for_a_restart()
                manager.ready("listening")

    async def _say_what_waits_for_a_restart(self) -> None:
        waiting, wrong = await trio.to_thread.run_sync(self.services.system.pending_settings)
        if waiting:
            log.warning("daemon.restart_needed settings=%s do=witsd up --replace", ",".join(waiting))
        if wrong:
            log.error("daemon.settings_bad error=%s", wrong)

    def longest_stop_s(self, grace_s: float) -> float:
        """What a stop takes at most when runs use up their grace, and each agent its own after the other."""
        return grace_s + sum(unit.spec.stop.grace_s for unit in self.supervisor.units.values()) + _STOP_S

    async def stop(self, patience: trio.CancelScope, *, handing_over: bool = False) -> None:
        """Accept nobody, finish runs or, once ``patience`` ends, interrupt them, stop the agents, let the rest go.

        ``handing_over``: a successor takes those who come now, and whoever has just come in gets time for a word.
        """
        await self.door.stop_accepting()
        running = self.services.runs.executing
        if running:
            wait = max(0.0, patience.deadline - trio.current_time())
            log.info("daemon.stopping runs=%d waits_s=%.0f again=stops_now", running, wait)
        await self.services.runs.close(patience)
        await self.supervisor.stop_all()
        data = SystemData(version=__version__, pid=os.getpid())

        def last(tx: Tx) -> None:
            tx.emit(entry("system", "system.stopped", data))
            epoch.end_cleanly(tx)

        try:
            await self.journal.write(last)
        except LimitExceeded as error:
            log.error("daemon.stop_not_recorded error=%s", error)
        await self.door.close_connections(within_s=_FAREWELL_S, newcomers_s=_NEWCOMERS_S if handing_over else 0)


@asynccontextmanager
async def wired(
    settings: Settings,
    paths: Paths,
    env: dict[str, str],
    sockets: Sockets,
    request_stop: Callable[[float | None], None],
    source: Source,
) -> AsyncIterator[Daemon]:
    """Build everything from the bottom up; leaving the block takes it down in the reverse order."""
    clock = SystemClock()
    ids = TimeOrderedIds(clock.wall_us)
    become_supervisor()
    limits = LimitsInfo(
        message_bytes=settings.limits.message_bytes,
        depth=settings.limits.depth,
        in_flight=settings.limits.in_flight,
        connections=settings.limits.connections,
        batch=settings.limits.batch,
    )
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        # It starts a shell for each kind of group that it tries: meanwhile the database can be opened.
        finding = _Finding()
        (await enter(trio.open_nursery())).start_soon(finding.run, _mark(paths))
        sync = settings.journal.synchronous
        cipher = await trio.to_thread.run_sync(
            configured, settings.journal.key_file, settings.journal.key_command, paths.config_dir
        )
        store = await enter(open_store(paths.database, synchronous=sync, cipher=cipher))
        name = await store.write(epoch.begin, boot_id(), sync, ids.new("epoch"))
        journal = await enter(open_journal(store, clock, epoch=name))
        logs = Logs(
            paths.log_dir,
            clock,
            LogSettings(max_bytes=settings.logs.max_bytes, files=settings.logs.files),
        )
        links = AgentLinks(limits)
        spawner = await enter(open_spawner())
        ears = await enter(open_ears())
        models = await enter(open_models(settings.models, env=env, config_dir=paths.config_dir, clock=clock))
        access = await open_access(journal, clock, ids)
        containment = await finding.result()
        stack.callback(containment.close)
        keys = ModelKeys(_v1(sockets.http))
        surroundings = Surroundings(
            journal=journal,
            logs=logs,
            containment=containment,
            watch=Watch(journal, clock, settings.daemon.sample_s),
            spawner=spawner,
            ears=ears,
            open_link=links.open,
            clock=clock,
            ids=ids,
            jitter=random.random,
            mark=_mark(paths),
            socket=sockets.unix.path,
            lend=keys.lend,
            run_root=paths.data_dir / "agents-run",
            daemon_env=env,
            commands={
                "assistant": (sys.executable, "-m", "witsd.adapters.assistant"),
                "langchain": (sys.executable, "-m", "witsd.adapters.langchain"),
            },
        )
        supervisor = await enter(open_supervisor(paths.agents_dir, surroundings, _first_run))
        budgets = await open_budgets(journal, clock, lambda name: _budget(supervisor, name))
        runs = await enter(open_runs(journal, supervisor, clock, ids, budgets))
        models.meter = Meter(runs.book)
        attach(models.router.providers, supervisor)
        embedders = Embedders(supervisor, models)
        memory = await enter(open_memory(journal, runs, embedders, clock, ids, settings.retention))
        registry = Registry(journal, supervisor)
        await registry.recall()
        sandboxes = Sandboxes(
            spawner=spawner,
            containment=containment,
            mark=_mark(paths),
            settings=settings.sandbox,
            hidden=(paths.data_dir, paths.config_dir, paths.log_dir, paths.socket.parent),
        )
        artifacts = Artifacts(
            journal,
            runs.book,
            clock,
            ids,
            paths.data_dir / "artifacts",
            surroundings.run_root,
            settings.artifacts,
        )
        reach = Reach(
            sandboxes=sandboxes,
            supervisor=supervisor,
            runs=runs,
            memory=memory,
            artifacts=artifacts,
            key=lambda options: tool_key(options, env, paths.config_dir),
        )
        approvals = Approvals(journal, clock, ids)
        await approvals.load()
        acting = Acting(journal, approvals, runs.book, ids)
        defined = Defined(journal, registry, acting, ids)
        await defined.load()
        events = await enter(
            open_events(
                journal,
                ids,
                logs,
                lambda db, patterns, actor: visibility.snapshot(runs, supervisor, db, patterns, actor),
                lambda actor, stream, db: visibility.may_read(runs, actor, stream, db),
            )
        )
        door: Door | None = None

        def listening() -> Listening:
            assert door is not None
            return Listening(unix=str(door.unix), http=door.http or UNSET)

        services = Services(
            system=System(
                version=__version__,
                limits=limits,
                journal=journal,
                supervisor=supervisor,
                access=access,
                clock=clock,
                listening=listening,
                request_stop=request_stop,
                describe=_describe,
                pending_settings=partial(source.pending, settings),
                containment=containment,
                cipher=cipher,
                sandboxes=sandboxes,
            ),
            agents=Agents(supervisor, runs),
            runs=runs,
            sessions=Sessions(journal, runs, clock, ids),
            events=events,
            models=models,
            embedders=embedders,
            memory=memory,
            blocks=Blocks(journal, memory.run_of),
            tools=Tools(
                registry,
                reach,
                clock,
                ids,
                paths.data_dir / "tools-run",
                acting,
                approvals,
                {tool.name: tool.as_policy for tool in settings.tools},
            ),
            defined=defined,
            approvals=approvals,
            artifacts=artifacts,
            access=access,
            backups=Backups(journal, clock, cipher),
        )

        def audit(actor: Actor, method: str, target: str, code: int | None) -> None:
            data = AuditData(actor=actor.label, method=method, target=target, code=UNSET if code is None else code)
            event = "audit.call" if code is None else "audit.refused"
            journal.append_nowait(entry("audit", event, data), keep=False)

        methods = method_table(services)
        quick = {"ping": lambda actor, params: True, "tools/call": services.tools.is_instant}
        dispatcher = Dispatcher(methods, notification_table(services), audit, ids, log, quick)
        links.dispatcher = dispatcher
        links.settle = runs.book.deltas.wait_tick
        supervisor.in_effect.begin()
        await acting.recover()
        await recover(runs)
        data = SystemData(version=__version__, pid=os.getpid())
        await journal.append(entry("system", "system.started", data))
        door = await enter(
            open_door(
                ListenAt.of(settings, paths),
                dispatcher=dispatcher,
                http_dispatcher=Dispatcher(without_streams(methods), {}, audit, ids, log),
                access=access,
                limits=limits,
                identifier=Identifier(resolve_agent=supervisor.actor_among, agent_named=supervisor.actor_of),
                claimed=sockets.unix,
                bound=sockets.http,
                metrics=lambda: render(services.system, supervisor, clock),
                openai=OpenAIDoor(
                    models=models,
                    embedders=embedders,
                    keys=keys,
                    access=access,
                    actor_of=supervisor.actor_of,
                    clock=clock,
                    ids=ids,
                    body_bytes=limits.message_bytes,
                ),
            )
        )
        background = await enter(trio.open_nursery())
        retention = Retention(
            max_age_s=settings.journal.max_age_days * 86_400,
            max_bytes=settings.journal.max_bytes,
            compact_after_s=settings.journal.compact_after_s,
        )
        background.start_soon(keep_up, journal, retention, clock)
        background.start_soon(memory.deletion.keep_up)
        background.start_soon(artifacts.keep_up)
        yield Daemon(journal, supervisor, services, door, clock)
        background.cancel_scope.cancel()


@attrs.define(eq=False)
class _Finding:
    """How agents' trees can be held, found out in a thread while other parts are made."""

    _containment: Containment | None = None
    _done: trio.Event = attrs.field(factory=trio.Event)

    async def run(self, mark: str) -> None:
        self._containment = await trio.to_thread.run_sync(find, mark)
        self._done.set()

    async def result(self) -> Containment:
        await self._done.wait()
        assert self._containment is not None
        return self._containment


class ListenAt(msgspec.Struct, frozen=True, kw_only=True):
    """The listen settings with the socket's place worked out."""

    unix: Path
    http: str
    allowed_hosts: Sequence[str]
    allowed_origins: Sequence[str]
    allow_remote: bool

    @classmethod
    def of(cls, settings: Settings, paths: Paths) -> ListenAt:
        listen = settings.listen
        return cls(
            unix=paths.socket,
            http=listen.http,
            allowed_hosts=listen.allowed_hosts,
            allowed_origins=listen.allowed_origins,
            allow_remote=listen.allow_remote,
        )


def _v1(listener: trio.SocketListener | None) -> str | None:
    """Where agents of this machine find ``/v1``; None while HTTP is off."""
    if listener is None:
        return None
    address, port = listener.socket.getsockname()[:2]
    host = "127.0.0.1" if address in EVERYWHERE else f"[{address}]" if ":" in address else address
    return f"http://{host}:{port}/v1"


def _budget(supervisor: Supervisor, name: AgentName) -> AgentBudget:
    unit = supervisor.units.get(name)
    return unit.spec.budget if unit is not None else AgentBudget()


def _mark(paths: Paths) -> str:
    """What tells this installation's processes from another's, the same before and after a restart."""
    return str(paths.database.resolve())


def _describe() -> dict[str, object]:
    from witsd.rpc.schema import openrpc  # heavy, and rarely asked for

    return openrpc()


def _first_run(folder: Path) -> None:
    """An empty home works at once: one assistant, up when it is spoken to."""
    assistant = AgentSpec(
        name="assistant",
        kind="assistant",
        start="on_demand",
        description="Answers questions and keeps up conversations",
        grants=Grants(tools=("calculator", "time", "python", "memory_*"), memory=("shared",), models=("*",)),
    )
    try:
        definitions.write(folder, assistant)
    except OSError as error:
        raise StorageError(f"cannot write a first definition into {folder}: {error.strerror}") from error
