"""``witsd chat``: a conversation at the terminal that goes on where it was left.

Between answers the main thread sits in ``input`` (readline edits, Ctrl-C clears, Ctrl-D leaves) and
nothing else runs; an answer is one ``trio.run`` with a connection of its own. So the keyboard behaves
as everywhere, and a daemon that was restarted in between goes unnoticed.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from witsd.cli.base import FAILED, NO_DAEMON, Verb, agent_argument
from witsd.cli.calls import CHOICES, asks_line
from witsd.cli.connect import Failed, bare, call, report, run
from witsd.cli.output import coloured, emit_json_line, is_tty, note, say
from witsd.cli.stream import RunPrinter, answer_value, decide, unanswered, watch
from witsd.cli.text import neutral, one_line

if TYPE_CHECKING:
    from witsd_client import Client

#: Messages shown when a conversation is opened again.
SHOWN = 6
HELP = """\
/new              begin another conversation
/sessions [N]     the conversations with this agent; with a number: go to that one
/title [TEXT]     show or set the title
/clear            forget what was said here
/export [FILE]    write it all as Markdown
/quit             leave (so does Ctrl-D); // begins a message with a slash
Ctrl-C            interrupts the answer; what you type meanwhile is said next"""


@click.command(cls=Verb)
@agent_argument("agent", default="assistant")
@click.option("--new", is_flag=True, help="Begin a new conversation.")
@click.option("--session", "session_id", metavar="ID", help="Go on with this one.")
@click.option("-v", "--verbose", is_flag=True, help="Also show the model, what was recalled and other items.")
def chat(agent: str, new: bool, session_id: str | None, verbose: bool, as_json: bool) -> None:
    """Talk with AGENT. Goes on with the latest conversation; /help tells the commands.

    Lines piped in are said one after the other. With --json the events of each run come as JSON Lines.
    """
    if new and session_id:
        raise click.UsageError("--new and --session exclude each other")
    _Chat(agent, verbose=verbose and not as_json, as_json=as_json).begin(new, session_id)


class _Leave(Exception):
    """The person has left."""


class _Chat:
    """One conversation at a time, and the keyboard."""

    def __init__(self, agent: str, *, verbose: bool, as_json: bool) -> None:
        self._agent = agent
        self._verbose = verbose
        self._json = as_json
        self._person = is_tty(sys.stdin)
        self._session: dict[str, Any] = {}
        self._typed: deque[str] = deque()
        self._listed: list[dict[str, Any]] = []
        self._failed = False

    def begin(self, new: bool, session_id: str | None) -> None:
        """Open the conversation and serve the keyboard until it has enough."""
        if session_id:
            self._session = call("sessions/get", {"session_id": session_id})
            self._agent = self._session["agent"]
        else:
            # What was only asked is no conversation to go on with.
            found = [] if new else [one for one in self._sessions(100) if one.get("origin") != "ask"]
            self._session = found[0] if found else call("sessions/create", {"agent": self._agent})
        if self._person:
            _prepare_readline()
            self._greet()
        self._guard(self._catch_up)
        try:
            while True:
                self._guard(self._take, self._read())
        except (EOFError, _Leave):
            if self._person:
                say(err=True)
            elif self._failed:
                raise click.exceptions.Exit(FAILED) from None

    def _guard(self, action: Any, *args: Any) -> None:
        """Run ``action``; an error is told and the conversation goes on.

        So it does with lines that are piped in, as long as there is a daemon; then it ends with status 1.
        """
        try:
            action(*args)
        except KeyboardInterrupt:
            if not self._person:
                raise
            say(err=True)
        except (_Leave, EOFError, click.ClickException, click.exceptions.Exit, BrokenPipeError):
            raise
        except Exception as error:  # noqa: BLE001  a boundary like that of a command: `report` re-raises bugs
            if report(error, as_json=self._json) == NO_DAEMON and not self._person:
                raise click.exceptions.Exit(NO_DAEMON) from None
            self._failed = True

    # ---- what is shown -----------------------------------------------------------------------------

    def _greet(self) -> None:
        title = f" · {self._session['title']}" if self._session["title"] else ""
        note(one_line(f"{self._agent} · {self._session['session_id']}{title} · /help, Ctrl-D leaves"))
        if not self._session["messages"]:
            return
        params = {"session_id": self._session["session_id"], "limit": SHOWN}
        for message in call("sessions/messages", params)["items"]:
            if message["role"] == "user":
                say(neutral(f"> {message['text']}"))
            else:
                say(neutral(message["text"]) + "\n")

    def _catch_up(self) -> None:
        """Show the answer that is being given right now, as after a closed terminal."""
        if self._session.get("run_id") and self._person:
            self._watch_run(self._session["run_id"])

    # ---- the keyboard ------------------------------------------------------------------------------

    def _read(self) -> str:
        """The next line. Raises ``EOFError`` at the end."""
        if self._typed:
            return self._typed.popleft()
        while True:
            try:
                return input(_prompt() if self._person and is_tty() else "")
            except KeyboardInterrupt:
                if not self._person:
                    raise
                say(err=True)  # the line is dropped, as in a shell

    def _take(self, line: str) -> None:
        text = line.strip()
        if text.startswith("/") and not text.startswith("//"):
            self._command(text)
        elif text:
            self._turn(text.removeprefix("/") if text.startswith("//") else text)

    def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        commands = {
            "/new": self._new, "/sessions": self._go, "/title": self._title, "/clear": self._clear,
            "/export": self._export, "/help": lambda _rest: say(HELP), "/quit": self._quit,
        }
        command = commands.get(name)
        if command is None:
            raise Failed(f"no command {name}", hint="/help tells them; // begins a message with a slash")
        command(rest.strip())

    # ---- commands ----------------------------------------------------------------------------------

    def _sessions(self, limit: int) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = call("sessions/list", {"agent": self._agent, "limit": limit})["items"]
        return items

    def _new(self, _rest: str) -> None:
        self._session = call("sessions/create", {"agent": self._agent})
        self._greet()

    def _go(self, rest: str) -> None:
        if not rest:
            from witsd.cli.session import show_sessions

            self._listed = self._sessions(20)
            show_sessions(self._listed, numbered=True)
            return
        listed = self._listed or self._sessions(20)
        if not rest.isdecimal() or not 1 <= int(rest) <= len(listed):
            raise Failed(f"no conversation {rest!r}", hint=f"/sessions shows 1 to {len(listed)}")
        self._session = call("sessions/get", {"session_id": listed[int(rest) - 1]["session_id"]})
        self._greet()
        self._catch_up()

    def _title(self, rest: str) -> None:
        params = {"session_id": self._session["session_id"]}
        if rest:
            self._session = call("sessions/update", {**params, "title": rest})
        else:
            self._session = call("sessions/get", params)
        say(one_line(self._session["title"] or "(no title)"))

    def _clear(self, _rest: str) -> None:
        self._session = call("sessions/clear", {"session_id": self._session["session_id"]})
        note("cleared")

    def _export(self, rest: str) -> None:
        from witsd.cli.session import export

        path = Path(rest or f"{self._session['session_id']}.md").expanduser()
        note(f"{export(self._session['session_id'], 'markdown', path)} characters written to {path}")

    def _quit(self, _rest: str) -> None:
        raise _Leave

    # ---- an answer ---------------------------------------------------------------------------------

    def _turn(self, text: str) -> None:
        self._watch_run(None, text)

    def _watch_run(self, run_id: str | None, text: str = "") -> None:
        """Say ``text``, or attach to ``run_id``, and show answers until none is owed."""
        failure: Failed | None = None

        async def answers(client: Client) -> RunPrinter:
            owed = deque([run_id if run_id is not None else await self._say(client, text)])
            while True:
                printer = await self._answer(client, owed)
                if not owed:
                    return printer
                failed = printer.failure_text()
                if failed:
                    note(failed)

        try:
            failure = run(answers).failure()
        except BaseExceptionGroup as group:
            raise bare(group) from None
        if failure is not None:
            raise failure

    async def _say(self, client: Client, text: str) -> str:
        params = {"session_id": self._session["session_id"], "text": text, "cwd": os.getcwd()}
        return str((await client.call("sessions/prompt", params))["run_id"])

    async def _answer(self, client: Client, owed: deque[str]) -> RunPrinter:
        """Show the first run owed; lines typed meanwhile answer its question or are said next."""
        import trio

        run_id = owed[0]
        printer = RunPrinter((lambda _text: None) if self._json else None, verbose=self._verbose)

        async def sink(event: dict[str, Any]) -> None:
            if self._json:
                emit_json_line(event)
            printer.feed(event)
            if printer.question is not None and event["type"] == "input.requested":
                say(neutral(printer.question["message"]), err=True)
                if not self._person:
                    line = sys.stdin.readline()  # the next one piped in
                    if not line:
                        hint = "put a line with the answer behind the one that was asked"
                        raise await unanswered(client, run_id, printer.question, hint)
                    await self._respond(client, run_id, printer, line.rstrip("\n"))
            if event["type"] == "approval.requested" and not self._json:
                approval = event["data"]["approval"]
                say(neutral(asks_line(approval)), err=True)
                note(CHOICES if self._person else f"witsd approval allow {approval['approval_id']} (or deny)")

        async def keyboard() -> None:
            while True:
                await trio.lowlevel.wait_readable(0)
                data = os.read(0, 65_536)
                if not data:
                    note("left; the answer goes on and `witsd chat` will show it")
                    raise _Leave
                for line in data.decode(errors="replace").splitlines():
                    if printer.approvals and await decide(client, printer.approvals[0], line):
                        continue
                    if printer.question is not None:
                        await self._respond(client, run_id, printer, line)
                    elif line.strip().startswith("/"):
                        self._typed.append(line)
                    elif line.strip():
                        owed.append(await self._say(client, line.strip()))
                        note("(comes next)")

        async with trio.open_nursery() as nursery:
            if self._person:
                nursery.start_soon(keyboard)
            await watch(client, run_id, printer, sink)
            nursery.cancel_scope.cancel()
        owed.popleft()
        return printer

    async def _respond(self, client: Client, run_id: str, printer: RunPrinter, line: str) -> None:
        question, printer.question = printer.question, None
        assert question is not None
        params = {
            "run_id": run_id,
            "request_id": question["request_id"],
            "response": answer_value(line, question.get("schema")),
        }
        await client.call("runs/respond", params)


def _prompt() -> str:
    # The marks tell readline which characters take no room.
    return "\x01\x1b[1m\x02> \x01\x1b[0m\x02" if coloured() else "> "


def _prepare_readline() -> None:
    """Line editing where the module exists; completion of the slash commands."""
    try:
        import readline
    except ImportError:
        return
    names = [line.split()[0] for line in HELP.splitlines() if line.startswith("/")]

    def complete(text: str, state: int) -> str | None:
        found = [name for name in names if text and name.startswith(text)]
        return found[state] if state < len(found) else None

    readline.set_completer_delims(" ")
    readline.set_completer(complete)
    readline.parse_and_bind("tab: complete")
