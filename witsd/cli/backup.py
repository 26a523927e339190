"""``witsd backup`` and ``witsd restore``: the database as one file, out while it is in use and in while it is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from witsd.cli.base import Verb
from witsd.cli.connect import Failed, run
from witsd.cli.output import emit_json, note, say
from witsd.cli.progress import Bar
from witsd.cli.text import one_line, size

if TYPE_CHECKING:
    from witsd_client import Client


@click.command(cls=Verb)
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace the file that is there.")
def backup(path: Path, force: bool, as_json: bool) -> None:
    """Copy the database to FILE: sessions, runs, memory, tokens. The daemon goes on working meanwhile.

    Definitions and settings are files of yours already and are not in it.
    """
    target = str(path.absolute())

    async def make(client: Client) -> dict[str, Any]:
        with Bar("copying the database", quiet=as_json) as shown:

            def progress(said: Any) -> None:
                shown(int(said.progress or 0), int(said.total or 0))

            params = {"path": target, "force": force}
            made: dict[str, Any] = await client.call("system/backup", params, progress=progress)
            return made

    made = run(make)
    if as_json:
        emit_json(made)
        return
    say(one_line(f"{made['path']}: {size(made['bytes'])}, whole and checked"))
    note("`witsd restore FILE` puts it in the place of the database; keep it as safe as the database itself")


@click.command(cls=Verb)
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
def restore(path: Path, as_json: bool) -> None:
    """Put a backup in the place of the database, which is kept under another name. The daemon must be down."""
    done = subprocess.run(
        [sys.executable, "-m", "witsd.restore", str(path.absolute())], stdin=subprocess.DEVNULL, capture_output=True,
        text=True, check=False,
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        hint = "stop it first: witsd down" if "already running" in said else ""
        raise Failed(said, hint=hint)
    found = json.loads(done.stdout)
    if as_json:
        emit_json(found)
        return
    say(one_line(f"{found['restored']} is the database now ({size(found['bytes'])}); start the daemon: witsd up"))
    if found["kept"] is not None:
        note(f"the database that was there is kept as {found['kept']}")
