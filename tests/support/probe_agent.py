"""An agent that does as it is told, one word a behaviour: what the tests of clients talk to."""

from __future__ import annotations

import sys

import anyio
from witsd_client import Agent, Run

agent = Agent("probe")


@agent.run
async def probe(run: Run) -> str | None:
    """The first word of the text says what to do; anything else is said back."""
    word, _, rest = run.text.partition(" ")
    if word == "wait":
        await run.say("begun ")
        await anyio.sleep_forever()
    elif word == "escape":
        await run.say("\x1b[2J\x1b]0;owned\x07 unharmed")
    elif word == "fail":
        await run.say("half ")
        raise ValueError("no luck")
    elif word == "cwd":
        await run.say(str(run.cwd))
    elif word == "question":
        answer = await run.ask_user("which colour?")
        await run.say(f"painted {answer}")
    elif word == "return":
        return rest
    elif word == "log":
        print(rest, file=sys.stderr, flush=True)
        await run.say("logged")
    else:
        for piece in run.text.split(" "):
            await run.say(piece + " ")
    return None


if __name__ == "__main__":
    agent.serve()
