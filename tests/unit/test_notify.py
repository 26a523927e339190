"""What a service manager hears, on a real notify socket."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.doubles.clock import FakeClock
from witsd.notify import _PATIENCE_S as PATIENCE_S
from witsd.notify import EXTENDED_S, Notifier, ask_for_time, feed, is_managed, watchdog_s


class Manager:
    """The service manager's end of the socket."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address[0] == "@" else address)
        self.socket.setblocking(False)
        self.env = {"NOTIFY_SOCKET": address}

    def heard(self) -> list[str]:
        """The datagrams that have come since the last call."""
        found = []
        try:
            while True:
                found.append(self.socket.recv(4096).decode())
        except BlockingIOError:
            return found


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    it = Manager(str(tmp_path / "notify"))
    yield it
    it.socket.close()


@contextmanager
def raised(logger: str) -> Iterator[list[str]]:
    """The messages logged meanwhile."""
    messages: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler = Keep()
    logging.getLogger(logger).addHandler(handler)
    try:
        yield messages
    finally:
        logging.getLogger(logger).removeHandler(handler)


def test_each_message_is_one_datagram_of_fields(manager: Manager) -> None:
    notifier = Notifier.of(manager.env)
    clock = FakeClock()
    notifier.ready("listening")
    notifier.status("two\nlines, READY=1")
    notifier.reloading(clock)
    notifier.extend_timeout(2.5)
    notifier.stopping()
    notifier.stopping("waits for 2 runs")
    assert notifier.watchdog()
    assert manager.heard() == [
        "READY=1\nSTATUS=listening",
        "STATUS=two lines, READY=1",
        f"RELOADING=1\nMONOTONIC_USEC={int(clock.monotonic() * 1e6)}",
        "EXTEND_TIMEOUT_USEC=2500000",
        "STOPPING=1",
        "STOPPING=1\nSTATUS=waits for 2 runs",
        "WATCHDOG=1",
    ]


def test_an_abstract_socket() -> None:
    manager = Manager(f"@witsd-test-{os.getpid()}")
    with manager.socket:
        Notifier.of(manager.env).ready("x")
        assert manager.heard() == ["READY=1\nSTATUS=x"]


@pytest.mark.parametrize("env", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}])
def test_nobody_to_tell(env: dict[str, str]) -> None:
    notifier = Notifier.of(env)
    assert notifier.address is None
    assert not notifier.send("READY=1")


def test_a_manager_that_is_gone_is_logged_and_no_error(tmp_path: Path) -> None:
    with raised("witsd.notify") as messages:
        Notifier.of({"NOTIFY_SOCKET": str(tmp_path / "nothing")}).ready("x")
    assert messages == ["notify.failed fields=READY=1 error=No such file or directory"]


def test_a_beat_never_waits_for_a_manager_that_does_not_read(manager: Manager) -> None:
    notifier = Notifier.of(manager.env)
    sent = 0
    began = time.monotonic()
    while notifier.watchdog():  # until the socket's queue is full
        sent += 1
        assert sent < 1_000_000
    assert sent > 0
    assert time.monotonic() - began < PATIENCE_S * 0.9, "it waited for room, and the loop with it"
    manager.heard()
    assert notifier.watchdog()


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "7"}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_who_is_watched_and_how_closely(env: dict[str, str], expected: float | None) -> None:
    assert watchdog_s(env, pid=7) == expected


class TrioClock(FakeClock):
    """Monotonic time as the loop's own clock, which the test moves."""

    def monotonic(self) -> float:
        return trio.current_time()


async def test_two_beats_in_each_interval(manager: Manager, autojump_clock: trio.testing.MockClock) -> None:
    env = {**manager.env, "WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid())}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed, env, TrioClock())
        await trio.sleep(1.0)
        assert manager.heard() == ["WATCHDOG=1"]
        for _ in range(4):
            await trio.sleep(10.0)
            assert manager.heard() == ["WATCHDOG=1", "WATCHDOG=1"]
        nursery.cancel_scope.cancel()


async def test_a_stuck_loop_is_silent_and_says_so_afterwards(
    manager: Manager, mock_clock: trio.testing.MockClock
) -> None:
    env = {**manager.env, "WATCHDOG_USEC": "10000000"}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed, env, TrioClock())
        await trio.testing.wait_all_tasks_blocked()
        assert manager.heard() == ["WATCHDOG=1"]
        with raised("witsd.notify") as messages:
            mock_clock.jump(12.0)  # nothing of the loop ran meanwhile
            assert manager.heard() == []
            await trio.testing.wait_all_tasks_blocked()
        assert manager.heard() == ["WATCHDOG=1"]
        assert messages == ["notify.loop_was_stuck seconds=7.000 watchdog_s=10"]
        nursery.cancel_scope.cancel()


async def test_nothing_to_feed_ends_at_once(manager: Manager) -> None:
    with trio.fail_after(60):
        await feed(manager.env, FakeClock())
        await feed({**manager.env, "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}, FakeClock())
    assert manager.heard() == []


async def test_time_is_asked_for_until_it_is_over_or_too_much(
    manager: Manager, autojump_clock: trio.testing.MockClock
) -> None:
    asked = f"EXTEND_TIMEOUT_USEC={int(EXTENDED_S * 1e6)}"
    async with trio.open_nursery() as nursery:
        scope = await nursery.start(ask_for_time, Notifier.of(manager.env), 1000.0)
        await trio.sleep(EXTENDED_S)
        heard = manager.heard()
        assert len(heard) >= 3, "each is out well before the one before is over"
        assert set(heard) == {asked}
        scope.cancel()
        await trio.sleep(EXTENDED_S)
        assert manager.heard() == []
        await ask_for_time(Notifier.of(manager.env), EXTENDED_S)  # ends by itself
        assert set(manager.heard()) == {asked}
    await ask_for_time(Notifier(), 1000.0)


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, False),
        ({"SYSTEMD_EXEC_PID": "7"}, True),
        ({"SYSTEMD_EXEC_PID": "8", "INVOCATION_ID": "x", "NOTIFY_SOCKET": "/run/n"}, False),  # a terminal's
        ({"INVOCATION_ID": "x"}, False),
        ({"NOTIFY_SOCKET": "/run/n"}, False),
        ({"INVOCATION_ID": "x", "NOTIFY_SOCKET": "/run/n"}, True),
    ],
)
def test_whether_a_service_manager_started_it(env: dict[str, str], expected: bool) -> None:
    assert is_managed(env, pid=7) is expected
