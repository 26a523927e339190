"""The model section of the settings: ``[models]`` and each ``[providers.NAME]`` of ``witsd.toml``.

No key is ever here, only where to find one: a value of these classes may be logged and shown.
"""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import urlsplit

import attrs

ProviderKind = Literal["openai", "anthropic", "offline", "scripted", "replay", "langchain"]

#: A provider's name comes before the ``/`` in ``provider/model``, so it may hold none itself.
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
#: systemd's own rule for the name of a credential, and what keeps it inside its folder.
_CREDENTIAL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@attrs.frozen(kw_only=True)
class ProviderConfig:
    """One place that answers model calls.

    ``openai``: any server with OpenAI's ``/chat/completions``; ``base_url`` ends before that path
    (empty: OpenAI's own). Its key is read from the first of ``api_key_file`` (mode 0600),
    ``api_key_credential`` (a name in ``$CREDENTIALS_DIRECTORY``) and ``api_key_env`` that is given;
    with none of them no key is sent, except that an empty ``base_url`` means ``OPENAI_API_KEY``.
    ``models``: the first is the provider's default; empty means: ask the server which it has.
    ``anthropic``: any server with Anthropic's ``/v1/messages``; ``base_url`` ends before ``/v1`` (empty:
    Anthropic's own, and ``ANTHROPIC_API_KEY`` where no key is named). ``max_tokens``: of an answer, where a call
    does not say. ``thinking``: the model may reason first, for ``thinking_tokens`` tokens, or with 0 for as long as
    it sees fit (which models before Claude 4.6 cannot).
    ``scripted``: plays the file ``script``. ``langchain``: the agent ``agent``,
    whose definition names a chat model of LangChain's. ``replay``: answers from the file ``cassette``, to which
    ``record``, a provider or PROVIDER/MODEL, adds what it lacks.
    ``timeout_s``: the longest silence to bear from the server;
    ``connect_timeout_s``: to be connected; ``retries``: how often a call is tried again.
    ``streams = false``: never ask the server for a stream. ``concurrency``: calls at once, the rest wait;
    ``call_timeout_s``: how long one call may take with all its tries.
    Raises ``ValueError`` naming the field.
    """

    name: str
    kind: ProviderKind
    base_url: str = ""
    api_key_file: str = ""
    api_key_env: str = ""
    api_key_credential: str = ""
    models: tuple[str, ...] = ()
    script: str = ""
    cassette: str = ""
    agent: str = ""
    record: str = ""
    timeout_s: float = 120
    connect_timeout_s: float = 10
    retries: int = 2
    streams: bool = True
    concurrency: int = 64
    call_timeout_s: float = 600
    max_tokens: int = 4096
    thinking: bool = False
    thinking_tokens: int = 0

    def __attrs_post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"`name`: {self.name!r} is no provider name (a-z 0-9 _ . - only)")
        if self.base_url:
            _check_base_url(self.base_url)
        if self.kind == "scripted" and not self.script:
            raise ValueError(f"`script` is required for the scripted provider {self.name!r}")
        if self.kind == "replay" and not self.cassette:
            raise ValueError(f"`cassette` is required for the replay provider {self.name!r}")
        if self.kind == "langchain" and not self.agent:
            raise ValueError(f"`agent` is required for the langchain provider {self.name!r}")
        if self.record and self.kind != "replay":
            raise ValueError("`record` is for kind 'replay'")
        if self.api_key_credential and not _CREDENTIAL.fullmatch(self.api_key_credential):
            raise ValueError("`api_key_credential` is the plain name of a credential, not a path")
        if self.api_key_env and not _VARIABLE.fullmatch(self.api_key_env):
            # Not quoted: what was put here by mistake may well be the key.
            raise ValueError("`api_key_env` is the name of an environment variable, never the key itself")
        if not all(self.models):
            raise ValueError("`models` holds an empty name")
        for field, value in (("timeout_s", self.timeout_s), ("connect_timeout_s", self.connect_timeout_s)):
            if not 0 < value <= 3600:
                raise ValueError(f"`{field}` must be above 0 and at most 3600 seconds")
        if not 1 <= self.concurrency <= 10_000:
            raise ValueError("`concurrency` must be from 1 to 10000")
        if not 0 < self.call_timeout_s <= 86_400:
            raise ValueError("`call_timeout_s` must be above 0 and at most 86400 seconds")
        if not 0 <= self.retries <= 10:
            raise ValueError("`retries` must be from 0 to 10")
        if self.max_tokens < 1:
            raise ValueError("`max_tokens` must be at least 1")
        if self.thinking_tokens and not (self.thinking and self.thinking_tokens >= 1024):
            raise ValueError("`thinking_tokens` is 0 or at least 1024, and wants `thinking = true`")


@attrs.frozen(kw_only=True)
class ProviderLimits:
    """How many calls at once, and how long one may take with all its tries."""

    concurrency: int
    call_timeout_s: float


DEFAULT_LIMITS = ProviderLimits(concurrency=64, call_timeout_s=600)


@attrs.frozen(kw_only=True)
class RouteConfig:
    """``[routes.NAME]``: a name, or a pattern of names, and the models that are tried in turn."""

    name: str
    models: tuple[str, ...]

    def __attrs_post_init__(self) -> None:
        if not self.models or not all(self.models):
            raise ValueError("`models` names the models to try, at least one")
        if self.name in self.models:
            raise ValueError("`models` names the route itself: name models, as PROVIDER/MODEL")
        if self.name == "auto":
            raise ValueError("`auto` is no name for a route: set `models.default`")


@attrs.frozen(kw_only=True)
class PriceConfig:
    """``[prices."NAME"]``: US dollars for a million tokens of ``provider/model``, or of all that fit the pattern."""

    name: str
    input_usd: float
    output_usd: float = 0

    def __attrs_post_init__(self) -> None:
        for field, value in (("input_usd", self.input_usd), ("output_usd", self.output_usd)):
            if not 0 <= value <= 1e6:
                raise ValueError(f"`{field}` must be from 0 to 1000000 US dollars for a million tokens")


@attrs.frozen(kw_only=True)
class ModelsConfig:
    """``default``: what ``auto`` means: a model or a route by name, or ``auto`` for the first that is available."""

    default: str = "auto"
    providers: tuple[ProviderConfig, ...] = ()
    routes: tuple[RouteConfig, ...] = ()
    prices: tuple[PriceConfig, ...] = ()

    def __attrs_post_init__(self) -> None:
        names = [provider.name for provider in self.providers]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"`providers`: {name!r} is there twice")


def _check_base_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None:
        raise ValueError("`base_url` must carry no user or password: use api_key_file or api_key_env")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"`base_url`: {url!r} is no http:// or https:// URL")
    if parts.query or parts.fragment:
        raise ValueError("`base_url` ends before any ? or #")
    _ = parts.port  # raises ValueError when it is no number
