"""What the package shows: paths, errors, and how little it loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import witsd_client
from witsd_client import errors
from witsd_client.generated import ERRORS
from witsd_client.paths import Paths


def test_one_folder_for_everything() -> None:
    paths = Paths.from_environment({"WITSD_HOME": "/h/w"})
    assert paths.socket == Path("/h/w/witsd.sock")
    assert paths.agents_dir == Path("/h/w/agents")
    assert paths.database == Path("/h/w/witsd.db")
    assert paths.log_dir == Path("/h/w/logs")
    assert paths.config_file == Path("/h/w/witsd.toml")
    assert Paths.from_environment({"WITSD_HOME": "~/w", "HOME": "/u"}).data_dir == Path("/u/w")


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has folders of its own")
def test_the_platform_s_folders() -> None:
    env = {"HOME": "/u", "XDG_RUNTIME_DIR": "/run/user/77", "XDG_STATE_HOME": "relative"}
    paths = Paths.from_environment(env)
    assert paths.config_dir == Path("/u/.config/witsd")
    assert paths.data_dir == Path("/u/.local/share/witsd")
    assert paths.log_dir == Path("/u/.local/state/witsd/log")
    assert paths.socket == Path("/run/user/77/witsd/witsd.sock")
    assert Paths.from_environment({**env, "XDG_DATA_HOME": "/d"}).data_dir == Path("/d/witsd")


def test_without_a_runtime_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getuid", lambda: 4_000_000)
    assert Paths.from_environment({"HOME": "/u"}).socket == Path("/u/.local/share/witsd/run/witsd.sock")


def test_the_socket_named_outright() -> None:
    paths = Paths.from_environment({"WITSD_HOME": "/h/w", "WITSD_LISTEN_UNIX": "/s.sock"})
    assert (paths.socket, paths.runtime_dir) == (Path("/s.sock"), Path("/h/w"))


def test_every_error_of_the_protocol_has_its_class() -> None:
    assert set(errors.ERROR_CLASSES) == set(ERRORS)
    for code, known in ERRORS.items():
        error = errors.error_from_wire(code, "text")
        assert (error.code, error.data["name"], error.retryable) == (code, known.name, known.retryable)
        assert type(error).__name__ in witsd_client.__all__


def test_every_name_loads() -> None:
    for name in witsd_client.__all__:
        assert getattr(witsd_client, name).__name__ == name
    with pytest.raises(AttributeError):
        _ = witsd_client.nonsense


def test_a_client_on_the_socket_loads_no_websocket() -> None:
    code = "import sys, witsd_client; witsd_client.connect, witsd_client.Agent; print('wsproto' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_paths_load_nothing_else() -> None:
    code = (
        "import sys, witsd_client.paths; witsd_client.paths.Paths.from_environment(); "
        "print([m for m in ('anyio', 'msgspec', 'wsproto', 'witsd_client.client', 'witsd') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
