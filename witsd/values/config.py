"""Settings: flags, then ``WITSD_<SECTION>_<KEY>`` in the environment, then ``witsd.toml``, then defaults.

``load`` remembers where each value came from. A mistake names the file and line, or the variable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_type_hints

import attrs
import msgspec
from msgspec import Meta

from witsd.values import toml_text
from witsd.values.config_memory import RetentionConfig
from witsd.values.config_models import ModelsConfig, PriceConfig, ProviderConfig, RouteConfig
from witsd.values.config_tools import ToolConfig
from witsd.values.wording import reword

T = TypeVar("T")
Count = Annotated[int, Meta(ge=1)]
Bytes = Annotated[int, Meta(ge=1024)]
Seconds = Annotated[float, Meta(ge=0, le=31_536_000)]


@attrs.frozen(kw_only=True)
class Listen:
    """Where it listens. ``unix`` empty: the standard place. ``http`` empty: no HTTP at all."""

    unix: str = ""
    http: str = "127.0.0.1:9487"
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    allow_remote: bool = False


@attrs.frozen(kw_only=True)
class Limits:
    """What one connection may do, and how many there may be. Announced in ``initialize``."""

    message_bytes: Bytes = 4 << 20
    depth: Count = 128
    in_flight: Annotated[int, Meta(ge=64)] = 512
    connections: Count = 512
    batch: Count = 1000


@attrs.frozen(kw_only=True)
class Journal:
    """How durable and how long. ``compact_after_s`` counts from the end of a run.

    ``key_file`` (mode 0600), or what ``key_command`` prints: the key of an encrypted database, never the key itself.
    """

    synchronous: Literal["OFF", "NORMAL", "FULL", "EXTRA"] = "FULL"
    max_age_days: Annotated[float, Meta(gt=0, le=36_500)] = 30
    max_bytes: Bytes = 1 << 30
    compact_after_s: Seconds = 300
    key_file: str = ""
    key_command: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Logs:
    """Each agent's log: a file of ``max_bytes`` and ``files`` older ones."""

    max_bytes: Bytes = 10 << 20
    files: Annotated[int, Meta(ge=1, le=1000)] = 4


@attrs.frozen(kw_only=True)
class Daemon:
    """``grace_s``: how long runs may go on when the daemon is asked to stop.

    ``sample_s``: how often agents are sampled; 0 turns figures and alerts off. Those with a limit of memory or tasks
    that the kernel does not keep are looked at twice a second all the same.
    """

    grace_s: Seconds = 10
    sample_s: Seconds = 1
    log_level: Literal["debug", "info", "warning", "error"] = "info"


@attrs.frozen(kw_only=True)
class SandboxConfig:
    """How code of tools is walled in, and what it may use: all its processes together, and each run for itself.

    ``allow_none``: where nothing walls it in, it runs all the same, as this user.
    ``output_bytes`` of each stream; ``disk_bytes`` of each of its folders, and of a file.
    """

    way: Literal["auto", "bubblewrap", "namespaces", "landlock"] = "auto"
    allow_none: bool = False
    time_s: Annotated[float, Meta(gt=0, le=86_400)] = 60
    memory_bytes: Annotated[int, Meta(ge=32 << 20, le=2**50)] = 512 << 20
    tasks: Annotated[int, Meta(ge=1, le=4096)] = 64
    output_bytes: Annotated[int, Meta(ge=1024, le=16 << 20)] = 64 << 10
    disk_bytes: Annotated[int, Meta(ge=1 << 20, le=2**50)] = 64 << 20


@attrs.frozen(kw_only=True)
class Artifacts:
    """Files that runs have made: how large one, those of a run, and all together may be, and how long they stay."""

    max_bytes: Bytes = 64 << 20
    run_bytes: Bytes = 256 << 20
    total_bytes: Bytes = 4 << 30
    max_age_days: Annotated[float, Meta(gt=0, le=36_500)] = 30


@attrs.frozen(kw_only=True)
class Settings:
    listen: Listen = Listen()
    limits: Limits = Limits()
    journal: Journal = Journal()
    logs: Logs = Logs()
    daemon: Daemon = Daemon()
    sandbox: SandboxConfig = SandboxConfig()
    artifacts: Artifacts = Artifacts()
    models: ModelsConfig = ModelsConfig()
    retention: tuple[RetentionConfig, ...] = ()
    tools: tuple[ToolConfig, ...] = ()


