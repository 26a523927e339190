"""The gateway over real providers: what ``auto`` means, what a name means, who may use what."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from tests.doubles.clock import FakeClock
from tests.doubles.fake_openai import KEY, Exchange, failing, open_fake_openai, streamed, whole
from witsd.services.models.discover import ollama_url, open_models
from witsd.services.models.gateway import Models
from witsd.values.actor import OWNER, Actor
from witsd.values.config_models import ModelsConfig, ProviderConfig
from witsd.values.errors import InvalidParams, ModelError, NotFound, PermissionDenied, Timeout
from witsd.values.ids import AgentName
from witsd.values.spec import Grants
from witsd.values.wire.common import UNSET
from witsd.values.wire.models import ChatMessage, ModelsCompleteParams, ModelsCompleteResult, ModelsListParams

#: A port of this machine where nothing listens: Ollama is not to be found by chance.
NO_OLLAMA = {"OLLAMA_HOST": "127.0.0.1:1"}
HELLO = (ChatMessage(role="user", content="Hello!"),)


@attrs.define(eq=False)
class Told:
    """A caller's progress."""

    wanted: bool = True
    deltas: list[str] = attrs.field(factory=list)

    async def __call__(self, *, delta: str | None = None, thought: str | None = None) -> None:
        assert delta is not None
        self.deltas.append(delta)


@asynccontextmanager
async def opened(
    home: Path, *providers: ProviderConfig, env: Mapping[str, str] | None = None, default: str = "auto"
) -> AsyncIterator[Models]:
    config = ModelsConfig(default=default, providers=providers)
    with trio.fail_after(30):
        async with open_models(
            config, env={**NO_OLLAMA, **(env or {})}, config_dir=home, clock=FakeClock(), jitter=lambda: 1.0
        ) as models:
            yield models


async def ask(
    models: Models, model: str | None = None, *, actor: Actor = OWNER, told: Told | None = None, **more: Any
) -> ModelsCompleteResult:
    params = ModelsCompleteParams(messages=HELLO, model=model, **more)
    return await models.complete(actor, params, told or Told())


def an_agent(*models: str) -> Actor:
    return Actor(kind="agent", label="agent:a", agent=AgentName("a"), grants=Grants(models=models))


def scripted(home: Path, name: str = "demo", text: str = "From the script.") -> ProviderConfig:
    (home / f"{name}.toml").write_text(f'loop = true\n[[turns]]\ntext = "{text}"\n')
    return ProviderConfig(name=name, kind="scripted", script=f"{name}.toml")


async def test_an_empty_machine_answers_offline_and_says_why_nothing_else_is_there(tmp_path: Path) -> None:
    async with opened(tmp_path) as models:
        result = await ask(models)
        page = await models.list(OWNER, ModelsListParams())
    assert (result.model, result.provider) == ("offline", "offline")
    ollama, offline = page.items
    assert (ollama.provider, ollama.available, ollama.default) == ("ollama", False, False)
    assert "ollama serve" in str(ollama.reason)
    assert (offline.name, offline.available, offline.default) == ("offline", True, True)


async def test_auto_is_the_first_that_is_available_in_order(tmp_path: Path) -> None:
    broken = ProviderConfig(name="broken", kind="scripted", script="none.toml")
    async with (
        open_fake_openai(plan=[whole("From the server.")]) as fake,
        opened(tmp_path, broken, env={"OPENAI_BASE_URL": fake.base_url, "OPENAI_API_KEY": KEY}) as models,
    ):
        result = await ask(models, "auto")
        page = await models.list(OWNER, ModelsListParams())
    assert (result.message.content, result.provider) == ("From the server.", "openai")
    assert [row.name for row in page.items if row.default] == ["gpt-fake"]
    assert fake.chats[0].body["model"] == "gpt-fake"


async def test_a_key_that_is_refused_makes_auto_go_on(tmp_path: Path) -> None:
    async with (
        open_fake_openai() as fake,
        opened(tmp_path, env={"OPENAI_BASE_URL": fake.base_url, "OPENAI_API_KEY": "wrong-key"}) as models,
    ):
        result = await ask(models)
        page = await models.list(OWNER, ModelsListParams())
    assert result.provider == "offline"
    assert "$OPENAI_API_KEY" in str(page.items[0].reason)
    assert "wrong-key" not in repr(page)


