"""An agent that uses the openai package with what is in its environment: each run calls as its data says."""

from __future__ import annotations

import os
from typing import Any

import openai
from openai import AsyncOpenAI
from witsd_client import Agent, Run

from tests.agents.script_agent import pass_gate

agent = Agent("keyed")


@agent.run
async def play(run: Run) -> dict[str, Any]:
    """Says what its environment holds, calls, and waits at a gate where it is given one."""
    wanted = run.data or {}
    assert run.model_access is not None
    key = run.model_access.api_key if wanted.get("own") else os.environ["OPENAI_API_KEY"]
    same = run.model_access.api_key == key
    out: dict[str, Any] = {"base_url": os.environ["OPENAI_BASE_URL"], "key": key, "same": same}
    async with AsyncOpenAI(api_key=key) as models:
        try:
            asked: Any = {"model": "auto", "messages": [{"role": "user", "content": run.text}], **wanted.get("ask", {})}
            done = await models.chat.completions.create(**asked)
            out["answer"] = done.choices[0].message.content
        except openai.APIStatusError as error:
            out["error"] = {"status": error.status_code, "code": error.code, "type": error.type, "message": str(error)}
    await run.say("called")
    if "gate" in wanted:
        await pass_gate(wanted["gate"])
    return out


if __name__ == "__main__":
    agent.serve(backend="asyncio")
