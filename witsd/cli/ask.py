"""``witsd ask``: one question, the answer streamed as it is produced."""

from __future__ import annotations

import os
import select
import stat
import sys
from typing import TYPE_CHECKING, Any

import click

from witsd.cli.base import Verb, agent_argument
from witsd.cli.calls import CHOICES, asks_line
from witsd.cli.connect import Failed, run
from witsd.cli.output import emit_json_line, is_tty, note, say
from witsd.cli.stream import RunPrinter, answer_value, decide, unanswered, watch
from witsd.cli.text import neutral

if TYPE_CHECKING:
    from witsd_client import Client

#: What a pipe brings must fit one message to the daemon, which takes 4 MiB.
STDIN_MAX_BYTES = 3 * 1024 * 1024
#: A pipe that nothing comes out of may be one our caller forgot to close: do not hang on it.
STDIN_WAIT_S = 3.0


@click.command(cls=Verb)
@agent_argument("agent")
@click.argument("text", nargs=-1)
@click.option("--session", "session_id", metavar="ID", help="Go on with this session.")
@click.option("-v", "--verbose", is_flag=True, help="Also show the model, what was recalled and other items.")
def ask(agent: str, text: tuple[str, ...], session_id: str | None, verbose: bool, as_json: bool) -> None:
    """Ask AGENT; TEXT is what to say. Ctrl-C cancels.

    What is piped in goes along as an attachment, or is the text when there is none; `-` as the last
    word waits for it however long it takes. With --json the run's events come as JSON Lines; the last one says
    how it ended.

    \b
    witsd ask digest README.md
    git diff | witsd ask assistant "Review this" -
    """
    words, attachment = _said(text)
    prompt: dict[str, Any] = {"text": words, "cwd": os.getcwd()}
    if attachment:
        prompt["attachments"] = [{"name": "stdin", "text": attachment}]
    printer = RunPrinter(_ignore if as_json else None, verbose=verbose and not as_json)

    async def go(client: Client) -> None:
        session = session_id or (await client.call("sessions/create", {"agent": agent, "origin": "ask"}))["session_id"]
        if session_id:
            await _check_agent(client, session_id, agent)
        started = await client.call("sessions/prompt", {"session_id": session, **prompt})
        run_id = started["run_id"]

        async def sink(event: dict[str, Any]) -> None:
            if as_json:
                emit_json_line(event)
            printer.feed(event)
            if printer.question is not None and event["type"] == "input.requested":
                await _answer(client, run_id, printer.question, as_json=as_json)
            if event["type"] == "approval.requested" and not as_json:
                await _decide(client, printer, event["data"]["approval"])

        await watch(client, run_id, printer, sink)

    run(go)
    failure = printer.failure()
    if failure is not None:
        raise failure


def _ignore(_text: str) -> None:
    """With --json the events are the result."""


async def _check_agent(client: Client, session_id: str, agent: str) -> None:
    found = await client.call("sessions/get", {"session_id": session_id})
    if found["agent"] != agent:
        raise Failed(
            f"session {session_id} is with {found['agent']}, not {agent}",
            hint=f"witsd ask {found['agent']} --session {session_id} ...",
        )


async def _answer(client: Client, run_id: str, question: dict[str, Any], *, as_json: bool) -> None:
    """Let the person at the terminal answer the agent. Raises ``Failed`` where nobody can: it would wait for ever.

    A program that reads the events (``--json``) has been asked by them, and may answer with ``runs/respond``.
    """
    import trio

    line = b""
    if is_tty(sys.stdin) and is_tty(sys.stderr):
        say(neutral(question["message"]), err=True)
        await trio.lowlevel.wait_readable(0)
        line = os.read(0, 65_536)
    elif as_json:
        return
    if not line:
        hint = "ask at a terminal, or with --json and answer by `witsd rpc runs/respond`"
        raise await unanswered(client, run_id, question, hint)
    response = answer_value(line.decode(errors="replace").rstrip("\n"), question.get("schema"))
    params = {"run_id": run_id, "request_id": question["request_id"], "response": response}
    await client.call("runs/respond", params)


async def _decide(client: Client, printer: RunPrinter, approval: dict[str, Any]) -> None:
    """Ask the person at the terminal. Where nobody is there, say how it can be answered from elsewhere, and wait."""
    import trio

    say(neutral(asks_line(approval)), err=True)
    if not (is_tty(sys.stdin) and is_tty(sys.stderr)):
        note(f"waiting for an answer: witsd approval allow {approval['approval_id']} (or deny)")
        return
    while True:
        note(CHOICES)
        await trio.lowlevel.wait_readable(0)
        line = os.read(0, 65_536)
        if not line:
            note(f"waiting for an answer: witsd approval allow {approval['approval_id']} (or deny)")
            return
        if await decide(client, approval, line.decode(errors="replace")):
            return


def _said(words: tuple[str, ...]) -> tuple[str, str]:
    """The text and what was piped in beside it."""
    explicit = words[-1:] == ("-",)  # elsewhere it is a word of the text, as in 3 - 2
    text = " ".join(words[:-1] if explicit else words)
    piped = _stdin(wait=explicit or not text) if explicit or not is_tty(sys.stdin) else ""
    if not text:
        if not piped.strip():
            raise click.UsageError('nothing to ask: witsd ask AGENT "TEXT", or pipe the text in')
        return piped, ""
    return text, piped


def _stdin(*, wait: bool) -> str:
    """What standard input holds, as text.

    Unless ``wait``, a pipe that stays silent for ``STDIN_WAIT_S`` is left alone, with a remark.
    Raises ``Failed`` when there is more than one message can carry.
    """
    try:
        mode = os.fstat(0).st_mode
    except OSError:  # closed
        return ""
    if stat.S_ISCHR(mode) and not os.isatty(0):
        return ""  # /dev/null and its like
    if not wait and not stat.S_ISREG(mode) and not select.select([0], [], [], STDIN_WAIT_S)[0]:
        note(f"nothing came on standard input within {STDIN_WAIT_S:g} s: going on without it "
             "(`-` as the last word waits for it, `< /dev/null` says that there is none)")
        return ""
    data = sys.stdin.buffer.read(STDIN_MAX_BYTES + 1)
    if len(data) > STDIN_MAX_BYTES:
        raise Failed(
            f"standard input is larger than {STDIN_MAX_BYTES // 1024 // 1024} MiB",
            hint="put it in a file and name the file in the text",
        )
    return data.decode(errors="replace")
