"""``witsd service``: have the machine's service manager start the daemon and keep it up."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from witsd.cli.base import Noun
from witsd.cli.connect import Failed
from witsd.cli.output import emit_json, fields, note, say
from witsd.cli.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from witsd.cli.service_managers import Manager, Status, Step


def manager_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--manager",
        "kind",
        type=click.Choice(["systemd", "launchd"]),
        default="launchd" if sys.platform == "darwin" else "systemd",
        show_default=True,
        help="Which service manager.",
    )(command)


@click.group(cls=Noun)
def service() -> None:
    """Have systemd (or launchd) start the daemon and keep it up."""


@service.command()
@manager_option
@click.option(
    "--linger/--no-linger",
    default=True,
    show_default=True,
    help="Have it go on after logout, and come up before login (systemd).",
)
@click.option("--as-root", is_flag=True, help="Install root's own daemon; agents then run as root.")
def install(kind: str, linger: bool, as_root: bool, as_json: bool) -> None:
    """Write the unit for this installation, enable it and start it. Repeated, it mends what differs."""
    if os.geteuid() == 0 and not as_root:
        raise Failed(
            "this would run agents as root",
            hint="run it as the user whose agents they are; for a system service see systemd/witsd@.service; "
            "--as-root insists",
        )
    it = _manager(kind)
    before = it.status()
    path = _paths().socket
    if not before.active and _answers(path):
        raise Failed(
            f"a daemon that is not the service's is running already at {path}",
            hint="`witsd down`, then again",
        )
    steps = _Steps(as_json)
    it.install(steps.tell, linger=linger)
    _finish(it, steps, as_json)


@service.command()
@manager_option
def uninstall(kind: str, as_json: bool) -> None:
    """Stop the service and remove its unit. Agents, sessions and settings stay."""
    it = _manager(kind)
    steps = _Steps(as_json)
    it.uninstall(steps.tell)
    _finish(it, steps, as_json)


@service.command()
@manager_option
def status(kind: str, as_json: bool) -> None:
    """Whether the service is installed, enabled and up."""
    found = _manager(kind).status()
    if as_json:
        emit_json(_plain(found))
        return
    fields(
        [
            ("manager", found.manager),
            ("unit", found.file + ("" if found.installed else " (not there)")),
            ("enabled", "yes" if found.enabled else "no"),
            ("state", found.state + (f", pid {found.pid}" if found.pid else "")),
            ("linger", None if found.linger is None else "yes" if found.linger else "no: it stops at logout"),
        ]
    )
    if not found.installed:
        note("`witsd service install` installs it")
    elif not found.this_installation:
        note("the unit starts another installation; `witsd service install` makes it start this one")


def _manager(kind: str) -> Manager:
    from witsd.cli import service_files
    from witsd.cli.service_managers import Place, manager

    command = service_files.command(Path(sys.executable).parent, sys.executable)
    return manager(kind, Place(env=dict(os.environ), paths=_paths(), command=command))


def _paths() -> Any:
    from witsd_client.paths import Paths

    return Paths.from_environment()


def _answers(path: Path) -> bool:
    """Whether somebody accepts connections there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(5)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


class _Steps:
    """Shown as they come to a person, gathered for a program."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.told: list[Step] = []

    def tell(self, step: Step) -> None:
        self.told.append(step)
        if self.as_json:
            return
        sign = {"done": "done", "unchanged": "as is", "warning": "warning"}[step.outcome]
        say(f"{sign:<8} {one_line(step.message)}")
        if step.hint:
            say(f"         {one_line(step.hint)}")


def _finish(it: Manager, steps: _Steps, as_json: bool) -> None:
    if as_json:
        told = [{k: v for k, v in _plain(step).items() if v} for step in steps.told]
        emit_json({"steps": told, "status": _plain(it.status())})


def _plain(found: Status | Step) -> dict[str, Any]:
    import attrs

    return attrs.asdict(found)
