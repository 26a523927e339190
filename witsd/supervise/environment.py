"""An agent's environment: built from nothing, so that no key of the daemon's leaks into it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from witsd.supervise.identity import AGENT, MARK
from witsd.supervise.instances import instance_of
from witsd.values.spec import AgentSpec

#: What says who and where the user is, and nothing else.
_TAKEN_OVER = ("HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR")


def working_folder(spec: AgentSpec) -> Path:
    """Where the agent's process starts. ``~nobody`` stays as it is, and is then a folder that does not exist."""
    return Path(os.path.expanduser(spec.cwd))


def build(
    spec: AgentSpec,
    *,
    mark: str,
    socket: Path,
    run_dir: Path,
    daemon: Mapping[str, str],
    given: Mapping[str, str],
) -> dict[str, str]:
    """The variables ``spec``'s process gets; ``daemon`` is the daemon's own environment.

    ``given`` is what it is lent, for as long as it lives: its definition may say otherwise.
    """
    env = {name: daemon[name] for name in _TAKEN_OVER if name in daemon}
    # The daemon's own bin folder comes first, so that ``python`` finds the SDK.
    env["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), daemon.get("PATH", os.defpath)))
    env["PYTHONUNBUFFERED"] = "1"
    env["WITSD_LISTEN_UNIX"] = str(socket)
    env["WITSD_RUN_DIR"] = str(run_dir)
    env |= given
    env |= {name: daemon[name] for name in spec.pass_env if name in daemon}
    env |= spec.env
    env[AGENT] = spec.name
    if place := instance_of(spec.name):
        env["WITSD_AGENT_INSTANCE"] = place
    env[MARK] = mark
    return env
