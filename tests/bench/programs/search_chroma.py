"""A peer, run by an environment that has chromadb: ``search_chroma FOLDER VECTORS QUESTIONS``.

VECTORS: for each record its namespace's number (4 bytes) and 384 signed bytes; QUESTIONS: the number and 384 floats.
Both are made from what the daemon's database was made of. The collection is kept in FOLDER. For each line on stdin it
asks every question once, with the namespace as metadata filter, and prints the median and p95 in ms.
"""

from __future__ import annotations

import struct
import sys
import time
from pathlib import Path
from typing import Any

import chromadb  # type: ignore[import-not-found,unused-ignore]
import numpy as np  # type: ignore[import-not-found,unused-ignore]

_DIMENSIONS = 384
_AT_ONCE = 5000


def filled(folder: Path, path: Path) -> Any:
    collection = chromadb.PersistentClient(str(folder)).get_or_create_collection("memory")
    data = path.read_bytes()
    size = 4 + _DIMENSIONS
    total = len(data) // size
    for first in range(collection.count(), total, _AT_ONCE):
        last = min(first + _AT_ONCE, total)
        records = [data[n * size : (n + 1) * size] for n in range(first, last)]
        collection.add(
            ids=[str(n) for n in range(first, last)],
            embeddings=np.array([np.frombuffer(r[4:], dtype="int8") / 127 for r in records], dtype="float32"),
            metadatas=[{"namespace": struct.unpack("<i", r[:4])[0]} for r in records],
        )
    return collection


def main() -> None:
    collection = filled(Path(sys.argv[1]), Path(sys.argv[2]))
    data = Path(sys.argv[3]).read_bytes()
    form = struct.Struct(f"<i{_DIMENSIONS}f")
    questions = [(n, [vector]) for n, *vector in form.iter_unpack(data)]
    print("ready", flush=True)
    for _ in sys.stdin:
        took = []
        for namespace, vectors in questions:
            begun = time.perf_counter()
            found = collection.query(query_embeddings=vectors, n_results=10, where={"namespace": namespace})
            took.append((time.perf_counter() - begun) * 1000)
            assert len(found["ids"][0]) == 10
        took.sort()
        print("measured", took[len(took) // 2], took[int(len(took) * 0.95)], flush=True)


main()
