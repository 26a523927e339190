"""The file tools by an agent: inside what it is granted, whatever the paths say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon
from tests.support.tools import called, define_caller


@pytest.fixture
def work(daemon: Daemon) -> Path:
    """``work`` may be read, ``work/out`` written to."""
    folder = daemon.home / "work"
    (folder / "out").mkdir(parents=True)
    (folder / "notes.txt").write_text("".join(f"line {n}\n" for n in range(1, 11)))
    (folder / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    (folder / "wide.txt").write_text("wide \u00e9", encoding="utf-16")
    (folder / "binary.bin").write_bytes(b"\x7fELF\0\0\0")
    (folder / "link").symlink_to(daemon.home / "witsd.db")
    os.mkfifo(folder / "fifo")
    define_caller(
        daemon,
        cwd=str(folder),
        grants={"tools": ["file_*"], "files": [str(folder)], "files_write": [str(folder / "out")]},
        tools={"file_write": {"policy": "allow"}},
    )
    return folder


def answered(daemon: Daemon, tool: str, **arguments: Any) -> Any:
    run = called(daemon, tool, arguments)
    assert run["status"] == "completed", run
    assert not run["output"].get("is_error"), run["output"]
    return run["output"]["structured_content"]


def refused(daemon: Daemon, tool: str, **arguments: Any) -> str:
    run = called(daemon, tool, arguments)
    assert run["output"]["is_error"], run
    return str(run["output"]["content"][0]["text"])


def test_reading_ranges_encodings_and_what_is_no_text(daemon: Daemon, work: Path) -> None:
    part = answered(daemon, "file_read", path="notes.txt", start_line=3, lines=2)
    assert (part["text"], part["total_lines"], part["more"]) == ("line 3\nline 4\n", 10, True)
    assert answered(daemon, "file_read", path=str(work / "latin.txt"))["text"] == "caf\u00e9"
    assert answered(daemon, "file_read", path="wide.txt")["text"] == "wide \u00e9"
    assert "binary" in refused(daemon, "file_read", path="binary.bin")
    assert "no ordinary file" in refused(daemon, "file_read", path="fifo")
    assert "no line 99" in refused(daemon, "file_read", path="notes.txt", start_line=99)


def test_nothing_leads_out_of_what_is_granted(daemon: Daemon, work: Path) -> None:
    for path in ("link", "../witsd.db", str(daemon.home / "witsd.db"), "/etc/passwd", "~/x"):
        assert "granted" in refused(daemon, "file_read", path=path), path
    for path in ("../../x", str(work / "x.txt"), "link"):
        assert "granted" in refused(daemon, "file_write", path=path, text="x", mode="replace"), path


def test_listing_and_searching(daemon: Daemon, work: Path) -> None:
    names = [entry["path"] for entry in answered(daemon, "file_list", pattern="*.txt")["entries"]]
    assert names == ["latin.txt", "notes.txt", "wide.txt"]
    found = answered(daemon, "file_search", text="LINE 1", ignore_case=True)["matches"]
    assert [(one["path"], one["line"]) for one in found] == [("notes.txt", 1), ("notes.txt", 10)]
    found = answered(daemon, "file_search", text=r"line [23]$", regex=True)["matches"]
    assert [one["line"] for one in found] == [2, 3]
    assert "no regular expression" in refused(daemon, "file_search", text="(", regex=True)


def test_writing_creates_replaces_and_appends(daemon: Daemon, work: Path) -> None:
    path = work / "out" / "deep" / "a.txt"
    answered(daemon, "file_write", path=str(path), text="one\n")
    assert "exists" in refused(daemon, "file_write", path=str(path), text="two\n")
    answered(daemon, "file_write", path=str(path), text="two\n", mode="replace")
    answered(daemon, "file_write", path=str(path), text="three\n", mode="append")
    assert path.read_text() == "two\nthree\n"
    assert os.listdir(path.parent) == ["a.txt"]
