"""The composition root: settings in, everything wired, ready said, and an orderly end.

``python -m witsd.daemon`` is what ``witsd up`` and the systemd unit run. Nothing below imports this.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":
    # Until it is heard in its own way, Ctrl-C ends the start plainly and without a traceback of imports.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import dataclasses
import gc
import json
import logging
import os
import random  # noqa: TID251 - this is where randomness becomes a parameter
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import attrs
import msgspec
import trio
from trio import TaskStatus  # type: ignore[attr-defined, unused-ignore]
from witsd_client.paths import Paths

from witsd import __version__
from witsd.door.activation import Inherited, take_inherited
from witsd.door.door import Door, open_door, without_streams
from witsd.door.identity import Identifier
from witsd.door.listen import ListenError, UnixSocket, claim_file, claim_unix, open_tcp
from witsd.door.metrics import render
from witsd.journal import epoch
from witsd.journal.event import entry
from witsd.journal.journal import Journal, Tx, open_journal
from witsd.journal.store import SchemaError, StorageError, open_store
from witsd.journal.upkeep import Retention, keep_up
from witsd.notify import Notifier, feed
from witsd.rpc.agent_link import AgentLinks
from witsd.rpc.dispatch import Dispatcher
from witsd.rpc.methods import Services, method_table, notification_table
from witsd.services import visibility
from witsd.services.access import open_access
from witsd.services.agents import Agents
from witsd.services.events import open_events
from witsd.services.models.discover import open_models
from witsd.services.runs import open_runs
from witsd.services.sessions import Sessions
from witsd.services.system import System
from witsd.supervise import definitions
from witsd.supervise.containment import find
from witsd.supervise.identity import boot_id
from witsd.supervise.logs import Logs, LogSettings
from witsd.supervise.process import become_supervisor, open_spawner
from witsd.supervise.supervisor import Supervisor, open_supervisor
from witsd.supervise.unit import Surroundings
from witsd.supervise.watch import Watch
from witsd.values.actor import Actor
from witsd.values.clock import Clock, SystemClock
from witsd.values.config import ConfigError, Loaded, Settings, load
from witsd.values.errors import LimitExceeded
from witsd.values.ids import TimeOrderedIds
from witsd.values.spec import AgentSpec, Grants
from witsd.values.wire.common import UNSET
from witsd.values.wire.event_types import AuditData, SystemData
from witsd.values.wire.system import LimitsInfo, Listening

log = logging.getLogger("witsd")

#: How long connections may take to get what is on its way to them when the daemon stops.
_FAREWELL_S = 2.0


@attrs.define(eq=False)
class Stop:
    """Set once, by a signal or by ``system/shutdown``. Asking again with ``grace_s`` 0 ends the waiting for runs."""

    asked: trio.Event = attrs.field(factory=trio.Event)
    grace_s: float | None = None
    patience: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    def request(self, grace_s: float | None) -> None:
        if not self.asked.is_set():
            self.grace_s = grace_s
        elif grace_s == 0:
            self.patience.cancel()
        self.asked.set()


def _first_run(folder: Path) -> None:
    """An empty home works at once: one assistant, up when it is spoken to."""
    assistant = AgentSpec(
        name="assistant",
        kind="assistant",
        start="on_demand",
        description="Answers questions and keeps up conversations",
        grants=Grants(tools=("calculator", "time", "memory_*"), memory=("shared",), models=("*",)),
    )
    try:
        definitions.write(folder, assistant)
    except OSError as error:
        raise StorageError(f"cannot write a first definition into {folder}: {error.strerror}") from error


async def run(
    settings: Settings, paths: Paths, env: dict[str, str], announce: Announce, inherited: Inherited
) -> None:
    """The daemon's whole life. Raises what keeps it from starting; returns after an orderly stop."""
    for folder in (paths.config_dir, paths.data_dir, paths.log_dir):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StorageError(f"cannot make the folder {folder}: {error.strerror}") from error
    stop = Stop()
    # The lock comes first: whoever has it is the only one to touch the database and the processes.
    # So does the port: one that is taken should be heard of before any agent is started.
    with (
        claim_unix(paths.socket, inherited=inherited.unix) as unix,
        claim_file(paths.database),
        _bound(settings, inherited) as http,
    ):
        sockets = Sockets(unix, http)
        async with trio.open_nursery() as nursery:
            await nursery.start(_hear_signals, stop)
            nursery.start_soon(feed, env, SystemClock())
            async with _wired(settings, paths, env, sockets, stop) as daemon:
                await nursery.start(daemon.reload_on_hangup, announce.manager)
                # What is there now stays: a full collection need not walk over it, which takes 50 ms and more.
                gc.freeze()
                announce.ready(daemon.listening())
                await stop.asked.wait()
                announce.stopping()
                grace = settings.daemon.grace_s if stop.grace_s is None else stop.grace_s
                stop.patience.deadline = trio.current_time() + grace
                await daemon.stop(stop.patience)
            nursery.cancel_scope.cancel()