async def test_the_environment_names_the_model(tmp_path: Path) -> None:
    env = {"OPENAI_API_KEY": KEY, "OPENAI_MODEL": "gpt-mine"}
    async with (
        open_fake_openai(plan=[whole()]) as fake,
        opened(tmp_path, env={**env, "OPENAI_BASE_URL": fake.base_url}) as models,
    ):
        await ask(models)
    assert fake.chats[0].body["model"] == "gpt-mine"


async def test_a_dotenv_in_the_config_folder_counts_and_an_open_one_is_refused(tmp_path: Path) -> None:
    async with open_fake_openai(plan=[whole()]) as fake:
        dotenv = tmp_path / ".env"
        dotenv.write_text(f"OPENAI_BASE_URL={fake.base_url}\nOPENAI_API_KEY={KEY}\n")
        dotenv.chmod(0o600)
        async with opened(tmp_path) as models:
            assert (await ask(models)).provider == "openai"
        dotenv.chmod(0o644)
        async with opened(tmp_path) as models:
            assert (await ask(models)).provider == "offline"
            page = await models.list(OWNER, ModelsListParams())
            with pytest.raises(ModelError, match="chmod 600"):
                await ask(models, "openai")
    assert "mode 0644" in str(page.items[0].reason)


async def test_a_local_ollama_is_found(tmp_path: Path) -> None:
    names = ["nomic-embed-text:latest", "llama3.2:latest"]
    async with open_fake_openai(key=None, models=names) as fake, AsyncExitStack() as stack:
        env = {"OLLAMA_HOST": f"0.0.0.0:{fake.port}"}
        models = await stack.enter_async_context(opened(tmp_path, env=env))
        assert fake.requests == []  # no server is asked before somebody asks
        fake.plan += [streamed("Hi"), whole(), whole()]
        told = Told()
        result = await ask(models, told=told, stream=True)
        await ask(models, "llama3.2")
        await ask(models, "ollama/llama3.2:latest")
    assert (result.provider, told.deltas) == ("ollama", ["Hi"])
    assert [seen.body["model"] for seen in fake.chats] == ["llama3.2:latest"] * 3


async def test_an_ollama_without_models_says_how_to_get_one(tmp_path: Path) -> None:
    async def none_yet(exchange: Exchange) -> None:
        await exchange.json(200, {"object": "list", "data": None})

    async with open_fake_openai(key=None, models_step=none_yet) as fake, AsyncExitStack() as stack:
        env = {"OLLAMA_HOST": f"127.0.0.1:{fake.port}"}
        models = await stack.enter_async_context(opened(tmp_path, env=env))
        with pytest.raises(ModelError, match="ollama pull"):
            await ask(models, "ollama")


async def test_the_configured_default_is_that_model_or_an_error(tmp_path: Path) -> None:
    first, second = scripted(tmp_path, "one", "1"), scripted(tmp_path, "two", "2")
    async with opened(tmp_path, first, second, default="two") as models:
        assert (await ask(models)).message.content == "2"
        (tmp_path / "two.toml").unlink()
        with pytest.raises(ModelError):
            await ask(models)
    async with opened(tmp_path, first, default="nobody/knows") as models:
        with pytest.raises(NotFound):
            await ask(models)


async def test_a_model_named_outright_is_that_model_or_an_error(tmp_path: Path) -> None:
    async with opened(tmp_path, scripted(tmp_path)) as models:
        assert (await ask(models, "demo")).message.content == "From the script."
        assert (await ask(models, "demo/anything")).model == "anything"
        assert (await ask(models, "offline")).provider == "offline"
        with pytest.raises(ModelError, match=r"nothing answers at http://127\.0\.0\.1:1/v1") as away:
            await ask(models, "ollama")
        with pytest.raises(NotFound, match="demo/demo") as unknown:
            await ask(models, "gpt-99")
        (tmp_path / "demo.toml").unlink()
        with pytest.raises(ModelError, match=r"demo\.toml"):
            await ask(models, "demo")
    assert away.value.data["provider"] == "ollama"
    assert (unknown.value.data["kind"], unknown.value.data["id"]) == ("model", "gpt-99")


async def test_a_model_without_its_key_says_what_is_missing(tmp_path: Path) -> None:
    cloud = ProviderConfig(name="cloud", kind="openai", api_key_env="CLOUD_KEY", models=("big",))
    async with opened(tmp_path, cloud) as models:
        for name in ("cloud", "cloud/big", "cloud/other", "big"):
            with pytest.raises(ModelError, match="set CLOUD_KEY"):
                await ask(models, name)
        assert (await ask(models)).provider == "offline"


