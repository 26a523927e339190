"""``witsd rpc``: any method of the protocol, for what has no command of its own."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from witsd.cli.base import Verb
from witsd.cli.connect import call
from witsd.cli.output import emit_json


@click.command(cls=Verb)
@click.argument("method")
@click.argument("params", required=False, metavar="[JSON]")
def rpc(method: str, params: str | None, as_json: bool) -> None:
    """Call METHOD with params given as a JSON object (`-` reads it from standard input).

    \b
    witsd rpc agents/get '{"name": "assistant"}'
    witsd rpc rpc.discover
    """
    del as_json  # the result is JSON in any case
    emit_json(call(method, _object(sys.stdin.read() if params == "-" else params)))


def _object(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"not JSON: {error}", param_hint="JSON") from error
    except RecursionError as error:
        raise click.BadParameter("nested too deeply", param_hint="JSON") from error
    if not isinstance(value, dict):
        raise click.BadParameter("params are an object, as in '{\"name\": \"assistant\"}'", param_hint="JSON")
    return value
