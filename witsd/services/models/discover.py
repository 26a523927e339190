"""Which providers there are: those configured, what the environment names, a local Ollama, ``offline``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import attrs
import trio

from witsd.services.models.agent_provider import AgentProvider
from witsd.services.models.anthropic import ANTHROPIC_URL, AnthropicProvider
from witsd.services.models.gateway import Models
from witsd.services.models.keys import Environment, read_environment, read_key
from witsd.services.models.offline import OfflineProvider
from witsd.services.models.openai import OPENAI_URL, OpenAIProvider, system_jitter
from witsd.services.models.provider import Provider
from witsd.services.models.replay import ReplayProvider
from witsd.services.models.routing import Router
from witsd.services.models.scripted import ScriptedProvider
from witsd.values.clock import Clock
from witsd.values.config_models import ModelsConfig, ProviderConfig, ProviderKind, ProviderLimits

_OLLAMA_PORT = 11434


@asynccontextmanager
async def open_models(
    config: ModelsConfig,
    *,
    env: Mapping[str, str],
    config_dir: Path,
    clock: Clock,
    jitter: Callable[[], float] = system_jitter,
) -> AsyncIterator[Models]:
    """The gateway over everything found; its connections are closed on the way out.

    Reads ``.env`` in ``config_dir`` and nothing else: no server is asked before the first call.
    """
    environment = await trio.to_thread.run_sync(read_environment, env, config_dir)
    providers = find_providers(
        config, environment=environment, env=env, config_dir=config_dir, clock=clock, jitter=jitter
    )
    models = Models(
        Router(providers, config.default, config.routes),
        clock,
        config.prices,
        {
            provider.name: ProviderLimits(
                concurrency=provider.concurrency, call_timeout_s=provider.call_timeout_s
            )
            for provider in config.providers
        },
    )
    try:
        yield models
    finally:
        await models.aclose()


def find_providers(
    config: ModelsConfig,
    *,
    environment: Environment,
    env: Mapping[str, str],
    config_dir: Path,
    clock: Clock,
    jitter: Callable[[], float],
) -> tuple[Provider, ...]:
    """In the order ``auto`` tries them. A configured name hides the one found under the same name."""
    taken = {provider.name for provider in config.providers}

    def openai(provider: ProviderConfig, **more: str | None) -> OpenAIProvider:
        return OpenAIProvider(
            provider,
            partial(read_key, provider, env, config_dir),
            clock,
            jitter,
            default_model=more.get("default_model") or "",
            unusable=more.get("unusable"),
            hint=more.get("hint") or "check base_url and the network",
            empty_hint=more.get("empty_hint") or f"name one as `models` of [providers.{provider.name}]",
        )

    def anthropic(provider: ProviderConfig, default_model: str = "", unusable: str | None = None) -> AnthropicProvider:
        return AnthropicProvider(
            provider,
            partial(read_key, provider, env, config_dir),
            clock,
            jitter,
            default_model=default_model,
            unusable=unusable,
            empty_hint=f"name one as `models` of [providers.{provider.name}]",
        )

    def beside(path: str) -> Path:
        file = Path(path).expanduser()
        return file if file.is_absolute() else config_dir / file

    def named(name: str) -> Provider | None:
        return next((provider for provider in found if provider.name == name), None)

    found: list[Provider] = []
    for provider in config.providers:
        match provider.kind:
            case "openai":
                found.append(openai(provider))
            case "anthropic":
                found.append(anthropic(provider))
            case "scripted":
                found.append(ScriptedProvider(provider, beside(provider.script)))
            case "langchain":
                found.append(AgentProvider(provider))
            case "replay":
                found.append(ReplayProvider(provider, beside(provider.cassette), named))
            case "offline":
                found.append(OfflineProvider(clock, provider.name))
    if "openai" not in taken:
        found.extend(_from_environment(environment, openai))
    if "anthropic" not in taken and environment.get("ANTHROPIC_API_KEY"):
        claude, wrong = _config_or_reason(
            "anthropic",
            environment.get("ANTHROPIC_BASE_URL") or ANTHROPIC_URL,
            "ANTHROPIC_API_KEY",
            "ANTHROPIC_BASE_URL",
        )
        found.append(anthropic(claude, environment.get("ANTHROPIC_MODEL"), wrong))
    if "ollama" not in taken:
        url = ollama_url(environment.get("OLLAMA_HOST"))
        ollama, wrong = _config_or_reason("ollama", url, "", "OLLAMA_HOST")
        found.append(
            openai(
                ollama,
                unusable=wrong,
                hint="start Ollama there (`ollama serve`), or set OLLAMA_HOST",
                empty_hint="get one: `ollama pull llama3.2`",
            )
        )
    if "offline" not in taken:
        found.append(OfflineProvider(clock))
    return tuple(found)


def _from_environment(environment: Environment, openai: Callable[..., OpenAIProvider]) -> list[Provider]:
    url, key = environment.get("OPENAI_BASE_URL"), environment.get("OPENAI_API_KEY")
    if not url and not key and environment.refused is None:
        return []
    refused = environment.refused if not url and not key else None
    config, wrong = _config_or_reason(
        "openai", url or OPENAI_URL, "OPENAI_API_KEY" if key else "", "OPENAI_BASE_URL"
    )
    return [openai(config, default_model=environment.get("OPENAI_MODEL"), unusable=refused or wrong)]


def _config_or_reason(name: str, url: str, key: str, variable: str) -> tuple[ProviderConfig, str | None]:
    """A base URL from the environment is checked like one from the file; a bad one makes no daemon fail."""
    kind: ProviderKind = "anthropic" if name == "anthropic" else "openai"
    plain = ProviderConfig(name=name, kind=kind, api_key_env=key)
    try:
        return attrs.evolve(plain, base_url=url), None
    except ValueError:
        return (
            plain,
            f"{variable} is no usable URL: it must be http(s)://HOST[:PORT][/PATH], without user or ?",
        )


def ollama_url(host: str) -> str:
    """Ollama's own reading of ``OLLAMA_HOST``: ``HOST``, ``HOST:PORT``, ``:PORT`` or a URL.

    An address that means "all of this machine's" to a server is this machine to a client.
    """
    text = host.strip().rstrip("/")
    scheme, sep, rest = text.partition("://")
    if not sep:
        scheme, rest = "http", text
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        port = parts.port
    except ValueError:
        return f"{scheme}://{rest}/v1"
    if parts.username is not None:
        return f"{scheme}://{rest}/v1"
    name = parts.hostname or "127.0.0.1"
    if name in ("0.0.0.0", "::"):  # noqa: S104 - not bound to, but avoided
        name = "127.0.0.1"
    if ":" in name:
        name = f"[{name}]"
    default = _OLLAMA_PORT if not sep else {"http": 80, "https": 443}.get(scheme, _OLLAMA_PORT)
    return f"{scheme}://{name}:{port or default}{parts.path}/v1"
