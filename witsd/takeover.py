"""``witsd up --replace``: take the place of the running daemon, whose listening sockets never close on the way.

Everything that can be found out beforehand is, while the running daemon still serves: settings, folders, the
database's version, a new port. Then it is asked to stop, and from there on there is no way back.
"""

from __future__ import annotations

import sys

from witsd_client.paths import Paths

from witsd import __version__
from witsd.door.activation import Inherited
from witsd.door.handover import meet
from witsd.door.listen import bind_tcp, parse_address
from witsd.journal.cipher import configured
from witsd.journal.store import StorageError, check_file
from witsd.notify import EXTENDED_S, Notifier
from witsd.values.config import Settings

#: The running daemon's locks are free at the latest so long after it has ended.
LOCKS_S = 10.0


def make_folders(paths: Paths) -> None:
    """The folders of an installation, mine alone. Raises ``StorageError``."""
    for folder in (paths.config_dir, paths.data_dir, paths.log_dir):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StorageError(f"cannot make the folder {folder}: {error.strerror}") from error


def take_over(settings: Settings, paths: Paths, manager: Notifier) -> Inherited:
    """Stop the running daemon and return its sockets once it is gone; none when no daemon runs. Blocks.

    Raises ``ListenError`` (with the reasons why it goes on), ``StorageError`` or ``SchemaError``: before it was asked
    to stop in every case but one, that it has gone away by itself.
    """
    make_folders(paths)
    running = meet(paths.socket, paths.database, __version__)
    if running is None:
        _say(f"no daemon runs at {paths.socket}: nothing to replace, starting")
        return Inherited()
    try:
        journal = settings.journal
        check_file(paths.database, configured(journal.key_file, journal.key_command, paths.config_dir))
        inherited = running.inherited
        if inherited.tcp is not None and not _is_wanted(inherited.tcp.getsockname(), settings.listen.http):
            inherited.tcp.close()
            inherited.tcp = None
        if inherited.tcp is None and settings.listen.http:
            # Now, and not after the running daemon has gone: a port that is taken keeps it where it is.
            inherited.tcp = bind_tcp(settings.listen.http, allow_remote=settings.listen.allow_remote)
        running.go()
    except BaseException:
        running.close()
        raise
    _say(
        f"taking over from pid {running.pid} (witsd {running.version}); its runs may go on for {running.grace_s:g} s, "
        f"then it stops its agents. Connections wait. Not to wait for runs: kill {running.pid}"
    )
    while not running.gone(EXTENDED_S / 3):
        manager.extend_timeout(EXTENDED_S)
    running.inherited = Inherited()  # the caller's from here on
    running.close()
    return inherited


def _is_wanted(bound: tuple[str, int], http: str) -> bool:
    """Whether a port that is bound is what ``listen.http`` asks for; port 0 is content with any."""
    if not http:
        return False
    host, port = parse_address(http)
    return str(host) == bound[0] and port in (0, bound[1])


def _say(text: str) -> None:
    print(f"witsd: {text}", file=sys.stderr, flush=True)

