"""What a service manager is told: sd_notify(3) and the watchdog, over the socket it names in ``NOTIFY_SOCKET``.

Without a service manager everything here does nothing. Failing to tell it is logged and never stops the daemon.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

import attrs
import trio
from trio import TaskStatus  # type: ignore[attr-defined, unused-ignore]

from witsd.values.clock import Clock

log = logging.getLogger("witsd.notify")

#: What is asked for at a time while a start or a stop goes on, and asked for again well before it is over.
EXTENDED_S = 15.0

#: A manager too busy to read: what must be heard (READY=1) waits this long for room in its queue.
_PATIENCE_S = 5.0


@attrs.frozen
class Notifier:
    """Tells the service manager. Made by ``of``; ``address`` None: there is no manager to tell."""

    address: str | None = None

    @classmethod
    def of(cls, env: Mapping[str, str]) -> Notifier:
        """From ``NOTIFY_SOCKET``: a path, or ``@name`` for an abstract socket. Other kinds are logged and left."""
        address = env.get("NOTIFY_SOCKET", "")
        if not address:
            return cls()
        if address[0] not in "/@":
            log.warning("notify.unknown_address address=%s", address)
            return cls()
        return cls(address)

    def ready(self, status: str) -> None:
        """The start, or a reload, is over."""
        self.send("READY=1", f"STATUS={_one_line(status)}")

    def reloading(self, clock: Clock) -> None:
        """A reload begins; ``ready`` ends it. The time lets the manager match it with the one it asked for."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={int(clock.monotonic() * 1e6)}")

    def stopping(self, status: str = "") -> None:
        self.send("STOPPING=1", *([f"STATUS={_one_line(status)}"] if status else []))

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self.send(f"STATUS={_one_line(text)}")

    def extend_timeout(self, seconds: float) -> None:
        """A start or stop under way may take ``seconds`` more, counted from now."""
        self.send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def watchdog(self) -> bool:
        """Still alive. Never waits: a beat that finds no room is dropped, the next one counts as well."""
        return self.send("WATCHDOG=1", patience_s=0)

    def send(self, *fields: str, patience_s: float = _PATIENCE_S) -> bool:
        """One datagram of ``NAME=value`` lines; True once the manager has it in its queue."""
        if self.address is None:
            return False
        address = "\0" + self.address[1:] if self.address[0] == "@" else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(patience_s)
                sock.sendto("\n".join(fields).encode(), address)
        except OSError as error:
            log.warning("notify.failed fields=%s error=%s", fields[0], error.strerror or error)
            return False
        return True


async def ask_for_time(
    notifier: Notifier, at_most_s: float, task_status: TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED
) -> None:
    """Ask the manager for more time until the scope that is handed over is cancelled, for ``at_most_s`` at most.

    The manager grants it beyond its ``TimeoutStartSec=`` or ``TimeoutStopSec=``. A loop that is stuck asks for nothing.
    """
    with trio.move_on_after(at_most_s) as scope:
        task_status.started(scope)
        while notifier.address is not None:
            notifier.extend_timeout(EXTENDED_S)
            await trio.sleep(EXTENDED_S / 3)


def is_managed(env: Mapping[str, str], pid: int | None = None) -> bool:
    """Whether systemd has started this very process: a terminal may itself be a service and pass on some of this."""
    if env.get("SYSTEMD_EXEC_PID"):
        return env["SYSTEMD_EXEC_PID"] == str(os.getpid() if pid is None else pid)
    return bool(env.get("INVOCATION_ID") and env.get("NOTIFY_SOCKET"))  # before version 248


def watchdog_s(env: Mapping[str, str], pid: int | None = None) -> float | None:
    """How often the manager wants to hear from ``pid`` (default: this process), in seconds; None: never.

    ``WATCHDOG_PID`` that names another process means that the watchdog is not ours (sd_watchdog_enabled(3)).
    """
    given = env.get("WATCHDOG_USEC", "")
    if not given:
        return None
    if not (given.isascii() and given.isdigit() and int(given) > 0):
        log.warning("notify.bad_watchdog WATCHDOG_USEC=%s", given)
        return None
    whose = env.get("WATCHDOG_PID", "")
    if whose and whose != str(os.getpid() if pid is None else pid):
        return None
    return int(given) / 1e6


async def feed(env: Mapping[str, str], clock: Clock) -> None:
    """Say ``WATCHDOG=1`` twice in each interval until cancelled; returns at once where nobody asks for it.

    Run it as a task of the loop that serves requests: a loop that is stuck then goes quiet, and the manager
    restarts the daemon. A beat that comes late by a whole interval is logged with the time the loop was away.
    """
    interval = watchdog_s(env)
    notifier = Notifier.of(env)
    if interval is None or notifier.address is None:
        return
    before = clock.monotonic()
    while True:
        notifier.watchdog()
        await trio.sleep(interval / 2)
        now = clock.monotonic()
        if now - before > interval:
            log.warning("notify.loop_was_stuck seconds=%.3f watchdog_s=%g", now - before - interval / 2, interval)
        before = now


def _one_line(text: str) -> str:
    """What follows a line end would be taken for another field."""
    return " ".join(text.split())
