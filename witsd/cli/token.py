"""``witsd token``: scoped tokens for programs that do not come over the Unix socket."""

from __future__ import annotations

from typing import Any

import click

from witsd.cli.base import Noun, duration_s
from witsd.cli.connect import call, pages
from witsd.cli.output import emit_json, note, say, table
from witsd.cli.text import one_line, when

SCOPES = ("read", "chat", "memory", "tools", "approve", "agents", "admin")


@click.group(cls=Noun)
def token() -> None:
    """Scoped tokens for programs."""


@token.command(name="create")
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, required=True, metavar="SCOPE[,SCOPE]",
              help=f"What it may do: {', '.join(SCOPES)}. May be given more than once.")
@click.option("--expires", "expires_s", callback=duration_s, metavar="DURATION",
              help="When it ends: 90s, 12h, 30d. Never when absent.")
def token_create(name: str, scopes: tuple[str, ...], expires_s: float | None, as_json: bool) -> None:
    """Make a token; it is shown this once."""
    wanted = [scope for given in scopes for scope in given.split(",") if scope]
    unknown = [scope for scope in wanted if scope not in SCOPES]
    if unknown or not wanted:
        raise click.BadParameter(f"{', '.join(unknown) or 'none'}: scopes are {', '.join(SCOPES)}",
                                 param_hint="--scope")
    params: dict[str, Any] = {"name": name, "scopes": wanted}
    if expires_s is not None:
        params["expires_s"] = expires_s
    made = call("tokens/create", params)
    if as_json:
        emit_json(made)
        return
    say(made["token"])
    note(f"shown this once; `witsd token revoke {made['token_id']}` ends it")


@token.command(name="list")
def token_list(as_json: bool) -> None:
    """The tokens, without their secrets."""
    found = pages("tokens/list", {}, None)
    if as_json:
        emit_json(found)
        return
    table(
        ("token", "name", "scopes", "created", "expires", "last used"),
        [
            (t["token_id"], t["name"], ",".join(t["scopes"]), when(t["created_at"]),
             when(t["expires_at"]) if t.get("expires_at") else "never", when(t.get("last_used_at")))
            for t in found["items"]
        ],
        empty="no tokens",
    )


@token.command(name="revoke")
@click.argument("token_id", metavar="TOKEN_ID")
def token_revoke(token_id: str, as_json: bool) -> None:
    """End a token and the connections that use it."""
    result = call("tokens/revoke", {"token_id": token_id})
    if as_json:
        emit_json(result)
    else:
        say(f"{one_line(token_id)} is revoked")