class ConfigError(Exception):
    """A setting is wrong; the message says which, where, and what it may be."""


@attrs.frozen
class Loaded:
    """The settings, and for each ``section.key`` where its value came from."""

    settings: Settings
    origins: dict[str, str]


def load(file: Path, env: Mapping[str, str], flags: Sequence[str] = ()) -> Loaded:
    """Read everything. ``flags`` are ``SECTION.KEY=VALUE``. Raises ``ConfigError``."""
    text, table = _read(file)
    given_flags = dict(_flag(flag) for flag in flags)
    origins: dict[str, str] = {}
    sections: dict[str, Any] = {}
    kinds = get_type_hints(Settings, include_extras=True)
    for section in table:
        if section not in (*kinds, "providers", "routes", "prices"):
            raise ConfigError(_at(file, text, section, f"unknown section [{section}]"))
    for section, kind in kinds.items():
        if section in ("models", "retention", "tools"):
            continue
        keys = get_type_hints(kind, include_extras=True)
        values: dict[str, Any] = {}
        here = _table(file, text, table, section)
        for key in here:
            if key not in keys:
                raise ConfigError(_at(file, text, f"{section}.{key}", f"unknown key `{section}.{key}`"))
        for key, hint in keys.items():
            name = f"{section}.{key}"
            variable = f"WITSD_{section}_{key}".upper()
            if name in given_flags:
                values[key] = _from_text(given_flags.pop(name), hint, f"--set {name}")
                origins[name] = "flag"
            elif variable in env:
                values[key] = _from_text(env[variable], hint, variable)
                origins[name] = f"environment {variable}"
            elif key in here:
                try:
                    values[key] = msgspec.convert(here[key], hint)
                except msgspec.ValidationError as error:
                    raise ConfigError(_at(file, text, name, f"`{name}`: {_lower(error, hint)}")) from None
                origins[name] = str(file)
            else:
                origins[name] = "default"
        sections[section] = kind(**values)
    sections["models"], origins["models.default"] = _models(file, text, table, env, given_flags)
    sections["retention"] = _named(file, text, table, "retention", "pattern", RetentionConfig)
    sections["tools"] = _named(file, text, table, "tools", "name", ToolConfig)
    if given_flags:
        raise ConfigError(f"there is no setting {next(iter(given_flags))!r}: witsd config show lists them")
    variables = {f"WITSD_{name}".upper().replace(".", "_") for name in origins}
    for variable in env:
        if variable.startswith(tuple(f"WITSD_{section}_".upper() for section in kinds)) and variable not in variables:
            raise ConfigError(f"{variable}: there is no such setting: witsd config show lists them")
    return Loaded(Settings(**sections), origins)


@attrs.frozen
class Source:
    """What ``load`` was given, to be read again while the daemon runs."""

    file: Path
    env: Mapping[str, str]
    flags: Sequence[str]

    def pending(self, in_effect: Settings) -> tuple[tuple[str, ...], str]:
        """The settings that a restart would change, and why it could not even read them, or empty. Blocks."""
        try:
            return differing(in_effect, load(self.file, self.env, self.flags).settings), ""
        except ConfigError as error:
            return (), str(error)


def differing(before: Settings, after: Settings) -> tuple[str, ...]:
    """The names, ``section.key`` or ``providers.NAME``, of what is not the same in both."""
    names: list[str] = []
    for section in attrs.fields(Settings):
        one, other = getattr(before, section.name), getattr(after, section.name)
        if section.name in ("retention", "tools"):
            key = "pattern" if section.name == "retention" else "name"
            names += _named_differing(section.name, key, one, other)
            continue
        for key in attrs.fields(type(one)):
            was, is_now = getattr(one, key.name), getattr(other, key.name)
            if key.name in ("providers", "routes", "prices"):
                names += _named_differing(key.name, "name", was, is_now)
            elif was != is_now:
                names.append(f"{section.name}.{key.name}")
    return tuple(sorted(names))


