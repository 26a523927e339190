"""``witsd agent``: define, start, stop and watch agents."""

from __future__ import annotations

import os
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import click

from witsd.cli.base import Noun, agent_argument, duration_s
from witsd.cli.connect import Failed, call, pages, run
from witsd.cli.connect import follow as forever
from witsd.cli.follow import LEVELS, log_lines, plain
from witsd.cli.output import dotted, emit_json, emit_json_line, fields, say, table
from witsd.cli.text import clock_time, neutral, one_line, spent, when

if TYPE_CHECKING:
    from witsd_client import Client, Subscription

NOT_FOUND = -32002
#: How long `add` waits for an agent to come up; it goes on coming up when this is over.
START_WAIT_S = 60
#: The states in which a start has come to something.
SETTLED = ("active", "backoff", "failed")


@click.group(cls=Noun)
def agent() -> None:
    """List, define, start, stop and watch agents."""


@agent.command(name="list")
@click.option("--skill", help="Only those that have this skill.")
def agent_list(skill: str | None, as_json: bool) -> None:
    """The agents and the state each is in."""
    found = pages("agents/list", {"skill": skill}, None)
    if as_json:
        emit_json(found)
        return
    table(
        ("name", "kind", "state", "health", "pid", "restarts", "since", "about"),
        [
            (a["name"], a["kind"], a["state"], a["health"], a.get("pid"), a["restarts"], when(a["since"]),
             one_line(a.get("reason") or a["spec"].get("description", ""), 60))
            for a in found["items"]
        ],
        empty="no agents: `witsd agent add NAME -- COMMAND` defines one",
    )


@agent.command(name="show")
@agent_argument()
def agent_show(name: str, as_json: bool) -> None:
    """One agent: its state and its definition."""
    found = call("agents/get", {"name": name})
    if as_json:
        emit_json(found)
        return
    fields([
        ("name", found["name"]),
        ("kind", found["kind"]),
        ("state", found["state"]),
        ("reason", found.get("reason")),
        ("health", found["health"]),
        ("pid", found.get("pid")),
        ("since", when(found["since"])),
        ("restarts", found["restarts"]),
        ("spent", spent(found.get("budget", {}).get("spent"))),
        ("left", spent(found.get("budget", {}).get("left"))),
    ])
    say()
    _show_spec(found["spec"])


def _show_spec(spec: dict[str, Any]) -> None:
    for key, value in dotted(spec):
        say(neutral(f"{key} = {value}"))


@agent.command(name="add")
@agent_argument()
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--kind", type=click.Choice(["native", "exec"]), default="native", show_default=True,
              help="native speaks the protocol (the SDK does); exec is any command.")
@click.option("--start", type=click.Choice(["boot", "on_demand", "manual"]),
              help="When it is started; boot when absent.")
@click.option("--run-per-request", is_flag=True,
              help="exec: a fresh process for each run, text on its stdin, the answer on its stdout.")
@click.option("--description", default="", help="What it does, for those who look for an agent.")
@click.option("--env", "env", multiple=True, metavar="K=V", help="A variable of its environment.")
@click.option("--replace", is_flag=True, help="Replace the definition when the name is taken.")
@click.option("--no-wait", is_flag=True, help="Do not wait until it is ready.")
def agent_add(
    name: str, command: tuple[str, ...], kind: str, start: str | None, run_per_request: bool,
    description: str, env: tuple[str, ...], replace: bool, no_wait: bool, as_json: bool,
) -> None:
    """Make COMMAND an agent. Relative paths in it start at the folder this is called in.

    \b
    witsd agent add digest -- python examples/digest_agent.py
    witsd agent add upper --kind exec --run-per-request -- tr a-z A-Z
    """
    import trio

    if run_per_request and kind != "exec":
        raise click.UsageError("--run-per-request goes with --kind exec")
    spec: dict[str, Any] = {"name": name, "kind": kind, "command": list(command), "cwd": os.getcwd()}
    if start:
        spec["start"] = start
    if run_per_request:
        spec["run_per_request"] = True
    if description:
        spec["description"] = description
    if env:
        spec["env"] = dict(_assignment(pair) for pair in env)

    async def define(client: Client) -> dict[str, Any]:
        if not replace:
            await _refuse_taken(client, name)
        async with client.subscribe([f"agent:{name}"], types=["agent.state"]) as states:
            made: dict[str, Any] = await client.call("agents/define", {"spec": spec})
            boots = start in (None, "boot") and not no_wait
            if boots and made["state"] not in SETTLED:
                with trio.move_on_after(START_WAIT_S):
                    await _wait_started(states)
                made = await client.call("agents/get", {"name": name})
        return made

    made = run(define)
    if as_json:
        emit_json(made)
    else:
        _say_state(made)
    if made["state"] in ("backoff", "failed"):
        raise Failed(
            f"{name} is defined but does not come up: {made.get('reason') or made['state']}",
            hint=f"see what it wrote: `witsd agent logs {name}`",
        )


