"""An agent that streams without end, or up to a number, and keeps up conversations; for tests that kill the daemon.

It also starts a process that has left its group and ignores being asked to end, as badly behaved agents do.
"""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys

import anyio
from witsd_client import Agent, Run, Session

agent = Agent("stream")


@agent.run
async def stream(run: Run) -> None:
    """``forever``, or how many words to say."""
    numbers = itertools.count() if run.text == "forever" else range(int(run.text))
    for number in numbers:
        await run.say(f"{number} ")
        await anyio.sleep(0.001)


@agent.session
async def talk(session: Session) -> None:
    """Answers with everything it was told in this conversation; to ``forever`` with words without end."""
    told = [turn.text for turn in session.history if turn.role == "user"]
    async for message in session:
        async with message:
            told.append(message.text)
            if message.text == "forever":
                for number in itertools.count():
                    await message.say(f"{number} ")
                    await anyio.sleep(0.001)
            await message.say("|".join(told))


if __name__ == "__main__":
    if "--detach" in sys.argv:
        subprocess.Popen(
            ["sleep", "1000"],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
        )
    agent.serve()
