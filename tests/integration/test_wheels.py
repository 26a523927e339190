"""What is installed is what was tested: both wheels together in an empty environment."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.daemon import ROOT


def run(*command: str | Path, cwd: Path) -> str:
    """Output of a command that must succeed, without this environment's own packages in its path."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The two wheels, built from this tree."""
    out = tmp_path_factory.mktemp("wheels")
    for project in (ROOT / "clients/python", ROOT):
        run(sys.executable, "-m", "build", "--wheel", "--outdir", out, project, cwd=out)
    found = sorted(out.glob("*.whl"))
    assert [wheel.name.split("-")[0] for wheel in found] == ["witsd", "witsd_client"]
    return found


@pytest.mark.slow
def test_the_two_wheels_work_in_an_empty_environment(wheels: list[Path], tmp_path: Path) -> None:
    environment = tmp_path / "env"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    pip = (python, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check")
    run(*pip, "install", "--constraint", ROOT / "requirements.lock", *wheels, cwd=tmp_path)

    assert run(environment / "bin" / "witsd", "--version", cwd=tmp_path).split() == ["witsd", "0.1.0"]
    where = run(python, "-c", "import witsd.daemon, witsd_client; print(witsd.daemon.__file__)", cwd=tmp_path)
    assert where.startswith(str(environment))
    run(*pip, "check", cwd=tmp_path)


@pytest.mark.slow
def test_the_wheels_carry_what_runs_and_nothing_else(wheels: list[Path]) -> None:
    daemon, client = (set(zipfile.ZipFile(wheel).namelist()) for wheel in wheels)
    assert {"witsd/page/index.html", "witsd/rpc/methods.py", "witsd/py.typed"} <= daemon
    assert {"witsd_client/generated.py", "witsd_client/py.typed"} <= client
    assert any(name.endswith("licenses/LICENSE") for name in daemon)
    for name in daemon | client:
        assert name.split("/")[0].startswith("witsd"), name
