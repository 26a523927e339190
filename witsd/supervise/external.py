"""Watching a process that witsd did not start: found by its pid or pid file, seen through a pidfd, never signalled."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import Protocol

import attrs
import trio
import trio.lowlevel

from witsd.supervise.container import Container
from witsd.supervise.environment import working_folder
from witsd.supervise.identity import Identity, boot_id, start_time, stat_fields
from witsd.values.spec import AgentSpec
from witsd.values.wire.agents import AgentHealth

#: How often a pid file is read, and the process looked at, in seconds. Its death is seen at once.
_LOOK_EVERY_S = 0.5


class NotThere(Exception):
    """There is no such process; the message says why, for a person."""


class Observer(Protocol):
    """Who is told what is seen."""

    @property
    def spec(self) -> AgentSpec: ...

    @property
    def sighted(self) -> Identity | None:
        """The process that was seen last, also by an earlier daemon."""

    def found(self, identity: Identity) -> None:
        """It is there."""

    def lost(self, reason: str) -> None:
        """It is not there, or not any more."""

    def set_health(self, health: AgentHealth) -> None: ...


async def follow(observer: Observer) -> None:
    """Watch for ever what the observer's definition names."""
    spec = observer.spec
    while True:
        try:
            identity, handle = _open(spec, observer.sighted)
        except NotThere as nothing:
            observer.lost(str(nothing))
        except OSError as error:
            observer.lost(f"cannot be watched now: {error.strerror}")
        else:
            try:
                observer.found(identity)
                observer.lost(await _until_gone(spec, identity, handle, observer))
            finally:
                os.close(handle)
        await trio.sleep(_LOOK_EVERY_S)


def _open(spec: AgentSpec, last: Identity | None) -> tuple[Identity, int]:
    pid = spec.pid or _pid_in(spec)
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        named = f"process {pid}" if spec.pid else f"process {pid}, which its pid file names,"
        raise NotThere(f"{named} is not there") from None
    try:
        fields = stat_fields(pid)
        if fields is None or fields[0] in "ZX":
            raise NotThere(f"process {pid} has ended")
        identity = Identity(pid, int(fields[19]), boot_id())
        # A number stands for one process. In a file it is written anew for each.
        if spec.pid and last is not None and last.pid == pid and last != identity:
            raise NotThere(f"process {pid} has ended; its number is another's now: define it again if that is meant")
    except BaseException:
        os.close(handle)
        raise
    return identity, handle


def _pid_in(spec: AgentSpec) -> int:
    file = working_folder(spec) / os.path.expanduser(spec.pid_file)
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # never waits for a writer of a FIFO
    except FileNotFoundError:
        raise NotThere(f"there is no pid file {file}") from None
    except OSError as error:
        raise NotThere(f"its pid file {file} cannot be read: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise NotThere(f"its pid file {file} is no plain file")
        text = os.read(handle, 64).split(b"\n")[0].strip()
    except OSError as error:
        raise NotThere(f"its pid file {file} cannot be read: {error.strerror}") from error
    finally:
        os.close(handle)
    if not text.isdigit() or not 0 < int(text) < 1 << 31:
        raise NotThere(f"its pid file {file} holds no process id")
    return int(text)


async def _until_gone(spec: AgentSpec, identity: Identity, handle: int, observer: Observer) -> str:
    """Why this process is not the one to watch any more."""
    why = f"process {identity.pid} has ended"
    async with trio.open_nursery() as nursery:

        async def watch_end() -> None:
            await trio.lowlevel.wait_readable(handle)
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch_end)
        while True:
            fields = stat_fields(identity.pid)
            if fields is not None:
                observer.set_health("hung" if fields[0] in "Tt" else "ok")
            await trio.sleep(_LOOK_EVERY_S)
            try:
                named = spec.pid or _pid_in(spec)
            except NotThere:
                continue  # it may be about to be written; the process says itself when it ends
            if named != identity.pid and start_time(named) is not None:
                why = f"its pid file names process {named} now"
                nursery.cancel_scope.cancel()
                await trio.lowlevel.checkpoint()
    return why


@attrs.define(eq=False)
class Uncontained(Container):
    """What holds a process that is not ours: nothing does."""

    unit: str
    env: Mapping[str, str] = attrs.field(factory=dict)

    def started(self, leader: Identity) -> None:
        pass

    def kill(self) -> int:
        return 0

    def signal(self, number: int) -> int:
        return 0

    def pids(self) -> set[int]:
        return set()

    def populated(self) -> bool:
        return False

    async def wait_empty(self) -> None:
        pass
