"""Pipes that nobody has written into yet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import trio
import trio.testing

from witsd.supervise.ears import not_silent, open_ears

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


async def test_one_is_called_about_once_when_it_can_be_read_and_not_when_it_is_closed() -> None:
    called: list[str] = []
    with trio.fail_after(TIMEOUT_S), pipes(4) as made:
        (one, into_one), (last, into_last), (closed, into_closed), (silent, _) = made
        async with open_ears() as ears:
            for name, pipe in {"one": one, "last": last, "closed": closed, "silent": silent}.items():
                ears.wait(pipe, partial(called.append, name))
            await trio.testing.wait_all_tasks_blocked()
            assert called == []
            os.close(into_closed)
            os.write(into_one, b"x")
            while called != ["one"]:
                await trio.lowlevel.checkpoint()
            os.write(into_one, b"y")
            os.write(into_last, b"word")
            os.close(into_last)
            while called != ["one", "last"]:
                await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked()
            assert called == ["one", "last"]
            assert [ears.forget(pipe) for pipe in (one, last, closed, silent)] == [False, False, False, True]


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


def test_a_pipe_that_is_closed_is_not_silent_until_it_is_read() -> None:
    with pipes(2) as ((pipe, into), (other, _)):
        assert not_silent([pipe, other]) == {pipe, other}, "whoever has the other end may yet write"
        os.write(into, b"x")
        os.close(into)
        assert not_silent([pipe]) == {pipe}
        os.read(pipe, 1)
        assert not_silent([pipe, other]) == {other}


async def test_one_that_was_forgotten_and_closed_does_not_keep_the_next_of_that_number_from_being_heard() -> None:
    called: list[str] = []
    with trio.fail_after(TIMEOUT_S):
        async with open_ears() as ears:
            with pipes(1) as ((pipe, _),):
                ears.wait(pipe, lambda: called.append("before"))
                assert ears.forget(pipe)
            with pipes(1) as ((again, into),):
                assert again == pipe
                ears.wait(again, lambda: called.append("after"))
                os.write(into, b"x")
                while not called:
                    await trio.lowlevel.checkpoint()
    assert called == ["after"]