@attrs.frozen
class Sockets:
    """What has been claimed before anything else was touched."""

    unix: UnixSocket
    http: trio.SocketListener | None


@contextmanager
def _bound(settings: Settings, inherited: Inherited) -> Iterator[trio.SocketListener | None]:
    """The HTTP port, listening: the one that was passed, else that of the settings; None when HTTP is off."""
    if not settings.listen.http:
        if inherited.tcp is not None:
            log.warning("daemon.port_not_served address=%s reason=listen.http is empty", inherited.tcp.getsockname())
            inherited.tcp.close()
        yield None
        return
    remote = settings.listen.allow_remote
    listener = inherited.tcp_listener(allow_remote=remote) or open_tcp(settings.listen.http, allow_remote=remote)
    try:
        yield listener
    finally:
        listener.socket.close()


async def _hear_signals(stop: Stop, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            log.info("daemon.signal signal=%s", signal.Signals(number).name)
            # Asked twice: whoever asks is in a hurry.
            stop.request(0 if stop.asked.is_set() else None)


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
                    changed, errors = await self.supervisor.reload()
                except OSError as failed:  # a folder that cannot be read, no descriptor left: all stays as it is
                    log.error("daemon.reload_failed error=%s", failed)
                    manager.ready("listening")
                    continue
                log.info("daemon.reloaded changed=%s", ",".join(changed) or "-")
                for error in errors:
                    log.error("definition.bad file=%s line=%d message=%s", error.file, error.line, error.message)
                manager.ready("listening")

    async def stop(self, patience: trio.CancelScope) -> None:
        """Accept nobody, finish runs or, once ``patience`` ends, interrupt them, stop the agents, let the rest go."""
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
        await self.door.close_connections(within_s=_FAREWELL_S)


@asynccontextmanager
async def _wired(
    settings: Settings,
    paths: Paths,
    env: dict[str, str],
    sockets: Sockets,
    stop: Stop,
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
        sync = settings.journal.synchronous
        store = await enter(open_store(paths.database, synchronous=sync))
        name = await store.write(epoch.begin, boot_id(), sync, ids.new("epoch"))
        journal = await enter(open_journal(store, clock, epoch=name))
        logs = Logs(
            paths.log_dir,
            clock,
            LogSettings(max_bytes=settings.logs.max_bytes, files=settings.logs.files),
        )
        links = AgentLinks(limits)
        containment = await trio.to_thread.run_sync(find, _mark(paths))
        stack.callback(containment.close)
        surroundings = Surroundings(
            journal=journal,
            logs=logs,
            containment=containment,
            watch=Watch(journal, clock, settings.daemon.sample_s),
            spawner=await enter(open_spawner()),
            open_link=links.open,
            clock=clock,
            ids=ids,
            jitter=random.random,
            mark=_mark(paths),
            socket=sockets.unix.path,
            run_root=paths.data_dir / "agents-run",
            daemon_env=env,
            assistant_command=(sys.executable, "-m", "witsd.adapters.assistant"),
        )
        models = await enter(open_models(settings.models, env=env, config_dir=paths.config_dir, clock=clock))
        access = await open_access(journal, clock, ids)
        supervisor = await enter(open_supervisor(paths.agents_dir, surroundings, _first_run))
        runs = await enter(open_runs(journal, supervisor, clock, ids))
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
                request_stop=stop.request,
                describe=_describe,
                containment=containment,
            ),
            agents=Agents(supervisor, runs),
            runs=runs,
            sessions=Sessions(journal, runs, clock, ids),
            events=events,
            models=models,
            access=access,
        )

        def audit(actor: Actor, method: str, target: str, code: int | None) -> None:
            data = AuditData(actor=actor.label, method=method, target=target, code=UNSET if code is None else code)
            event = "audit.call" if code is None else "audit.refused"
            journal.append_nowait(entry("audit", event, data), keep=False)

        methods = method_table(services)
        dispatcher = Dispatcher(methods, notification_table(services), audit, ids, log)
        links.dispatcher = dispatcher
        links.settle = runs.book.deltas.wait_tick
        supervisor.begin()
        await runs.recover()
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
            )
        )
        background = await enter(trio.open_nursery())
        retention = Retention(
            max_age_s=settings.journal.max_age_days * 86_400,
            max_bytes=settings.journal.max_bytes,
            compact_after_s=settings.journal.compact_after_s,
        )
        background.start_soon(keep_up, journal, retention, clock)
        yield Daemon(journal, supervisor, services, door, clock)
        background.cancel_scope.cancel()


@attrs.frozen(kw_only=True)
class ListenAt:
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


