"""``up``, ``down``, ``reload``, ``status`` and ``config``: the daemon itself."""

from __future__ import annotations

import os
import select
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click

from witsd.cli.base import Noun, Verb
from witsd.cli.connect import Failed, call, run
from witsd.cli.output import counts, emit_json, fields, say
from witsd.cli.text import duration, one_line, size

if TYPE_CHECKING:
    from witsd_client import Client


def _become_daemon(*args: str) -> NoReturn:
    """Replace this process with the daemon's, so that it keeps the pid a service manager knows."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "witsd.daemon", *args])  # noqa: S606  no shell is the point


@click.command(
    cls=Verb,
    context_settings={"ignore_unknown_options": True},
    add_help_option=False,
)
@click.argument("settings", nargs=-1, type=click.UNPROCESSED)
def up(settings: tuple[str, ...], as_json: bool) -> None:
    """Start the daemon in the foreground; Ctrl-C or `witsd down` ends it.

    What follows goes to the daemon as it is; --help shows its own options.
    """
    _become_daemon(*settings, *(["--json"] if as_json else []))


@click.command(cls=Verb)
@click.option("--grace", "grace_s", type=click.FloatRange(0, 3600), metavar="SECONDS",
              help="How long runs in progress may go on.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0), default=60, show_default=True,
              metavar="SECONDS", help="How long to wait for the daemon to be gone.")
def down(grace_s: float | None, timeout_s: float, as_json: bool) -> None:
    """Stop the agents, then the daemon, and wait until it is gone."""

    async def stop(client: Client) -> int:
        pid = int((await client.call("system/status", {}))["pid"])
        process = _pidfd(pid)
        await client.call("system/shutdown", {} if grace_s is None else {"grace_s": grace_s})
        return process

    process = run(stop)
    if process >= 0:
        try:
            if not select.select([process], [], [], timeout_s)[0]:
                raise Failed(
                    f"the daemon is still stopping after {timeout_s:g} s",
                    hint="its agents may need longer: `witsd down` again waits on",
                )
        finally:
            os.close(process)
    if as_json:
        emit_json({})
    else:
        say("witsd has stopped")


def _pidfd(pid: int) -> int:
    """A descriptor that becomes readable when ``pid`` ends; -1 when it has ended or cannot be seen."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1


@click.command(cls=Verb)
def reload(as_json: bool) -> None:
    """Read the definitions again; agents whose definition changed restart."""
    result = call("system/reload")
    if as_json:
        emit_json(result)
    else:
        say("changed: " + (", ".join(one_line(name) for name in result["changed"]) or "nothing"))
        if waiting := ", ".join(one_line(name) for name in result.get("restart_for", ())):
            say(f"witsd.toml has changed ({waiting}): that takes effect with a restart: `witsd up --replace`", err=True)
        if "settings_error" in result:
            say(one_line(f"the settings cannot be read, so a restart would fail: {result['settings_error']}"), err=True)
    if result["errors"]:
        if not as_json:
            for error in result["errors"]:
                place = f"{error['file']}:{error['line']}" if error["line"] else error["file"]
                say(one_line(f"{place}: {error['message']}"), err=True)
        raise Failed(
            f"{len(result['errors'])} of the definitions cannot be used; the last good ones go on",
            hint="mend them and `witsd reload` again",
        )


@click.command(cls=Verb)
def status(as_json: bool) -> None:
    """How the daemon is doing and where it listens."""
    result: dict[str, Any] = call("system/status")
    if as_json:
        emit_json(result)
        return
    listening = result["listening"]
    journal = result["journal"]
    http = listening.get("http")
    fields([
        ("witsd", f"{result['version']}, pid {result['pid']}, up {duration(result['uptime_s'])}"),
        ("socket", listening["unix"]),
        ("http", f"http://{http}" if http else "off"),
        ("agents", counts(result["agents"])),
        ("runs", counts(result["runs"])),
        ("sessions", result["sessions"]),
        ("memory", size(result["rss_bytes"])),
        ("database", f"{size(result['db_bytes'])}, {journal['events']} events"),
    ])


@click.group(cls=Noun)
def config() -> None:
    """The settings and where each comes from."""


@config.command(name="show")
def config_show(as_json: bool) -> None:
    """Every setting, its value and where that came from. Needs no running daemon."""
    _become_daemon("--show-config", *(["--json"] if as_json else []))
