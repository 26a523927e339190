"""``witsd model``: the models behind the gateway."""

from __future__ import annotations

import click

from witsd.cli.base import Noun
from witsd.cli.connect import pages
from witsd.cli.output import emit_json, table


@click.group(cls=Noun)
def model() -> None:
    """The models behind the gateway."""


@model.command(name="list")
def model_list(as_json: bool) -> None:
    """The models, and why one is not available."""
    found = pages("models/list", {}, None)
    if as_json:
        emit_json(found)
        return
    table(
        ("model", "provider", "kind", "default", "available", "about"),
        [
            (m["name"], m["provider"], m["kind"], "yes" if m["default"] else "",
             "yes" if m["available"] else "no", m.get("reason", ""))
            for m in found["items"]
        ],
        empty="no models",
    )
