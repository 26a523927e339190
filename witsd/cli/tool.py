"""``witsd tool``: the tools that models and agents call."""

from __future__ import annotations

import base64
import binascii
import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from witsd.cli.base import FAILED, Noun
from witsd.cli.connect import Failed, call, pages
from witsd.cli.output import emit_json, note, say, table
from witsd.cli.text import neutral, one_line, to_json


@click.group(cls=Noun)
def tool() -> None:
    """The tools that models and agents call."""


@tool.command(name="list")
@click.argument("name", required=False)
@click.option("--openai", is_flag=True, help="As JSON, in the format of OpenAI's function definitions.")
def tool_list(name: str | None, openai: bool, as_json: bool) -> None:
    """The tools and where each is from; with NAME all about that one."""
    found = pages("tools/list", {}, None)
    if name is not None:
        found["items"] = [one for one in found["items"] if one["name"] == name]
        if not found["items"]:
            raise Failed(f"there is no tool {name!r}", hint="witsd tool list shows which there are")
    if openai:
        emit_json([_as_function(one) for one in found["items"] if one["available"]])
    elif as_json:
        emit_json(found if name is None else found["items"][0])
    elif name is not None:
        _show(found["items"][0])
    else:
        table(
            ("tool", "from", "agents", "about"),
            [
                (one["name"], one["source"], one["policy"] if one["available"] else "not available",
                 one.get("reason") or one["description"].split("\n")[0])
                for one in found["items"]
            ],
            empty="no tools",
        )  # fmt: skip


def _as_function(one: dict[str, Any]) -> dict[str, Any]:
    function = {"name": one["name"], "description": one["description"], "parameters": one["input_schema"]}
    return {"type": "function", "function": function}


def _show(one: dict[str, Any]) -> None:
    say(neutral(f"{one['name']} ({one['source']})"))
    say(neutral(one["description"]))
    properties = one["input_schema"].get("properties") or {}
    required = one["input_schema"].get("required") or ()
    table(
        ("argument", "type", "needed", "about"),
        [
            (name, _type(about), "yes" if name in required else "", about.get("description", ""))
            for name, about in properties.items()
        ],
        empty="it takes no arguments",
    )


def _type(about: dict[str, Any]) -> str:
    if "enum" in about:
        return " | ".join(map(str, about["enum"]))
    if "anyOf" in about:
        return " | ".join(_type(one) for one in about["anyOf"])
    return str(about.get("type", "any"))


@tool.command(name="call")
@click.argument("name")
@click.argument("arguments", nargs=-1, metavar="[ARGUMENT=VALUE | JSON]...")
@click.option("--timeout", "timeout_s", type=float, metavar="SECONDS", help="How long it may take.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Folder for images it answers with.")
def tool_call(
    name: str, arguments: tuple[str, ...], timeout_s: float | None, output: Path | None, as_json: bool
) -> None:
    """Call a tool; no one is asked, since you are the one who would be.

    \b
    witsd tool call calculator expression="15 * 23 + 17"
    witsd tool call time zone=Asia/Tokyo
    witsd tool call NAME '{"items": [1, 2]}'       (`-` reads the JSON from standard input)

    A value that is JSON is taken as that where the tool does not want text.
    """
    params: dict[str, Any] = {"name": name, "arguments": _arguments(name, arguments), "cwd": os.getcwd()}
    if timeout_s is not None:
        params["timeout_s"] = timeout_s
    answer = call("tools/call", params)
    if as_json:
        emit_json(answer)
    else:
        for number, part in enumerate(answer.get("content", []), 1):
            _print(part, number, output)
    if answer.get("is_error"):
        raise click.exceptions.Exit(FAILED)


def _print(part: dict[str, Any], number: int, output: Path | None) -> None:
    if part["type"] == "text":
        say(neutral(part["text"]))
    elif part["type"] == "image" and output is not None:
        kind = one_line(part["mime_type"]).rpartition("/")[2].partition("+")[0]
        path = output / f"image-{number}.{kind if kind.isalnum() else 'bin'}"
        try:
            output.mkdir(parents=True, exist_ok=True)
            path.write_bytes(base64.b64decode(part["data"], validate=True))
        except (OSError, binascii.Error) as error:
            raise Failed(f"the image cannot be written to {path}: {error}") from error
        note(f"image written to {path}")
    elif part["type"] == "image":
        note(f"an image ({part['mime_type']}): --output FOLDER writes it to a file")
    else:
        note(one_line(f"{part.get('name')} ({part.get('mime_type')}): {part.get('uri')}"))


def _arguments(tool_name: str, given: tuple[str, ...]) -> dict[str, Any]:
    if len(given) == 1 and (given[0] == "-" or given[0].lstrip().startswith("{")):
        return _object(sys.stdin.read() if given[0] == "-" else given[0])
    pairs = [one.partition("=") for one in given]
    for name, equals, _ in pairs:
        if not equals:
            raise click.UsageError(f"{name!r}: write ARGUMENT=VALUE, or all arguments as one JSON object")
    if not pairs:
        return {}
    found = [one for one in pages("tools/list", {}, None)["items"] if one["name"] == tool_name]
    properties = found[0]["input_schema"].get("properties") or {} if found else {}
    return {name: _value(text, properties.get(name) or {}) for name, _, text in pairs}


def _value(text: str, about: dict[str, Any]) -> Any:
    kinds = [one.get("type") for one in about.get("anyOf", [about])]
    if "string" in kinds:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"not JSON: {error}", param_hint="JSON") from error
    if not isinstance(value, dict):
        raise click.BadParameter(f"arguments are an object, not {to_json(value)[:40]}", param_hint="JSON")
    return value
