"""An agent that leads conversations and counts their messages in a local variable, as a real one would.

A message ``@ PATH TEXT`` says TEXT and then waits at the FIFO at PATH.
"""

from __future__ import annotations

import sys

from witsd_client import Agent, Session

from tests.agents.script_agent import pass_gate

agent = Agent("counting")


@agent.session
async def count(session: Session) -> None:
    """Says how many messages there have been, and what this coroutine began with."""
    before = [turn.text for turn in session.history if turn.role == "user"]
    number = len(before)
    print(f"begun with {number}", file=sys.stderr, flush=True)
    async for message in session:
        async with message:
            number += 1
            text = message.text
            if text.startswith("@ "):
                _, gate, text = text.split(" ", 2)
                await message.say(f"{number} begun {text}")
                await pass_gate(gate)
            elif text == "settings":
                await message.say(f"{session.settings.model!r} {session.settings.system!r} {message.stream}")
            else:
                await message.say(f"{number} after {len(before)}: {text}")


if __name__ == "__main__":
    agent.serve()
