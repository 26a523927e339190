"""A run as it happens: its events printed, its questions answered, Ctrl-C cancelling it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from witsd.cli.base import NO_DAEMON
from witsd.cli.calls import answer_of, call_line
from witsd.cli.connect import Failed, hint_for
from witsd.cli.follow import RUN_ENDED, run_events
from witsd.cli.output import note
from witsd.cli.text import Neutralizer, one_line, to_json

if TYPE_CHECKING:
    import trio
    from witsd_client import Client

ENDED = tuple(f"run.{status}" for status in RUN_ENDED)
#: How long a cancelled run is waited for before the command leaves anyway.
CANCEL_WAIT_S = 15
#: How long nothing may happen before it is said why.
SILENCE_S = 1
#: How often the connection is looked at while a run is followed, and how long a daemon may be away.
LOOK_S = 0.5
GONE_S = 30


def as_text(output: Any) -> str:
    """A run's output for a person: text as it is, anything else as JSON."""
    return output if isinstance(output, str) else to_json(output, indent=2)


def outcome_error(status: str, run: dict[str, Any]) -> Failed | None:
    """What to tell about a run that did not complete; None for one that did."""
    if status == "completed":
        return None
    if status == "failed":
        error = run.get("error") or {"code": 0, "message": "the run failed"}
        data = error.get("data") or {}
        hint = hint_for(error["code"], data)
        return Failed(error["message"], hint=hint.replace("NAME", run["agent"]) if run.get("agent") else hint)
    reason = f": {run['reason']}" if run.get("reason") else ""
    return Failed(f"the run was {status}{reason}")


class RunPrinter:
    """Prints what an agent says, as it says it, on ``write``; remarks go to standard error.

    ``item.completed`` is authoritative: what deltas did not bring is printed then, so an agent that
    does not stream and a replayed, compacted run come out the same.
    """

    def __init__(self, write: Callable[[str], None] | None = None, *, verbose: bool = False) -> None:
        self._write = write or _write_stdout
        self._verbose = verbose
        self._roles: dict[str, str] = {}
        self._printed: dict[str, str] = {}
        self._safe = Neutralizer()
        self._open_item = ""
        self._ends_line = True
        self._agent = ""
        self.said_anything = False
        self.status = ""
        self.end: dict[str, Any] = {}
        self.question: dict[str, Any] | None = None
        #: Calls that wait for a person's yes, the oldest first.
        self.approvals: list[dict[str, Any]] = []

    def feed(self, event: dict[str, Any]) -> None:
        """Take the next event of the run's stream."""
        kind, data = event["type"], event["data"]
        if kind in ("run.queued", "run.started"):
            self._agent = data["agent"]
        elif kind == "item.delta":
            self._append(data["item_id"], data["text"])
        elif kind in ("item.started", "item.updated", "item.completed"):
            self._item(data["item"], done=kind == "item.completed")
        elif kind == "input.requested":
            self.end_line()
            self.question = data
        elif kind == "input.resolved":
            self.question = None
        elif kind == "approval.requested":
            self.end_line()
            self.approvals.append(data["approval"])
        elif kind == "approval.resolved":
            self._resolved(data["approval"])
        elif kind == "tool.interrupted":
            self.remark(f"{data['tool']} was in the middle of a call when the daemon ended: it may have been executed")
        elif kind in ENDED:
            self.status = kind.removeprefix("run.")
            self.end = data
            self._finish()

    def failure(self) -> Failed | None:
        """None when the run has completed, otherwise what to tell."""
        return outcome_error(self.status or "interrupted", {"agent": self._agent, **self.end})

    def failure_text(self) -> str:
        """How the run ended in a few words; empty when it completed. Needs no connection."""
        if self.status == "completed":
            return ""
        error = self.end.get("error") or {}
        return one_line(f"{self.status or 'no answer'}: {error.get('message') or self.end.get('reason', '')}")

    def _item(self, item: dict[str, Any], *, done: bool) -> None:
        item_id, kind = item["item_id"], item["type"]
        if kind == "message":
            role = item.get("role", "assistant")
            self._roles[item_id] = role
            if role == "assistant":
                self._complete(item_id, item.get("text", ""), done)
        elif kind == "log":
            self._roles[item_id] = "log"
            if done and (self._verbose or item.get("level") in ("warning", "error")):
                self.remark(f"{item.get('level', 'info')}: {item.get('text', '')}")
        else:
            self._roles[item_id] = kind
            if done and kind == "tool_call":
                self.remark(call_line(item))
            elif done and self._verbose and kind != "approval":
                self.remark(_describe(item))

    def _resolved(self, approval: dict[str, Any]) -> None:
        self.approvals = [one for one in self.approvals if one["approval_id"] != approval["approval_id"]]
        by = f" by {approval['resolved_by']}" if approval.get("resolved_by") else ""
        self.remark(f"{approval['tool']}: {approval['status']}{by}")

    def _append(self, item_id: str, text: str) -> None:
        # A delta of an item never announced is taken for the agent's words.
        if self._roles.get(item_id, "assistant") != "assistant" or not text:
            return
        if self._open_item not in ("", item_id):
            self.end_line()
        self._open_item = item_id
        self._printed[item_id] = self._printed.get(item_id, "") + text
        self._out(self._safe.feed(text))

    def _complete(self, item_id: str, text: str, done: bool) -> None:
        printed = self._printed.get(item_id, "")
        if text.startswith(printed):
            self._append(item_id, text[len(printed) :])
        elif done:  # the agent took back what it had said
            self.end_line()
            self._printed[item_id] = ""
            self._append(item_id, text)

    def _finish(self) -> None:
        output = self.end.get("output")
        if self.status == "completed" and not self.said_anything and output is not None:
            self._out(self._safe.feed(as_text(output)))
        self.end_line()

    def _out(self, text: str) -> None:
        if text:
            self._write(text)
            self.said_anything = True
            self._ends_line = text.endswith("\n")

    def end_line(self) -> None:
        """What is written next begins a line of its own."""
        self._out(self._safe.end())
        if not self._ends_line:
            self._write("\n")
            self._ends_line = True
        self._open_item = ""

    def remark(self, text: str) -> None:
        """A remark on a line of its own, also in the middle of what the agent says."""
        self.end_line()
        note(one_line(text, 400))


