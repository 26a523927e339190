"""What ``witsd service`` writes: the systemd unit and the launchd property list, as functions of what they say."""

from __future__ import annotations

import os
import plistlib
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from witsd_client.paths import Paths

UNIT = "witsd.service"
LABEL = "witsd"

#: What says where things are and which settings hold. Keys and tokens are in none of them.
_CARRIED = re.compile(
    r"WITSD_HOME|WITSD_(LISTEN|LIMITS|JOURNAL|LOGS|DAEMON|MODELS)_[A-Z_]+|XDG_(CONFIG|DATA|STATE)_HOME|PATH"
)

_PROGRAM = re.compile(r"[A-Za-z0-9_@+=:,./ -]+")
_BY_WAY_OF = ["/usr/bin/env", "--"]

#: The same as in ``systemd/witsd.service``, which says why each line is there; a test compares them.
_UNIT = """\
# Written by `witsd service install`, which writes it again; changes belong in `systemctl --user edit witsd`.
[Unit]
Description=witsd, the init system for AI agents
StartLimitIntervalSec=60
StartLimitBurst=5

[Service]
Type=notify
ExecStart={command}
{environment}ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
RestartSec=1
WatchdogSec=30
TimeoutStartSec=120
TimeoutStopSec=60
KillMode=mixed
Delegate=yes
OOMPolicy=continue
UMask=0077
LimitNOFILE=16384

[Install]
WantedBy=default.target
"""


def command(bin_folder: Path, python: str) -> list[str]:
    """How this very installation is started: its own ``witsd`` where it has one, else its Python."""
    own = bin_folder / "witsd"
    return [str(own), "up"] if os.access(own, os.X_OK) else [python, "-m", "witsd.cli.main", "up"]


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """What of the installer's environment the service keeps: a manager starts it with next to none.

    ``PATH`` is among it, so that agents find the programs that their owner finds.
    """
    return {name: env[name] for name in sorted(env) if env[name] and _CARRIED.fullmatch(name)}


def unit(start: Sequence[str], env: Mapping[str, str]) -> str:
    """The user unit."""
    # systemd refuses quotes and the like in the name of a program, though not in its arguments.
    words = start if _PROGRAM.fullmatch(start[0]) else [*_BY_WAY_OF, *start]
    # ExecStart knows $VARIABLE too; Environment= does not.
    line = " ".join(_quoted(word).replace("$", "$$") for word in words)
    lines = "".join("Environment=" + _quoted(f"{name}={value}") + "\n" for name, value in env.items())
    return _UNIT.format(command=line, environment=lines)


def _quoted(word: str) -> str:
    """One word as systemd.syntax(7) and systemd.unit(5) read it: quotes, C escapes, ``%`` specifiers."""
    if any(ord(c) < 0x20 or ord(c) == 0x7F for c in word):
        raise ValueError(f"a control character cannot stand in a unit: {word!r}")
    text = word.replace("%", "%%")
    if re.fullmatch(r"[A-Za-z0-9_@%+=:,./-]+", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def command_of(text: str) -> list[str]:
    """The command in a unit written by ``unit``; empty where there is none."""
    found = re.search(r"^ExecStart=(.*)$", text, re.MULTILINE)
    if found is None:
        return []
    try:
        words = [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(found[1])]
    except ValueError:
        return []
    return words[2:] if words[:2] == _BY_WAY_OF else words


def property_list(start: Sequence[str], env: Mapping[str, str], paths: Paths) -> bytes:
    """The launch agent: up at login, restarted unless it ended in order."""
    output = str(paths.log_dir / "daemon.log")
    return plistlib.dumps(
        {
            "Label": LABEL,
            "ProgramArguments": list(start),
            "EnvironmentVariables": dict(env),
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": 5,
            "ExitTimeOut": 60,
            "Umask": 0o077,
            "SoftResourceLimits": {"NumberOfFiles": 16384},
            "StandardOutPath": output,
            "StandardErrorPath": output,
        }
    )
