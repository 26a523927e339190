"""An agent that embeds in the way its ``[options] manner`` says, or the file at ``manner_file``: well, or wrongly."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from witsd_client import Agent
from witsd_client.generated import ModelsEmbedParams, ModelsEmbedResult

agent = Agent("embedding")


@agent.embed
def embed(request: ModelsEmbedParams) -> object:
    manner = agent.options.get("manner", "letters")
    if "manner_file" in agent.options:
        manner = Path(str(agent.options["manner_file"])).read_text()
    letters = [[float(text.lower().count(c)) for c in "abcdefghijklmnopqrstuvwxyz"] for text in request.texts]
    if manner == "letters":
        return letters
    if manner in ("named", "renamed"):
        prefix = 1.0 if request.query else 0.0
        vectors = tuple((prefix, *vector) for vector in letters)
        digest = "d1" if manner == "named" else "d2"
        return ModelsEmbedResult(vectors=vectors, dimensions=27, model="letters-27", digest=digest)
    if manner == "too few":
        return letters[1:]
    if manner == "ragged":
        return ModelsEmbedResult(vectors=((1.0,), (1.0, 2.0)), dimensions=1, model="ragged")
    if manner == "huge":
        return [[1e308 * 10] * 3 for _ in request.texts]
    if manner == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if manner == "dies of poison":
        if any("poison" in text for text in request.texts):
            os.kill(os.getpid(), signal.SIGKILL)
        return letters
    if manner == "waits":  # for ever, as its pid says that it does
        waiting = Path(str(agent.options["manner_file"])).with_name("waiting")
        waiting.with_suffix(".part").write_text(str(os.getpid()))
        waiting.with_suffix(".part").rename(waiting)
        signal.pause()
    raise ValueError(f"a manner I do not know: {manner}")


if __name__ == "__main__":
    agent.serve()
