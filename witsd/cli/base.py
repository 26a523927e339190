"""What all commands share: ``--json`` anywhere, errors to exit statuses, hints for wrong usage."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

FAILED, USAGE, NO_DAEMON, INTERRUPTED = 1, 2, 3, 130


class Verb(click.Command):
    """A command with ``--json`` whose errors end in a message and an exit status, never a traceback."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(["--json", "as_json"], is_flag=True, help="Print the result alone, as JSON.")
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if any(isinstance(p, click.Argument) and p.nargs == -1 for p in self.params):
                hint = " Put `--` before words that are not options of witsd."
                raise click.UsageError(error.format_message() + hint, ctx) from None
            raise

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:  # noqa: BLE001  the boundary of the command line; `report` re-raises bugs
            from witsd.cli.connect import report

            ctx.exit(report(error, as_json=bool(ctx.params.get("as_json"))))


class Noun(click.Group):
    """A group whose verbs are ``Verb``; a ``--json`` in front of the verb counts as the verb's."""

    command_class = Verb

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ahead = 0
        while ahead < len(args) and args[ahead] == "--json":
            ahead += 1
        if ahead and ahead < len(args):
            args = [args[ahead], "--json", *args[ahead + 1 :]]
        return super().parse_args(ctx, args)


Noun.group_class = Noun


def complete_agents(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of agents, asked of the daemon; none when it is down or slow."""
    from witsd.cli.completion import agent_names

    return [name for name in agent_names() if name.startswith(incomplete)]


def agent_argument(name: str = "name", **kwargs: Any) -> Callable[[Any], Any]:
    """An argument that is an agent's name, with completion."""
    return click.argument(name, metavar=name.upper(), shell_complete=complete_agents, **kwargs)


_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def duration_s(_ctx: click.Context, _param: click.Parameter, value: str | None) -> float | None:
    """The callback of an option that takes seconds, or a number with s, m, h or d: ``12h``."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", value)
    if not found or float(found[1]) <= 0:
        raise click.BadParameter(f"{value!r} is no duration: say 90s, 30m, 12h or 30d")
    return float(found[1]) * _UNIT_S[found[2] or "s"]


def limit_option(default: int) -> Callable[[Any], Any]:
    """``-n``: how many at most."""
    return click.option(
        "-n", "--limit", type=click.IntRange(min=1), default=default, show_default=True,
        help="How many at most.",
    )
