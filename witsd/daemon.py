"""The daemon's life: settings in, locks taken, everything wired, ready said, and an orderly end.

``python -m witsd.daemon`` is what ``witsd up`` and the systemd unit run. Nothing below imports this.
"""

from __future__ import annotations

import gc
import signal

if __name__ == "__main__":
    # Until it is heard in its own way, Ctrl-C ends the start plainly and without a traceback of imports.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Full collections would walk again and again over what is there to stay: a tenth of the whole start.
    gc.set_threshold(*gc.get_threshold()[:2], 1_000_000)

import argparse
import dataclasses
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import attrs
import trio
from trio import TaskStatus  # type: ignore[attr-defined, unused-ignore]
from witsd_client.paths import Paths

from witsd import __version__
from witsd.announce import Announce, show_config
from witsd.door.activation import Inherited, take_inherited
from witsd.door.handover import Offer, no_heir_yet
from witsd.door.listen import AlreadyRunning, ListenError, claim_file, claim_unix, open_tcp
from witsd.journal.store import SchemaError, StorageError
from witsd.notify import ask_for_time, feed, is_managed
from witsd.takeover import LOCKS_S, make_folders, take_over
from witsd.values.clock import SystemClock
from witsd.values.config import ConfigError, Settings, Source, load
from witsd.values.errors import LimitExceeded
from witsd.wiring import Sockets, wired

log = logging.getLogger("witsd")


#: How many objects more than have gone begin a collection. Python's own 700 are the tasks of some dozen requests,
#: walked over again and again while they are in use: a tenth of what it takes to stop a hundred agents.
_YOUNG = 10_000
#: After how many smaller collections a full one comes: Python's own figure.
_FULL_COLLECTION = 10
#: How long a start may keep a service manager waiting: migrating a large database takes what it takes.
_START_S = 3600.0
_MANAGED = (
    "a service manager has started it and would take its end for the end of the service. Restart it there: "
    "systemctl --user restart witsd (with witsd.socket enabled, connections wait meanwhile)"
)


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


async def run(
    settings: Settings, source: Source, paths: Paths, env: dict[str, str], announce: Announce, inherited: Inherited
) -> None:
    """The daemon's whole life. Raises what keeps it from starting; returns after an orderly stop."""
    make_folders(paths)
    stop = Stop()
    lent = bool(inherited.unix or inherited.tcp) and not inherited.ours
    locks_s = LOCKS_S if inherited.ours else 0
    # The lock comes first: whoever has it is the only one to touch the database and the processes.
    # So does the port: one that is taken should be heard of before any agent is started.
    with (
        no_heir_yet() as heir,
        claim_unix(paths.socket, inherited=inherited.unix, ours=inherited.ours, patience_s=locks_s) as unix,
        claim_file(paths.database, patience_s=locks_s),
        _bound(settings, inherited) as http,
    ):
        unix.stays = lambda: heir.waits
        async with trio.open_nursery() as nursery:
            await nursery.start(_hear_signals, stop)
            nursery.start_soon(feed, env, SystemClock())
            starting = await nursery.start(ask_for_time, announce.manager, _START_S)
            async with wired(settings, paths, env, Sockets(unix, http), stop.request, source) as daemon:
                await nursery.start(daemon.reload_on_hangup, announce.manager)
                offer = Offer(
                    version=__version__,
                    unix=unix,
                    tcp=None if http is None else http.socket.fileno(),
                    database=paths.database,
                    grace_s=settings.daemon.grace_s,
                    refusal=_MANAGED if lent or is_managed(env) else "",
                    identify=daemon.door.identify,
                    stopping=stop.asked.is_set,
                    heir=heir,
                    on_taken=partial(stop.request, None),
                )
                await nursery.start(offer.wait)
                # What is there now stays: a full collection need not walk over it, which takes 50 ms and more.
                gc.freeze()
                gc.set_threshold(_YOUNG, gc.get_threshold()[1], _FULL_COLLECTION)
                starting.cancel()
                announce.ready(daemon.listening())
                await stop.asked.wait()
                announce.stopping()
                grace = settings.daemon.grace_s if stop.grace_s is None else stop.grace_s
                stop.patience.deadline = trio.current_time() + grace
                await nursery.start(ask_for_time, announce.manager, daemon.longest_stop_s(grace))
                await daemon.stop(stop.patience, handing_over=heir.named)
            nursery.cancel_scope.cancel()


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


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 stopped in order, 1 could not start, 2 a wrong setting."""
    parser = argparse.ArgumentParser(prog="witsd up", description="Run the daemon in the foreground.")
    parser.add_argument(
        "--replace", action="store_true", help="take over from the running daemon: connections wait, none is refused"
    )
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
        source = Source(paths.config_file, env, options.flags)
        loaded = load(source.file, source.env, source.flags)
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
        return show_config(loaded, paths, options.json)
    logging.basicConfig(
        stream=sys.stderr,
        level=settings.daemon.log_level.upper(),
        format="%(asctime)s %(levelname)s %(message)s",
    )
    if settings.daemon.log_level != "debug":
        logging.getLogger("httpx").setLevel(logging.WARNING)  # else a line for each batch that a server embeds
    os.umask(0o077)
    announce = Announce(env, options.json)
    status = 0
    try:
        if options.replace:
            if inherited.unix or inherited.tcp:
                raise ListenError("--replace is for daemons that open their sockets themselves, and a service manager "
                                  "has passed some: leave it out, or disable the .socket unit")
            inherited = take_over(settings, paths, announce.manager)
        trio.run(run, settings, source, paths, env, announce, inherited)
    except* (ListenError, SchemaError, StorageError, LimitExceeded) as group:
        status = 1
        for leaf in _leaves(group):
            print(f"witsd: {leaf}", file=sys.stderr)
            if isinstance(leaf, AlreadyRunning):
                print("       to take over from it: witsd up --replace; to stop it: witsd down", file=sys.stderr)
        if inherited.ours and group.subgroup(AlreadyRunning) is None:
            print("       The daemon that was replaced has stopped, so none runs now.", file=sys.stderr)
    return status


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


if __name__ == "__main__":
    sys.exit(main())
