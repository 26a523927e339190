"""Whether a call is allowed, asked for or denied: by remembered answers, the caller's definition, the settings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

import msgspec

from witsd.services.tools.tool import Tool
from witsd.values.spec import ToolPolicy
from witsd.values.wire.tools import Policy

_encode = msgspec.json.Encoder(order="deterministic").encode
#: What a shell gives a meaning to: the ``*`` of a pattern for a command does not run over it.
_SHELL = r"[^;&|<>`$(){}\\\n\r]"


def decide(
    tool: Tool, arguments: Mapping[str, Any], rules: Iterable[ToolPolicy], *places: Mapping[str, ToolPolicy]
) -> Policy:
    """The first that says something of this call decides: a remembered answer, then each of ``places`` (by tool name or
    pattern of one), then the tool's own default. But where anything says ``deny``, it is denied.
    """
    said = [rule.policy for rule in rules if rule.policy is not None and fits(tool, arguments, rule.patterns)]
    for place in places:
        for name, policy in place.items():
            if policy.policy is not None and fnmatchcase(tool.name, name) and fits(tool, arguments, policy.patterns):
                said.append(policy.policy)
    if "deny" in said:
        return "deny"
    return said[0] if said else tool.policy


def options_of(tool: str, *places: Mapping[str, ToolPolicy]) -> dict[str, Any]:
    """The options that ``places`` give a tool; what comes first goes before."""
    found: dict[str, Any] = {}
    for place in reversed(places):
        for name, policy in place.items():
            if fnmatchcase(tool, name):
                found.update(policy.options)
    return found


def fits(tool: Tool, arguments: Mapping[str, Any], patterns: Sequence[str]) -> bool:
    """Whether any of ``patterns`` fits; with none, everything does."""
    if not patterns:
        return True
    for pattern in patterns:
        name, equals, glob = pattern.partition("=")
        named = bool(equals) and name.isidentifier()
        values = [arguments[name]] if named and name in arguments else [] if named else arguments.values()
        if any(_compiled(glob if named else pattern, tool.shell).fullmatch(_text(value)) for value in values):
            return True
    return False


def _text(value: object) -> str:
    return value if isinstance(value, str) else _encode(value).decode()


@lru_cache(maxsize=512)
def _compiled(glob: str, shell: bool) -> re.Pattern[str]:
    any_one = _SHELL if shell else "."
    wild = {"*": f"{any_one}*", "?": any_one}
    parts = (wild.get(part) or re.escape(part) for part in re.split(r"([*?])", glob))
    return re.compile("".join(parts), re.DOTALL)
