"""What can be looked at while no daemon answers: a composition root beside ``daemon``, for ``witsd doctor``.

``python -m witsd.doctor`` prints one report as JSON, the shape of ``system/doctor``. It changes nothing.
"""

from __future__ import annotations

import os
import socket
import stat
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec
from witsd_client.paths import MAX_SOCKET_PATH, Paths

from witsd.door.listen import ListenError, bind_tcp, holder_of
from witsd.journal.cipher import configured
from witsd.journal.migrations import SchemaError
from witsd.services import doctor
from witsd.supervise import definitions
from witsd.supervise.sandbox_ways import find
from witsd.values.clock import SystemClock
from witsd.values.config import ConfigError, Settings, load
from witsd.values.wire.doctor import DoctorItem, DoctorReport


def examine(env: Mapping[str, str], *, now_us: int) -> DoctorReport:
    """Everything but what only a daemon knows (the state of agents, its own descriptors, containment)."""
    paths = Paths.from_environment(env)
    settings, said = _settings(paths, env)
    walls = find(settings.sandbox.way, allow_none=settings.sandbox.allow_none)
    items = doctor.machine(doctor.Machine(env=env), walls)
    items.append(said)
    items += doctor.folders(paths)
    holder, here = _daemon(paths.socket)
    items += here
    if holder is None:
        items.append(_port(settings))
    try:
        cipher = configured(settings.journal.key_file, settings.journal.key_command, paths.config_dir)
        items += doctor.database(paths.database, now_us=now_us, cipher=cipher)
    except SchemaError as error:
        items.append(DoctorItem(name="database", status="problem", message=str(error)))
    found = definitions.load(paths.agents_dir)
    items.append(doctor.descriptors(settings.limits.connections, len(found.specs)))
    items += doctor.definitions(paths.agents_dir, found.errors, len(found.specs))
    return DoctorReport(daemon="down", items=tuple(items))


def _settings(paths: Paths, env: Mapping[str, str]) -> tuple[Settings, DoctorItem]:
    try:
        loaded = load(paths.config_file, env)
    except ConfigError as error:
        hint = "mend it: the daemon does not start with a wrong setting"
        return Settings(), DoctorItem(name="settings", status="problem", message=str(error), hint=hint)
    given = sum(origin != "default" for origin in loaded.origins.values())
    message = f"{paths.config_file}{'' if paths.config_file.exists() else ' (not there)'}, {given} not the default"
    return loaded.settings, DoctorItem(name="settings", status="ok", message=message)


def _daemon(path: Path) -> tuple[int | None, list[DoctorItem]]:
    """Whether one is there after all, and what is at the place of its socket."""
    holder = holder_of(path)
    if holder is not None:
        message = f"pid {holder} holds {path} and does not answer"
        hint = f"is it stopped, or busy? See `ps -o stat,wchan,time -p {holder}`; kill {holder} ends it"
        return holder, [DoctorItem(name="daemon", status="problem", message=message, hint=hint)]
    down = DoctorItem(
        name="daemon", status="warning", message="none is running: what only it knows was not looked at",
        hint="witsd up, or `witsd service install`",
    )
    return None, [down, _left_socket(path)]


def _left_socket(path: Path) -> DoctorItem:
    name = "socket"
    length = len(os.fsencode(path))
    if length > MAX_SOCKET_PATH:
        message = f"{path} is {length} bytes long, and a socket's path may have {MAX_SOCKET_PATH}"
        return DoctorItem(name=name, status="problem", message=message, hint="set WITSD_LISTEN_UNIX to a shorter one")
    try:
        info = path.lstat()
    except FileNotFoundError:
        return DoctorItem(name=name, status="ok", message=f"{path} is free")
    except OSError as error:
        message = f"{path}: {error.strerror}"
        return DoctorItem(name=name, status="problem", message=message, hint="set WITSD_LISTEN_UNIX")
    if not stat.S_ISSOCK(info.st_mode):
        hint = "move it away, or set WITSD_LISTEN_UNIX"
        return DoctorItem(name=name, status="problem", message=f"{path} is there and is no socket", hint=hint)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(5)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            message = f"{path} was left by a daemon that was killed; the next one takes it over"
            return DoctorItem(name=name, status="ok", message=message)
        except OSError as error:
            message = f"{path}: {error.strerror or error}"
            return DoctorItem(name=name, status="problem", message=message, hint="remove it")
    message = f"something that is no witsd, or holds no lock, listens on {path}"
    return DoctorItem(name=name, status="problem", message=message, hint="end it, or set WITSD_LISTEN_UNIX")


def _port(settings: Settings) -> DoctorItem:
    """Whether it could be had: tried, and given back at once."""
    listen = settings.listen
    if not listen.http:
        return doctor.port(None, loopback=True)
    try:
        bind_tcp(listen.http, allow_remote=listen.allow_remote).close()
    except ListenError as error:
        message, _, hint = str(error).partition(". ")
        return DoctorItem(name="port", status="problem", message=message, hint=hint or "see listen.http in witsd.toml")
    item = doctor.port(listen.http, loopback=not listen.allow_remote)
    return msgspec.structs.replace(item, message=f"{listen.http} can be had") if item.status == "ok" else item


def main() -> int:
    report = examine(dict(os.environ), now_us=SystemClock().wall_us())
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
