"""The built-in answerer: what it can answer, and that it says so where it cannot."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.doubles.clock import FakeClock
from witsd.services.models.arithmetic import evaluate, find_expression, shown
from witsd.services.models.arithmetic_functions import ArithmeticFault
from witsd.services.models.offline import OfflineProvider, reply
from witsd.services.models.offline_tools import readable
from witsd.values.wire.common import UNSET
from witsd.values.wire.models import ChatMessage, ModelsCompleteParams, ToolCall, ToolDefinition

NOW = datetime(2026, 11, 20, 9, 5, 7, tzinfo=UTC)


def user(text: str) -> ChatMessage:
    return ChatMessage(role="user", content=text)


def model(text: str) -> ChatMessage:
    return ChatMessage(role="assistant", content=text)


def tool(
    name: str, required: tuple[str, ...] = (), description: str = "", **properties: Any
) -> ToolDefinition:
    schema = {"type": "object", "properties": properties, "required": list(required)}
    return ToolDefinition(name=name, description=description, input_schema=schema)


TEXT: dict[str, Any] = {"type": "string"}
TOOLS = (
    tool("calculator", ("expression",), "Exact arithmetic", expression=TEXT),
    tool("current_time"),
    tool("memory_search", ("query",), query=TEXT, limit={"type": "integer"}),
    tool("memory_add", ("text",), text=TEXT),
    tool("python", ("code",), code=TEXT),
    tool("word_count", ("text",), text=TEXT),
    tool("set_volume", ("level",), level={"type": "integer"}),
)


def answers(*messages: ChatMessage | str, tools: tuple[ToolDefinition, ...] = ()) -> str:
    said = reply([user(m) if isinstance(m, str) else m for m in messages], tools, NOW)
    assert said.tool_calls is UNSET
    return said.content


def calls(text: str) -> tuple[str, Any]:
    said = reply([user(text)], TOOLS, NOW)
    assert said.tool_calls is not UNSET, said.content
    (call,) = said.tool_calls
    return call.name, json.loads(call.arguments)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("Hello!", "no language model"),
        ("What can you do?", "witsd chat"),
        ("who are you?", "OPENAI_API_KEY"),
        ("Are you ChatGPT?", "no language model"),
        ("How do I connect a model?", "Ollama"),
        ("what time is it?", "09:05:07 UTC"),
        ("What is the date today?", "Friday, 20 November 2026"),
        ("What is 12% of 80?", "12% of 80 = 9.6"),
        ("How much is 1,000 times 3?", "3000"),
        ("0.1 + 0.2", "= 0.3"),
        ("What is 1/0?", "divided by zero"),
        ("what is a run?", "one piece of work"),
        ("Define journal", "append-only"),
        ("What are memories?", "namespace"),
        ("What is the capital of France?", "I cannot answer that"),
        ("Write me a poem about the sea.", "no language model"),
        ("summarise", "no text to summarise"),
        ("   ", "empty message"),
        ("what did I say first?", "first message"),
        ("repeat the conversation", "nothing to repeat"),
    ],
)
def test_single_questions(asked: str, said: str) -> None:
    assert said in answers(asked)


def test_it_remembers_what_it_was_told_in_the_conversation() -> None:
    past = [
        user("Hello, my name is Ada."),
        model("Hello"),
        user("My favorite color is dark blue and my cat is called Ms. Whisker. I live in Oslo."),
        model("Noted"),
        user("The deploy script lives in tools/deploy.sh, not in bin."),
        model("ok"),
    ]
    assert answers(*past, "What is my name?") == "Your name is Ada."
    assert answers(*past, "what's my favourite colour?") == "Your favourite colour is dark blue."
    assert answers(*past, "where do I live?") == "You live in Oslo."
    assert answers(*past, "what is my age?") == "You have not told me your age in this conversation."
    assert "Hello, my name is Ada." in answers(*past, "What did I say first?")
    assert "tools/deploy.sh" in answers(*past, "what was my last message?")
    assert "tools/deploy.sh" in answers(*past, "where does the deploy script live?")
    assert "4 from you" in answers(*past, "how many messages have we exchanged?")
    assert "“ok”" in answers(*past, "what did you say?")
    recap = answers(*past, "summarise our conversation")
    assert recap.count("\n- ") == 6
    assert answers(*past, "My name is Bob.", model("ok"), "who am I?") == "Your name is Bob."


def test_a_question_is_no_statement() -> None:
    assert "not told me" in answers("Do you think my name is Ada?", model("?"), "What is my name?")


def test_a_summary_is_made_of_the_texts_own_sentences() -> None:
    text = (
        "Witsd keeps agents alive. An agent that dies is started again by witsd. Bananas are yellow. "
        "Every agent of witsd writes events to the journal. The weather was fine. Lunch was late. None sang."
    )
    for asked in (
        f"Summarise: {text}",
        f"Summarise the attached file\n\nAttached: a.txt\n```\n{text}\n```",
        f"{text}\n\nsummarise this",
    ):
        lines = answers(asked).splitlines()[1:]
        assert 1 <= len(lines) < 7
        assert all(line.removeprefix("- ") in text for line in lines)
        assert any("agent" in line for line in lines)
        assert not any("Lunch" in line for line in lines)


@pytest.mark.parametrize(
    ("asked", "name", "arguments"),
    [
        ("What is 2+2*3?", "calculator", {"expression": "2+2*3"}),
        ("what time is it?", "current_time", {}),
        ("What do you remember about cats?", "memory_search", {"query": "cats"}),
        ("search your memory for the deploy key", "memory_search", {"query": "the deploy key"}),
        ("Remember that the key is under the mat.", "memory_add", {"text": "the key is under the mat"}),
        ("run this python: print(1)", "python", {"code": "print(1)"}),
        ("Run this code:\n```python\nprint(2)\n```", "python", {"code": "print(2)"}),
        ('use word_count on "a b c"', "word_count", {"text": "a b c"}),
        ("Set volume to 11", "set_volume", {"level": 11}),
    ],
)
def test_it_calls_the_tool_the_words_ask_for(asked: str, name: str, arguments: Any) -> None:
    assert calls(asked) == (name, arguments)


def test_no_tool_is_called_unasked() -> None:
    assert "no language model" in answers("What is the capital of France?", tools=TOOLS)
    assert answers("my name is Ada", model("ok"), "what is my name?", tools=TOOLS) == "Your name is Ada."
    assert "I need level" in answers("use set_volume", tools=TOOLS)
    assert "set_volume" in answers("what tools do you have?", tools=TOOLS)


def test_it_answers_from_the_tools_result_and_does_not_call_again() -> None:
    call = ToolCall(id="c1", name="calculator", arguments='{"expression":"2+2"}')
    asked = [user("2+2?"), ChatMessage(role="assistant", tool_calls=(call,))]
    result = ChatMessage(role="tool", content='{"result": 4}', tool_call_id="c1")
    assert answers(*asked, result, tools=TOOLS) == "2+2 = 4"
    lost = ChatMessage(role="tool", content="boom", tool_call_id="other")
    assert answers(*asked, lost) == "The tool answered: boom"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("plain words", "plain words"),
        ('{"content":[{"type":"text","text":"hi"}],"is_error":false}', "hi"),
        ('{"items":[{"text":"a"},{"text":"b"}]}', "- a\n- b"),
        ('{"items":[]}', "nothing"),
        ('{"x":1,"y":2}', '{"x":1,"y":2}'),
    ],
)
def test_results_are_made_readable(content: str, text: str) -> None:
    assert readable(content) == text


async def test_the_provider_streams_word_by_word_and_counts_words() -> None:
    pieces: list[str] = []

    async def keep(text: str) -> None:
        pieces.append(text)

    provider = OfflineProvider(FakeClock())
    request = ModelsCompleteParams(messages=(user("what time is it?"),), stream=True)
    with trio.fail_after(60):
        result = await provider.complete(request, "offline", keep)
        again = await provider.complete(request, "offline", None)
    assert result == again
    assert "".join(pieces) == result.message.content == "It is 09:05:07 UTC on Friday, 20 November 2026."
    assert len(pieces) == result.usage.output_tokens == 9
    assert result.usage.input_tokens == 4
    assert (result.model, result.provider) == ("offline", "offline")


@given(st.lists(st.text(max_size=300), max_size=4))
def test_it_answers_anything(texts: list[str]) -> None:
    said = reply([user(text) for text in texts], TOOLS, NOW)
    assert said.content or said.tool_calls is not UNSET


@given(st.recursive(
    st.integers(0, 999).map(str),
    lambda inner: st.tuples(inner, st.sampled_from(["+", "-", "*"]), inner).map("".join).map("({})".format),
    max_leaves=12,
))  # fmt: skip
def test_arithmetic_is_pythons_on_integers(expression: str) -> None:
    assert evaluate(expression) == eval(expression)


@pytest.mark.parametrize(
    ("expression", "value"),
    [("2**-2", "0.25"), ("7 // 2 * 2 % 5", "1"), ("-2^2", "-4"), ("2^3^2", "512"), ("50% + 1", "1.5"),
     ("1/3", "1/3 (about 0.333333333333)"), ("10/4", "2.5"), ("1e3 - .5", "999.5"), ("-7 // 2", "-4")],
)  # fmt: skip
def test_arithmetic_is_exact(expression: str, value: str) -> None:
    assert shown(evaluate(expression)) == value


@pytest.mark.parametrize(
    "expression", ["", "1+", "(1", "1)", "2**99999", "9**9**9", "1/0", "0**-1",
                   "1e9999", "a+1", "1 2", "(" * 400, "1" * 501, "__import__('os')"],
)  # fmt: skip
def test_arithmetic_refuses_what_has_no_bounded_value(expression: str) -> None:
    with pytest.raises(ArithmeticFault):
        evaluate(expression)


@pytest.mark.parametrize(
    "text",
    ["call 555-1234?", "what is 2026-11-20?", "I have 2 + 3 apples", "is python 3.11 good?", "what is -5?"],
)
def test_not_every_number_is_a_sum(text: str) -> None:
    assert find_expression(text) is None


def test_numbers_shown_are_the_numbers_meant() -> None:
    assert shown(Fraction(-1, 8)) == "-0.125"
    assert shown(Fraction(2, 7)) == "2/7 (about 0.285714285714)"