async def test_an_agent_uses_what_it_is_granted(tmp_path: Path) -> None:
    async with opened(tmp_path, scripted(tmp_path)) as models:
        assert (await ask(models, actor=an_agent("*"))).provider == "demo"
        assert (await ask(models, actor=an_agent("offline"))).provider == "offline"
        assert (await ask(models, "demo", actor=an_agent("demo/*"))).provider == "demo"
        with pytest.raises(PermissionDenied) as refused:
            await ask(models, "demo", actor=an_agent("offline"))
        with pytest.raises(PermissionDenied):
            await ask(models, actor=an_agent())
        page = await models.list(an_agent("offline"), ModelsListParams())
    assert refused.value.data["needs"] == "grants.models:demo/demo"
    assert [row.name for row in page.items] == ["offline"]


async def test_deltas_come_only_where_they_are_asked_for(tmp_path: Path) -> None:
    async with opened(tmp_path, scripted(tmp_path)) as models:
        for wanted, stream, count in ((True, True, 3), (True, False, 0), (False, True, 0)):
            told = Told(wanted)
            await ask(models, "demo", told=told, stream=stream)
            assert len(told.deltas) == count


async def test_a_call_ends_at_its_deadline(tmp_path: Path) -> None:
    async def hang(_: Exchange) -> None:
        await trio.sleep_forever()

    async with open_fake_openai(plan=[hang]) as fake:
        slow = ProviderConfig(name="slow", kind="openai", base_url=fake.base_url, api_key_env="K")
        async with opened(tmp_path, slow, env={"K": KEY}) as models:
            with pytest.raises(Timeout, match=r"0\.2 s"):
                await ask(models, "slow/m", timeout_s=0.2)


async def test_a_providers_error_reaches_the_caller(tmp_path: Path) -> None:
    async with open_fake_openai(plan=[failing(404, "no such model")]) as fake:
        one = ProviderConfig(name="one", kind="openai", base_url=fake.base_url, api_key_env="K")
        async with opened(tmp_path, one, env={"K": KEY}) as models:
            with pytest.raises(ModelError, match="no such model") as caught:
                await ask(models, "one/m")
    assert (caught.value.data["provider"], caught.value.data["status"]) == ("one", 404)


async def test_lists_come_in_pages(tmp_path: Path) -> None:
    async with opened(tmp_path, scripted(tmp_path)) as models:
        first = await models.list(OWNER, ModelsListParams(limit=2))
        rest = await models.list(OWNER, ModelsListParams(limit=2, cursor=str(first.next_cursor)))
        assert [row.provider for row in (*first.items, *rest.items)] == ["demo", "ollama", "offline"]
        assert rest.next_cursor is UNSET
        with pytest.raises(InvalidParams, match="cursor"):
            await models.list(OWNER, ModelsListParams(cursor="x"))
        with pytest.raises(InvalidParams, match="messages"):
            await models.complete(OWNER, ModelsCompleteParams(messages=()), Told())


@pytest.mark.parametrize("url", ["http://user:pw@host", "nonsense://x", "http://[bad"])
async def test_a_wrong_url_in_the_environment_stops_no_daemon(tmp_path: Path, url: str) -> None:
    async with opened(
        tmp_path, env={"OPENAI_BASE_URL": url, "OPENAI_API_KEY": KEY, "OLLAMA_HOST": url}
    ) as models:
        page = await models.list(OWNER, ModelsListParams())
        assert (await ask(models)).provider == "offline"
    reasons = {row.provider: str(row.reason) for row in page.items}
    assert "OPENAI_BASE_URL" in reasons["openai"]
    assert "OLLAMA_HOST" in reasons["ollama"]
    assert "pw@" not in repr(page)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("", "http://127.0.0.1:11434/v1"),
        ("0.0.0.0", "http://127.0.0.1:11434/v1"),
        ("gpu.lan", "http://gpu.lan:11434/v1"),
        (":8000", "http://127.0.0.1:8000/v1"),
        ("http://gpu.lan", "http://gpu.lan:80/v1"),
        ("https://gpu.lan/ollama/", "https://gpu.lan:443/ollama/v1"),
        ("[::1]:99", "http://[::1]:99/v1"),
    ],
)
def test_ollama_host_is_read_as_ollama_reads_it(host: str, url: str) -> None:
    assert ollama_url(host) == url
