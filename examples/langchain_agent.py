"""A LangChain agent: the daemon's model, a tool of its own, and one of the daemon's.

    cp examples/langchain_agent.toml ~/.config/witsd/agents/lc.toml && witsd reload    # `cwd` in it: this folder
    witsd ask lc "How many letters has the word supervisor?"

With `langchain` installed `create_agent` makes a graph of LangGraph's; `langchain-core` alone is enough for a chain.
"""

from __future__ import annotations

from typing import Any

from langchain.agents import create_agent
from langchain_core.runnables import Runnable
from langchain_core.tools import tool
from witsd_client.langchain import WitsChatModel
from witsd_client.langchain.tools import awits_tools


@tool
def count_letters(word: str) -> int:
    """Count the letters of a word."""
    return len(word)


async def agent() -> Runnable[Any, Any]:
    """Made when the agent starts: only then its grants are known, and with them the daemon's tools."""
    return create_agent(WitsChatModel(), [count_letters, *await awits_tools("calculator")], system_prompt="Be brief.")
