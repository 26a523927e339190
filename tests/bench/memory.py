"""Memory over RPC: searches in one namespace and in all, durable adds, the first search after a start, and the disk.

What is remembered is invented (``memory_data``); the database is made once and kept (``memory_loaded``). The client is
blocking sockets, so that it costs as little as can be.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import apsw

from tests.bench import memory_peer
from tests.bench.measure import Figure, Round, Run, Sample, daemon, program, quantile
from tests.bench.memory_data import DIMENSIONS, Invention, Question
from tests.bench.memory_loaded import database, remembering
from tests.support.daemon import Daemon
from witsd.journal.store import load_vectors
from witsd.services.memory import vectors
from witsd.services.memory.words import match

#: Of the questions, which nobody has asked when the database was made.
_SEED = 2
_DEPTH = 10


def _request(question: Question, **params: Any) -> bytes:
    params = {"query": question.text, "vector": question.vector, **params}
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": "memory/search", "params": params}).encode() + b"\n"


def _ask(sock: socket.socket, request: bytes) -> bytes:
    sock.sendall(request)
    answer = sock.recv(1 << 18)
    while not answer.endswith(b"\n"):
        answer += sock.recv(1 << 18)
    if b'"items":[{' not in answer:
        raise RuntimeError(answer.decode())
    return answer


def _times_ms(sock: socket.socket, requests: Sequence[bytes]) -> list[float]:
    """Sorted."""
    took = []
    for request in requests:
        begun = time.perf_counter()
        _ask(sock, request)
        took.append((time.perf_counter() - begun) * 1000)
    return sorted(took)


class Bare:
    """The database by itself, without daemon and ranking: what SQLite takes for the same, and what is truly nearest."""

    def __init__(self, path: Path) -> None:
        self._db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        load_vectors(self._db)
        self._db.execute("PRAGMA query_only = 1; PRAGMA mmap_size = 268435456")
        among = vectors.current(vectors.generations(self._db))
        assert among is not None
        self._among = among

    def close(self) -> None:
        self._db.close()

    def search_ms(self, question: Question) -> float:
        """The two statements without which a hybrid search in one namespace cannot be, and the texts of the best."""
        packed = vectors.pack(question.vector)
        space = question.namespace + 1
        begun = time.perf_counter()
        words = self._db.execute(
            "SELECT rowid FROM memory_fts WHERE memory_fts MATCH ? ORDER BY bm25(memory_fts) LIMIT 200",
            (f"ns : n{space} AND {{own around}} : ({match(question.text)})",),
        ).fetchall()
        near = self._db.execute(
            f"SELECT rowid FROM {self._among.table} "
            "WHERE embedding MATCH vec_int8(?) AND k = 200 AND namespace = ?",
            (packed, space),
        ).fetchall()
        for (rowid,) in [*words[: _DEPTH // 2], *near[: _DEPTH // 2]]:
            self._db.execute("SELECT * FROM memories WHERE id = ?", (rowid,)).fetchall()
        return (time.perf_counter() - begun) * 1000

    def nearest(self, question: Question) -> tuple[set[str], float]:
        """The ids of the ten nearest of all, every vector looked at, and the time that took in ms."""
        begun = time.perf_counter()
        rows = self._db.execute(
            f"SELECT rowid FROM {self._among.table} WHERE embedding MATCH vec_int8(?) AND k = ?",
            (vectors.pack(question.vector), _DEPTH),
        ).fetchall()
        took = (time.perf_counter() - begun) * 1000
        ids = [self._db.execute("SELECT memory_id FROM memories WHERE id = ?", row).get for row in rows]
        return set(ids), took


@contextmanager
def _asked(path: Path) -> Iterator[tuple[Daemon, socket.socket, Bare]]:
    with remembering(path) as witsd, socket.socket(socket.AF_UNIX) as sock:
        witsd.start()
        sock.connect(str(witsd.socket))
        bare = Bare(path)
        try:
            yield witsd, sock, bare
        finally:
            bare.close()


class MemorySearch:
    """Where chromadb can be installed into an environment of its own, it is asked the same."""

    name = "memory_search"
    title = "hybrid search, the question's vector given, in a namespace of 1,000 of 100,000 memories"

    def __init__(self) -> None:
        self.figures: list[Figure] = [
            Figure(
                key="p50",
                what="median",
                unit="ms",
                best="lowest",
                limit=5,
                floor="bare",
                floor_is="FTS5 and vec0 alone, without a daemon",
            ),
            Figure(key="p95", what="p95", unit="ms", best="lowest", limit=15),
        ]

    @contextmanager
    def open(self, run: Run) -> Iterator[Round]:
        invention = Invention(100, run.scaled(1000))
        questions = Invention(100, invention.each, _SEED).questions(run.scaled(1000))
        requests = [_request(q, namespace=f"agent:a{q.namespace}") for q in questions]
        with ExitStack() as stack:
            _, sock, bare = stack.enter_context(_asked(database(100, invention.each)))
            peer = memory_peer.opened(stack, invention, questions[:: 1 if run.quick else 4])
            if isinstance(peer, str):
                print(f"\n{self.name}: no figure beside chromadb, {peer}")
            else:
                self.figures.append(
                    Figure(
                        key="p50",
                        what="beside chromadb",
                        unit="ms",
                        best="lowest",
                        limit=0.2,
                        as_ratio=True,
                        floor="chroma",
                        floor_is=f"chromadb {memory_peer.VERSION}, the namespace as its metadata filter",
                    )
                )
            _times_ms(sock, requests[:50])

            def once() -> Sample:
                took = _times_ms(sock, requests)
                floor = sorted(map(bare.search_ms, questions))
                sample = {"p50": quantile(took, 0.5), "p95": quantile(took, 0.95), "bare": quantile(floor, 0.5)}
                if not isinstance(peer, str):
                    peer.tell("go")
                    sample["chroma"] = float(peer.expect("measured").split()[0])
                return sample

            yield once


class MemoryEverywhere:
    name = "memory_everywhere"
    title = f"the same through all 100 namespaces, 100,000 memories x {DIMENSIONS}"
    figures = (
        Figure(
            key="p50",
            what="median",
            unit="ms",
            best="lowest",
            limit=20,
            floor="exact",
            floor_is="vec0 looking at every vector, without words",
        ),
        Figure(key="recall", what="of the ten truly nearest", unit="", best="highest", limit=0.95),
    )

    @contextmanager
    def open(self, run: Run) -> Iterator[Round]:
        each = run.scaled(1000)
        questions = Invention(100, each, _SEED).questions(run.scaled(400))
        requests = [_request(q) for q in questions]
        with _asked(database(100, each)) as (_, sock, bare):
            _times_ms(sock, requests[:20])

            def once() -> Sample:
                took = _times_ms(sock, requests)
                exact, found = [], 0.0
                some = questions[:100]
                for question in some:
                    nearest, took_ms = bare.nearest(question)
                    exact.append(took_ms)
                    # By meaning alone, of all that it found, so that ranking does not count.
                    answer = json.loads(_ask(sock, _request(question, mode="semantic", limit=200)))["result"]["items"]
                    answer.sort(key=lambda hit: -hit["parts"].get("meaning", 0))
                    found += len(nearest & {hit["memory_id"] for hit in answer[:_DEPTH]}) / _DEPTH
                return {"p50": quantile(took, 0.5), "exact": quantile(sorted(exact), 0.5), "recall": found / len(some)}

            yield once


class MemoryFirst:
    name = "memory_first"
    title = "the first search after the start of a daemon with 100,000 memories, nothing of its file in the page cache"
    figures = (Figure(key="first", what="the first search", unit="ms", best="lowest", limit=250),)

    @contextmanager
    def open(self, run: Run) -> Iterator[Round]:
        each = run.scaled(1000)
        question = Invention(100, each, _SEED).questions(1)[0]
        with remembering(database(100, each)) as witsd:

            def once() -> Sample:
                _forget(witsd.home / "witsd.db")
                witsd.start()
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.connect(str(witsd.socket))
                    took = _times_ms(sock, [_request(question, namespace=f"agent:a{question.namespace}")])
                witsd.stop()
                return {"first": took[0]}

            yield once


def _forget(path: Path) -> None:
    """Take a file out of the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class MemoryAdds:
    """70% of 1,000 adds and of 200 searches a second must be left of each while the other goes on."""

    name = "memory_adds"
    title = "durable adds to 100,000 memories, vectors given, 64 on their way; then with 200 searches a second going on"
    figures = (
        Figure(
            key="alone",
            what="adds",
            unit="/s",
            best="highest",
            limit=1000,
            floor="bare",
            floor_is="the same records, written in one transaction",
        ),
        Figure(key="adds", what="adds beside searches", unit="/s", best="highest", limit=700),
        Figure(key="searches", what="searches beside adds", unit="/s", best="highest", limit=140),
    )

    @contextmanager
    def open(self, run: Run) -> Iterator[Round]:
        seconds = str(run.scaled(8))
        path = database(100, run.scaled(1000))
        with (
            remembering(path) as witsd,
            program("bulk_add", str(run.folder / "bulk.db")) as bulk,
        ):
            witsd.start()
            with (
                program("use_memory", str(witsd.socket), "add", "11", "0", "100") as adder,
                program("use_memory", str(witsd.socket), "search", "12", "200", "100") as searcher,
            ):

                def once() -> Sample:
                    bulk.tell("go")
                    sample = {"bare": float(bulk.expect("measured"))}
                    adder.tell(seconds)
                    sample["alone"] = float(adder.expect("measured"))
                    adder.tell(seconds)
                    searcher.tell(seconds)
                    sample["searches"] = float(searcher.expect("measured"))
                    sample["adds"] = float(adder.expect("measured"))
                    return sample

                yield once


