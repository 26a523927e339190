"""The tool section of the settings: each ``[tools.NAME]`` of ``witsd.toml``."""

from __future__ import annotations

from typing import Any, Literal

import attrs

from witsd.values.spec import ToolPolicy


@attrs.frozen(kw_only=True)
class ToolConfig:
    """As ``ToolPolicy``, for the agents whose definition says nothing of it. Raises ``ValueError`` naming the field."""

    name: str
    policy: Literal["allow", "ask", "deny"] | None = None
    patterns: tuple[str, ...] = ()
    options: dict[str, Any] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        _ = self.as_policy

    @property
    def as_policy(self) -> ToolPolicy:
        return ToolPolicy(policy=self.policy, patterns=self.patterns, options=self.options)