def _write_stdout(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _describe(item: dict[str, Any]) -> str:
    """One line about an item that is not the agent's words."""
    kind = item["type"]
    if kind == "usage":
        tokens = f"{item.get('input_tokens', 0)} tokens in, {item.get('output_tokens', 0)} out"
        return f"model {item.get('model') or 'unknown'}: {tokens}"
    if kind == "custom" and item.get("name") == "memory.recalled" and isinstance(item.get("data"), dict):
        return _recalled(item["data"])
    if kind == "artifact":
        return f"artifact {item['name']} ({item['media_type']}) {item.get('path') or ''}"
    return f"{kind}: {item.get('text') or to_json({k: v for k, v in item.items() if k != 'item_id'})}"


def _recalled(data: dict[str, Any]) -> str:
    """What an answer was given to go by, and where that is from."""
    found = [m for m in data.get("items") or () if isinstance(m, dict)]
    said = [
        f"{m.get('memory_id')} ({str(m.get('time'))[:10]} {m.get('session_id') or m.get('namespace')})" for m in found
    ]
    more = f" and {len(said) - 3} more" if len(said) > 3 else ""
    return f"{data.get('text')}: {', '.join(said[:3])}{more}"


async def watch(
    client: Client, run_id: str, printer: RunPrinter, sink: Callable[[dict[str, Any]], Awaitable[None]]
) -> None:
    """Hand each event of the run to ``sink`` until the run is over; what there is to say meanwhile goes to ``printer``.

    The first Ctrl-C cancels the run, whose end is then waited for a bounded time; the second leaves
    at once with ``KeyboardInterrupt``.
    """
    import trio

    begun = trio.Event()
    try:
        with trio.open_signal_receiver(signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_on_interrupt, client, run_id, signals, nursery.cancel_scope)
                nursery.start_soon(_give_up_without_daemon, client, printer)
                async with aclosing(run_events(client, run_id)) as stream:
                    async for event in stream:
                        if event["type"] == "run.queued":
                            nursery.start_soon(_say_why_it_waits, client, event["data"]["agent"], begun, printer)
                        else:
                            begun.set()
                        await sink(event)
                nursery.cancel_scope.cancel()
    finally:
        printer.end_line()  # what went wrong is not told in the middle of a sentence


async def _cancel_on_interrupt(client: Client, run_id: str, signals: Any, scope: trio.CancelScope) -> None:
    import trio
    from witsd_client.errors import WitsdError

    async def cancel() -> None:
        try:
            await client.call("runs/cancel", {"run_id": run_id, "reason": "interrupted from the keyboard"})
        except WitsdError:
            return  # over already, or the connection is: the stream of events tells which

    presses = 0
    async with trio.open_nursery() as nursery:
        async for _ in signals:
            presses += 1
            if presses == 1:
                scope.deadline = trio.current_time() + CANCEL_WAIT_S
                nursery.start_soon(cancel)
            else:
                raise KeyboardInterrupt


async def _say_why_it_waits(client: Client, agent: str, begun: trio.Event, printer: RunPrinter) -> None:
    """Tell a person who sees nothing happen what the agent is doing instead, again when that changes."""
    import trio
    from witsd_client.errors import ClientError

    said = ""
    while True:
        with trio.move_on_after(SILENCE_S):
            await begun.wait()
            return
        try:
            found = await client.call("agents/get", {"name": agent})
        except ClientError:
            return  # the run's own events tell what follows
        why = _why_it_waits(found)
        if why and why != said:
            printer.remark(f"{agent} {why}; waiting (Ctrl-C cancels)")
            said = why


def _why_it_waits(agent: dict[str, Any]) -> str:
    match agent["state"]:
        case "backoff":
            return f"{agent.get('reason') or 'has ended'} and is about to be started again"
        case "starting":
            return "is starting"
        case "stopping":
            return "is stopping"
        case "active":
            return "is busy with other runs"
    return ""


async def _give_up_without_daemon(client: Client, printer: RunPrinter) -> None:
    """A daemon that restarts is waited for, one that stays away is not."""
    import trio

    while True:
        await trio.sleep(LOOK_S)
        if client.connected:
            continue
        printer.remark("the connection to the daemon is lost; waiting for it to come back")
        with trio.move_on_after(GONE_S) as wait:
            await client.wait_connected()
        if wait.cancelled_caught:
            raise Failed(
                f"the daemon has been away for {GONE_S} s", hint="start it: `witsd up`", status=NO_DAEMON
            )


async def unanswered(client: Client, run_id: str, question: dict[str, Any], hint: str) -> Failed:
    """Cancel a run whose question nobody will answer; returns what to tell about it."""
    from witsd_client.errors import WitsdError

    try:
        await client.call("runs/cancel", {"run_id": run_id, "reason": "nobody was there to answer its question"})
    except WitsdError:
        pass  # it is over by now
    asked = one_line(question["message"], 200)
    return Failed(f"the agent asks {asked!r} and nobody is here to answer: the run is cancelled", hint=hint)


async def decide(client: Client, approval: dict[str, Any], line: str) -> bool:
    """Answer an approval with what a person typed; False where that is no answer."""
    from witsd_client.errors import Conflict, NotFound

    answer = answer_of(line)
    if answer is None:
        return False
    try:
        await client.call("approvals/resolve", {"approval_id": approval["approval_id"], **answer})
    except (Conflict, NotFound) as error:  # somebody else was first
        note(str(error))
    return True


def answer_value(line: str, schema: Any) -> Any:
    """What a person typed as the response to an input request: JSON where the schema asks for it."""
    import json

    if isinstance(schema, dict) and schema.get("type") not in (None, "string"):
        try:
            return json.loads(line)
        except ValueError:
            return line
    return line
