"""A process of an agent's with all that it starts: forked into a container, and gone with it when the block ends.

The one way a process comes to be, for agents that stay and for those that get one for each run.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import attrs
import trio

from witsd.supervise import environment
from witsd.supervise.container import Container, ContainerError, ceilings
from witsd.supervise.process import Forked, Process, SpawnError, become, fork
from witsd.supervise.readiness import NotifySocket, notify_socket
from witsd.supervise.surroundings import Surroundings
from witsd.supervise.threads import in_thread
from witsd.values.spec import AgentSpec

log = logging.getLogger("witsd.supervise")

#: How long a tree may take to be gone once it is killed, in seconds.
END_S = 5.0
#: How long the removal of what it leaves in its folder is waited for, in seconds.
_CLEAR_S = 30.0


@attrs.define(eq=False)
class Tree:
    """A live process, what holds its whole tree, and its NOTIFY_SOCKET where it was given one."""

    process: Process
    container: Container
    notify: NotifySocket | None
    #: Nobody is left, or nobody that could be ended.
    over: bool = False

    async def kill(self) -> bool:
        """SIGKILL; False where we may not: it runs as another user, and no control group ends it. For its owner."""
        if self.process.signal_group(signal.SIGKILL):
            return True
        await in_thread(self.container.kill)
        with trio.move_on_after(END_S):
            await self.process.watch()
        return self.process.exit is not None

    async def end_rest(self) -> None:
        """Once the leader has exited: whoever is left goes, while the zombie keeps the number ours."""
        self.process.signal_group(signal.SIGKILL)
        if not await self.container.end(END_S):
            log.error("agent.not_all_ended agent=%s", self.container.unit)
        self.over = True

    async def end_all(self, grace_s: float) -> None:
        """SIGTERM, then SIGKILL after ``grace_s`` (0: at once), then the rest. For the task that owns the process."""
        if grace_s:
            self.process.signal_group(signal.SIGTERM)
            with trio.move_on_after(grace_s):
                await self.process.watch()
        await self.kill()
        await self.process.watch()
        await self.end_rest()


@asynccontextmanager
async def open_tree(
    spec: AgentSpec,
    shared: Surroundings,
    *,
    more_env: Mapping[str, str] | None = None,
    grace_s: float = 0,
    run_id: str | None = None,
) -> AsyncIterator[Tree]:
    """A process of ``spec``'s, in its folder, with its environment and ``more_env``. ``run_id``: whose alone it is.

    When the block ends and it still lives, it is ended, with ``grace_s`` from SIGTERM to SIGKILL; then it is reaped.
    Whatever it has started is gone then, too, however the block ends.
    Raises ``SpawnError``, with nothing left behind.
    """
    run_dir = shared.run_root / spec.name
    with ExitStack() as stack:
        access = stack.enter_context(shared.lend(spec.name, run_id))
        given = {} if access is None else {"OPENAI_BASE_URL": access.base_url, "OPENAI_API_KEY": access.api_key}
        tree = await _fork(spec, shared, run_dir, given, more_env or {}, stack)
        try:
            yield tree
        finally:
            if not tree.over:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + grace_s + END_S):
                    if tree.process.exit is None:
                        await tree.end_all(grace_s)
                    else:
                        await tree.end_rest()
            tree.process.close_pipes()
            tree.process.reap()


async def _fork(
    spec: AgentSpec,
    shared: Surroundings,
    run_dir: Path,
    given: Mapping[str, str],
    more_env: Mapping[str, str],
    stack: ExitStack,
) -> Tree:
    env = environment.build(
        spec, mark=shared.mark, socket=shared.socket, run_dir=run_dir, daemon=shared.daemon_env, given=given
    )
    env |= more_env
    command = spec.command or shared.commands[spec.kind]
    leader: list[int] = []

    def begin() -> tuple[Container, NotifySocket | None, Forked | SpawnError]:
        """All that may wait for the disk or the kernel, in one go on the spawner's thread."""
        container, notify = _prepare(spec, shared, run_dir), None
        try:
            if (spec.ready.when == "notify" or spec.health.watchdog_s) and not spec.run_per_request:
                ours = notify_socket(run_dir, lambda pid: pid in leader or pid in container.pids())
                notify = stack.enter_context(ours)
                env["NOTIFY_SOCKET"] = str(notify.path)
            if spec.health.watchdog_s:
                env["WATCHDOG_USEC"] = str(round(spec.health.watchdog_s * 1e6))
            child = fork(
                shared.spawner.forker,
                command,
                cwd=environment.working_folder(spec),
                env=env,
                container=container,
                open_files=spec.limits.open_files,
            )
        except (SpawnError, OSError) as error:
            return container, None, SpawnError(str(error))
        return container, notify, child

    def undo(late: tuple[Container, NotifySocket | None, Forked | SpawnError]) -> None:
        container, _, child = late
        if isinstance(child, Forked):
            child.undo()
        container.kill()
        container.remove()
        stack.close()

    try:
        container, notify, child = await shared.spawner.run(begin, undo=undo)
    except TimeoutError as error:
        raise SpawnError(str(error)) from error
    try:
        if isinstance(child, SpawnError):
            raise child
        leader.append(child.pid)
        process = await become(child, container)
    except SpawnError:
        await container.end(END_S)
        raise
    return Tree(process, container, notify)


def _prepare(spec: AgentSpec, shared: Surroundings, run_dir: Path) -> Container:
    try:
        _make(run_dir)
        return shared.containment.create(spec.name, ceilings(spec.limits))
    except OSError as error:
        raise SpawnError(f"its folder cannot be made: {error}") from error
    except ContainerError as error:
        raise SpawnError(str(error)) from error


def _make(run_dir: Path) -> None:
    try:
        run_dir.mkdir(parents=True, mode=0o700)
    except FileExistsError:
        return
    os.utime(run_dir, ns=(0, 0))


async def clear(folder: Path) -> None:
    """Remove a folder with what a process has left in it.

    An empty one, as most are, stays for the next process: to remove it may wait for the disk. One whose time is still
    what ``_make`` has set never had anything in it.
    """
    try:
        if os.stat(folder).st_mtime_ns == 0:
            return
        with os.scandir(folder) as entries:
            if next(entries, None) is None:
                return
    except OSError:
        return
    with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLEAR_S):
        await in_thread(lambda: shutil.rmtree(folder, ignore_errors=True))
