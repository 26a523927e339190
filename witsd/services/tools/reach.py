"""What a tool may use of the daemon: its other services."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from witsd.services.memory.memory import Memory
    from witsd.services.runs import Runs
    from witsd.supervise.sandbox import Sandboxes
    from witsd.supervise.supervisor import Supervisor


@attrs.frozen(kw_only=True)
class Reach:
    """The services that built-in tools speak for: each call goes through with the actor of the context."""

    supervisor: Supervisor
    runs: Runs
    memory: Memory
    sandboxes: Sandboxes
