"""``[alerts]`` of an agent's definition: thresholds at which somebody wants to know."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class Alerts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An alert is raised when its figure reaches the threshold. What is not set raises none.

    ``cpu_percent`` is of one core, ``error_rate`` from 0 to 1 over the last five minutes, ``restarts`` those since
    it was started by hand, ``silence_s`` how long an active agent has neither written nor answered anything.
    """

    cpu_percent: Annotated[float, Meta(gt=0)] | None = None
    memory_bytes: Annotated[int, Meta(gt=0)] | None = None
    error_rate: Annotated[float, Meta(gt=0, le=1)] | None = None
    restarts: Annotated[int, Meta(gt=0)] | None = None
    silence_s: Annotated[float, Meta(gt=0)] | None = None