class MemoryDisk:
    name = "memory_disk"
    title = f"what a turn of 100 bytes takes on the disk, with its vector of {DIMENSIONS} numbers, its words, its event"
    figures = (Figure(key="bytes", what="a turn", unit="bytes", best="lowest", limit=2560),)

    @contextmanager
    def open(self, run: Run) -> Iterator[Round]:
        def once() -> Sample:
            with daemon() as witsd:
                witsd.stop()
                file = witsd.home / "witsd.db"
                before = file.stat().st_size
                witsd.start()
                count = 0
                with program("use_memory", str(witsd.socket), "add", "13", "0", "20") as adder:
                    while count < run.scaled(20_000):  # 1,000 in each namespace
                        adder.tell("2")
                        adder.expect("measured")
                        count = sum(space["records"] for space in _spaces(witsd))
                witsd.stop()
                return {"bytes": (file.stat().st_size - before) / count}

        yield once


def _spaces(witsd: Daemon) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        page = witsd.call("memory/namespaces", cursor=cursor)
        found += page["items"]
        cursor = page.get("next_cursor")
        if cursor is None:
            return found


class MemoryLarge:
    """For ``make bench-large``: making the database takes a quarter of an hour, once."""

    name = "memory_large"
    title = "hybrid search, the question's vector given, in a namespace of 10,000 of 1,000,000 memories"
    figures = (
        Figure(
            key="p50",
            what="median",
            unit="ms",
            best="lowest",
            limit=15,
            floor="bare",
            floor_is="FTS5 and vec0 alone, without a daemon",
        ),
        Figure(key="everywhere", what="median, through all", unit="ms", best="lowest", limit=200),
    )

    @contextmanager
    def open(self, run: Run) -> Iterator[Round]:
        each = run.scaled(10_000)
        questions = Invention(100, each, _SEED).questions(run.scaled(400))
        inside = [_request(q, namespace=f"agent:a{q.namespace}") for q in questions]
        everywhere = [_request(q) for q in questions[: len(questions) // 8]]
        with _asked(database(100, each)) as (_, sock, bare):
            _times_ms(sock, inside[:20])

            def once() -> Sample:
                return {
                    "p50": quantile(_times_ms(sock, inside), 0.5),
                    "everywhere": quantile(_times_ms(sock, everywhere), 0.5),
                    "bare": quantile(sorted(map(bare.search_ms, questions)), 0.5),
                }

            yield once