def _named_differing(section: str, by: str, before: Sequence[Any], after: Sequence[Any]) -> list[str]:
    """``SECTION.NAME`` of each table that is not the same in both; the section's where only their order differs."""
    if before == after:
        return []
    known, new = ({getattr(table, by): table for table in tables} for tables in (before, after))
    return [f"{section}.{name}" for name in {**known, **new} if known.get(name) != new.get(name)] or [section]


def _read(file: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8")
        return text, toml_text.parse(text)
    except FileNotFoundError:
        return "", {}
    except toml_text.TomlError as error:
        raise ConfigError(f"{file}:{error.line}: not valid TOML: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None


def _flag(flag: str) -> tuple[str, str]:
    name, equals, value = flag.partition("=")
    if not equals:
        raise ConfigError(f"--set {flag}: write SECTION.KEY=VALUE")
    return name.strip(), value


def _from_text(text: str, hint: Any, where: str) -> Any:
    """A value from one line of text: lists are separated by commas."""
    value: Any = text
    if hint == tuple[str, ...]:
        value = tuple(part.strip() for part in text.split(",") if part.strip())
    try:
        return msgspec.convert(value, hint, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where} = {text!r}: {_lower(error, hint)}") from None


def _models(
    file: Path, text: str, table: dict[str, Any], env: Mapping[str, str], flags: dict[str, str]
) -> tuple[ModelsConfig, str]:
    origin = "default"
    default: Any = "auto"
    section = _table(file, text, table, "models")
    for key in section:
        if key != "default":
            raise ConfigError(_at(file, text, f"models.{key}", f"unknown key `models.{key}`"))
    if "models.default" in flags:
        default, origin = flags.pop("models.default"), "flag"
    elif "WITSD_MODELS_DEFAULT" in env:
        default, origin = env["WITSD_MODELS_DEFAULT"], "environment WITSD_MODELS_DEFAULT"
    elif "default" in section:
        default, origin = section["default"], str(file)
        if not isinstance(default, str):
            raise ConfigError(_at(file, text, "models.default", "`models.default`: write the model's name as a string"))
    providers = _named(file, text, table, "providers", "name", ProviderConfig)
    routes = _named(file, text, table, "routes", "name", RouteConfig)
    prices = _named(file, text, table, "prices", "name", PriceConfig)
    for route in routes:
        if any(name in {other.name for other in routes} for name in route.models):
            where = f"routes.{route.name}.models"
            raise ConfigError(_at(file, text, where, f"`{where}`: a route leads to models, not to another route"))
    return ModelsConfig(default=default, providers=providers, routes=routes, prices=prices), origin


def _named(file: Path, text: str, table: dict[str, Any], section: str, key: str, kind: type[T]) -> tuple[T, ...]:
    """The tables ``[section.NAME]``, each as a ``kind`` whose field ``key`` is that name."""
    found = []
    known = {field.name for field in attrs.fields(cast(Any, kind))} - {key}
    given = _table(file, text, table, section)
    for name in given:
        where = f"{section}.{name}"
        values = _table(file, text, given, name, f"{section}.")
        for field in values:
            if field not in known:
                raise ConfigError(_at(file, text, f"{where}.{field}", f"unknown key `{where}.{field}`"))
        try:
            found.append(msgspec.convert({**values, key: name}, kind))
        except (msgspec.ValidationError, ValueError) as error:
            wrong = next((field for field in values if f"`{field}`" in str(error) or f"$.{field}" in str(error)), "")
            raise ConfigError(_at(file, text, f"{where}.{wrong}", f"`{where}`: {_lower(error)}")) from None
    return tuple(found)


def _table(file: Path, text: str, table: dict[str, Any], name: str, above: str = "") -> dict[str, Any]:
    """The table called ``name``; empty where there is none."""
    found = table.get(name, {})
    if not isinstance(found, dict):
        raise ConfigError(_at(file, text, above + name, f"`{above}{name}` must be a table: [{above}{name}]"))
    return found


def _at(file: Path, text: str, path: str, message: str) -> str:
    """``file:line: message``, the line being that of the key, or of its section."""
    return f"{file}:{toml_text.line_of(text, path)}: {message}"


def _lower(error: Exception, kind: Any = Any) -> str:
    """As the end of a sentence about a ``kind``: what it quotes stays as it is."""
    message = reword(str(error), "", kind)
    return message[:1].lower() + message[1:]
