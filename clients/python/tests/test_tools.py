"""An agent's own tools: schemas from signatures, and what becomes of calls."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from agent_host import hosted
from msgspec import Meta
from witsd_client import Agent
from witsd_client.signatures import arguments, describe, schema

pytestmark = pytest.mark.anyio


def test_a_signature_and_its_docstring_are_a_schema() -> None:
    def weather(
        city: str,
        days: Annotated[int, Meta(ge=1, le=7)] = 1,
        unit: Literal["C", "F"] = "C",
        tags: list[str] | None = None,
    ) -> str:
        """The weather.

        Args:
            city: where
            days (int): how many
        """
        return city

    assert describe(weather.__doc__)[0] == "The weather."
    found = schema(arguments(weather))
    assert (found["required"], found["additionalProperties"]) == (["city"], False)
    assert found["properties"]["city"] == {"type": "string", "description": "where"}
    assert found["properties"]["days"]["maximum"] == 7
    assert sorted(found["properties"]["unit"]["enum"]) == ["C", "F"]


def test_what_cannot_be_given_by_name_is_no_tool() -> None:
    def loose(*words: str) -> None: ...

    with pytest.raises(TypeError, match="args"):
        arguments(loose)


async def test_calls_are_answered_also_where_they_fail() -> None:
    agent = Agent("mine")

    @agent.tool
    async def divide(a: float, b: float = 2) -> float:
        """Divide."""
        return a / b

    @agent.tool(name="words", read_only=True)
    def count(text: str) -> dict[str, int]:
        return {word: text.split().count(word) for word in text.split()}

    async with hosted(agent) as host:
        await host.initialize({})

        async def call(name: str, **given: object) -> object:
            return await host.call("tools/call", {"name": name, "arguments": given, "call_id": "c", "actor": "owner"})

        assert await call("divide", a=3) == {
            "content": [{"type": "text", "text": "1.5"}],
            "is_error": False,
            "structured_content": {"result": 1.5},
        }
        failed = await call("divide", a=1, b=0)
        assert isinstance(failed, dict)
        assert (failed["is_error"], "ZeroDivisionError" in failed["content"][0]["text"]) == (True, True)
        counted = await call("words", text="a b a")
        assert isinstance(counted, dict)
        assert counted["structured_content"] == {"a": 2, "b": 1}
        reply = await host.answer(
            host.ask("tools/call", {"name": "divide", "arguments": {"a": "x"}, "call_id": "c", "actor": "owner"})
        )
        assert reply["error"]["code"] == -32602
