"""``run.memory``: what goes over the wire for it, from coroutines and from threads."""

from __future__ import annotations

from typing import Any

import pytest
from agent_host import Host, hosted
from witsd_client import Agent, PermissionDenied, Run, SyncRun
from witsd_client.generated import MemoryHit

pytestmark = pytest.mark.anyio

HIT = {
    "memory_id": "mem_1", "namespace": "agent:given", "kind": "fact", "text": "the key is under the pot", "score": 0.9,
    "parts": {"words": 0.9}, "matched": ["key"], "metadata": {}, "author": "agent:given", "trust": "agent",
    "time": "2026-03-03T10:00:00Z", "created_at": "2026-03-03T10:00:00Z",
}  # fmt: skip


async def answered(host: Host, method: str, result: Any = None, error: Any = None) -> dict[str, Any]:
    """Answer the next call of ``method``; its params."""
    done = [m["id"] for m in host.got if m.get("answered")]
    asked = await host.until(lambda m: m.get("method") == method and m["id"] not in done)
    asked["answered"] = True
    host.send({"id": asked["id"], **({"result": result} if error is None else {"error": error})})
    params: dict[str, Any] = asked["params"]
    return params


async def test_two_lines_in_its_own_namespace() -> None:
    agent = Agent("mine")

    @agent.run
    async def work(run: Run) -> Any:
        added = await run.memory.add("the key is under the pot", metadata={"topic": "keys"})
        hits = await run.memory.search("where is the key", limit=3)
        assert all(isinstance(hit, MemoryHit) for hit in hits)
        return [added.memory_id, [(hit.text, hit.parts) for hit in hits]]

    async with hosted(agent) as host:
        await host.initialize()
        number = host.execute("r1")
        assert await answered(host, "memory/add", {"memory_id": "mem_1", "deduplicated": False}) == {
            "namespace": "agent:given", "text": "the key is under the pot", "metadata": {"topic": "keys"},
            "kind": None, "ttl_s": None, "run_id": "r1",
        }  # fmt: skip
        asked = await answered(host, "memory/search", {"items": [HIT]})
        assert (asked["namespace"], asked["query"], asked["limit"]) == ("agent:given", "where is the key", 3)
        output = (await host.answer(number))["result"]["output"]
        assert output == ["mem_1", [["the key is under the pot", {"words": 0.9}]]]


async def test_other_namespaces_when_they_are_named_and_granted() -> None:
    agent = Agent("mine")

    @agent.run
    async def work(run: Run) -> Any:
        await run.memory.search("x", everywhere=True)
        await run.memory.add("x", namespace="shared", supersedes=("mem_0",))
        try:
            await run.memory.search("x", namespace="agent:other")
        except PermissionDenied as error:
            return error.data["needs"]

    async with hosted(agent) as host:
        await host.initialize()
        number = host.execute("r1")
        assert (await answered(host, "memory/search", {"items": []}))["namespace"] is None
        added = await answered(host, "memory/add", {"memory_id": "mem_1", "deduplicated": False})
        assert (added["namespace"], added["supersedes"]) == ("shared", ["mem_0"])
        refusal = {"code": -32003, "message": "no", "data": {"needs": "grants.memory:agent:other"}}
        assert (await answered(host, "memory/search", error=refusal))["namespace"] == "agent:other"
        assert (await host.answer(number))["result"]["output"] == "grants.memory:agent:other"


async def test_a_thread_has_the_same_and_blocks() -> None:
    agent = Agent("mine")

    @agent.run
    def work(run: SyncRun) -> Any:
        run.memory.add("a note")
        texts = [hit.text for hit in run.memory.search("note")]
        missing = run.memory.block("human")
        run.memory.set_block("human", "Ada")
        return [run.memory.namespace, texts, missing, run.memory.blocks(), run.memory.context("note").text]

    async with hosted(agent) as host:
        await host.initialize()
        number = host.execute("r1", session_id="s1")
        block = {"agent": "given", "name": "human", "text": "Ada", "version": 1, "author": "agent:given",
                 "updated_at": "2026-03-03T10:00:00Z"}  # fmt: skip
        assert (await answered(host, "memory/add", {"memory_id": "m", "deduplicated": False}))["run_id"] == "r1"
        await answered(host, "memory/search", {"items": [HIT]})
        await answered(host, "blocks/get", error={"code": -32002, "message": "none", "data": {}})
        written = await answered(host, "blocks/set", block)
        assert written == {"agent": "given", "name": "human", "text": "Ada", "run_id": "r1"}
        await answered(host, "blocks/list", {"items": [block]})
        context = await answered(host, "memory/context", {"text": "so it is", "items": [], "tokens": 3})
        assert (context["session_id"], context["max_tokens"]) == ("s1", 1000)
        output = (await host.answer(number))["result"]["output"]
        assert output == ["agent:given", [HIT["text"]], "", {"human": "Ada"}, "so it is"]


async def test_what_the_definition_says_of_memory() -> None:
    agent = Agent("mine")
    assert (agent.remembers, agent.history_messages) == (True, 200)
    async with hosted(agent) as host:
        given = {"name": "given", "kind": "native", "description": "", "options": {}, "stream": True}
        params = {"protocol_version": "1", "run_dir": "/tmp/x", "grants": {}}
        await host.call("initialize", {**params, "agent": {**given, "memory": "off", "history_messages": 0}})
        assert (agent.remembers, agent.history_messages) == (False, 0)
