"""The daemon is killed in the midst of a delete: what was deleted stays so, and its traces go with the next start."""

from __future__ import annotations

import time

import pytest

from tests.integration.test_memory_deletion import holding
from tests.support.daemon import PATIENCE_S, Daemon
from tests.support.memory import all_at_once, check, embedded
from tests.support.wire import Wire, wire


def fill(c: Wire, first: int) -> None:
    """So much that the text index has several parts, and their merging takes a moment."""
    numbers = range(first, first + 300)
    texts = [f"filler {n} of {n * 7919 % 1000} ordinary umbrellas " + f"word{n} " * 20 for n in numbers]
    all_at_once(c, "memory/add", [{"namespace": "shared", "text": text} for text in texts])


#: Each begins otherwise, as the text index stores of like words only where they differ.
WORDS = ("bbquuxkk", "ddquuxrr", "ffquuxpp", "hhquuxtt")


@pytest.mark.slow
def test_what_was_deleted_leaves_no_trace_though_it_was_killed_before_they_were_wiped(daemon: Daemon) -> None:
    daemon.start()
    with wire(daemon.socket) as c:
        fill(c, 0)
        doomed = all_at_once(c, "memory/add", [{"namespace": "shared", "text": f"the {word} there"} for word in WORDS])
        fill(c, 300)
        embedded(c)
    left = 0
    for added, word in zip(doomed, WORDS, strict=True):
        with wire(daemon.socket) as c:
            c.subscribe("memory:shared")
            c.send({"jsonrpc": "2.0", "id": 1, "method": "memory/delete", "params": {"memory_id": added["memory_id"]}})
            c.until("memory.deleted")
            daemon.kill()
        left += bool(holding(daemon, word.encode()))
        check(daemon)
        daemon.start()
        deadline = time.monotonic() + PATIENCE_S
        while holding(daemon, word.encode()):
            assert time.monotonic() < deadline, "its traces stay"
            time.sleep(0.05)
    assert left, "they were always wiped before it was killed"
    with wire(daemon.socket) as c:
        assert c.call("memory/stats")["records"] == 600
    assert daemon.stop() == 0
