"""``initialize``, ``ping`` and ``system/*``."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct, field

from witsd.values.wire.common import UNSET, Timestamp, UnsetType

PROTOCOL_VERSION = "1"


class ClientInfo(Struct, frozen=True, kw_only=True):
    name: str
    version: str = ""


class InitializeParams(Struct, frozen=True, kw_only=True):
    protocol_version: str = PROTOCOL_VERSION
    client_info: ClientInfo = ClientInfo(name="unknown")
    capabilities: dict[str, Any] = field(default_factory=dict)
    #: A scoped token, or the per-tab secret of a browser session.
    token: str | None = None


class LimitsInfo(Struct, frozen=True, kw_only=True):
    """What one connection may do; all are enforced."""

    message_bytes: int
    depth: int
    in_flight: int
    connections: int
    batch: int


class ActorInfo(Struct, frozen=True, kw_only=True):
    kind: str
    label: str
    scopes: tuple[str, ...]


class InitializeResult(Struct, frozen=True, kw_only=True):
    protocol_version: str
    server_info: ClientInfo
    capabilities: dict[str, Any]
    limits: LimitsInfo
    epoch: str
    actor: ActorInfo


class Listening(Struct, frozen=True, kw_only=True):
    unix: str
    http: str | UnsetType = UNSET


class JournalInfo(Struct, frozen=True, kw_only=True):
    events: int
    bytes: int


class SystemStatus(Struct, frozen=True, kw_only=True):
    version: str
    pid: int
    uptime_s: float
    epoch: str
    listening: Listening
    #: State -> how many agents are in it.
    agents: dict[str, int]
    #: Status -> how many runs have it.
    runs: dict[str, int]
    sessions: int
    rss_bytes: int
    db_bytes: int
    journal: JournalInfo


class DefinitionError(Struct, frozen=True, kw_only=True):
    """Where a definition is wrong and what to do; ``line`` counts from 1, 0 where none can be named."""

    file: str
    line: int
    message: str


class ReloadResult(Struct, frozen=True, kw_only=True):
    changed: tuple[str, ...]
    errors: tuple[DefinitionError, ...]
    #: Settings whose value in ``witsd.toml`` is not the one in effect: they wait for a restart of the daemon.
    restart_for: tuple[str, ...] = ()
    #: Why a restart could not read the settings at all.
    settings_error: str | UnsetType = UNSET


class ShutdownParams(Struct, frozen=True, kw_only=True):
    grace_s: Annotated[float, Meta(ge=0, le=3600)] | None = None


class BackupParams(Struct, frozen=True, kw_only=True):
    """``path``: where the daemon is to put the copy, whole. ``force``: replace what is there."""

    path: Annotated[str, Meta(min_length=1, max_length=4096)]
    force: bool = False


class Backup(Struct, frozen=True, kw_only=True):
    """A copy of the database. What was deleted after ``time`` is still in it."""

    path: str
    bytes: int
    time: Timestamp
