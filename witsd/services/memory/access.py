"""Who may use which namespace, and how far what they write is trusted."""

from __future__ import annotations

from collections.abc import Callable

from witsd.journal.journal import Tx
from witsd.services.memory.records import TRUST
from witsd.values.actor import Actor
from witsd.values.errors import InvalidParams, PermissionDenied
from witsd.values.spec import MemoryTrust
from witsd.values.wire import memory as wire

#: The agent that a session is with; None where there is no such session.
AgentOf = Callable[[str], str | None]


def agent_of(tx: Tx) -> AgentOf:
    """Who a session is with, as a write transaction sees it."""

    def find(session_id: str) -> str | None:
        found = tx.execute("SELECT agent FROM sessions WHERE session_id = ?", (session_id,))
        return found[0][0] if found else None

    return find


def may_use(actor: Actor, namespace: str, agent_of: AgentOf) -> bool:
    """An agent has its own namespace and those of its sessions; others by ``grants.memory``. A person has all."""
    if actor.agent is None or namespace == f"agent:{actor.agent}" or actor.granted("memory", namespace):
        return True
    kind, _, name = namespace.partition(":")
    return kind == "session" and agent_of(name) == actor.agent


def require(actor: Actor, namespace: str, agent_of: AgentOf) -> None:
    """Raises ``PermissionDenied``, whether the namespace is there or not."""
    if namespace.endswith("\n"):  # which `$` of a pattern lets pass
        raise InvalidParams("params.namespace: holds a newline", path="params.namespace")
    if not may_use(actor, namespace, agent_of):
        raise PermissionDenied(
            f"{actor.label} may not use the memory {namespace!r}: add it to [grants] memory of its definition",
            needs=f"grants.memory:{namespace}",
        )


def least_trust(actor: Actor) -> int:
    """What an agent's grants ask for; nothing less reaches it."""
    return 0 if actor.agent is None else TRUST[actor.grants.memory_trust]


def trust_for(actor: Actor, asked: MemoryTrust | None, source: wire.MemorySource | None, least_source: int) -> int:
    """How far a new text is trusted: no more than who writes it, where it comes from, and what it was made of."""
    most = TRUST["person"] if actor.agent is None else TRUST["agent"]
    if asked is not None and TRUST[asked] > most:
        raise InvalidParams(f"params.trust: {actor.label} cannot vouch for more than itself", path="params.trust")
    trust = most if asked is None else TRUST[asked]
    if asked is None and source is not None:
        if isinstance(source.url, str):
            trust = TRUST["untrusted"]
        elif isinstance(source.tool, str):
            trust = min(trust, TRUST["tool"])
    return min(trust, least_source)
