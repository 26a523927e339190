"""Runs foreign code: ``Sandboxes.run(Sandbox(...))``, within the way that this machine allows (see ``sandbox_ways``).

A guard (``cage.guard``) is forked into a container like an agent's process, told what to run, and listened to. It keeps
the limits; we keep them once more from outside, a little later.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import attrs
import trio

from witsd.supervise.cage import frames
from witsd.supervise.container import Ceilings, Container, ContainerError
from witsd.supervise.containment import Containment
from witsd.supervise.identity import MARK
from witsd.supervise.process import Forked, Spawner, SpawnError, become, fork
from witsd.supervise.sandbox_ways import Found, Sandbox, SandboxError, Way, find, launch, scratch
from witsd.supervise.threads import in_thread
from witsd.supervise.tree import END_S, Tree
from witsd.values.config import SandboxConfig

log = logging.getLogger("witsd.sandbox")

#: How much later than the guard we give up, and what it is told of beyond the code's own output.
_LATER_S = 10.0
_FAULT_BYTES = 4096
_CHUNK = 64 << 10
#: What the guard itself takes, of memory and of tasks.
_GUARD_BYTES, _GUARD_TASKS = 48 << 20, 4
#: At once; more wait.
_AT_ONCE = 8
_UNIT = "sandbox"


@attrs.frozen(kw_only=True)
class Outcome:
    """What came of it. ``done``: it ended by itself, with exit code 0. ``failed``: with another one, or by a signal.
    ``stopped``: a limit ended it; ``limit`` says which and ``reason`` what to tell a person.

    ``truncated`` names the streams that were cut. ``left_out``: files that it left and that are not in ``files``.
    """

    status: Literal["done", "failed", "stopped"]
    stdout: bytes = b""
    stderr: bytes = b""
    value: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    limit: str = ""
    reason: str = ""
    truncated: frozenset[str] = frozenset()
    files: tuple[tuple[str, bytes], ...] = ()
    left_out: tuple[str, ...] = ()


@attrs.define(eq=False, kw_only=True)
class Sandboxes:
    """``hidden``: the daemon's own folders, which no sandbox sees."""

    spawner: Spawner
    containment: Containment
    mark: str
    settings: SandboxConfig = SandboxConfig()
    hidden: Sequence[Path] = ()
    _found: Found | None = None
    _finding: trio.Lock = attrs.field(factory=trio.Lock)
    _room: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(_AT_ONCE))

    async def found(self, *, anew: bool = False) -> Found:
        """Which way is used: tried at the first call, and again after a call that found none."""
        async with self._finding:
            if self._found is None or self._found.way is None or anew:
                search = partial(find, self.settings.way, allow_none=self.settings.allow_none)
                self._found = await trio.to_thread.run_sync(search)
                log.info("sandbox.way way=%s problems=%s", self._found.way, self._found.why_not or "-")
            return self._found

    def sandbox(self, *, time_s: float | None = None, **what: Any) -> Sandbox:
        """One with the limits of the settings; ``time_s`` can only be less."""
        limits = self.settings
        return Sandbox(
            time_s=min(limits.time_s, time_s or limits.time_s),
            memory_bytes=limits.memory_bytes,
            tasks=limits.tasks,
            output_bytes=limits.output_bytes,
            disk_bytes=limits.disk_bytes,
            **what,
        )

    async def run(self, it: Sandbox, stdin: bytes = b"") -> Outcome:
        """Run it to its end, or to a limit. When cancelled, all of it is ended first. Raises ``SandboxError``."""
        found = await self.found()
        if found.way is None:
            raise SandboxError(
                f"code cannot be walled in on this machine, so it is not run ({found.why_not}). Install bubblewrap, or "
                "set sandbox.allow_none = true to run it without walls"
            )
        async with self._room:
            return await self._run(found.way, it, stdin)

    async def _run(self, way: Way, it: Sandbox, stdin: bytes) -> Outcome:
        folder = scratch(way, it)
        try:
            argv, request = launch(way, it, stdin, await in_thread(folder.__enter__), self.hidden)
            said = _Said(most=it.output_bytes)
            async with self._guard(argv, it) as tree:
                with trio.move_on_after(it.time_s + _LATER_S) as late:
                    await _talk(tree, request, said)
                if tree.process.exit is None:
                    await tree.kill()
                    await tree.process.watch()
                oom = await in_thread(tree.container.oom_kills)
            return said.outcome(it, oom=oom > 0, late=late.cancelled_caught)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + END_S):
                await in_thread(folder.__exit__)

    @asynccontextmanager
    async def _guard(self, argv: Sequence[str], it: Sandbox) -> AsyncIterator[Tree]:
        """A guard in a container of its own, which is gone with all in it when the block ends."""
        # Only where they cost nothing: to join a v1 group takes 10 ms each, and the guard looks as well.
        free = {name for name, place in self.containment.places.items() if place.v2}
        ceilings = Ceilings(
            # What is written to its folders is memory, too.
            memory_bytes=it.memory_bytes + it.disk_bytes + _GUARD_BYTES if "memory" in free else 0,
            tasks=it.tasks + _GUARD_TASKS if "tasks" in free else 0,
        )

        def begin() -> tuple[Container, Forked | SpawnError]:
            container = self.containment.create(_UNIT, ceilings)
            try:
                env = {MARK: self.mark}
                return container, fork(self.spawner.forker, argv, cwd=Path("/"), env=env, container=container)
            except SpawnError as error:
                return container, error

        def undo(late: tuple[Container, Forked | SpawnError]) -> None:
            container, child = late
            if isinstance(child, Forked):
                child.undo()
            container.kill()
            container.remove()

        try:
            container, child = await self.spawner.run(begin, undo=undo)
        except (TimeoutError, ContainerError) as error:
            raise SandboxError(str(error)) from error
        try:
            if isinstance(child, SpawnError):
                raise child
            process = await become(child, container)
        except SpawnError as error:
            await container.end(END_S)
            raise SandboxError(f"the sandbox could not be started: {error}") from error
        tree = Tree(process, container, None)
        try:
            yield tree
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + END_S):
                if process.exit is None:
                    await tree.end_all(0)
                else:
                    await tree.end_rest()
            process.close_pipes()
            process.reap()


