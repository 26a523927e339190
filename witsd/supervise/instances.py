"""Instances: ``digest@work`` is a second agent made of the definition ``digest``, with a name and a life of its own."""

from __future__ import annotations

import re

import msgspec

from witsd.values.spec import NAME_PATTERN, AgentSpec

#: In an instance's command, folder and environment this stands for what follows the ``@`` in its name.
PLACE = "%i"
_NAME = re.compile(NAME_PATTERN)


def template_of(name: str) -> str:
    """The definition that ``name`` is an instance of; "" for a name that is none."""
    return name.partition("@")[0] if "@" in name and _NAME.fullmatch(name) else ""


def instance_of(name: str) -> str:
    """What follows the ``@``; "" where there is none."""
    return name.partition("@")[2]


def instance(template: AgentSpec, name: str) -> AgentSpec:
    """``template`` as the agent ``name``. Raises ``ValueError`` where what it holds then makes no sense."""
    place = instance_of(name)
    return msgspec.structs.replace(
        template,
        name=name,
        command=tuple(part.replace(PLACE, place) for part in template.command),
        pid_file=template.pid_file.replace(PLACE, place),
        cwd=template.cwd.replace(PLACE, place),
        env={key: value.replace(PLACE, place) for key, value in template.env.items()},
    )
