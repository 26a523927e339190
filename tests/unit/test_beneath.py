"""Opening beneath a folder, by ``openat2`` and by the walk: nothing leads out, whatever stands in the way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from witsd.services.tools.beneath import Outside, folder, make_folders, open_beneath


@pytest.fixture(params=[False, True], ids=["openat2", "walk"])
def walk(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    inside = tmp_path / "root"
    (inside / "sub").mkdir(parents=True)
    (inside / "sub" / "a.txt").write_text("inside")
    (tmp_path / "secret").write_text("outside")
    (inside / "up").symlink_to("../secret")
    (inside / "absolute").symlink_to(tmp_path / "secret")
    (inside / "door").symlink_to("..")
    (inside / "proc").symlink_to("/proc/self/root")
    with folder(inside) as descriptor:
        yield descriptor


def read(root: int, path: str, walk: bool) -> str:
    with os.fdopen(open_beneath(root, path, os.O_RDONLY, walk=walk)) as file:
        return file.read()


@pytest.mark.parametrize("path", ["sub/a.txt", "./sub//a.txt"])
def test_inside(root: int, path: str, walk: bool) -> None:
    assert read(root, path, walk) == "inside"


@pytest.mark.parametrize(
    "path", ["../secret", "sub/../../secret", "up", "absolute", "door/secret", "/etc/passwd", "proc/etc/passwd"]
)
def test_nothing_leads_out(root: int, path: str, walk: bool) -> None:
    with pytest.raises(Outside):
        read(root, path, walk)


def test_folders_are_made_beneath(root: int, tmp_path: Path) -> None:
    make_folders(root, "x/y/z")
    assert (tmp_path / "root/x/y/z").is_dir()
    with pytest.raises(Outside):
        make_folders(root, "door/made")
    assert not (tmp_path / "made").exists()