async def _wait_started(states: Subscription) -> None:
    """Return once the agent has come up, or has failed to."""
    async for event in states:
        told = plain(event)
        if told["type"] == "resync" or told["data"]["state"] in SETTLED:
            return


async def _refuse_taken(client: Client, name: str) -> None:
    from witsd_client.errors import WitsdError

    try:
        found = await client.call("agents/get", {"name": name})
    except WitsdError as error:
        if error.code == NOT_FOUND:
            return
        raise
    current = "\n".join(f"       {key} = {value}" for key, value in dotted(found["spec"]))
    raise Failed(
        f"there is an agent {name!r} already, defined as\n{current}",
        hint="--replace puts this one in its place",
    )


def _assignment(pair: str) -> tuple[str, str]:
    key, equals, value = pair.partition("=")
    if not key or not equals:
        raise click.BadParameter(f"{pair!r} is not K=V", param_hint="--env")
    return key, value


@agent.command(name="rm")
@agent_argument()
def agent_rm(name: str, as_json: bool) -> None:
    """Stop an agent and delete its definition."""
    result = call("agents/remove", {"name": name})
    if as_json:
        emit_json(result)
    else:
        say(f"{one_line(name)} is removed")


def _control(verb: str, summary: str) -> None:
    @agent.command(name=verb, help=summary)
    @agent_argument()
    @click.option("--no-wait", is_flag=True, help="Answer when it has been told, not when it is done.")
    @click.option("--timeout", "timeout_s", type=click.FloatRange(0, 3600, min_open=True), default=60,
                  show_default=True, metavar="SECONDS", help="How long to wait.")
    def control(name: str, no_wait: bool, timeout_s: float, as_json: bool) -> None:
        result = call(f"agents/{verb}", {"name": name, "wait": not no_wait, "timeout_s": timeout_s})
        if as_json:
            emit_json(result)
        else:
            _say_state(result)


_control("start", "Start an agent; running already is no error.")
_control("stop", "Stop an agent; stopped already is no error.")
_control("restart", "Stop an agent, then start it.")


def _say_state(state: dict[str, Any]) -> None:
    pid = f" (pid {state['pid']})" if state.get("pid") else ""
    reason = f": {state['reason']}" if state.get("reason") else ""
    say(one_line(f"{state['name']} is {state['state']}{pid}{reason}"))


@agent.command(name="logs")
@agent_argument()
@click.option("-f", "--follow", is_flag=True, help="Go on with the lines as they are written.")
@click.option("-n", "tail", type=click.IntRange(0, 10_000), default=100, show_default=True,
              help="How many of the last lines.")
@click.option("--level", type=click.Choice(LEVELS), help="Only lines of JSON that say they are at least so grave.")
def agent_logs(name: str, follow: bool, tail: int, level: str | None, as_json: bool) -> None:
    """What an agent has written. With --json one line a log line."""

    async def show(client: Client) -> None:
        async with aclosing(log_lines(client, name, tail, follow=follow, level=level)) as lines:
            async for line in lines:
                _say_log(line, as_json)

    (forever if follow else run)(show)


@agent.command(name="metrics")
@agent_argument()
@click.option("--window", "window_s", default="2m", show_default=True, callback=duration_s, metavar="DURATION",
              help="How far to look back: 90s, 5m, up to 12h.")
def agent_metrics(name: str, window_s: float, as_json: bool) -> None:
    """What an agent's processes used, how its requests went, and which alerts are up."""
    from witsd.cli.agent_metrics import show_metrics

    found = call("agents/metrics", {"name": name, "window_s": window_s})
    if as_json:
        emit_json(found)
    else:
        show_metrics(name, found, window_s)


def _say_log(line: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit_json_line(line)
    else:
        mark = "" if line["source"] in ("stderr", "stdout") else f"[{line['source']}] "
        say(f"{clock_time(line['time'])}  {neutral(mark + line['text'])}")
