"""Runs under the real daemon: what becomes of items and deltas, the queue, the ways to end, what survives."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.agents import begin, define, events_of, play, wait
from tests.support.daemon import Daemon
from tests.support.gate import gate
from tests.support.processes import of_daemon
from tests.support.wire import RpcError, Wire, wire

CALL = {"item_id": "call", "type": "tool_call", "tool": "calculator", "arguments": {"expression": "6*7"}}


def of_type(events: list[dict[str, Any]], *types: str) -> list[dict[str, Any]]:
    return [event for event in events if event["type"] in types]


def in_log(connection: Wire, name: str, text: str) -> None:
    """Wait until the agent has logged a line with ``text``."""
    connection.subscribe(f"log:{name}", since={f"log:{name}": 0})
    connection.until("log.line", where=lambda d: text in d["text"])


# ---- items and deltas -----------------------------------------------------------------------------------


def test_items_are_upserted_by_their_id_and_keep_their_place(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        define(c, "script", "script")
        run = play(
            c,
            "script",
            ["item", {**CALL, "status": "in_progress"}],
            ["item", {"item_id": "second", "type": "custom", "name": "chart", "data": {"points": [1, 2]}}],
            ["item", {**CALL, "status": "in_progress", "arguments": {"expression": "6*7", "exact": True}}],
            ["item", {**CALL, "status": "completed", "result": 42}],
            ["item", {**CALL, "status": "in_progress", "result": "too late"}],
            ["delta", "call", "a tool call has no text"],
        )
        assert [item["item_id"] for item in run["items"]] == ["call", "second"]
        assert run["items"][0] == {**CALL, "status": "completed", "result": 42, "is_error": False}
        told = of_type(events_of(c, run["run_id"]), "item.started", "item.updated", "item.completed", "item.delta")
        assert [(event["type"], event["data"]["item"]["item_id"]) for event in told] == [
            ("item.started", "call"),
            ("item.completed", "second"),
            ("item.updated", "call"),
            ("item.completed", "call"),
        ]
        assert [event["seq"] for event in events_of(c, run["run_id"])] == list(range(1, 8))


def test_tiny_deltas_are_put_together_and_lose_nothing(daemon: Daemon) -> None:
    count = 3000
    with wire(daemon.socket) as c, wire(daemon.socket) as watcher:
        define(c, "script", "script")
        watcher.subscribe("run:*", types=["item.delta", "item.completed"])
        run = play(c, "script", ["tiny", count], ["think", "between"], ["tiny", 10])
        deltas: list[dict[str, Any]] = []
        while (event := watcher.next_event())["type"] == "item.delta":
            deltas.append(event)
    expected = "".join(chr(97 + n % 26) for n in range(count)) + "abcdefghij"
    answer = run["items"][0]["item_id"]
    assert run["output"] == run["items"][0]["text"] == expected
    assert "".join(d["data"]["text"] for d in deltas if d["data"]["item_id"] == answer) == expected
    assert len(deltas) < count / 10, "each delta became an event of its own"


def test_a_delta_for_an_unknown_item_begins_a_message(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        define(c, "script", "script")
        run = play(c, "script", ["delta", "new", "out of "], ["delta", "new", "nowhere"])
        assert run["items"] == [
            {
                "item_id": "new",
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "text": "out of nowhere",
            }
        ]
        assert run["output"] == "out of nowhere"
        told = of_type(events_of(c, run["run_id"]), "item.started", "item.completed")
        assert [event["data"]["item"]["item_id"] for event in told] == ["new", "new"]


def test_news_of_a_run_that_is_over_and_of_anothers_run_change_nothing(daemon: Daemon) -> None:
    with wire(daemon.socket) as c, gate(daemon.home) as after, gate(daemon.home, "other") as other:
        define(c, "script", "script")
        define(c, "stranger", "script")
        over = play(c, "script", ["late", after.path], ["say", "the end"])
        before = events_of(c, over["run_id"])
        after.let()
        in_log(c, "script", "late news sent")
        assert c.call("runs/get", run_id=over["run_id"]) == over
        assert events_of(c, over["run_id"]) == before

        mine = begin(c, "script", ["say", "mine"], ["gate", other.path])
        c.subscribe(f"run:{mine}", since={f"run:{mine}": 0})
        c.until("item.delta")
        forged = {"item_id": "forged", "type": "message", "text": "forged", "status": "completed"}
        play(
            c,
            "stranger",
            ["tell", "notifications/item", {"run_id": mine, "item": forged}],
            ["tell", "notifications/delta", {"run_id": mine, "item_id": f"{mine}.1", "text": "forged"}],
        )
        other.let()
        assert [item["text"] for item in wait(c, mine)["items"]] == ["mine"]


def test_what_a_run_used_is_the_sum_of_its_usage_items(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        define(c, "script", "script")
        run = play(
            c,
            "script",
            ["think", "let me "],
            ["think", "see"],
            ["item", {**CALL, "status": "completed", "result": 42}],
            ["usage", {"model": "small", "input_tokens": 10, "output_tokens": 2, "cost_usd": 0.25}],
            ["item", {"item_id": "u", "type": "usage", "status": "in_progress", "input_tokens": 999}],
            ["item", {"item_id": "u", "type": "usage", "input_tokens": 5, "calls": 2, "cost_usd": 0.5}],
            ["item", {"item_id": "art", "type": "artifact", "name": "a.txt", "media_type": "text/plain", "text": "A"}],
            ["item", {"item_id": "note", "type": "log", "level": "warning", "text": "careful"}],
            ["say", "42"],
        )
        assert run["usage"] == {"input_tokens": 15, "output_tokens": 2, "calls": 3, "cost_usd": 0.75}
        kinds = ["thought", "tool_call", "usage", "usage", "artifact", "log", "message"]
        assert [item["type"] for item in run["items"]] == kinds
        assert run["items"][0]["text"] == "let me see"
        assert run["output"] == "42", "thoughts and logs are no part of the answer"
        told = of_type(events_of(c, run["run_id"]), "run.completed")
        assert told[0]["data"]["usage"] == run["usage"]
        assert c.call("runs/list", agent="script")["items"][0]["usage"] == run["usage"]


@pytest.mark.parametrize("where", ["definition", "run", "session"])
def test_without_streaming_there_is_no_delta_and_the_text_is_whole(daemon: Daemon, where: str) -> None:
    # Past the SDK, which would send no delta: the daemon keeps the promise whatever the agent does.
    steps = [["seen"], ["delta", "raw", "as it "], ["delta", "raw", "comes"]]
    with wire(daemon.socket) as c:
        define(c, "script", "script", stream=where != "definition")
        more: dict[str, Any] = {}
        if where == "run":
            more["stream"] = False
        if where == "session":
            session = c.call("sessions/create", agent="script", settings={"stream": False})
            more["session_id"] = session["session_id"]
        run = play(c, "script", *steps, **more)
        assert [item["text"] for item in run["items"]] == ["stream=False deadline=False", "as it comes"]
        assert of_type(events_of(c, run["run_id"]), "item.delta") == []
        completed = of_type(events_of(c, run["run_id"]), "item.completed")
        assert {event["data"]["item"]["text"] for event in completed} == {"stream=False deadline=False", "as it comes"}
        streamed = play(c, "script", *steps, stream=True)
        if where != "definition":
            assert of_type(events_of(c, streamed["run_id"]), "item.delta"), "it streams where nobody says otherwise"


# ---- the queue ------------------------------------------------------------------------------------------


def test_an_agent_gets_as_many_runs_as_it_may_and_the_rest_in_order(daemon: Daemon) -> None:
    with wire(daemon.socket) as c, ExitStack() as stack:
        define(c, "script", "script", limits={"concurrency": 2})
        c.subscribe("run:*", types=["run.started"])
        gates = [stack.enter_context(gate(daemon.home, f"gate{n}")) for n in range(5)]
        runs = [begin(c, "script", ["gate", one.path]) for one in gates]
        started = [c.next_event()["data"]["run_id"] for _ in range(2)]
        assert started == runs[:2]

        def statuses() -> list[str]:
            return [c.call("runs/get", run_id=run)["status"] for run in runs]

        assert statuses() == ["running", "running", "queued", "queued", "queued"]
        gates[1].let()
        assert c.next_event()["data"]["run_id"] == runs[2], "the next in line"
        assert statuses() == ["running", "completed", "running", "queued", "queued"]
        for one in gates:
            one.let()
        assert [c.next_event()["data"]["run_id"] for _ in range(2)] == runs[3:]
        assert {wait(c, run)["status"] for run in runs} == {"completed"}


def test_runs_that_could_all_begin_at_once_begin_in_order(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        define(c, "script", "script", start="on_demand", limits={"concurrency": 20})
        c.subscribe("run:*", types=["run.started"])
        runs = [begin(c, "script", ["say", str(n)]) for n in range(20)]
        assert [c.next_event()["data"]["run_id"] for _ in runs] == runs
        assert [wait(c, run)["output"] for run in runs] == [str(n) for n in range(20)]


def test_a_run_that_waits_can_be_cancelled_and_leaves_its_place(daemon: Daemon) -> None:
    with wire(daemon.socket) as c, gate(daemon.home) as door:
        define(c, "script", "script", limits={"concurrency": 1})
        first = begin(c, "script", ["gate", door.path])
        second = begin(c, "script", ["say", "never"])
        third = begin(c, "script", ["say", "third"])
        cancelled = c.call("runs/cancel", run_id=second, reason="changed my mind")
        assert (cancelled["status"], cancelled["reason"], cancelled["items"]) == ("cancelled", "changed my mind", [])
        assert "started_at" not in cancelled
        door.let()
        assert wait(c, third)["output"] == "third"
        assert wait(c, first)["status"] == "completed"
        assert [e["type"] for e in events_of(c, second)] == ["run.queued", "run.cancelled"]


# ---- how runs end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["run", "definition"])
def test_a_run_out_of_time_fails_and_its_agent_is_told(daemon: Daemon, by: str) -> None:
    with wire(daemon.socket) as c, gate(daemon.home) as door:
        limits = {"run_timeout_s": 0.5} if by == "definition" else {}
        define(c, "script", "script", limits=limits)
        pid = c.call("agents/get", name="script")["pid"]
        more = {"timeout_s": 0.5} if by == "run" else {}
        run = play(c, "script", ["seen"], ["gate", door.path], text="too slow", **more)
        assert (run["status"], run["error"]["code"], run["error"]["data"]["name"]) == ("failed", -32006, "timeout")
        assert "0.5 s" in run["error"]["message"]
        assert run["items"][0]["text"] == "stream=True deadline=True"
        assert run["items"][0]["status"] == "failed"
        in_log(c, "script", "cancelled too slow")
        assert play(c, "script", ["say", "alive"], timeout_s=60)["output"] == "alive"
        assert c.call("agents/get", name="script")["pid"] == pid


def test_cancel_reaches_the_agent_and_ends_that_run_only(daemon: Daemon) -> None:
    with wire(daemon.socket) as c, gate(daemon.home) as door:
        define(c, "script", "script")
        pid = c.call("agents/get", name="script")["pid"]
        c.subscribe("run:*", types=["item.delta"])
        doomed = begin(c, "script", ["say", "half"], ["gate", door.path], text="doomed")
        c.until("item.delta")
        spared = begin(c, "script", ["say", "other"], ["gate", door.path], text="spared")
        c.until("item.delta")
        run = c.call("runs/cancel", run_id=doomed, reason="enough")
        assert (run["status"], run["reason"]) == ("cancelled", "enough")
        assert [(i["text"], i["status"]) for i in run["items"]] == [("half", "cancelled")]
        in_log(c, "script", "cancelled doomed")
        door.let()
        assert wait(c, spared)["output"] == "other"
        assert c.call("runs/cancel", run_id=doomed) == run, "over already is no error"
        assert c.call("runs/cancel", run_id=spared)["status"] == "completed"
        assert c.call("agents/get", name="script")["pid"] == pid


def test_an_agent_that_does_not_hear_a_cancel_keeps_nobody_waiting(daemon: Daemon) -> None:
    with wire(daemon.socket) as c, gate(daemon.home) as door:
        define(c, "script", "script", limits={"concurrency": 1})
        deaf = begin(c, "script", ["deaf", door.path], ["say", "after"], text="one")
        in_log(c, "script", "deaf one")
        assert c.call("runs/cancel", run_id=deaf)["status"] == "cancelled"
        assert play(c, "script", ["say", "next"])["output"] == "next"
        door.let()
        assert play(c, "script", ["say", "last"])["output"] == "last"
        assert c.call("runs/get", run_id=deaf)["items"] == []


def test_a_run_that_fails_says_why_and_keeps_what_it_said(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        define(c, "script", "script")
        run = play(c, "script", ["say", "half"], ["fail", "no luck"])
        assert (run["status"], run["error"]["code"]) == ("failed", -32007)
        assert "ValueError: no luck" in run["error"]["message"]
        assert run["error"]["data"]["run_id"] == run["run_id"]
        assert [(i["text"], i["status"]) for i in run["items"]] == [("half", "failed")]
        assert "output" not in run


def test_a_run_may_only_say_so_much(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        define(c, "script", "script")
        run = play(c, "script", ["bulk", "b", 4, 1 << 19])
        assert (run["status"], run["error"]["code"]) == ("failed", -32008)
        assert run["error"]["data"]["limit"] == "run_text"
        assert run["error"]["data"]["value"] == 3 << 19
        assert run["items"] == [
            {
                "item_id": "b",
                "type": "message",
                "role": "assistant",
                "status": "failed",
                "text": "x" * (3 << 19),
            }
        ], "what fits is kept"
        assert play(c, "script", ["say", "alive"])["output"] == "alive"


# ---- asking for runs ------------------------------------------------------------------------------------


def test_idempotency_key_gives_the_first_answer_also_after_a_restart(daemon: Daemon) -> None:
    given = {"agent": "script", "input": {"text": "once", "data": [["say", "once"]]}, "idempotency_key": "k1"}
    with wire(daemon.socket) as c:
        define(c, "script", "script")
        first = c.call("runs/start", **given)
        assert c.call("runs/start", **given) == first
        wait(c, first["run_id"])
        with pytest.raises(RpcError) as other:
            c.call("runs/start", **{**given, "input": "something else"})
        assert other.value.code == -32009
        assert other.value.data["key"] == "k1"
        assert c.call("runs/start", **{**given, "idempotency_key": "k2"}) != first
    daemon.restart()
    with wire(daemon.socket) as c:
        assert c.call("runs/start", **given) == first
        c.call("agents/stop", name="script")
        assert c.call("runs/start", **given) == first, "whatever has become of the agent since"
        with pytest.raises(RpcError) as refused:
            c.call("runs/start", **{**given, "idempotency_key": "k3"})
        assert refused.value.code == -32005
        c.call("agents/remove", name="script")
        assert c.call("runs/start", **given) == first
        assert len(c.call("runs/list")["items"]) == 2


def test_wait_gives_up_in_time_and_the_run_goes_on(daemon: Daemon) -> None:
    with wire(daemon.socket) as c, gate(daemon.home) as door:
        define(c, "script", "script")
        run_id = begin(c, "script", ["gate", door.path], ["say", "done"])
        with pytest.raises(RpcError) as late:
            c.call("runs/wait", run_id=run_id, timeout_s=0.1)
        assert late.value.code == -32006
        assert late.value.data["retryable"] is True
        door.let()
        assert wait(c, run_id)["output"] == "done"
        assert wait(c, run_id)["output"] == "done", "at once for one that is over"
        for method in ("runs/wait", "runs/get", "runs/cancel"):
            with pytest.raises(RpcError) as missing:
                c.call(method, run_id="run_nowhere")
            assert (missing.value.code, missing.value.data["kind"]) == (-32002, "run")


def test_list_pages_and_filters(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        define(c, "script", "script")
        define(c, "other", "script")
        session = c.call("sessions/create", agent="script")["session_id"]
        said = [play(c, "script", ["say", str(n)])["run_id"] for n in range(5)]
        failed = play(c, "other", ["fail", "x"])["run_id"]
        talked = play(c, "script", ["say", "in a session"], session_id=session)["run_id"]
        newest_first = [talked, failed, *reversed(said)]

        pages, cursor = [], None
        while True:
            page = c.call("runs/list", limit=3, **({"cursor": cursor} if cursor else {}))
            pages.append([run["run_id"] for run in page["items"]])
            cursor = page.get("next_cursor")
            if cursor is None:
                break
        assert [run for page in pages for run in page] == newest_first
        assert [len(page) for page in pages] == [3, 3, 1]

        def listed(**filters: Any) -> list[str]:
            return [run["run_id"] for run in c.call("runs/list", **filters)["items"]]

        assert listed(agent="other") == [failed]
        assert listed(status="failed") == [failed]
        assert listed(session_id=session) == [talked]
        assert listed(agent="script", status="completed") == [talked, *reversed(said)]
        assert listed(agent="nobody") == []
        assert all(run["items"] == [] for run in c.call("runs/list")["items"])
        with pytest.raises(RpcError) as made_up:
            c.call("runs/list", cursor="made up")
        assert (made_up.value.code, made_up.value.data["path"]) == (-32602, "params.cursor")


# ---- questions to a person ------------------------------------------------------------------------------


def test_a_question_waits_for_one_answer(daemon: Daemon) -> None:
    schema = {"type": "string", "enum": ["red", "blue"]}
    with wire(daemon.socket) as c:
        define(c, "script", "script")
        c.subscribe("run:*")
        run_id = begin(c, "script", ["ask", "which colour?", schema], ["say", " it is"])
        asked = c.until("input.requested")["data"]
        assert (asked["run_id"], asked["message"], asked["schema"]) == (run_id, "which colour?", schema)
        waiting = c.call("runs/get", run_id=run_id)
        assert waiting["status"] == "waiting"
        assert waiting["items"][0]["type"] == "input_request"
        assert waiting["items"][0]["status"] == "in_progress"
        assert [r["run_id"] for r in c.call("runs/list", status="waiting")["items"]] == [run_id]
        with pytest.raises(RpcError) as unknown:
            c.call("runs/respond", run_id=run_id, request_id="input_nowhere", response="red")
        assert (unknown.value.code, unknown.value.data["kind"]) == (-32002, "input")
        answer = {"run_id": run_id, "request_id": asked["request_id"], "response": "red"}
        assert c.call("runs/respond", **answer) == {}
        with pytest.raises(RpcError) as twice:
            c.call("runs/respond", **{**answer, "response": "blue"})
        assert twice.value.code == -32002
        c.until("input.resolved")
        run = wait(c, run_id)
        assert run["output"] == "red it is"
        assert (run["items"][0]["status"], run["items"][0]["response"]) == ("completed", "red")


def test_a_question_nobody_answers(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        define(c, "script", "script")
        run = play(c, "script", ["ask", "anybody?", None, 0.2], ["say", "; I go on"])
        assert run["status"] == "completed"
        assert run["output"] == "nobody answered: nobody answered in time; I go on"
        assert run["items"][0]["status"] == "cancelled"


def test_a_question_of_a_cancelled_run_is_closed(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        define(c, "script", "script")
        c.subscribe("run:*")
        run_id = begin(c, "script", ["ask", "well?"])
        asked = c.until("input.requested")["data"]
        run = c.call("runs/cancel", run_id=run_id)
        assert (run["status"], run["items"][0]["status"]) == ("cancelled", "cancelled")
        with pytest.raises(RpcError) as late:
            c.call("runs/respond", run_id=run_id, request_id=asked["request_id"], response="yes")
        assert late.value.code == -32002


# ---- across the end of the daemon -----------------------------------------------------------------------


def start_until_the_signal_has_got_there(connection: Wire, agent: str, *steps: list[str]) -> RpcError:
    """Start and cancel runs until the daemon takes no more; how it refuses."""
    while True:
        try:
            connection.call("runs/cancel", run_id=begin(connection, agent, *steps))
        except RpcError as refusal:
            return refusal


def patient(daemon: Daemon) -> Daemon:
    """Start it with a grace that is not over before the test is, on any machine."""
    daemon.env["WITSD_DAEMON_GRACE_S"] = "600"
    daemon.start()
    return daemon


def test_a_short_run_finishes_within_the_grace_and_new_ones_are_refused(stopped_daemon: Daemon) -> None:
    daemon = patient(stopped_daemon)
    with wire(daemon.socket) as c, gate(daemon.home) as door:
        define(c, "script", "script")
        c.subscribe("run:*")
        run_id = begin(c, "script", ["say", "half"], ["gate", door.path], ["say", " whole"])
        c.until("item.delta")
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGTERM)
        refused = start_until_the_signal_has_got_there(c, "script", ["gate", door.path])
        assert (refused.code, refused.data["name"]) == (-32001, "overloaded")
        door.let()
        c.until("run.completed", where=lambda d: d["run_id"] == run_id)
        assert daemon.wait() == 0
    daemon.start()
    with wire(daemon.socket) as c:
        run = c.call("runs/get", run_id=run_id)
        assert (run["status"], run["output"]) == ("completed", "half whole")


def test_a_run_that_waits_for_its_agent_can_be_cancelled_while_the_daemon_stops(stopped_daemon: Daemon) -> None:
    daemon = patient(stopped_daemon)
    slow = Path(daemon.home / "slow.py")
    slow.write_text("import sys\nsys.stdin.read()\n")  # never answers initialize
    with wire(daemon.socket) as c, gate(daemon.home) as door:
        c.call("agents/define", spec={"name": "slow", "kind": "native", "command": ["python", str(slow)]})
        define(c, "script", "script")
        c.subscribe("run:*")
        holds = begin(c, "script", ["say", "half"], ["gate", door.path])
        c.until("item.delta")
        waits = begin(c, "slow", ["say", "never"])
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGTERM)
        start_until_the_signal_has_got_there(c, "script")
        assert c.call("runs/cancel", run_id=waits)["status"] == "cancelled"
        door.let()
        c.until("run.completed", where=lambda d: d["run_id"] == holds)
        assert daemon.wait() == 0


def test_what_is_not_over_after_the_grace_is_interrupted_and_what_waits_is_executed_next_time(
    stopped_daemon: Daemon,
) -> None:
    daemon = stopped_daemon
    daemon.env["WITSD_DAEMON_GRACE_S"] = "0.2"
    daemon.start()
    with gate(daemon.home) as door:
        with wire(daemon.socket) as c:
            define(c, "script", "script", limits={"concurrency": 1})
            c.subscribe("run:*")
            long = begin(c, "script", ["say", "half"], ["gate", door.path])
            c.until("item.delta")
            queued = [begin(c, "script", ["say", str(n)]) for n in range(3)]
            assert daemon.stop() == 0
            stopped = c.until("run.interrupted")
            assert stopped["data"]["reason"] == "the daemon was stopped"
        assert of_daemon(daemon.home) == []
        daemon.start()
        with wire(daemon.socket) as c:
            run = c.call("runs/get", run_id=long)
            assert (run["status"], run["reason"]) == ("interrupted", "the daemon was stopped")
            assert [(i["text"], i["status"]) for i in run["items"]] == [("half", "cancelled")]
            assert [wait(c, run)["output"] for run in queued] == ["0", "1", "2"]
            started = [events_of(c, run)[1]["pos"] for run in queued]
            assert started == sorted(started), "in the order they were asked for"


def test_a_run_that_waited_for_its_agent_is_executed_after_the_next_start(daemon: Daemon) -> None:
    slow = Path(daemon.home / "slow.py")
    slow.write_text("import sys\nsys.stdin.read()\n")  # never answers initialize
    with wire(daemon.socket) as c:
        spec = {"name": "slow", "kind": "native", "command": ["python", str(slow)], "stop": {"grace_s": 1}}
        c.call("agents/define", spec=spec)
        run_id = begin(c, "slow", ["say", "at last"])
        assert c.call("runs/get", run_id=run_id)["status"] == "queued"
    assert daemon.stop() == 0
    slow.write_text("import runpy\nrunpy.run_module('tests.agents.script_agent', run_name='__main__')\n")
    definition = daemon.home / "agents/slow.toml"
    paths = daemon.env["PYTHONPATH"]
    definition.write_text(f'{definition.read_text()}\n[env]\nPYTHONPATH = "{paths}"\n')
    daemon.start()
    with wire(daemon.socket) as c:
        assert wait(c, run_id)["output"] == "at last"


# ---- callers that go away -------------------------------------------------------------------------------


def test_a_run_that_was_accepted_is_executed_although_its_caller_has_gone(daemon: Daemon) -> None:
    with wire(daemon.socket) as c, wire(daemon.socket) as hasty:
        define(c, "script", "script")
        c.subscribe("run:*", types=["run.queued"])
        for _ in range(20):  # too late for what is being committed
            hasty.send({"jsonrpc": "2.0", "id": 1, "method": "runs/start", "params": {"agent": "script", "input": "x"}})
            hasty.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"request_id": 1}})
            hasty.receive()
        runs = [c.until("run.queued")["data"]["run_id"] for _ in range(20)]
        assert {wait(c, run_id)["status"] for run_id in runs} == {"completed"}
