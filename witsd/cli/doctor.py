"""``witsd doctor``: everything that may go wrong, and what to do about it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from typing import Any

import click

from witsd.cli.base import FAILED, Verb
from witsd.cli.connect import Failed, bare
from witsd.cli.output import coloured, emit_json, note, say
from witsd.cli.text import one_line

#: The daemon reads its whole database for at most five of these seconds.
_PATIENCE_S = 60.0
_COLOUR = {"ok": "\x1b[32m", "warning": "\x1b[33m", "problem": "\x1b[31m"}


@click.command(cls=Verb)
@click.option("--timeout", "timeout_s", type=click.FloatRange(0, min_open=True), default=_PATIENCE_S,
              show_default=True, metavar="SECONDS", help="After how long without an answer to look from outside.")
@click.pass_context
def doctor(ctx: click.Context, timeout_s: float, as_json: bool) -> None:
    """Check everything witsd needs, each line with what to do; also while the daemon is down.

    Exit status 1 when there is a problem; warnings can be lived with.
    """
    report = _asked(timeout_s) or _from_outside()
    if as_json:
        emit_json(report)
    else:
        _show(report)
    if any(item["status"] == "problem" for item in report["items"]):
        ctx.exit(FAILED)


def _asked(timeout_s: float) -> dict[str, Any] | None:
    """The daemon's own report; None when none answers, or not in time."""
    import trio
    from witsd_client import connect
    from witsd_client.errors import ConnectionLost, DaemonNotRunning

    async def ask() -> dict[str, Any] | None:
        with trio.move_on_after(timeout_s):
            async with connect(client_name="witsd") as client:
                report: dict[str, Any] = await client.call("system/doctor", {})
                return report
        return None

    try:
        return trio.run(ask)
    except (DaemonNotRunning, ConnectionLost):
        return None
    except BaseExceptionGroup as group:
        error = bare(group)
        if isinstance(error, DaemonNotRunning | ConnectionLost):
            return None
        raise error from None


def _from_outside() -> dict[str, Any]:
    """The same checks in a process of their own, since the command line itself is only a client."""
    done = subprocess.run(
        [sys.executable, "-m", "witsd.doctor"], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=_PATIENCE_S, check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise Failed(f"the installation itself is broken: {last}", hint="install witsd again")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def _show(report: dict[str, Any]) -> None:
    items = report["items"]
    width = max((len(item["name"]) for item in items), default=0)
    for item in items:
        status = f"{item['status']:<7}"
        if coloured():
            status = f"{_COLOUR.get(item['status'], '')}{status}\x1b[0m"
        say(f"{status}  {one_line(item['name']):<{width}}  {one_line(item['message'])}")
        if item.get("hint"):
            say(f"{'':<{width + 9}}  -> {one_line(item['hint'])}")
    found = Counter(item["status"] for item in items)
    parts = [f"{n} {word}{'s' if n > 1 else ''}" for word in ("problem", "warning") if (n := found[word])]
    note(", ".join(parts) or "nothing to do")
