"""What the daemon says to the person at the terminal and to a service manager, and `witsd config show`."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from pathlib import Path

import attrs
import msgspec
from witsd_client.paths import Paths

from witsd import __version__
from witsd.notify import Notifier
from witsd.values.config import Loaded
from witsd.values.wire.system import Listening

log = logging.getLogger("witsd")


@attrs.define(eq=False)
class Announce:
    """Readiness for a service manager (``sd_notify``) and for the person at the terminal."""

    env: dict[str, str]
    as_json: bool
    manager: Notifier = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.manager = Notifier.of(self.env)

    def ready(self, listening: Listening) -> None:
        log.info("daemon.ready unix=%s http=%s", listening.unix, listening.http or "-")
        if self.as_json:
            fields = {"pid": os.getpid(), "listening": msgspec.to_builtins(listening)}
            print(json.dumps(fields), flush=True)
        elif "INVOCATION_ID" not in self.env:  # systemd's journal needs no such help
            print(self._welcome(listening), flush=True)
        # Last: whoever waits for it finds all of this said.
        self.manager.ready("listening")

    def stopping(self) -> None:
        self.manager.stopping()

    def _welcome(self, listening: Listening) -> str:
        command = shlex.quote(str(Path(sys.executable).parent / "witsd"))
        for name in ("WITSD_HOME", "WITSD_LISTEN_UNIX"):
            if name in self.env:  # to be typed in any folder
                where = Path(self.env[name]).expanduser().absolute()
                command = f"{name}={shlex.quote(str(where))} {command}"
        http = f" and http://{listening.http}" if isinstance(listening.http, str) else ""
        return (
            f"\nwitsd {__version__} is up. It listens on {listening.unix}{http}\n\n"
            f"In another terminal:\n"
            f'  {command} ask assistant "What can you do?"\n'
            f"  {command} chat assistant\n"
            f"  {command} status\n\n"
            "Ctrl-C stops it and everything it runs.\n"
        )


def show_config(loaded: Loaded, paths: Paths, as_json: bool) -> int:
    """Print every setting, its value, and where it came from. Exit status: 1 where the reader left before the end."""
    try:
        print(_settings_text(loaded, paths, as_json), flush=True)
    except BrokenPipeError:
        # The interpreter flushes once more as it ends, and is not to fail there either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _settings_text(loaded: Loaded, paths: Paths, as_json: bool) -> str:
    table = msgspec.to_builtins(loaded.settings)
    rows = []
    for name, origin in loaded.origins.items():
        section, key = name.split(".")
        value = table[section][key]
        if name == "listen.unix" and not value:
            value = str(paths.socket)
        rows.append({"name": name, "value": value, "origin": origin})
    rows += [
        {"name": f"providers.{provider.name}", "value": provider.kind, "origin": str(paths.config_file)}
        for provider in loaded.settings.models.providers
    ]
    if as_json:
        return json.dumps({"file": str(paths.config_file), "settings": rows}, indent=2)
    width = max(len(row["name"]) for row in rows)
    head = f"# {paths.config_file}" + ("" if paths.config_file.exists() else " (not there: all defaults)")
    return "\n".join(
        [head, *(f"{row['name']:<{width}} = {json.dumps(row['value'])}   # {row['origin']}" for row in rows)]
    )
