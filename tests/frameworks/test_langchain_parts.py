"""What LangChain's standard tests do not ask: history, errors, tools of agents, threads and tasks."""

from __future__ import annotations

import asyncio
import uuid

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables.history import RunnableWithMessageHistory
from witsd_client import NotFound
from witsd_client.langchain import WitsChatMessageHistory, WitsChatModel, WitsVectorStore, wits_tools
from witsd_client.sync import SyncClient


@pytest.fixture
def history(client: SyncClient) -> WitsChatMessageHistory:
    return WitsChatMessageHistory(f"talk-{uuid.uuid4().hex[:8]}", client=client)


def test_a_history_keeps_messages_as_they_are_and_in_order(history: WitsChatMessageHistory) -> None:
    call = {"name": "f", "args": {"x": 1}, "id": "c1", "type": "tool_call"}
    messages = [
        HumanMessage("One?"),
        AIMessage("", tool_calls=[call]),
        ToolMessage("1", tool_call_id="c1"),
        AIMessage("One.", response_metadata={"model_name": "m"}),
        HumanMessage("One?"),
    ]
    history.add_messages(messages)
    assert history.messages == messages
    history.clear()
    assert history.messages == []


async def test_a_history_in_a_chain(client: SyncClient, history: WitsChatMessageHistory) -> None:
    prompt = ChatPromptTemplate.from_messages([MessagesPlaceholder("history"), ("human", "{input}")])
    chain = RunnableWithMessageHistory(
        prompt | WitsChatModel(client=client),
        lambda session_id: history,
        input_messages_key="input",
        history_messages_key="history",
    )
    for text in ("stops early", "Hello there"):
        await chain.ainvoke({"input": text}, {"configurable": {"session_id": "x"}})
    kept = await history.aget_messages()
    assert [message.type for message in kept] == ["human", "ai", "human", "ai"]
    assert kept[1].text == "One two three stop here four five."
    await history.aclear()


@pytest.mark.parametrize("stop", ["stop", "three s", "e stop here f"])
async def test_a_stop_word_ends_the_text_before_it_wherever_pieces_break(client: SyncClient, stop: str) -> None:
    model = WitsChatModel(client=client, stop=[stop])
    wanted = "One two three stop here four five.".partition(stop)[0]
    assert model.invoke("stops early").text == wanted
    assert "".join(chunk.text for chunk in model.stream("stops early")) == wanted
    assert "".join([chunk.text async for chunk in model.astream("stops early")]) == wanted


def test_a_malformed_call_is_told_apart(client: SyncClient) -> None:
    model = WitsChatModel(client=client).bind_tools([{"title": "multiply", "type": "object", "properties": {}}])
    answer = model.invoke("malformed")
    assert answer.tool_calls == []
    assert answer.invalid_tool_calls[0]["args"] == "these are no arguments"


def test_a_model_that_is_not_there_is_an_error_of_the_daemons(client: SyncClient) -> None:
    with pytest.raises(NotFound, match="nonsense"):
        WitsChatModel(model="nonsense", client=client).invoke("Hello")


def test_an_image_is_refused_before_it_is_sent(client: SyncClient) -> None:
    image = HumanMessage([{"type": "image", "url": "http://x.example/y.png"}])
    with pytest.raises(ValueError, match="takes text"):
        WitsChatModel(client=client).invoke([image])


async def test_a_cancelled_stream_ends_its_call(client: SyncClient) -> None:
    async def first() -> str:
        async for chunk in WitsChatModel(client=client).astream("Hello there"):
            return chunk.text
        return ""

    assert await asyncio.wait_for(first(), 60) == "Hello, "
    assert client.call("ping") == {}


def test_tools_by_pattern(client: SyncClient) -> None:
    names = [tool.name for tool in wits_tools(client=client)]
    assert "calculator" in names
    (tool,) = wits_tools("calcul*", client=client)
    assert "divided by zero" in tool.invoke({"expression": "1/0"}).lower()
    with pytest.raises(ValueError, match=r"fits 'nonsense'; there are: .*calculator"):
        wits_tools("nonsense", client=client)


def test_a_store_finds_by_words_and_by_filter(client: SyncClient) -> None:
    store = WitsVectorStore.from_texts(
        ["The key is under the flower pot.", "Bread wants salt."],
        metadatas=[{"about": "house"}, {"about": "food"}],
        namespace=f"notes-{uuid.uuid4().hex[:8]}",
        client=client,
    )
    assert store.similarity_search("Where is the key?", k=1)[0].metadata == {"about": "house"}
    found = store.as_retriever(search_kwargs={"filter": {"metadata.about": "food"}}).invoke("key")
    assert [document.page_content for document in found] == ["Bread wants salt."]
    store.delete()