def _mark(paths: Paths) -> str:
    """What tells this installation's processes from another's, the same before and after a restart."""
    return str(paths.database.resolve())


def _describe() -> dict[str, object]:
    from witsd.rpc.schema import openrpc  # heavy, and rarely asked for

    return openrpc()


# ---- saying so ------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Announce:
    """Readiness for a service manager (``sd_notify``) and for the person at the terminal."""

    env: dict[str, str]
    as_json: bool
    manager: Notifier = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.manager = Notifier.of(self.env)

    def ready(self, listening: Listening) -> None:
        log.info("daemon.ready unix=%s http=%s", listening.unix, listening.http or "-")
        if self.as_json:
            fields = {"pid": os.getpid(), "listening": msgspec.to_builtins(listening)}
            print(json.dumps(fields), flush=True)
        elif "INVOCATION_ID" not in self.env:  # systemd's journal needs no such help
            print(self._welcome(listening), flush=True)
        # Last: whoever waits for it finds all of this said.
        self.manager.ready("listening")

    def stopping(self) -> None:
        self.manager.stopping()

    def _welcome(self, listening: Listening) -> str:
        command = shlex.quote(str(Path(sys.executable).parent / "witsd"))
        for name in ("WITSD_HOME", "WITSD_LISTEN_UNIX"):
            if name in self.env:  # to be typed in any folder
                where = Path(self.env[name]).expanduser().absolute()
                command = f"{name}={shlex.quote(str(where))} {command}"
        http = f" and http://{listening.http}" if isinstance(listening.http, str) else ""
        return (
            f"\nwitsd {__version__} is up. It listens on {listening.unix}{http}\n\n"
            f"In another terminal:\n"
            f'  {command} ask assistant "What can you do?"\n'
            f"  {command} chat assistant\n"
            f"  {command} status\n\n"
            "Ctrl-C stops it and everything it runs.\n"
        )


def _show_config(loaded: Loaded, paths: Paths, as_json: bool) -> None:
    """Every setting, its value, and where it came from."""
    table = msgspec.to_builtins(loaded.settings)
    rows = []
    for name, origin in loaded.origins.items():
        section, key = name.split(".")
        value = table[section][key]
        if name == "listen.unix" and not value:
            value = str(paths.socket)
        rows.append({"name": name, "value": value, "origin": origin})
    rows += [
        {"name": f"providers.{provider.name}", "value": provider.kind, "origin": str(paths.config_file)}
        for provider in loaded.settings.models.providers
    ]
    if as_json:
        print(json.dumps({"file": str(paths.config_file), "settings": rows}, indent=2))
        return
    width = max(len(row["name"]) for row in rows)
    print(f"# {paths.config_file}" + ("" if paths.config_file.exists() else " (not there: all defaults)"))
    for row in rows:
        print(f"{row['name']:<{width}} = {json.dumps(row['value'])}   # {row['origin']}")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 stopped in order, 1 could not start, 2 a wrong setting."""
    parser = argparse.ArgumentParser(prog="witsd up", description="Run the daemon in the foreground.")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="flags")
    parser.add_argument("--show-config", action="store_true", help="print the settings and where each comes from")
    parser.add_argument("--json", action="store_true", help="say so as JSON")
    parser.add_argument("--version", action="version", version=__version__)
    options = parser.parse_args(argv)
    try:
        inherited = take_inherited(os.environ)
    except ListenError as error:
        print(f"witsd: {error}", file=sys.stderr)
        return 1
    env = dict(os.environ)
    paths = Paths.from_environment(env)
    try:
        loaded = load(paths.config_file, env, options.flags)
    except ConfigError as error:
        print(f"witsd: {error}", file=sys.stderr)
        return 2
    settings = loaded.settings
    if settings.listen.unix:
        try:
            paths = dataclasses.replace(paths, socket=Path(settings.listen.unix).expanduser().absolute())
        except RuntimeError:  # ~somebody who is not there
            print(f"witsd: listen.unix = {settings.listen.unix!r}: there is no such home folder", file=sys.stderr)
            return 2
    if inherited.unix_path is not None:
        paths = dataclasses.replace(paths, socket=inherited.unix_path)
    if options.show_config:
        _show_config(loaded, paths, options.json)
        return 0
    logging.basicConfig(
        stream=sys.stderr,
        level=settings.daemon.log_level.upper(),
        format="%(asctime)s %(levelname)s %(message)s",
    )
    os.umask(0o077)
    status = 0
    try:
        trio.run(run, settings, paths, env, Announce(env, options.json), inherited)
    except* (ListenError, SchemaError, StorageError, LimitExceeded) as group:
        status = 1
        for leaf in _leaves(group):
            print(f"witsd: {leaf}", file=sys.stderr)
    return status


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


if __name__ == "__main__":
    sys.exit(main())
