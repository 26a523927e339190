"""``write_lines BYTES LINES_AT_A_TIME GO``: numbered lines of 100 bytes on stdout, as fast as they are taken.

They are made beforehand; GO is a FIFO, and its end says when to begin. Run as a file with ``python -I -S``.
"""

import os
import sys

LINE = 100


def main() -> None:
    size, at_a_time, go = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    text = "INFO worker.pool request handled status=200 path=/v1/items/42 client=10.0.0.7 ms=13 id="
    lines = b"".join(
        f"{number:09d} {text}".ljust(LINE - 1)[: LINE - 1].encode() + b"\n" for number in range(size // LINE)
    )
    chunk = at_a_time * LINE
    with open(go, "rb") as begin:
        begin.read()
    view = memoryview(lines)
    for start in range(0, len(lines), chunk):
        rest = view[start : start + chunk]
        while rest:
            rest = rest[os.write(1, rest) :]


main()
