"""The tools ``python`` and ``shell`` through the real daemon. That their walls hold is for ``test_sandbox``."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon
from tests.support.tools import begin, called, define_caller, outcome, pending, until
from witsd.supervise.sandbox_ways import find

pytestmark = pytest.mark.skipif(
    (found := find("auto", allow_none=False)).way is None, reason=f"no sandbox works here: {found.why_not}"
)


def text_of(answer: dict[str, Any]) -> str:
    return "\n".join(part["text"] for part in answer["content"] if part["type"] == "text")


def item_of(run: dict[str, Any]) -> dict[str, Any]:
    (found,) = (item for item in run["items"] if item["type"] == "tool_call")
    assert isinstance(found, dict)
    return found


def test_python_answers_with_all_that_came_of_it(daemon: Daemon) -> None:
    code = "import sys\nprint('hello', input())\nprint('careful', file=sys.stderr)\nsum(n * n for n in range(1, 11))"
    answer = daemon.call("tools/call", name="python", arguments={"code": code, "stdin": "Ada"})
    assert not answer["is_error"]
    assert text_of(answer) == "hello Ada\n385\ncareful"
    assert answer["structured_content"] == {
        "status": "done", "exit_code": 0, "value": "385", "stdout": "hello Ada\n", "stderr": "careful\n", "files": [],
    }  # fmt: skip


def test_python_that_fails_or_goes_on_too_long(daemon: Daemon) -> None:
    answer = daemon.call("tools/call", name="python", arguments={"code": "1 / 0"})
    assert answer["is_error"]
    assert text_of(answer).endswith("ZeroDivisionError: division by zero\n[exit code 1]")
    answer = daemon.call("tools/call", name="python", arguments={"code": "while True: pass", "timeout_s": 0.5})
    assert text_of(answer) == "[it was ended after 0.5 s, its limit of time]"
    assert answer["structured_content"]["limit"] == "time"
    answer = daemon.call("tools/call", name="python", arguments={"code": "print('x' * 1_000_000)"})
    assert "[stdout was cut: sandbox.output_bytes]" in text_of(answer)


def test_files_become_artifacts_of_the_run(daemon: Daemon) -> None:
    define_caller(daemon, grants={"tools": ["python"]})
    run = called(daemon, "python", {"code": "open('table.csv', 'w').write('a,b\\n1,2\\n')"})
    assert run["status"] == "completed", run
    (kept,) = daemon.call("artifacts/list", run_id=run["run_id"])["items"]
    assert (kept["name"], kept["media_type"]) == ("table.csv", "text/csv")
    piece = daemon.call("artifacts/get", artifact_id=kept["artifact_id"])
    assert base64.b64decode(piece["data"]) == b"a,b\n1,2\n"


def test_python_reads_what_its_agent_was_granted_and_nothing_else(daemon: Daemon, tmp_path: Path) -> None:
    granted, other = tmp_path / "granted", tmp_path / "other"
    for folder in (granted, other):
        folder.mkdir()
        (folder / "note").write_text(folder.name)
    define_caller(daemon, grants={"tools": ["python"], "files": [str(granted)]})
    run = called(daemon, "python", {"code": f"open({str(granted / 'note')!r}).read()"})
    assert "'granted'" in str(item_of(run))
    database = str(daemon.home / "witsd.db")
    for code in (
        f"open({str(other / 'note')!r})",
        f"open({str(granted / 'note')!r}, 'w')",
        f"open({database!r})",
    ):
        run = called(daemon, "python", {"code": code})
        assert "Error" in str(item_of(run)["result"]), run
    assert (granted / "note").read_text() == "granted"


def test_shell_asks_first_and_writes_where_it_may(daemon: Daemon, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    define_caller(daemon, cwd=str(project), grants={"tools": ["shell"], "files_write": [str(project)]})
    run_id = begin(daemon, {"name": "shell", "arguments": {"command": "echo made > file; pwd; cat /etc/shadow"}})
    (asked,) = until(lambda: pending(daemon))
    assert not (project / "file").exists()
    daemon.call("approvals/resolve", approval_id=asked["approval_id"], decision="allow")
    run = outcome(daemon, run_id)
    assert run["status"] == "completed", run
    assert (project / "file").read_text() == "made\n"
    result = item_of(run)["result"]
    assert result["stdout"] == f"{project.resolve()}\n"
    assert "/etc/shadow" in result["stderr"]


def test_shell_that_a_pattern_allows_is_not_asked_for(daemon: Daemon) -> None:
    define_caller(
        daemon, grants={"tools": ["shell"]}, tools={"shell": {"policy": "allow", "patterns": ["command=echo *"]}}
    )
    run = called(daemon, "shell", {"command": "echo one two"})
    assert item_of(run)["result"]["stdout"] == "one two\n"
    begin(daemon, {"name": "shell", "arguments": {"command": "echo one; rm -rf ."}})
    (asked,) = until(lambda: pending(daemon))
    assert asked["tool"] == "shell"


def test_the_owner_calls_it_where_it_is(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "here").write_text("!")
    answer = daemon.call("tools/call", name="shell", arguments={"command": "ls; exit 3"}, cwd=str(tmp_path))
    assert (answer["is_error"], answer["structured_content"]["exit_code"]) == (True, 3)
    assert "here" in text_of(answer)


def test_doctor_says_which_way_is_in_use(daemon: Daemon) -> None:
    (said,) = (item for item in daemon.call("system/doctor")["items"] if item["name"] == "sandbox")
    assert said["message"].startswith(str(found.way))
