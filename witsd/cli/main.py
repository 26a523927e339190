"""``witsd``: the root command. Each noun is a module of its own, imported when it is called for."""

from __future__ import annotations

import io
import os
import sys
from importlib import import_module
from typing import Any

import click

from witsd.cli import base

#: Command -> where it is and what it does, so that neither help nor completion imports the others.
COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("witsd.cli.daemon:up", "Start the daemon in the foreground."),
    "down": ("witsd.cli.daemon:down", "Stop the agents and the daemon."),
    "reload": ("witsd.cli.daemon:reload", "Read the definitions again."),
    "status": ("witsd.cli.daemon:status", "How the daemon is doing and where it listens."),
    "config": ("witsd.cli.daemon:config", "The settings and where each comes from."),
    "agent": ("witsd.cli.agent:agent", "List, define, start, stop and watch agents."),
    "top": ("witsd.cli.top:top", "The agents and what they use, live, with keys to control them."),
    "ask": ("witsd.cli.ask:ask", "Ask an agent; the answer streams as it is produced."),
    "chat": ("witsd.cli.chat:chat", "A conversation with an agent that goes on where it was left."),
    "run": ("witsd.cli.run:run", "The pieces of work agents were given."),
    "session": ("witsd.cli.session:session", "The conversations."),
    "memory": ("witsd.cli.memory:memory", "What is remembered: add, search, list, delete."),
    "tool": ("witsd.cli.tool:tool", "The tools: which there are, and calling one."),
    "approval": ("witsd.cli.approval:approval", "What a person is asked before a tool acts."),
    "model": ("witsd.cli.model:model", "The models behind the gateway."),
    "token": ("witsd.cli.token:token", "Scoped tokens for programs."),
    "events": ("witsd.cli.events:events", "What has happened, and what happens now."),
    "rpc": ("witsd.cli.rpc:rpc", "Call any method of the protocol."),
    "backup": ("witsd.cli.backup:backup", "Copy the database to a file while it is in use."),
    "restore": ("witsd.cli.backup:restore", "Put a backup in the place of the database."),
    "doctor": ("witsd.cli.doctor:doctor", "Check everything witsd needs, and say what to do."),
    "service": ("witsd.cli.service:service", "Have the machine start the daemon and keep it up."),
    "completion": ("witsd.cli.completion:completion", "Print the script that completes `witsd` in a shell."),
}


class Root(base.Noun):
    """The root group: knows the names of the commands, imports one only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        return [
            CompletionItem(name, help=summary)
            for name, (_, summary) in COMMANDS.items()
            if name.startswith(incomplete)
        ]


def version() -> str:
    """The version of the installed distribution; from a source tree that of its client, which is the same."""
    from importlib import metadata  # for this alone, and not quick to load

    try:
        return metadata.version("witsd")
    except metadata.PackageNotFoundError:
        from witsd_client import __version__

        return __version__


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"witsd {version()}")
        ctx.exit()


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """The init system for AI agents: start, supervise and talk to background agents.

    \b
    witsd up                          start the daemon in this terminal
    witsd ask assistant "Hello"       ask, and see the answer as it is produced
    witsd agent add NAME -- COMMAND   add a program that speaks the protocol as
                                      an agent; --kind exec: any command

    Every command takes --json. Exit status: 0 done, 1 failed, 2 usage, 3 no daemon.
    """


def main() -> None:
    """Entry point of the installed command. Exits; never shows a traceback for what can be expected."""
    # A descriptor that was closed for us leaves None, and its number to the next thing we open.
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115 - open to the end
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - open to the end
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115 - open to the end
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)  # what is not UTF-8 must not end us
    try:
        # Also what ends us quietly, with status 1, when whoever reads our output has enough.
        status = cli.main(prog_name="witsd", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        status = base.INTERRUPTED
    sys.exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
