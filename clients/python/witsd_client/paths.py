"""Where witsd keeps its files: the one function by which the daemon and its clients find things.

Standard library only until a platform's own folders have to be asked for, so the daemon may import it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

#: What the kernel takes for a Unix socket's path: 108 bytes with the closing NUL.
MAX_SOCKET_PATH = 107


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """The folders and the socket of one installation. Nothing here is created, or known to exist."""

    config_dir: Path
    data_dir: Path
    runtime_dir: Path
    log_dir: Path
    socket: Path

    @property
    def config_file(self) -> Path:
        return self.config_dir / "witsd.toml"

    @property
    def agents_dir(self) -> Path:
        return self.config_dir / "agents"

    @property
    def database(self) -> Path:
        return self.data_dir / "witsd.db"

    @classmethod
    def from_environment(cls, env: Mapping[str, str] | None = None) -> Paths:
        """The paths that ``env`` (default: the process's environment) leads to.

        ``WITSD_HOME`` puts everything under one folder. Without it the platform's folders serve; the
        socket then lives in ``$XDG_RUNTIME_DIR/witsd``, else ``/run/user/<uid>/witsd`` where that is
        there, else ``<data>/run``. ``WITSD_LISTEN_UNIX``, or ``unix`` under ``[listen]`` in ``witsd.toml``,
        names the socket outright. As the XDG
        specification asks, a variable that is empty or (for XDG) no absolute path counts as not set.
        """
        env = os.environ if env is None else env
        if home_given := env.get("WITSD_HOME"):
            home = _absolute(home_given, env)
            config, data, runtime, logs = home, home, home, home / "logs"
        else:
            config, data, logs = _platform_folders(env)
            runtime = _runtime_folder(env, data)
        given = env.get("WITSD_LISTEN_UNIX") or _configured_socket(config / "witsd.toml")
        socket = _absolute(given, env) if given else runtime / "witsd.sock"
        return cls(config_dir=config, data_dir=data, runtime_dir=runtime, log_dir=logs, socket=socket)


def _configured_socket(file: Path) -> str | None:
    """``listen.unix`` of the settings; None where it is not set, or the file is wrong, which the daemon says."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    if "unix" not in text:
        return None
    import tomllib

    try:
        given = tomllib.loads(text).get("listen", {}).get("unix")
    except (tomllib.TOMLDecodeError, AttributeError):
        return None
    return given if isinstance(given, str) and given else None


def _absolute(path: str, env: Mapping[str, str]) -> Path:
    if path == "~" or path.startswith("~/"):
        path = str(_home(env)) + path[1:]
    return Path(os.path.abspath(path))


def _home(env: Mapping[str, str]) -> Path:
    return Path(env.get("HOME") or os.path.expanduser("~"))


def _xdg(env: Mapping[str, str], name: str) -> Path | None:
    value = env.get(name)
    return Path(value) if value and os.path.isabs(value) else None


def _platform_folders(env: Mapping[str, str]) -> tuple[Path, Path, Path]:
    """Folders for configuration, data and logs."""
    if sys.platform in ("darwin", "win32"):
        import platformdirs

        dirs = platformdirs.PlatformDirs("witsd", appauthor=False)
        return dirs.user_config_path, dirs.user_data_path, dirs.user_log_path
    # platformdirs reads the process's own environment; an explicit one has to be honoured too.
    home = _home(env)
    config = _xdg(env, "XDG_CONFIG_HOME") or home / ".config"
    data = _xdg(env, "XDG_DATA_HOME") or home / ".local/share"
    state = _xdg(env, "XDG_STATE_HOME") or home / ".local/state"
    return config / "witsd", data / "witsd", state / "witsd/log"


def _runtime_folder(env: Mapping[str, str], data: Path) -> Path:
    if given := _xdg(env, "XDG_RUNTIME_DIR"):
        return given / "witsd"
    standard = Path(f"/run/user/{os.getuid()}")
    return standard / "witsd" if standard.is_dir() else data / "run"
