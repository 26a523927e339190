"""``initialize``, ``ping``, ``rpc.discover`` and ``system/*``."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, Protocol

import apsw
import attrs
import trio
from witsd_client.paths import Paths

from witsd.journal.cipher import Cipher
from witsd.journal.journal import Journal
from witsd.services import doctor, run_rows
from witsd.services.access import Access, Connected
from witsd.supervise.sandbox import Sandboxes
from witsd.supervise.supervisor import Supervisor
from witsd.values.actor import Actor
from witsd.values.clock import Clock
from witsd.values.errors import InvalidParams
from witsd.values.wire import system as wire
from witsd.values.wire.common import UNSET, Empty
from witsd.values.wire.doctor import DoctorItem, DoctorReport

_PAGE = os.sysconf("SC_PAGE_SIZE")


class InitializeCall(Protocol):
    """Who asks, and over what."""

    @property
    def actor(self) -> Actor: ...
    @property
    def connection(self) -> Connected: ...


@attrs.define(eq=False, kw_only=True)
class System:
    """The service. ``listening`` and ``request_stop`` come from the composition root."""

    version: str
    limits: wire.LimitsInfo
    journal: Journal
    supervisor: Supervisor
    access: Access
    clock: Clock
    listening: Callable[[], wire.Listening]
    request_stop: Callable[[float | None], None]
    describe: Callable[[], dict[str, Any]]
    #: Which settings a restart would change, and why it could not read them. Blocks.
    pending_settings: Callable[[], tuple[tuple[str, ...], str]]
    #: What ends an agent's whole tree; None where there is nothing but session and process group.
    containment: doctor.Containment | None = None
    sandboxes: Sandboxes
    cipher: Cipher | None = None
    _started: float = attrs.field(init=False)
    #: One examination at a time: it reads the whole database.
    _examining: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(1))
    _pong: Empty = Empty()

    def __attrs_post_init__(self) -> None:
        self._started = self.clock.monotonic()

    async def initialize(self, call: InitializeCall, params: wire.InitializeParams) -> wire.InitializeResult:
        """Any version is answered with ours; the client decides whether that will do."""
        if not params.protocol_version:
            raise InvalidParams('say which version you speak, as in "1"', path="params.protocol_version")
        actor = self.access.enter(call.connection, call.actor, params.token)
        return wire.InitializeResult(
            protocol_version=wire.PROTOCOL_VERSION,
            server_info=wire.ClientInfo(name="witsd", version=self.version),
            capabilities={"events": {}, "sessions": {"search": True, "fork": True}, "batch": {}},
            limits=self.limits,
            epoch=self.journal.epoch,
            actor=wire.ActorInfo(
                kind=actor.kind, label=actor.label, scopes=tuple(sorted(s.value for s in actor.scopes))
            ),
        )

    async def ping(self, actor: Actor, params: Empty) -> Empty:
        return self._pong

    async def discover(self, actor: Actor, params: Empty) -> dict[str, Any]:
        return self.describe()

    async def status(self, actor: Actor, params: Empty) -> wire.SystemStatus:
        def look(db: apsw.Connection) -> tuple[dict[str, int], int, int, int, int]:
            sessions = int(db.execute("SELECT count(*) FROM sessions").get)
            events, size = db.execute("SELECT events, bytes FROM journal").get
            pages = int(db.pragma("page_count")) * int(db.pragma("page_size"))
            return run_rows.counts(db), sessions, pages, events, size

        runs, sessions, db_bytes, events, journal_bytes = await self.journal.store.read(look)
        return wire.SystemStatus(
            version=self.version,
            pid=os.getpid(),
            uptime_s=round(self.clock.monotonic() - self._started, 3),
            epoch=self.journal.epoch,
            listening=self.listening(),
            agents=dict(Counter(unit.life.state for unit in self.supervisor.units.values())),
            runs=runs,
            sessions=sessions,
            rss_bytes=_rss_bytes(),
            db_bytes=db_bytes,
            journal=wire.JournalInfo(events=events, bytes=journal_bytes),
        )

    async def reload(self, actor: Actor, params: Empty) -> wire.ReloadResult:
        """Changed agents restart, unchanged ones are not touched, wrong files are named and change nothing."""
        changed, errors = await self.supervisor.in_effect.reload()
        waiting, wrong = await trio.to_thread.run_sync(self.pending_settings)
        return wire.ReloadResult(
            changed=changed, errors=errors, restart_for=waiting, settings_error=wrong or UNSET
        )

    async def doctor(self, actor: Actor, params: Empty) -> DoctorReport:
        """Look at everything that may go wrong, in a thread; takes seconds where the database is large."""
        shared = self.supervisor.shared
        listening = self.listening()
        http = listening.http if isinstance(listening.http, str) else None
        paths = Paths(
            config_dir=self.supervisor.in_effect.folder.parent,
            data_dir=self.journal.store.path.parent,
            runtime_dir=shared.socket.parent,
            log_dir=shared.logs.folder,
            socket=shared.socket,
        )
        views = [
            doctor.AgentView(name=unit.spec.name, state=unit.life.state, health=unit.health, reason=unit.life.reason)
            for unit in self.supervisor.units.values()
        ]
        errors = self.supervisor.in_effect.errors
        sandbox = await self.sandboxes.found(anew=True)

        def look() -> tuple[DoctorItem, ...]:
            return (
                *doctor.machine(doctor.Machine(env=shared.daemon_env), sandbox),
                doctor.settings(paths.config_file, *self.pending_settings()),
                doctor.containment(self.containment),
                doctor.limits(self.containment),
                *doctor.folders(paths),
                doctor.socket_file(paths.socket),
                doctor.port(http, loopback=http is None or _is_loopback(http)),
                *doctor.database(self.journal.store.path, now_us=self.clock.wall_us(), cipher=self.cipher),
                doctor.descriptors(self.limits.connections, len(views), len(os.listdir("/proc/self/fd"))),
                *doctor.definitions(self.supervisor.in_effect.folder, errors, len(views)),
                *doctor.agents(views),
            )

        items = await trio.to_thread.run_sync(look, limiter=self._examining)
        return DoctorReport(daemon="running", items=items)

    async def shutdown(self, actor: Actor, params: wire.ShutdownParams) -> Empty:
        """Answers at once; the connection closes when the daemon has stopped."""
        self.request_stop(params.grace_s)
        return Empty()


def _is_loopback(address: str) -> bool:
    return ip_address(address.rpartition(":")[0].strip("[]")).is_loopback


def _rss_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * _PAGE
