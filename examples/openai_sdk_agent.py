"""An agent of the OpenAI Agents SDK, unmodified: its model and its key are the daemon's.

    witsd agent add sdk -- python examples/openai_sdk_agent.py
    witsd ask sdk "What is 15 * 23?"

The daemon puts OPENAI_BASE_URL and a key of its own into the environment of each agent; the provider's key stays there.
"""

from __future__ import annotations

import agents
from openai import AsyncOpenAI
from witsd_client import Agent, Run

agents.set_tracing_disabled(True)

agent = Agent("sdk")


@agents.function_tool
def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


@agent.run
async def answer(run: Run) -> None:
    """One question, its tools called by the SDK, the text said as it comes."""
    model = agents.OpenAIChatCompletionsModel(model="auto", openai_client=AsyncOpenAI())
    helper = agents.Agent(name="helper", instructions="You calculate.", tools=[multiply], model=model)
    result = agents.Runner.run_streamed(helper, run.text)
    async for event in result.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            await run.say(event.data.delta)
        elif event.type == "run_item_stream_event" and event.name == "tool_called":
            await run.log("info", f"calls {event.item.raw_item.name}({event.item.raw_item.arguments})")


if __name__ == "__main__":
    agent.serve(backend="asyncio")
