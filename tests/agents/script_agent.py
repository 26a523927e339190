"""An agent that plays the script it is given: ``input.data`` is a list of steps, such as ``["say", "hello"]``."""

from __future__ import annotations

import os
import sys
from typing import Any

import anyio
from witsd_client import Agent, Run
from witsd_client.errors import Timeout, WitsdError

agent = Agent("script")


async def pass_gate(path: str) -> None:
    """Wait until somebody writes a byte into the FIFO at ``path``, and take it. Can be cancelled."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        while True:
            await anyio.wait_readable(fd)
            try:
                os.read(fd, 1)
                return
            except BlockingIOError:
                pass  # another run was quicker
    finally:
        os.close(fd)


def note(text: str) -> None:
    """A line in this agent's log."""
    print(text, file=sys.stderr, flush=True)


async def tell(method: str, params: dict[str, Any]) -> None:
    """A notification past the SDK, which would not send a wrong one; returns once the daemon has taken it."""
    await agent.connection.notify(method, params)
    await agent.connection.request("ping", {})


async def _after_the_end(run: Run, gate: str) -> None:
    await pass_gate(gate)
    late = {"item_id": "late", "type": "message", "status": "completed", "text": "too late"}
    await tell("notifications/item", {"run_id": run.run_id, "item": late})
    await tell("notifications/delta", {"run_id": run.run_id, "item_id": "late", "text": "too late"})
    note("late news sent")


async def step(run: Run, word: str, *rest: Any) -> None:
    """One step of the script."""
    match word:
        case "say":
            await run.say(*rest)
        case "tiny":  # many deltas of one character each
            for n in range(rest[0]):
                await run.say(chr(97 + n % 26))
        case "think":
            await run.think(*rest)
        case "usage":
            await run.usage(**rest[0])
        case "item":
            fields = dict(rest[0])
            await run.item(fields.pop("type"), item_id=fields.pop("item_id"), **fields)
        case "delta":
            await run.delta(*rest)
        case "bulk":  # item, how many deltas, of how many characters
            for _ in range(rest[1]):
                await run.delta(rest[0], "x" * rest[2])
        case "call":  # method, params: says the result, or the error
            try:
                answered = {"result": await agent.connection.request(*rest)}
            except WitsdError as error:
                answered = {"error": {"code": error.code, "data": dict(error.data)}}
            await run.item("custom", name="answer", data=answered)
        case "fan":  # method, params, how many: all at once; says how each ended
            ended: list[Any] = []

            async def once() -> None:
                try:
                    await agent.connection.request(rest[0], rest[1])
                    ended.append("ok")
                except WitsdError as error:
                    ended.append(error.data.get("limit", error.data["name"]))

            async with anyio.create_task_group() as tasks:
                for _ in range(rest[2]):
                    tasks.start_soon(once)
            await run.item("custom", name="fan", data=ended)
        case "mine":  # as "call", with this run's id in the params
            await step(run, "call", rest[0], {**rest[1], "run_id": run.run_id})
        case "delegate":  # params of runs/start: waits for that run and says it
            begun = await agent.connection.request("runs/start", {**rest[0], "parent_run_id": run.run_id})
            over = await agent.connection.request("runs/wait", {"run_id": begun["run_id"]})
            await run.item("custom", name="delegated", data=over)
        case "tell":  # method, params
            await tell(*rest)
        case "late":
            run.agent.tasks.start_soon(_after_the_end, run, rest[0])
        case "ask":
            try:
                answer = await run.ask_user(*rest)
            except Timeout as error:
                answer = f"nobody answered: {error}"
            await run.say(str(answer))
        case "gate":
            try:
                await pass_gate(rest[0])
            except anyio.get_cancelled_exc_class():
                note(f"cancelled {run.text}")
                raise
        case "deaf":  # does not hear that it is cancelled
            note(f"deaf {run.text}")
            with anyio.CancelScope(shield=True):
                await pass_gate(rest[0])
        case "log":
            note(rest[0])
        case "seen":
            await run.say(f"stream={run.stream} deadline={run.deadline is not None}")
        case "fail":
            raise ValueError(rest[0])
        case "die":
            os.kill(os.getpid(), 9)


@agent.run
async def play(run: Run) -> None:
    """Every step in order."""
    for words in run.data or ():
        await step(run, *words)


if __name__ == "__main__":
    agent.serve()
