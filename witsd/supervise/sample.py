"""What an agent's processes use at one moment."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class Sample(msgspec.Struct, frozen=True, gc=False):
    """The whole tree of one agent. A struct, not an attrs class: one is made for each agent each second.

    ``at``: seconds since boot (``CLOCK_BOOTTIME``). ``cpu_percent``: of one core, since the sample before.
    ``rss_bytes`` counts a page that processes share once for each. ``read_bytes`` and ``write_bytes`` went
    from and to storage since the agent was first sampled; they never fall, also when processes end.
    """

    at: float
    cpu_percent: float
    rss_bytes: int
    fds: int
    threads: int
    processes: int
    read_bytes: int
    write_bytes: int


def together(samples: Sequence[Sample]) -> Sample | None:
    """What several process trees of one agent use; None of none."""
    if len(samples) < 2:
        return samples[0] if samples else None
    first, *rest = (msgspec.structs.astuple(sample) for sample in samples)
    at, *figures = zip(first, *rest, strict=True)
    return Sample(max(at), *map(sum, figures))
