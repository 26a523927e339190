"""Cassettes: recorded from a provider that answers, played without it, and what a miss says."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from msgspec.structs import replace

from tests.doubles.clock import FakeClock
from tests.doubles.fake_anthropic import KEY, MODEL, FakeAnthropic, failing, open_fake_anthropic, streamed, whole
from tests.doubles.fake_openai import Step
from witsd.services.models.discover import find_providers
from witsd.services.models.keys import read_environment
from witsd.services.models.provider import Deltas, Provider
from witsd.values.config_models import ModelsConfig, ProviderConfig
from witsd.values.errors import ModelError
from witsd.values.wire.models import ChatMessage, ModelsCompleteParams, ModelsCompleteResult, ToolDefinition


def asking(text: str, **more: Any) -> ModelsCompleteParams:
    return ModelsCompleteParams(messages=(ChatMessage(role="user", content=text),), stream=True, **more)


@attrs.define(eq=False)
class Rig:
    """The replay provider ``tape``, and the server that its source speaks to."""

    fake: FakeAnthropic
    tape: Provider
    file: Path
    deltas: list[str] = attrs.field(factory=list)

    async def ask(
        self, request: ModelsCompleteParams, *, model: str = "", stream: bool = True
    ) -> ModelsCompleteResult:
        async def keep(piece: str) -> None:
            self.deltas.append(piece)

        with trio.fail_after(30):
            return await self.tape.complete(request, model, Deltas(keep) if stream else None)


@asynccontextmanager
async def open_rig(folder: Path, *plan: Step, record: str = "") -> AsyncIterator[Rig]:
    async with open_fake_anthropic(plan=list(plan)) as fake:
        env = {"CLAUDE_KEY": KEY}
        config = ModelsConfig(
            providers=(
                ProviderConfig(name="tape", kind="replay", cassette="tapes/one.jsonl", record=record),
                ProviderConfig(
                    name="claude", kind="anthropic", base_url=fake.base_url, api_key_env="CLAUDE_KEY", retries=0
                ),
            )
        )
        found = find_providers(
            config,
            environment=read_environment(env, folder),
            env=env,
            config_dir=folder,
            clock=FakeClock(),
            jitter=lambda: 0.5,
        )
        try:
            yield Rig(fake, found[0], folder / "tapes/one.jsonl")
        finally:
            for provider in found:
                await provider.aclose()


async def test_what_was_recorded_is_played_piece_by_piece_without_the_server(tmp_path: Path) -> None:
    async with open_rig(tmp_path, streamed("Hel", "lo"), streamed("never"), record=f"claude/{MODEL}") as rig:
        first = await rig.ask(asking("Hello?"))
        again = await rig.ask(asking("Hello?", run_id="run_1", timeout_s=9))
        assert len(rig.fake.chats) == 1
    assert rig.deltas == ["Hel", "lo"] * 2
    assert first == again
    assert (first.message.content, first.model, first.provider) == ("Hello", MODEL, "tape")
    assert stat.S_IMODE(rig.file.stat().st_mode) == 0o600
    assert KEY not in rig.file.read_text()

    async with open_rig(tmp_path) as rig:  # another daemon, with no `record`
        assert await rig.ask(asking("Hello?")) == first
        assert (await rig.tape.models())[0].available
        assert rig.fake.requests == []
    assert rig.deltas == ["Hel", "lo"]


async def test_an_answer_that_came_whole_is_played_as_one_piece(tmp_path: Path) -> None:
    async with open_rig(tmp_path, whole({"type": "text", "text": "Hello."}), record="claude") as rig:
        await rig.ask(asking("Hello?"), stream=False)
    async with open_rig(tmp_path) as rig:
        await rig.ask(asking("Hello?"))
    assert rig.deltas == ["Hello."]


async def test_what_may_change_the_answer_is_part_of_the_request(tmp_path: Path) -> None:
    async with open_rig(tmp_path, streamed("Hello"), record="claude") as rig:
        await rig.ask(asking("Hello?", temperature=0.5))
    twice = replace(asking("x", temperature=0.5), messages=asking("Hello?").messages * 2)
    async with open_rig(tmp_path) as rig:
        for other, says in (
            (asking("Hello?"), "temperature is 0.5 (asked: none)"),
            (asking("Hello?", temperature=0.7), "temperature is 0.5 (asked: 0.7)"),
            (asking("Hello!", temperature=0.5), "messages[0].content is 'Hello?' (asked: 'Hello!')"),
            (twice, "messages has 1 (asked: 2)"),
            (asking("Hello?", temperature=0.5, tools=(ToolDefinition(name="f"),)), "there is no tools (asked: [{"),
        ):
            with pytest.raises(ModelError) as caught:
                await rig.ask(other)
            assert says in caught.value.message
        with pytest.raises(ModelError, match="there is no model"):
            await rig.ask(asking("Hello?", temperature=0.5), model="another")


async def test_a_miss_shows_the_nearest_and_what_to_do(tmp_path: Path) -> None:
    plan = [streamed(str(i)) for i in range(3)]
    long = "word " * 5000
    async with open_rig(tmp_path, *plan, record="claude") as rig:
        for text in ("What is the capital of France?", "How deep is the sea?", long + "Tell me."):
            await rig.ask(asking(text))
    async with open_rig(tmp_path) as rig:
        with pytest.raises(ModelError) as caught:
            await rig.ask(asking("How deep is the lake?"))
        assert "the nearest of 3 is number 2" in caught.value.message
        assert "is 'How deep is the sea?' (asked: 'How deep is the lake?')" in caught.value.message
        assert 'record = "PROVIDER"' in caught.value.message
        with pytest.raises(ModelError, match=r"number 3, where .*Tell me.*asked: .*Show me") as caught:
            await rig.ask(asking(long + "Show me."))
        assert len(caught.value.message) < 800


async def test_an_error_is_not_recorded(tmp_path: Path) -> None:
    async with open_rig(tmp_path, failing(500), streamed("ok"), record="claude") as rig:
        with pytest.raises(ModelError, match="500"):
            await rig.ask(asking("Hello?"))
        assert not rig.file.exists()
        assert (await rig.ask(asking("Hello?"))).message.content == "ok"


async def test_an_edited_cassette_is_played_at_once(tmp_path: Path) -> None:
    async with open_rig(tmp_path, streamed("old"), record="claude") as rig:
        await rig.ask(asking("Hello?"), model="m")
        rig.file.write_text(rig.file.read_text().replace('"content":"old"', '"content":"newer"'))
        assert (await rig.ask(asking("Hello?"), model="m")).message.content == "newer"


async def test_what_is_wrong_with_it_is_said_by_the_list_and_the_call(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        await _unusable(rig, "does not exist")
        rig.file.parent.mkdir()
        rig.file.write_text("\n{broken\n")
        await _unusable(rig, "one.jsonl:2:")
        rig.file.write_text('{"request": {}, "result": {}}\n')
        await _unusable(rig, "one.jsonl:1: Object missing required field")
    async with open_rig(tmp_path / "other", record="nobody") as rig:
        await _unusable(rig, "there is no such other one")
    async with open_rig(tmp_path / "other", record="tape") as rig:
        await _unusable(rig, "there is no such other one")


async def _unusable(rig: Rig, says: str) -> None:
    (row,) = await rig.tape.models()
    assert (row.available, row.name) == (False, "tape")
    assert says in str(row.reason)
    with pytest.raises(ModelError) as caught:
        await rig.ask(asking("Hello?"))
    assert says in caught.value.message


@pytest.mark.parametrize(
    "wrong", [{"kind": "replay"}, {"kind": "scripted", "script": "x", "record": "openai"}]
)
def test_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"`cassette`|`record`"):
        ProviderConfig(name="tape", **wrong)
