"""Foreign code in the sandbox: a call of ``python`` from end to end, beside the interpreter alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.bench.measure import Figure, Round, Run, Sample, daemon, quantile


class SandboxStart:
    name = "sandbox"
    title = "tools/call python 1 + 1, one after the other"
    figures = (
        Figure(
            key="call",
            what="median",
            unit="ms",
            best="lowest",
            limit=60,
            floor="interpreter",
            floor_is="python -I -S -c pass",
        ),
    )

    @contextmanager
    def open(self, run: Run) -> Iterator[Round]:
        interpreter = os.path.realpath(sys.executable)
        with daemon() as witsd:
            witsd.call("tools/call", name="python", arguments={"code": "1"})  # finds out which way works

            def once() -> Sample:
                took: dict[str, list[float]] = {"call": [], "interpreter": []}
                for _ in range(run.scaled(60)):
                    begun = time.perf_counter()
                    subprocess.run([interpreter, "-I", "-S", "-c", "pass"], check=True)
                    between = time.perf_counter()
                    answer = witsd.call("tools/call", name="python", arguments={"code": "1 + 1"})
                    took["call"].append((time.perf_counter() - between) * 1000)
                    took["interpreter"].append((between - begun) * 1000)
                    assert answer["structured_content"]["value"] == "2", json.dumps(answer)
                return {name: quantile(sorted(each), 0.5) for name, each in took.items()}

            yield once
