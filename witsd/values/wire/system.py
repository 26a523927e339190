"""``initialize``, ``ping`` and ``system/*``."""

from __future__ import annotations

from typing import Annotated, Any

import attrs
from msgspec import Meta

from witsd.values.wire.common import UNSET, Timestamp, UnsetType

PROTOCOL_VERSION = "1"


@attrs.frozen(kw_only=True)
class ClientInfo:
    name: str
    version: str = ""


@attrs.frozen(kw_only=True)
class InitializeParams:
    protocol_version: str = PROTOCOL_VERSION
    client_info: ClientInfo = ClientInfo(name="unknown")
    capabilities: dict[str, Any] = attrs.field(factory=dict)
    #: A scoped token, or the per-tab secret of a browser session.
    token: str | None = None


@attrs.frozen(kw_only=True)
class LimitsInfo:
    """What one connection may do; all are enforced."""

    message_bytes: int
    depth: int
    in_flight: int
    connections: int
    batch: int


@attrs.frozen(kw_only=True)
class ActorInfo:
    kind: str
    label: str
    scopes: tuple[str, ...]


@attrs.frozen(kw_only=True)
class InitializeResult:
    protocol_version: str
    server_info: ClientInfo
    capabilities: dict[str, Any]
    limits: LimitsInfo
    epoch: str
    actor: ActorInfo


@attrs.frozen(kw_only=True)
class Listening:
    unix: str
    http: str | UnsetType = UNSET


@attrs.frozen(kw_only=True)
class JournalInfo:
    events: int
    bytes: int


@attrs.frozen(kw_only=True)
class SystemStatus:
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


@attrs.frozen(kw_only=True)
class DefinitionError:
    """Where a definition is wrong and what to do; ``line`` counts from 1, 0 where none can be named."""

    file: str
    line: int
    message: str


@attrs.frozen(kw_only=True)
class ReloadResult:
    changed: tuple[str, ...]
    errors: tuple[DefinitionError, ...]
    #: Settings whose value in ``witsd.toml`` is not the one in effect: they wait for a restart of the daemon.
    restart_for: tuple[str, ...] = ()
    #: Why a restart could not read the settings at all.
    settings_error: str | UnsetType = UNSET


@attrs.frozen(kw_only=True)
class ShutdownParams:
    grace_s: Annotated[float, Meta(ge=0, le=3600)] | None = None


@attrs.frozen(kw_only=True)
class BackupParams:
    """``path``: where the daemon is to put the copy, whole. ``force``: replace what is there."""

    path: Annotated[str, Meta(min_length=1, max_length=4096)]
    force: bool = False


@attrs.frozen(kw_only=True)
class Backup:
    """A copy of the database. What was deleted after ``time`` is still in it."""

    path: str
    bytes: int
    time: Timestamp
