"""The scripted provider: plays its file, from where the conversation is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from witsd.services.models.scripted import ScriptedProvider
from witsd.values.config_models import ProviderConfig
from witsd.values.errors import ModelError
from witsd.values.wire.common import UNSET
from witsd.values.wire.models import ChatMessage, ModelsCompleteParams, ModelsCompleteResult, ToolDefinition

TOML = """
[[turns]]
text = "Hello, I am a script."

[[turns]]
deltas = ["I stream ", "slowly."]
delay_s = 2
repeat = 2

[[turns]]
text = "Let me see."
tool_calls = [{ name = "calculator", arguments = { expression = "6*7" } }]

[[turns]]
match = "(?i)weather"
text = "I only know my script."

[[turns]]
text = "I was about"
error = { status = 503, message = "it breaks here" }
"""


RULES = """
[[turns]]
match = "15"
after = "user"
tool_calls = [{ name = "*", arguments = {} }]

[[turns]]
match = "15"
after = "tool"
text = "It is {result}."
"""


def provider(path: Path, **config: Any) -> ScriptedProvider:
    return ScriptedProvider(ProviderConfig(name="demo", kind="scripted", script=str(path), **config), path)


def write(tmp_path: Path, text: str, name: str = "script.toml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


async def play(
    it: ScriptedProvider, answered: int, text: str = "go on", pieces: list[str] | None = None
) -> ModelsCompleteResult:
    past = [ChatMessage(role="assistant", content="x")] * answered
    request = ModelsCompleteParams(messages=(*past, ChatMessage(role="user", content=text)))

    async def keep(piece: str) -> None:
        assert pieces is not None
        pieces.append(piece)

    return await it.complete(request, "", keep if pieces is not None else None)


async def test_turns_follow_the_conversation(tmp_path: Path) -> None:
    it = provider(write(tmp_path, TOML))
    said: list[str] = []
    assert (await play(it, 0, pieces=said)).message.content == "Hello, I am a script."
    assert said == ["Hello, ", "I ", "am ", "a ", "script."]
    assert (await play(it, 1)).message.content == "I stream slowly."
    assert (await play(it, 2)).message.content == "I stream slowly."
    result = await play(it, 3)
    assert result.finish_reason == "tool_calls"
    assert result.message.tool_calls is not UNSET
    (call,) = result.message.tool_calls
    assert (call.name, call.arguments) == ("calculator", '{"expression":"6*7"}')
    # Nothing is remembered: the first turn comes again for a new conversation.
    assert (await play(it, 0)).message.content == "Hello, I am a script."
    assert (result.model, result.provider) == ("demo", "demo")


async def test_a_rule_goes_before_the_order(tmp_path: Path) -> None:
    it = provider(write(tmp_path, TOML))
    assert (await play(it, 0, "How is the Weather?")).message.content == "I only know my script."
    assert (await play(it, 99, "weather!")).message.content == "I only know my script."


async def test_deltas_come_with_their_pauses(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    it = provider(write(tmp_path, TOML.replace("delay_s = 2", "delay_s = 30")))
    times: list[float] = []

    async def keep(_: str) -> None:
        times.append(trio.current_time())

    past = (ChatMessage(role="assistant"), ChatMessage(role="user", content="go on"))
    await it.complete(ModelsCompleteParams(messages=past), "", keep)
    assert times[1] - times[0] == pytest.approx(30)


async def test_an_error_comes_after_what_was_said(tmp_path: Path) -> None:
    path = write(tmp_path, TOML)
    said: list[str] = []
    with pytest.raises(ModelError, match=r"it breaks here \(turn 5 of script .*script\.toml\)") as caught:
        await play(provider(path), 4, pieces=said)
    assert said == ["I ", "was ", "about"]
    assert (caught.value.data["status"], caught.value.data["retryable"]) == (503, True)
    assert caught.value.data["provider"] == "demo"


async def test_a_script_ends_or_loops(tmp_path: Path) -> None:
    path = write(tmp_path, '[[turns]]\ntext = "a"\n[[turns]]\ntext = "b"\n')
    with pytest.raises(ModelError, match=r"script .*script\.toml is over: there is no turn 3"):
        await play(provider(path), 2)
    path.write_text("loop = true\n" + path.read_text())  # an edit is played at once
    assert (await play(provider(path), 2)).message.content == "a"
    assert (await play(provider(path), 5)).message.content == "b"


async def test_json_lines(tmp_path: Path) -> None:
    lines = '{"loop": true}\n{"text": "a"}\n\n{"deltas": ["b", "c"]}\n'
    it = provider(write(tmp_path, lines, "s.jsonl"))
    assert [(await play(it, n)).message.content for n in range(3)] == ["a", "bc", "a"]


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        ("[[turns]\n", "s.toml", "line 1"),
        ("[[turns]]\n", "s.toml", "a turn needs"),
        ('[[turns]]\ntext = "a"\ncolour = 1\n', "s.toml", "colour"),
        ('[[turns]]\ntext = "a"\nmatch = "("\n', "s.toml", "regular expression"),
        ('[[turns]]\ntext = "a"\ndelay_s = 999\n', "s.toml", "delay_s"),
        ('{"text": "a"}\n{broken\n', "s.jsonl", "line 2"),
    ],
)
async def test_a_wrong_script_is_named_with_its_place(
    tmp_path: Path, text: str, name: str, says: str
) -> None:
    it = provider(write(tmp_path, text, name))
    with pytest.raises(ModelError) as caught:
        await play(it, 0)
    assert name in caught.value.message
    assert says in caught.value.message
    (row,) = await it.models()
    assert not row.available
    assert row.reason == caught.value.message


async def test_a_missing_script_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.toml: No such file"):
        await play(provider(tmp_path / "none.toml"), 0)


async def test_a_rule_may_be_for_what_follows_a_tool_and_calls_the_tool_that_is_offered(tmp_path: Path) -> None:
    it = provider(write(tmp_path, RULES))
    asked = ChatMessage(role="user", content="15 * 23?")
    tools = (ToolDefinition(name="multiply"), ToolDefinition(name="other"))
    first = await it.complete(ModelsCompleteParams(messages=(asked,), tools=tools), "", None)
    assert first.message.tool_calls
    (call,) = first.message.tool_calls
    assert call.name == "multiply"
    done = ChatMessage(role="tool", content="345", tool_call_id=call.id)
    last = await it.complete(ModelsCompleteParams(messages=(asked, first.message, done), tools=tools), "", None)
    assert last.message.content == "It is 345."


async def test_after_wants_a_match(tmp_path: Path) -> None:
    (row,) = await provider(write(tmp_path, '[[turns]]\nafter = "tool"\ntext = "x"\n')).models()
    assert "give it a `match`" in str(row.reason)
