"""Pipes that nobody has written into yet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import trio
import trio.testing

from witsd.supervise.ears import open_ears, says_something

TIMEOUT_S = 60


@contextmanager
def pipes(count: int) -> Iterator[list[tuple[int, int]]]:
    """Reading and writing ends."""
    made = [os.pipe() for _ in range(count)]
    try:
        yield made
    finally:
        for ends in made:
            for end in ends:
                try:
                    os.close(end)
                except OSError:
                    pass  # the test has


async def test_one_is_called_about_once_when_it_can_be_read_and_when_it_is_closed() -> None:
    called: list[str] = []
    with trio.fail_after(TIMEOUT_S), pipes(3) as ((one, into_one), (other, into_other), (silent, _)):
        async with open_ears() as ears:
            ears.wait(one, lambda: called.append("one"))
            ears.wait(other, lambda: called.append("other"))
            ears.wait(silent, lambda: called.append("silent"))
            await trio.testing.wait_all_tasks_blocked()
            assert called == []
            os.write(into_one, b"x")
            while called != ["one"]:
                await trio.lowlevel.checkpoint()
            os.write(into_one, b"y")
            os.close(into_other)
            while called != ["one", "other"]:
                await trio.lowlevel.checkpoint()
            assert [ears.forget(pipe) for pipe in (one, other, silent)] == [False, False, True]


async def test_who_is_forgotten_in_the_same_moment_is_not_called_about() -> None:
    called: list[int] = []
    with trio.fail_after(TIMEOUT_S), pipes(2) as ((one, into_one), (other, into_other)):
        async with open_ears() as ears:

            def call(pipe: int) -> None:
                called.append(pipe)
                assert ears.forget({one: other, other: one}[pipe])

            ears.wait(one, lambda: call(one))
            ears.wait(other, lambda: call(other))
            os.write(into_one, b"x")
            os.write(into_other, b"x")
            while not called:
                await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked()
    assert len(called) == 1


def test_a_pipe_that_is_closed_says_something_until_it_is_read() -> None:
    with pipes(1) as ((pipe, into),):
        assert says_something(pipe), "whoever has the other end may yet"
        os.write(into, b"x")
        os.close(into)
        assert says_something(pipe)
        os.read(pipe, 1)
        assert not says_something(pipe)
