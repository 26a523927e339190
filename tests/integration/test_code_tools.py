"""The tool ``python`` through the real daemon. That their walls hold is for ``test_sandbox``."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.daemon import Daemon
from witsd.supervise.sandbox_ways import find

pytestmark = pytest.mark.skipif(
    (found := find("auto", allow_none=False)).way is None, reason=f"no sandbox works here: {found.why_not}"
)


def text_of(answer: dict[str, Any]) -> str:
    return "\n".join(part["text"] for part in answer["content"] if part["type"] == "text")


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


def test_doctor_says_which_way_is_in_use(daemon: Daemon) -> None:
    (said,) = (item for item in daemon.call("system/doctor")["items"] if item["name"] == "sandbox")
    assert said["message"].startswith(str(found.way))
