"""What the last daemon knew of its agents, from the rows that units keep."""

from __future__ import annotations

from collections.abc import Mapping

import apsw
import msgspec

from witsd.supervise.identity import Identity, kill_recorded
from witsd.supervise.lifecycle import Lifecycle
from witsd.values.spec import AgentSpec

#: Why an agent is down that was up when its daemon was asked to end.
SHUTDOWN = "the daemon is stopping"


class Remembered(msgspec.Struct, frozen=True):
    """What the last daemon knew of an agent."""

    life: Lifecycle
    #: It was up, or was to be, when that daemon ended.
    wanted: bool
    identity: Identity | None
    #: The last definition that was good; None where this version cannot read it any more.
    spec: AgentSpec | None

    @property
    def foreign(self) -> bool:
        """Its process was watched, and nobody's here to end."""
        return self.spec is not None and self.spec.kind == "external"


def remembered(db: apsw.Connection, now: float, wall_us: int) -> dict[str, Remembered]:
    """The agents table as the last daemon left it, its times brought to this daemon's clock."""
    found = {}
    for name, spec, state, reason, restarts, pid, start, boot, history in db.execute(
        "SELECT name, spec, state, reason, restarts, pid, start_time, boot_id, history FROM agents"
    ):
        exits = tuple(min(now, now - (wall_us - t) / 1e6) for t in msgspec.json.decode(history, type=list[int]))
        # Only a failure outlives the daemon: what ran was ended by its death, which counts against nobody.
        failed = state == "failed"
        life = Lifecycle(
            state="failed" if failed else "inactive",
            reason=reason if failed else "",
            restarts=restarts,
            exits=exits,
        )
        try:
            last_good = msgspec.json.decode(spec, type=AgentSpec)
        except msgspec.ValidationError:
            last_good = None
        wanted = state in ("starting", "active", "backoff") or reason == SHUTDOWN
        identity = Identity(pid, start, boot) if pid is not None else None
        found[name] = Remembered(life, wanted, identity, last_good)
    return found


def end_hidden(old: Mapping[str, Remembered]) -> list[str]:
    """End what no sweep has found, as it took off its mark, by its recorded identity; whose it was. Blocks."""
    # Where the definition cannot be read any more, nobody knows that the process was not just watched.
    ours = {name: known.identity for name, known in old.items() if known.spec is not None and not known.foreign}
    return [name for name, identity in ours.items() if identity is not None and kill_recorded(identity)]
