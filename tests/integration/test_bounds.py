"""What one caller can make the daemon hold, and what an agent cannot reach by asking cleverly."""

from __future__ import annotations

import json

import pytest

from tests.integration.test_agents import DETACHES, ask, define, python
from tests.support.daemon import Daemon
from tests.support.processes import of_daemon, wait_gone
from tests.support.wire import RpcError, wire

FLOODS = """
from witsd_client import Agent
agent = Agent("flood")
@agent.run
async def flood(run):
    for _ in range(int(run.text)):
        await run.say("x" * 100_000)
agent.serve()
"""


def test_a_run_says_no_more_than_can_be_told_in_one_message(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        define(c, "flood", python(FLOODS))
        whole = ask(c, "flood", "15")
        assert (whole["status"], len(whole["output"])) == ("completed", 1_500_000)
        cut = ask(c, "flood", "40")
        assert cut["status"] == "failed"
        assert cut["error"]["data"]["limit"] == "run_text"
        assert "write it to a file" in cut["error"]["message"]


def test_an_answer_that_is_too_long_says_so(stopped_daemon: Daemon) -> None:
    stopped_daemon.env["WITSD_LIMITS_MESSAGE_BYTES"] = "100000"
    stopped_daemon.start()
    with wire(stopped_daemon.socket) as c:
        define(c, "upper", ["tr", "a-z", "A-Z"], kind="exec", run_per_request=True)
        run_id = c.call("runs/start", agent="upper", input="x" * 40_000)["run_id"]
        with pytest.raises(RpcError) as refused:
            c.call("runs/wait", run_id=run_id)
        assert refused.value.code == -32008
        assert refused.value.data["limit"] == "message_bytes"
        assert len(c.call("runs/list", limit=1)["items"]) == 1, "a smaller page fits"


def test_what_detached_itself_goes_with_its_agent(daemon: Daemon) -> None:
    with wire(daemon.socket) as c:
        c.subscribe("log:tree", "log:other", since={"log:tree": 0, "log:other": 0})
        define(c, "tree", python(DETACHES), kind="exec", stop={"grace_s": 1})
        define(c, "other", python(DETACHES), kind="exec", stop={"grace_s": 1})
        for _ in range(2):
            c.until("log.line", where=lambda d: d["text"] == "detached")
        before = of_daemon(daemon.home)
        assert len(before) == 4
        c.call("agents/stop", name="tree")
        left = of_daemon(daemon.home)
        assert len(left) == 2, "the leader and what detached itself, of the other agent only"
        assert all(wait_gone(pid) for pid in set(before) - set(left))


CURIOUS = """
import json
from witsd_client import Agent
from witsd_client.errors import WitsdError
agent = Agent("curious")
@agent.run
async def ask(run):
    method, params = json.loads(run.text)
    try:
        await run.client.call(method, params)
    except WitsdError as error:
        return error.code
    return "allowed"
agent.serve()
"""


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("events/subscribe", {"streams": ["*"]}),
        ("events/subscribe", {"streams": ["run:*"]}),
        ("events/subscribe", {"streams": ["audit"]}),
        ("runs/start", {"agent": "curious", "input": "x", "session_id": "ses_of_somebody"}),
        ("agents/list", {}),
        ("tokens/create", {"name": "mine", "scopes": ["admin"]}),
    ],
)
def test_an_agent_gets_no_further_than_its_grants(daemon: Daemon, method: str, params: dict[str, object]) -> None:
    with wire(daemon.socket) as c:
        define(c, "curious", python(CURIOUS), grants={"agents": ["*"]})
        assert ask(c, "curious", json.dumps([method, params]))["output"] == -32003
