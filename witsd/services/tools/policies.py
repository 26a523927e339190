"""Whether a call is allowed, asked for or denied: by remembered answers, the caller's definition, the settings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
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
    said = [rule.policy for rule in rules if rule.policy is not None and fits(tool, arguments, rule)]
    for place in places:
        for name, policy in place.items():
            if policy.policy is not None and fnmatchcase(tool.name, name) and fits(tool, arguments, policy):
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


def fits(tool: Tool, arguments: Mapping[str, Any], rule: ToolPolicy) -> bool:
    """Whether any of its patterns fits; with none, everything does.

    A glob without a name fits by any argument; but to allow by every text among them, for whoever calls could put
    what fits where it does nothing.
    """
    if not rule.patterns:
        return True
    texts = [value for value in arguments.values() if value is not None and not isinstance(value, int | float)]
    for pattern in rule.patterns:
        name, equals, glob = pattern.partition("=")
        named = bool(equals) and name.isidentifier()
        wanted = _compiled(glob if named else pattern, tool.shell)
        if named:
            fit = name in arguments and wanted.fullmatch(_text(arguments[name])) is not None
        elif rule.policy == "allow" and texts:
            fit = all(wanted.fullmatch(_text(value)) for value in texts)
        else:
            fit = any(wanted.fullmatch(_text(value)) for value in arguments.values())
        if fit:
            return True
    return False


def _text(value: object) -> str:
    return value if isinstance(value, str) else _encode(value).decode()


@lru_cache(maxsize=512)
def _compiled(glob: str, shell: bool) -> re.Pattern[str]:
    any_one = _SHELL if shell else "."
    first, *rest = (any_one.join(map(re.escape, part.split("?"))) for part in glob.split("*"))
    # What stands between two stars is taken where it is met first and never looked for again: else a long argument
    # and a few stars would take for ever.
    between = "".join(f"(?>{any_one}*?{part})" for part in rest[:-1])
    return re.compile(first + between + "".join(f"{any_one}*{part}" for part in rest[-1:]), re.DOTALL)
