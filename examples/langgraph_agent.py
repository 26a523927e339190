"""A graph of LangGraph's with a person in it: it drafts, asks whether that will do, and goes on by the answer.

    options = { runnable = "langgraph_agent.py:graph" }      # in a definition of kind "langchain"
    witsd ask writer "A line about supervisors"              # asks; `witsd chat writer` takes the answer
"""

from __future__ import annotations

from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import interrupt
from witsd_client.langchain import WitsChatModel

model = WitsChatModel()


async def draft(state: MessagesState) -> dict[str, list[AIMessage]]:
    """The model's own words."""
    return {"messages": [await model.ainvoke(state["messages"])]}


def review(state: MessagesState) -> dict[str, list[AIMessage]]:
    """Waits for a person: the run asks, and its answer comes back here."""
    verdict = interrupt({"question": "Will that do?"})
    return {"messages": [AIMessage(f"You said: {verdict}")]}


builder = StateGraph(MessagesState)
builder.add_node(draft)
builder.add_node(review)
builder.add_edge(START, "draft")
builder.add_edge("draft", "review")
builder.add_edge("review", END)
graph = builder.compile(checkpointer=InMemorySaver())
