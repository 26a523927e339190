"""An agent that keeps notes: what it is told it remembers, and what it is asked it looks up.

    witsd agent add notes -- python examples/remembering_agent.py
    witsd ask notes "The spare key is under the flower pot"
    witsd ask notes "Where did I put my keys?"
"""

from witsd_client import Agent, Run

agent = Agent("notes")


@agent.run
async def notes(run: Run) -> None:
    if not run.text.rstrip().endswith("?"):
        await run.memory.add(run.text)
        await run.say("Noted.\n")
        return
    # What was said to it is remembered by itself, this question too: the notes are the facts among it.
    hits = await run.memory.search(run.text, filter={"kind": "fact"}, limit=3)
    for hit in hits:
        await run.say(f"{hit.text} (noted on {hit.time[:10]}, score {hit.score:.2f}, {hit.memory_id})\n")
    if not hits:
        await run.say("I have no note of that.\n")


if __name__ == "__main__":
    agent.serve()
