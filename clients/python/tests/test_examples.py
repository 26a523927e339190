"""The examples, run as the daemon runs them, and the digest on real files."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from agent_host import hosted

pytestmark = pytest.mark.anyio

EXAMPLES = Path(__file__).parents[3] / "examples"
if not EXAMPLES.is_dir():
    pytest.skip("the examples are not part of this copy", allow_module_level=True)


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def ask(folder: Path, text: str, *, fails: bool = False) -> Any:
    async with hosted(load("digest_agent").agent) as host:
        params = {"run_id": "r1", "input": {"text": text, "cwd": str(folder)}}
        reply = await host.answer(host.ask("runs/execute", params))
        return reply["error"] if fails else reply["result"]["output"]


async def test_echo_is_under_ten_lines_and_works() -> None:
    source = (EXAMPLES / "echo_agent.py").read_text().splitlines()
    assert len([line for line in source if line.strip()]) < 10
    async with await anyio.open_process([sys.executable, str(EXAMPLES / "echo_agent.py")]) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        run = {"jsonrpc": "2.0", "id": 1, "method": "runs/execute", "params": {"run_id": "r", "input": {"text": "a b"}}}
        with anyio.fail_after(60):
            await process.stdin.send(json.dumps(run).encode() + b"\n")
            await process.stdin.send(b'{"jsonrpc":"2.0","id":2,"method":"shutdown"}\n')
            lines = b"".join([chunk async for chunk in process.stdout]).splitlines()
            assert await process.wait() == 0
    assert {"jsonrpc": "2.0", "id": 1, "result": {"output": "a b "}} in map(json.loads, lines)


async def test_markdown(tmp_path: Path) -> None:
    (tmp_path / "R.md").write_text(
        "# Title\n\nThe daemon keeps agents. Every agent is kept by the daemon.\n\n```\n# no heading\n```\n\n"
        "## Part\n\nThe weather in the hills is nice at this time of the year.\nTODO: more\n"
    )
    text = await ask(tmp_path, "R.md")
    assert "Markdown" in text
    assert "- Title\n  - Part\n" in text
    assert "no heading" not in text
    assert "> Every agent is kept by the daemon." in text
    assert "line 12: TODO: more" in text


async def test_python_and_other_words_around_the_path(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text('"""It does one thing and does it well enough."""\nclass A:\n    def f(self): ...\n')
    text = await ask(tmp_path, "please digest m.py")
    assert "- class A (line 2)\n  - def f(self) (line 3)" in text
    assert "It does one thing" in text
    (tmp_path / "broken.py").write_text("def (:\n")
    assert "does not parse" in await ask(tmp_path, "broken.py")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty file"),
        (b"\x89PNG\r\n" + bytes(100), "PNG image"),
        (bytes(range(256)), "binary data"),
        ("grün".encode("latin-1"), "not UTF-8"),
        ("grün".encode("utf-16"), "UTF-16"),
    ],
)
async def test_encodings_and_binaries(tmp_path: Path, data: bytes, expected: str) -> None:
    (tmp_path / "data").write_bytes(data)
    assert expected in await ask(tmp_path, "data")


async def test_too_large_says_what_it_did(tmp_path: Path) -> None:
    with (tmp_path / "big.txt").open("w") as file:
        for _ in range(20):
            file.write("a line of words\n" * 32768)
    assert "about the first 8.0 MiB of 10.0 MiB" in await ask(tmp_path, "big.txt")


async def test_folder(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# X\n\nA folder for tests.\n")
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a.py").write_text("x" * 5000)
    (tmp_path / ".git").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path)
    text = await ask(tmp_path, ".")
    for part in ("> A folder for tests.", "2 files in 2 folders", "- src/a.py, 4.9 KiB", "- .py: 1 file,"):
        assert part in text


async def test_honest_errors(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    error = await ask(tmp_path, "RAEDME.md", fails=True)
    assert error["code"] == -32002
    assert "did you mean README.md?" in error["message"]
    assert (await ask(tmp_path, "", fails=True))["code"] == -32602
    assert "neither a file nor a folder" in (await ask(tmp_path, "pipe", fails=True))["message"]
    if os.getuid() != 0:
        (tmp_path / "README.md").chmod(0)
        assert "Permission denied" in (await ask(tmp_path, "README.md", fails=True))["message"]


async def test_cancelled_in_the_middle(tmp_path: Path) -> None:
    """A file without end: the agent reads on until the run is cancelled."""
    module = load("digest_agent")
    module.MAX_TEXT_BYTES = sys.maxsize
    (tmp_path / "a.txt").write_text("x")

    class Endless:
        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None: ...

        def read(self, size: int) -> bytes:
            return b"x"

    class EndlessPath(type(tmp_path)):  # type: ignore[misc]
        def open(self, *_: Any, **__: Any) -> Any:
            return Endless()

    module.resolve = lambda run, text: EndlessPath(tmp_path / text)
    async with hosted(module.agent) as host:
        number = host.ask("runs/execute", {"run_id": "r1", "input": {"text": "a.txt"}})
        await host.said("r1", "# a.txt\n\n")
        host.cancel(number)
        assert (await host.answer(number))["error"]["code"] == -32800
