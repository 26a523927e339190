"""Who is calling, and what that lets them do."""

from __future__ import annotations

import enum
from fnmatch import fnmatchcase
from typing import Literal

import msgspec

from witsd.values.errors import PermissionDenied
from witsd.values.ids import AgentName
from witsd.values.spec import Grants


class Scope(enum.StrEnum):
    """What a token may do. ``admin`` contains no other: an owner simply holds all."""

    READ = "read"
    CHAT = "chat"
    MEMORY = "memory"
    TOOLS = "tools"
    APPROVE = "approve"
    AGENTS = "agents"
    ADMIN = "admin"


class Actor(msgspec.Struct, frozen=True, kw_only=True):
    """A caller as the door saw it.

    ``label`` is what the audit stream shows: ``owner``, ``token:NAME``, ``browser``, ``agent:NAME``.
    An agent has no scopes at all: it may call what the method table opens to agents, within ``grants``.
    """

    kind: Literal["owner", "client", "agent", "anonymous"]
    label: str
    scopes: frozenset[Scope] = frozenset()
    agent: AgentName | None = None
    grants: Grants = msgspec.field(default_factory=Grants)
    #: What revokes this actor while it is connected: a token's or a browser session's id.
    credential: str | None = None

    @property
    def identity(self) -> str:
        """Who it is for good: two tokens of one name are two callers."""
        return self.credential or self.label

    def require(self, scope: Scope) -> None:
        """Raises ``PermissionDenied`` naming the scope unless the actor holds it."""
        if scope not in self.scopes:
            raise PermissionDenied(
                f"{self.label} may not do this: it needs the scope '{scope.value}'",
                needs=scope.value,
            )

    def granted(self, what: Literal["tools", "memory", "models", "agents"], name: str) -> bool:
        """Whether an agent's grants cover ``name``; anyone who is no agent is bound by scopes alone."""
        if self.agent is None:
            return True
        patterns: tuple[str, ...] = getattr(self.grants, what)
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    def require_grant(self, what: Literal["tools", "memory", "models", "agents"], name: str) -> None:
        """Raises ``PermissionDenied`` naming the missing grant."""
        if not self.granted(what, name):
            raise PermissionDenied(
                f"{self.label} may not use {name!r}: add it to [grants] {what} of its definition",
                needs=f"grants.{what}:{name}",
            )


OWNER = Actor(kind="owner", label="owner", scopes=frozenset(Scope))
ANONYMOUS = Actor(kind="anonymous", label="anonymous")
