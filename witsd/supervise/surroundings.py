"""What all agents share: handed to every unit, and to every process of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import attrs

from witsd.journal.journal import Journal
from witsd.supervise.containment import Containment
from witsd.supervise.link import OpenLink
from witsd.supervise.logs import Logs
from witsd.supervise.process import Spawner
from witsd.supervise.watch import Watch
from witsd.values.clock import Clock
from witsd.values.ids import Ids


@attrs.frozen(kw_only=True)
class Surroundings:
    """Made by the daemon once. ``jitter()`` is a fraction from 0 to 1."""

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