async def _talk(tree: Tree, request: bytes, said: _Said) -> None:
    """Give the guard its request, and listen until it ends."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_tell, tree.process.stdin, request)
        nursery.start_soon(_hear, tree.process.stderr, said)
        reader = frames.Reader()
        try:
            while chunk := await tree.process.stdout.receive_some(_CHUNK):
                for kind, payload in reader.feed(chunk):
                    said.hear(kind, payload)
        except ValueError as error:
            said.fault = f"its guard speaks in riddles: {error}"
            nursery.cancel_scope.cancel()
        else:
            await tree.process.watch()
            nursery.cancel_scope.cancel()


async def _tell(stream: trio.lowlevel.FdStream, request: bytes) -> None:
    try:
        await stream.send_all(request)
    except trio.BrokenResourceError:
        pass  # it has ended at once, and says why


async def _hear(stream: trio.lowlevel.FdStream, said: _Said) -> None:
    """What bwrap, or a guard that cannot even begin, complains of."""
    while chunk := await stream.receive_some(_CHUNK):
        said.complaint = (said.complaint + chunk)[-_FAULT_BYTES:]


@attrs.define(eq=False)
class _Said:
    """What the guard has said so far. Bounded, also if it were not ours any more."""

    most: int
    complaint: bytes = b""
    fault: str = ""
    _streams: dict[bytes, bytearray] = attrs.field(
        factory=lambda: {kind: bytearray() for kind in (frames.STDOUT, frames.STDERR, frames.VALUE)}
    )
    _valued: bool = False
    _cut: set[str] = attrs.field(factory=set)
    _limit: tuple[str, str] | None = None
    _end: str = ""
    _files: list[tuple[str, bytes]] = attrs.field(factory=list)
    _left_out: list[str] = attrs.field(factory=list)
    _held: int = 0

    def hear(self, kind: bytes, payload: bytes) -> None:
        """Raises ``ValueError`` for what no guard of ours would say."""
        self._held += len(payload)
        if self._held > frames.MAX_FRAME * 2:
            raise ValueError("too much of it")
        if kind in self._streams:
            self._streams[kind] += payload
            self._valued = self._valued or kind == frames.VALUE
        elif kind == frames.CUT:
            names = {frames.STDOUT: "stdout", frames.STDERR: "stderr", frames.VALUE: "value"}
            self._cut.add(names.get(payload, "stdout"))
        elif kind == frames.LIMIT:
            name, _, reason = payload.decode("utf-8", "replace").partition("\0")
            self._limit = name, reason
        elif kind == frames.END:
            self._end = payload.decode("ascii", "replace")
        elif kind == frames.FILE:
            path, _, content = payload.partition(b"\0")
            self._files.append((path.decode("utf-8", "replace"), content))
        elif kind == frames.LEFT_OUT:
            self._left_out.append(payload.decode("utf-8", "replace"))
        elif kind == frames.FAULT:
            self.fault = payload.decode("utf-8", "replace")
        else:
            raise ValueError(f"a frame of kind {kind!r}")

    def outcome(self, it: Sandbox, *, oom: bool, late: bool) -> Outcome:
        """Raises ``SandboxError`` where it was no fault of the code's."""
        what, _, number = self._end.partition(" ")
        limit, reason = self._limit or ("", "")
        if oom:
            limit, reason = "memory", f"it used more than {it.memory_bytes >> 20} MiB of memory, its limit"
        elif late and not limit:
            limit, reason = "time", f"it was ended after {it.time_s:g} s, its limit of time"
        if not limit and (self.fault or not number):
            told = self.complaint.decode("utf-8", "replace").strip()
            raise SandboxError(f"the sandbox has failed: {self.fault or told or 'it was ended from outside'}")
        code = int(number) if what == "code" else None
        signal = int(number) if what == "signal" else None
        if signal and not limit:
            limit, reason = _by_signal(signal, it)
        return Outcome(
            status="stopped" if limit else "done" if code == 0 else "failed",
            stdout=bytes(self._streams[frames.STDOUT]),
            stderr=bytes(self._streams[frames.STDERR]),
            value=self._streams[frames.VALUE].decode("utf-8", "replace") if self._valued else None,
            exit_code=code,
            signal=signal,
            limit=limit,
            reason=reason,
            truncated=frozenset(self._cut),
            files=tuple(self._files),
            left_out=tuple(self._left_out),
        )


def _by_signal(number: int, it: Sandbox) -> tuple[str, str]:
    """The limits that the kernel keeps by a signal."""
    if number == 24:
        return "time", f"it used all the processor time that {it.time_s:g} s allow"
    if number == 25:
        return "disk", f"it wrote a file of more than {it.disk_bytes >> 20} MiB, its limit"
    return "", ""
