"""What all agents share: handed to every unit, and to every process of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

import msgspec

from witsd.journal.journal import Journal
from witsd.supervise.containment import Containment
from witsd.supervise.ears import Ears
from witsd.supervise.link import OpenLink
from witsd.supervise.logs import Logs
from witsd.supervise.process import Spawner
from witsd.supervise.watch import Watch
from witsd.values.clock import Clock
from witsd.values.ids import Ids
from witsd.values.wire.native import ModelAccess


class Lend(Protocol):
    def __call__(self, agent: str, run_id: str | None = None, /) -> AbstractContextManager[ModelAccess | None]: ...


def _nothing(agent: str, run_id: str | None = None, /) -> AbstractContextManager[None]:
    return nullcontext()


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """Made by the daemon once. ``jitter()`` is a fraction from 0 to 1."""

    journal: Journal
    logs: Logs
    containment: Containment
    watch: Watch
    spawner: Spawner
    ears: Ears
    open_link: OpenLink
    clock: Clock
    ids: Ids
    jitter: Callable[[], float]
    mark: str
    socket: Path
    run_root: Path
    daemon_env: Mapping[str, str]
    #: Lends an agent's process, or one of its runs, what it calls models with, for as long as the block lasts.
    lend: Lend = _nothing
    #: What is run for a kind of agent whose definition names no command.
    commands: Mapping[str, Sequence[str]]
