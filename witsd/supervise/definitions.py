"""Agent definitions on disk: ``agents/<name>.toml``, read with the place of every mistake, written atomically."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Set
from pathlib import Path

import msgspec
import tomli_w

from witsd.supervise import order
from witsd.supervise.instances import template_of
from witsd.values import toml_text
from witsd.values.spec import AgentSpec
from witsd.values.wire.system import DefinitionError
from witsd.values.wording import reword

_PATH = re.compile(r" - at `\$\.?([^`]*)`$")
_FIELD = re.compile(r"field `([^`]+)`")


class Definitions(msgspec.Struct, frozen=True):
    """What a folder holds: the good definitions by name, and every mistake found on the way."""

    specs: dict[str, AgentSpec]
    errors: tuple[DefinitionError, ...]
    #: Names whose file is there but wrong: their last good definition keeps running.
    broken: frozenset[str]


def load(folder: Path, last_good: Mapping[str, AgentSpec] | None = None) -> Definitions:
    """Read every ``*.toml`` of the folder. A folder that does not exist holds nothing.

    What definitions say of each other is checked as it would be in effect: where one is wrong its ``last_good`` counts.
    """
    specs: dict[str, AgentSpec] = {}
    errors: list[DefinitionError] = []
    broken: set[str] = set()
    for file in sorted(folder.glob("*.toml")):
        if file.name.startswith("."):
            continue  # an editor's, for as long as it has the file open
        result = parse(file)
        if isinstance(result, DefinitionError):
            errors.append(result)
            broken.add(file.stem)
        else:
            specs[result.name] = result
    # One that is refused leaves its last good one in its place, which the others are looked at with anew.
    while disorder := _disorder(specs, broken, last_good or {}):
        for name, mistake in disorder.items():
            file = folder / f"{name}.toml"
            line = toml_text.line_of(file.read_text(encoding="utf-8", errors="replace"), mistake.path)
            errors.append(DefinitionError(file=str(file), line=line, message=mistake.message))
            broken.add(name)
            del specs[name]
    return Definitions(specs, tuple(errors), frozenset(broken))


def _disorder(
    specs: Mapping[str, AgentSpec], broken: Set[str], last_good: Mapping[str, AgentSpec]
) -> dict[str, order.Mistake]:
    effective = {**{name: last_good[name] for name in broken if name in last_good}, **specs}
    names = effective.keys() | broken
    return order.mistakes(effective, specs.keys(), lambda name: name in names or template_of(name) in names)


def parse(file: Path) -> AgentSpec | DefinitionError:
    """One definition, or where it is wrong and how to mend it."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return DefinitionError(file=str(file), line=0, message=f"cannot be read: {error}")
    try:
        table = toml_text.parse(text)
    except toml_text.TomlError as error:
        return DefinitionError(file=str(file), line=error.line, message=f"not valid TOML: {error}")
    try:
        spec = msgspec.convert(table, AgentSpec)
    except msgspec.ValidationError as error:
        message, path = explain(error)
        return DefinitionError(file=str(file), line=toml_text.line_of(text, path), message=message)
    if spec.name != file.stem:
        return DefinitionError(
            file=str(file),
            line=toml_text.line_of(text, "name"),
            message=f"`name` is {spec.name!r} but the file is called {file.name}: make them agree",
        )
    return spec


def explain(error: msgspec.ValidationError) -> tuple[str, str]:
    """The message with the key's full path, and that path (``restart.policy``; empty for the whole)."""
    text = str(error)
    found = _PATH.search(text)
    path = found[1] if found else ""
    message = _PATH.sub("", text)
    field = _FIELD.search(message)
    if field:
        path = f"{path}.{field[1]}" if path else field[1]
        if "unknown" in message:
            message = f"unknown key `{path}`: remove it, or put it under [options]"
        else:
            message = f"the key `{path}` is required"
    elif path:
        message = reword(message, path, AgentSpec)
        message = f"`{path}`: {message[0].lower()}{message[1:]}"
    return message, path


class Unwritable(ValueError):
    """A definition holds what TOML has no word for, at ``path``."""

    def __init__(self, path: str) -> None:
        super().__init__(f"`{path}` is null, which a definition cannot hold")
        self.path = path


class Disorder(ValueError):
    """What a definition says of other agents cannot be, at ``path``."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path


def write(folder: Path, spec: AgentSpec) -> Path:
    """Write ``<name>.toml`` so that a crash leaves either the old file or the new one.

    Raises ``Unwritable``, and ``OSError`` as the disk has it; the old file is as it was then.
    """
    table = _without_none(msgspec.to_builtins(spec))
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = folder / f"{spec.name}.toml"
    temporary = folder / f".{spec.name}.toml.new"
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
        tomli_w.dump(table, out)
        out.flush()
        os.fsync(out.fileno())
    os.replace(temporary, file)
    return file


def _without_none(table: dict[str, object], path: str = "") -> dict[str, object]:
    # TOML has no null; an absent key says the same.
    return {key: _writable(value, f"{path}{key}") for key, value in table.items() if value is not None}


def _writable(value: object, path: str) -> object:
    if value is None:
        raise Unwritable(path)
    if isinstance(value, dict):
        return _without_none(value, f"{path}.")
    if isinstance(value, list | tuple):
        return [_writable(element, f"{path}[{n}]") for n, element in enumerate(value)]
    return value


def remove(folder: Path, name: str) -> None:
    (folder / f"{name}.toml").unlink(missing_ok=True)
