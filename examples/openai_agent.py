"""An agent with the `openai` package and a tool of its own. It never sees a provider's key.

    pip install openai                                  (where the `python` of the definition leads)
    cp examples/openai.toml ~/.config/witsd/agents/     (its cwd: your folder), then: witsd reload
    witsd ask openai "What is 15 * 23 + 17?"

The daemon gives it OPENAI_BASE_URL and OPENAI_API_KEY, so that any framework works as it is; the key of the run, used
here, tells two runs at once apart. What it may call and spend is in [grants] and [budget] of its definition.
"""

import json
from typing import Any

from openai import AsyncOpenAI
from witsd_client import Agent, Run

agent = Agent("openai")
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Evaluates sums and products: 15 * 23 + 17",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
    },
}


def calculate(expression: str) -> str:
    """Sums and products; no `eval`."""
    total, product, sign = 0.0, None, 1.0
    for word in expression.replace("*", " * ").replace("+", " + ").replace("-", " - ").split():
        if word in "+-":
            total, product, sign = total + sign * (product or 0), None, 1.0 if word == "+" else -1.0
        elif word != "*":
            product = float(word) * (1.0 if product is None else product)
    return f"{total + sign * (product or 0):g}"


@agent.run
async def answer(run: Run) -> None:
    """Ask the model, do what it asks for, until it says something."""
    assert run.model_access is not None, "the daemon listens on no HTTP port: set listen.http"
    messages: list[Any] = [{"role": "user", "content": run.text}]
    async with AsyncOpenAI(base_url=run.model_access.base_url, api_key=run.model_access.api_key) as models:
        for _ in range(8):
            calls: dict[int, dict[str, Any]] = {}
            stream: Any = await models.chat.completions.create(
                model=run.options.get("model", "auto"), messages=messages, tools=[TOOL], stream=True
            )
            async for chunk in stream:
                delta = chunk.choices[0].delta
                if delta.content:
                    await run.say(delta.content)
                for call in delta.tool_calls or ():
                    calls[call.index] = call.model_dump(exclude={"index"})
            if not calls:
                return
            messages.append({"role": "assistant", "content": run.said or None, "tool_calls": list(calls.values())})
            for call in calls.values():
                arguments = json.loads(call["function"]["arguments"])
                result = calculate(arguments["expression"])
                await run.item("tool_call", tool="calculator", arguments=arguments, result=result)
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})


if __name__ == "__main__":
    agent.serve(backend="asyncio")
