"""Agent definitions on disk: ``agents/<name>.toml``, read with the place of every mistake, written atomically."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import attrs
import msgspec
import tomli_w

from witsd.values.spec import AgentSpec
from witsd.values.wire.system import DefinitionError

_PATH = re.compile(r" - at `\$\.?([^`]*)`$")
_FIELD = re.compile(r"field `([^`]+)`")
_SYNTAX = re.compile(r" \(at line (\d+), column \d+\)$")
_TABLE = re.compile(r"^\s*\[\s*([A-Za-z0-9_.\"'-]+)\s*\]")


@attrs.frozen
class Definitions:
    """What a folder holds: the good definitions by name, and every mistake found on the way."""

    specs: dict[str, AgentSpec]
    errors: tuple[DefinitionError, ...]
    #: Names whose file is there but wrong: their last good definition keeps running.
    broken: frozenset[str]


def load(folder: Path) -> Definitions:
    """Read every ``*.toml`` of the folder. A folder that does not exist holds nothing."""
    specs: dict[str, AgentSpec] = {}
    errors: list[DefinitionError] = []
    broken: set[str] = set()
    for file in sorted(folder.glob("*.toml")):
        result = parse(file)
        if isinstance(result, DefinitionError):
            errors.append(result)
            broken.add(file.stem)
        else:
            specs[result.name] = result
    return Definitions(specs, tuple(errors), frozenset(broken))


def parse(file: Path) -> AgentSpec | DefinitionError:
    """One definition, or where it is wrong and how to mend it."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return DefinitionError(file=str(file), line=0, message=f"cannot be read: {error}")
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = _SYNTAX.search(str(error))
        message = _SYNTAX.sub("", str(error))
        line = int(found[1]) if found else len(text.splitlines())
        return DefinitionError(file=str(file), line=line, message=f"not valid TOML: {message}")
    try:
        spec = msgspec.convert(table, AgentSpec)
    except msgspec.ValidationError as error:
        message, path = explain(error)
        return DefinitionError(file=str(file), line=line_of(text, path), message=message)
    if spec.name != file.stem:
        return DefinitionError(
            file=str(file),
            line=line_of(text, "name"),
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
        message = f"`{path}`: {message[0].lower()}{message[1:]}"
    return message, path


def line_of(text: str, path: str) -> int:
    """The line, from 1, on which the key at ``path`` stands; 0 where it is not in the text."""
    keys = [key for key in re.split(r"[.\[\]]+", path) if key and key != "..."]
    if not keys:
        return 0
    table = ""
    best = 0
    for number, line in enumerate(text.splitlines(), 1):
        header = _TABLE.match(line)
        if header:
            table = header[1]
            if table == ".".join(keys):
                return number
            if table == keys[0]:
                best = best or number
            continue
        here = table.split(".") if table else []
        rest = keys[len(here) :] if keys[: len(here)] == here else []
        if rest and re.match(rf"""\s*["']?{re.escape(rest[0])}["']?\s*[.=]""", line):
            return number
    return best


def write(folder: Path, spec: AgentSpec) -> Path:
    """Write ``<name>.toml`` so that a crash leaves either the old file or the new one."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = folder / f"{spec.name}.toml"
    temporary = folder / f".{spec.name}.toml.new"
    table = msgspec.to_builtins(spec)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
        tomli_w.dump(_without_none(table), out)
        out.flush()
        os.fsync(out.fileno())
    os.replace(temporary, file)
    return file


def _without_none(table: dict[str, object]) -> dict[str, object]:
    # TOML has no null; an absent key says the same.
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in table.items()
        if value is not None
    }


def remove(folder: Path, name: str) -> None:
    (folder / f"{name}.toml").unlink(missing_ok=True)
