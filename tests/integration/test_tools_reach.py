"""Tools that speak for other services: memory and delegation, within the caller's grants."""

from __future__ import annotations

from pathlib import Path

from tests.support.daemon import Daemon
from tests.support.tools import begin, called, define_caller, outcome, until


def test_memory_is_the_callers_own(daemon: Daemon) -> None:
    define_caller(daemon, grants={"tools": ["memory_*"]})
    added = called(daemon, "memory_add", {"text": "The harbour opens at six."})
    assert added["status"] == "completed", added
    found = called(daemon, "memory_search", {"query": "When does the harbour open?"})
    (hit,) = found["output"]["structured_content"]["items"]
    assert (hit["text"], hit["namespace"]) == ("The harbour opens at six.", "agent:caller")
    refused = called(daemon, "memory_search", {"query": "x", "namespace": "agent:assistant"})
    assert (refused["output"]["is_error"], "grants" in str(refused["output"])) == (True, True)
    # It is gone for good, so a person is asked.
    late = called(daemon, "memory_delete", {"memory_id": hit["memory_id"]}, timeout_s=0.2)
    assert late["error"]["code"] == -32006


def test_delegation_is_a_child_run_that_ends_with_the_call(daemon: Daemon) -> None:
    define_caller(daemon, grants={"tools": ["agent_ask"], "agents": ["assistant"]})
    run = called(daemon, "agent_ask", {"agent": "assistant", "text": "What is 6 * 7?"})
    assert "42" in run["output"]["content"][0]["text"], run
    child = next(one for one in daemon.call("runs/list", agent="assistant")["items"])
    assert child["parent_run_id"] == run["run_id"]
    refused = called(daemon, "agent_ask", {"agent": "caller", "text": "{}"})
    assert "may not use 'caller'" in str(refused["output"])


def test_a_call_that_is_given_up_ends_what_it_has_delegated(daemon: Daemon, tmp_path: Path) -> None:
    define_caller(daemon, grants={"tools": ["agent_ask", "file_write"], "agents": ["other"]})
    define_caller(daemon, "other", grants={"tools": ["file_write"], "files_write": [str(tmp_path)]})
    inner = '{"name": "file_write", "arguments": {"path": "a", "text": "x"}}'
    params = {"name": "agent_ask", "arguments": {"agent": "other", "text": inner}, "timeout_s": 2}
    run = outcome(daemon, begin(daemon, params))
    assert run["error"]["code"] == -32006
    assert until(lambda: [one["status"] for one in daemon.call("runs/list", agent="other")["items"]] == ["cancelled"])
