"""``witsd completion``, and the names of agents for it. Must be fast: no trio, no client."""

from __future__ import annotations

import json
import os
import socket
import time

import click

from witsd.cli.base import Verb

#: A shell waits for this at each Tab.
TIMEOUT_S = 0.4
_MAX_BYTES = 1 << 20


@click.command(cls=Verb)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str, as_json: bool) -> None:
    """Print the script that completes `witsd` in SHELL.

    \b
    bash: witsd completion bash > ~/.local/share/bash-completion/completions/witsd
    zsh:  witsd completion zsh > ~/.zfunc/_witsd      (with ~/.zfunc in $fpath)
    fish: witsd completion fish > ~/.config/fish/completions/witsd.fish
    """
    from click.shell_completion import get_completion_class

    from witsd.cli.main import cli

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    script = kind(cli, {}, "witsd", "_WITSD_COMPLETE")
    # Not `source()`: for bash that runs bash to check its version and complains when it is absent.
    text = script.source_template % script.source_vars()
    click.echo(json.dumps(text) if as_json else text)


def agent_names() -> list[str]:
    """The agents the daemon knows; an empty list when it is down, slow or refuses.

    One line of JSON each way over the Unix socket, as any script may do it: a Tab must not wait for
    the client library to load.
    """
    from witsd_client.paths import Paths

    deadline = time.monotonic() + TIMEOUT_S
    request = b'{"jsonrpc":"2.0","id":1,"method":"agents/list","params":{"limit":1000}}\n'
    answer = b""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
            stream.settimeout(TIMEOUT_S)
            stream.connect(os.fspath(Paths.from_environment().socket))
            stream.sendall(request)
            while not answer.endswith(b"\n") and len(answer) < _MAX_BYTES:
                stream.settimeout(max(deadline - time.monotonic(), 0.001))
                piece = stream.recv(65_536)
                if not piece:
                    break
                answer += piece
        return [str(agent["name"]) for agent in json.loads(answer)["result"]["items"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
