"""What a tool may use of the daemon: its other services."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from witsd.services.artifacts import Artifacts
    from witsd.services.memory.memory import Memory
    from witsd.services.models.keys import Secret
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
    artifacts: Artifacts
    #: The key that a tool's options name (``api_key_file``, ``api_key_env``), if any. Blocking; ``KeyUnavailable``.
    key: Callable[[Mapping[str, Any]], Secret | None]
