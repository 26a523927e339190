"""``witsd top``: a live table of the agents, with keys to stop, start and follow them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click
import trio

from witsd.cli.base import Verb
from witsd.cli.connect import follow, run
from witsd.cli.follow import log_lines
from witsd.cli.keyboard import Decoder, single_keys
from witsd.cli.output import coloured, emit_json_line, is_tty, table
from witsd.cli.top_state import Control, Follow, LogView, Quit, Top, Unfollow
from witsd.cli.top_table import COLUMNS, Table, remark

if TYPE_CHECKING:
    from witsd_client import Client
    from witsd_client.generated import Agent

#: How long the daemon may take to answer before that is said.
ANSWER_S = 10
#: After trouble, before trying again.
AGAIN_S = 0.2
#: Between two drawings, however much happens.
DRAW_S = 0.05
#: After this long without the rest of a key it was Escape.
ESCAPE_S = 0.05
#: Requests to start, stop or restart that may be under way at once.
MOST_CONTROLS = 16
#: Lines of a log that are there when it is opened.
TAIL = 500


@click.command(cls=Verb)
@click.option("--sort", type=click.Choice([column.name for column in COLUMNS]), default="name", show_default=True,
              help="The column to sort by.")
@click.option("-d", "--delay", "delay_s", type=click.FloatRange(1, 3600), default=1, show_default=True,
              metavar="SECONDS", help="How often to look.")
@click.option("--once", is_flag=True, help="One plain table, as where there is no terminal.")
def top(sort: str, delay_s: float, once: bool, as_json: bool) -> None:
    """The agents and what they use, as it changes. Keys start, stop and restart them and follow their logs: ? tells.

    With --json one line each time it looks, until Ctrl-C: {"time", "agents"}, the agents as in `agents/list`.
    """
    if as_json:
        follow(lambda client: _json(client, delay_s, once=once))
    elif once or not _is_screen():
        _plain(run(_all_agents), sort)
    else:
        status = run(lambda client: _live(client, Top(Table(sort=sort)), delay_s))
        if status:
            raise click.exceptions.Exit(status)


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"


def _is_screen() -> bool:
    return is_tty(sys.stdin) and is_tty(sys.stdout) and os.environ.get("TERM", "dumb") != "dumb"


async def _all_agents(client: Client) -> list[Agent]:
    """One request for up to 1,000 agents."""
    found: list[Agent] = []
    cursor: str | None = None
    while True:
        page = await client.agents.list(limit=1000, cursor=cursor)
        found += page.items
        if not isinstance(page.next_cursor, str):
            return found
        cursor = page.next_cursor


async def _looks(client: Client, delay_s: float) -> AsyncGenerator[list[Agent] | str, None]:
    """The agents again and again; in place of them, where they cannot be had, why. Comes back by itself."""
    from witsd_client.errors import ConnectionLost, WitsdError

    while True:
        began = trio.current_time()
        if not client.connected:
            yield f"no connection to the daemon since {datetime.now(UTC).astimezone():%H:%M:%S}: trying again"
            await client.wait_connected()  # raises where trying again is no use
        found: list[Agent] | str = f"the daemon has not answered for {ANSWER_S} s"
        try:
            with trio.move_on_after(ANSWER_S):
                found = await _all_agents(client)
        except ConnectionLost:
            found = "the connection to the daemon was lost"
        except WitsdError as error:
            found = error.message
        yield found
        await trio.sleep_until(began + delay_s if isinstance(found, list) else trio.current_time() + AGAIN_S)


async def _json(client: Client, delay_s: float, *, once: bool) -> None:
    import msgspec

    async with aclosing(_looks(client, delay_s)) as looks:
        async for found in looks:
            if isinstance(found, list):
                emit_json_line({"time": _now(), "agents": msgspec.to_builtins(found)})
                if once:
                    return


def _plain(agents: list[Agent], sort: str) -> None:
    it = Table(sort=sort)
    it.refresh(agents)
    now = datetime.now(UTC)
    table(
        [*(column.head.lower() for column in COLUMNS), "remark"],
        [[*(column.show(agent, now) for column in COLUMNS), remark(agent)] for agent in it.rows],
        empty="no agents: `witsd agent add NAME -- COMMAND` defines one",
    )


# ---- live -------------------------------------------------------------------------------------------


async def _live(client: Client, top: Top, delay_s: float) -> int:
    """Returns the exit status: 0 when the person has left, else that of the signal that ended it."""
    top.version = client.server.server_info.version if client.server else ""
    async with trio.open_nursery() as nursery:
        live = _Live(client, top, nursery)
        with live.on_screen():
            nursery.start_soon(live.draw)
            nursery.start_soon(live.look, delay_s)
            nursery.start_soon(live.read_keys)
            nursery.start_soon(live.take_signals)
            await live.over.wait()
            nursery.cancel_scope.cancel()
    return live.status


class _Live:
    """The tasks around one ``Top``: they tell it what happens, and draw it when something has."""

    def __init__(self, client: Client, top: Top, nursery: trio.Nursery) -> None:
        from rich.console import Console
        from rich.live import Live

        self._client = client
        self._top = top
        self._nursery = nursery
        self._console = Console(file=sys.stdout, no_color=not coloured(), highlight=False, force_terminal=True)
        self._screen = Live(
            console=self._console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        self._on_screen = ExitStack()
        self._changed = trio.Event()
        self._following = trio.CancelScope()
        self._controls = 0
        self.over = trio.Event()
        self.status = 0

    @contextmanager
    def on_screen(self) -> Iterator[None]:
        """Has the whole terminal; gives it back as it was, whatever ends the block."""
        with self._on_screen:
            self._enter()
            yield

    def _enter(self) -> None:
        self._on_screen.enter_context(single_keys(0))
        self._on_screen.enter_context(self._screen)

    def _end(self, status: int) -> None:
        self.status = status
        self.over.set()

    # ---- drawing ------------------------------------------------------------------------------------

    def _mark(self) -> None:
        self._changed.set()

    async def draw(self) -> None:
        """Draw whenever something has changed, but not more often than anybody could see."""
        from rich.console import ConsoleDimensions

        from witsd.cli.top_view import frame

        while True:
            width, height = os.get_terminal_size(1)
            self._console.size = ConsoleDimensions(max(1, width), max(1, height))
            shown = frame(self._top, max(1, width), max(1, height), datetime.now(UTC))
            self._screen.update(shown, refresh=True)
            await trio.sleep(DRAW_S)
            await self._changed.wait()
            self._changed = trio.Event()

    # ---- what happens -------------------------------------------------------------------------------

    async def look(self, delay_s: float) -> None:
        """Keep the table fresh; say so while that cannot be done."""
        async with aclosing(_looks(self._client, delay_s)) as looks:
            async for found in looks:
                if isinstance(found, list):
                    self._top.trouble, self._top.loaded = "", True
                    self._top.version = self._client.server.server_info.version if self._client.server else ""
                    self._top.table.refresh(found)
                else:
                    self._top.trouble = found
                self._mark()

    async def read_keys(self) -> None:
        """Hand every key to ``Top`` and do what it says."""
        decoder = Decoder()
        while True:
            with trio.move_on_after(ESCAPE_S if decoder.pending else float("inf")) as wait:
                await trio.lowlevel.wait_readable(0)
            if wait.cancelled_caught:
                keys = decoder.flush()
            else:
                data = os.read(0, 4096)
                if not data:  # the terminal is gone
                    self._end(128 + signal.SIGHUP)
                    return
                keys = decoder.feed(data)
            for key in keys:
                self._act(key)
            self._mark()

    def _act(self, key: str) -> None:
        match self._top.press(key):
            case Quit():
                self._end(0)
            case Unfollow():
                self._following.cancel()
            case Follow():
                self._following = trio.CancelScope()
                if self._top.log is not None:
                    self._nursery.start_soon(self._follow, self._top.log, self._following)
            case Control() as control:
                if self._controls >= MOST_CONTROLS:
                    self._top.said(f"{MOST_CONTROLS} requests are under way: wait for one of them")
                else:
                    self._controls += 1
                    self._nursery.start_soon(self._control, control)

    async def _control(self, control: Control) -> None:
        from witsd_client.errors import ClientError
        from witsd_client.generated import Agent

        try:
            done = await self._client.call(f"agents/{control.verb}", {"name": control.name}, Agent)
        except ClientError as error:
            self._top.said(str(error))
        else:
            self._top.table.replace(done)
            self._top.said(f"{done.name} is {done.state} {remark(done)}")
        finally:
            self._controls -= 1
        self._mark()

    async def _follow(self, log: LogView, scope: trio.CancelScope) -> None:
        from witsd_client.errors import ClientError

        with scope:
            try:
                async with aclosing(log_lines(self._client, log.name, TAIL, follow=True)) as lines:
                    async for line in lines:
                        log.add(line)
                        self._mark()
            except ClientError as error:
                log.add({"seq": 0, "time": _now(), "source": "witsd", "text": str(error)})
                self._mark()

    async def take_signals(self) -> None:
        """A new size is drawn; what ends a program ends this one in order; Ctrl-Z gives the terminal back meanwhile."""
        asked = (signal.SIGWINCH, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP)
        with trio.open_signal_receiver(*asked) as signals:
            async for number in signals:
                if number == signal.SIGTSTP:
                    self._on_screen.close()
                    os.kill(os.getpid(), signal.SIGSTOP)
                    self._enter()  # it goes on here
                elif number != signal.SIGWINCH:
                    self._end(0 if number == signal.SIGINT else 128 + number)
                self._mark()
