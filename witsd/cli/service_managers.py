"""systemd and launchd as ``witsd service`` sees them: install, uninstall, status, each step told as it is done."""

from __future__ import annotations

import os
import plistlib
import pwd
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol
from xml.parsers.expat import ExpatError

import attrs
from witsd_client.paths import Paths

from witsd.cli import service_files as files
from witsd.cli.connect import Failed

Outcome = Literal["done", "unchanged", "warning"]

#: A start waits for READY=1, which TimeoutStartSec bounds; this only keeps a broken manager from hanging us.
_PATIENCE_S = 180.0


@attrs.frozen
class Step:
    """One thing that was done, or was so already, or could not be and does not matter that much."""

    outcome: Outcome
    message: str
    hint: str = ""


@attrs.frozen(kw_only=True)
class Status:
    manager: str
    file: str
    installed: bool
    enabled: bool
    active: bool
    #: The manager's own word.
    state: str
    pid: int | None
    #: Whether the file starts this installation and not another one; None when there is no file.
    this_installation: bool | None
    #: Whether it is there without anybody logged in; None where the manager knows no such thing.
    linger: bool | None


@attrs.frozen(kw_only=True)
class Place:
    """Who installs what, and where."""

    env: Mapping[str, str]
    paths: Paths
    command: list[str]
    uid: int = attrs.field(factory=os.geteuid)

    @property
    def home(self) -> Path:
        return Path(self.env.get("HOME") or pwd.getpwuid(self.uid).pw_dir)

    @property
    def user(self) -> str:
        return pwd.getpwuid(self.uid).pw_name


class Manager(Protocol):
    """Each call is idempotent and raises ``Failed``. ``tell`` hears of each step when it is over."""

    def install(self, tell: Callable[[Step], None], *, linger: bool) -> None: ...
    def uninstall(self, tell: Callable[[Step], None]) -> None: ...
    def status(self) -> Status: ...


def manager(kind: str, place: Place) -> Manager:
    """``systemd`` or ``launchd``. Raises ``Failed`` where that is not to be had."""
    it, tool = (Launchd(place), "launchctl") if kind == "launchd" else (Systemd(place), "systemctl")
    if shutil.which(tool, path=place.env.get("PATH")) is None:
        raise Failed(
            f"there is no {tool} here, so nothing that could start witsd by itself",
            hint="start `witsd up` from whatever starts things on this machine; it stays in the foreground",
        )
    return it


@attrs.frozen
class Systemd:
    """The user's own manager: ``systemctl --user``, and ``loginctl`` for linger."""

    place: Place

    @property
    def file(self) -> Path:
        config = self.place.env.get("XDG_CONFIG_HOME", "")
        base = Path(config) if os.path.isabs(config) else self.place.home / ".config"
        return base / "systemd/user" / files.UNIT

    def install(self, tell: Callable[[Step], None], *, linger: bool) -> None:
        try:
            text = files.unit(self.place.command, files.environment(self.place.env))
        except ValueError as error:
            raise Failed(str(error)) from None
        was_active = self._show()["ActiveState"] in ("active", "activating", "reloading")
        changed = _write(self.file, text.encode(), tell)
        if linger:
            # First: it starts the user's manager, where nobody is logged in at a seat.
            self._linger(tell)
        self._systemctl("daemon-reload")
        tell(Step("done", "systemd has read its units"))
        self._systemctl("enable", "--now", files.UNIT)
        tell(Step("done", f"{files.UNIT} is enabled and up"))
        if changed and was_active:
            self._systemctl("restart", files.UNIT)
            tell(Step("done", "restarted, since its unit has changed"))

    def uninstall(self, tell: Callable[[Step], None]) -> None:
        if not self.file.exists() and self._show()["LoadState"] in ("not-found", ""):
            tell(Step("unchanged", f"there is no {self.file}"))
            return
        self._systemctl("disable", "--now", files.UNIT)
        tell(Step("done", f"{files.UNIT} is stopped and disabled"))
        _remove(self.file, tell)
        self._systemctl("daemon-reload")
        tell(Step("done", "systemd has read its units"))
        if self._lingers():
            user = self.place.user
            tell(Step("unchanged", f"linger of {user} stays: others may need it", f"loginctl disable-linger {user}"))

    def status(self) -> Status:
        show = self._show()
        try:
            text: str | None = self.file.read_text()
        except OSError:
            text = None
        pid = show["MainPID"]
        answers = any(show.values())
        return Status(
            manager="systemd",
            file=str(self.file),
            installed=text is not None,
            enabled=show["UnitFileState"] == "enabled",
            active=show["ActiveState"] in ("active", "reloading"),
            state=" ".join(filter(None, (show["ActiveState"], show["SubState"])))
            or ("unknown" if answers else "no systemd answers here"),
            pid=int(pid) if pid.isdigit() and pid != "0" else None,
            this_installation=None if text is None else files.command_of(text) == self.place.command,
            linger=self._lingers() if answers else None,
        )

    def _show(self) -> dict[str, str]:
        """What systemd knows of the unit; empty words for what it does not say."""
        names = ("LoadState", "ActiveState", "SubState", "MainPID", "UnitFileState")
        done = self._run(["systemctl", "--user", "show", files.UNIT, "--property=" + ",".join(names)])
        said = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
        return {name: said.get(name, "") for name in names}

    def _lingers(self) -> bool:
        if shutil.which("loginctl", path=self.place.env.get("PATH")) is None:
            return False
        done = self._run(["loginctl", "show-user", self.place.user, "--property=Linger", "--value"])
        if done.returncode == 0:
            return done.stdout.strip() == "yes"
        # logind speaks of users it knows of only: those that are logged in or linger.
        return Path("/var/lib/systemd/linger", self.place.user).exists()

    def _linger(self, tell: Callable[[Step], None]) -> None:
        user = self.place.user
        if self._lingers():
            tell(Step("unchanged", f"{user} lingers: witsd goes on after logout"))
            return
        done = self._run(["loginctl", "enable-linger", user])
        if done.returncode == 0:
            tell(Step("done", f"{user} lingers from now on: witsd goes on after logout"))
        else:
            message = f"no linger, so witsd stops at logout: {_said(done)}"
            tell(Step("warning", message, f"sudo loginctl enable-linger {user}"))

    def _systemctl(self, *args: str) -> None:
        done = self._run(["systemctl", "--user", *args])
        if done.returncode == 0:
            return
        said = _said(done)
        if "bus" in said:
            hint = "log in as this user outright (ssh, or machinectl shell; not su or sudo) and try again"
        else:
            hint = f"see: journalctl --user -u {files.UNIT} -n 50"
        raise Failed(f"systemctl --user {' '.join(args)}: {said}", hint=hint)

    def _run(self, argv: list[str]) -> subprocess.CompletedProcess[str]:
        env = dict(self.place.env)
        runtime = f"/run/user/{self.place.uid}"
        if not env.get("XDG_RUNTIME_DIR") and os.path.isdir(runtime):
            env["XDG_RUNTIME_DIR"] = runtime
        return _run(argv, env)


@attrs.frozen
class Launchd:
    """macOS: an agent in the user's own domain. Written after its manual pages and not run on a Mac."""

    place: Place

    @property
    def file(self) -> Path:
        return self.place.home / "Library/LaunchAgents" / f"{files.LABEL}.plist"

    @property
    def _domain(self) -> str:
        return f"gui/{self.place.uid}"

    @property
    def _service(self) -> str:
        return f"{self._domain}/{files.LABEL}"

    def install(self, tell: Callable[[Step], None], *, linger: bool) -> None:
        content = files.property_list(self.place.command, files.environment(self.place.env), self.place.paths)
        # launchd does not make the folder of StandardErrorPath, and starts nothing without it.
        self.place.paths.log_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        loaded = self._print() is not None
        changed = _write(self.file, content, tell)
        if loaded and not changed:
            tell(Step("unchanged", f"{self._service} is loaded"))
            return
        if loaded:
            self._launchctl("bootout", self._service)
            tell(Step("done", "the old one is unloaded"))
        self._launchctl("enable", self._service)
        self._launchctl("bootstrap", self._domain, str(self.file))
        tell(Step("done", f"{self._service} is loaded and up at each login"))

    def uninstall(self, tell: Callable[[Step], None]) -> None:
        loaded = self._print() is not None
        if not loaded and not self.file.exists():
            tell(Step("unchanged", f"there is no {self.file}"))
            return
        if loaded:
            self._launchctl("bootout", self._service)
            tell(Step("done", f"{self._service} is stopped and unloaded"))
        _remove(self.file, tell)

    def status(self) -> Status:
        text = self._print()
        state = re.search(r"^\s*state = (.+)$", text or "", re.MULTILINE)
        pid = re.search(r"^\s*pid = (\d+)$", text or "", re.MULTILINE)
        try:
            said = plistlib.loads(self.file.read_bytes())
            mine: bool | None = said.get("ProgramArguments") == self.place.command
        except FileNotFoundError:
            mine = None
        except (OSError, plistlib.InvalidFileException, ExpatError, ValueError, AttributeError):
            mine = False
        return Status(
            manager="launchd",
            file=str(self.file),
            installed=mine is not None,
            enabled=text is not None,
            active=pid is not None,
            state=state[1] if state else "not loaded" if text is None else "unknown",
            pid=int(pid[1]) if pid else None,
            this_installation=mine,
            linger=None,
        )

    def _print(self) -> str | None:
        done = _run(["launchctl", "print", self._service], self.place.env)
        return done.stdout if done.returncode == 0 else None

    def _launchctl(self, *args: str) -> None:
        done = _run(["launchctl", *args], self.place.env)
        if done.returncode != 0:
            raise Failed(
                f"launchctl {' '.join(args)}: {_said(done)}", hint=f"see {self.place.paths.log_dir / 'daemon.log'}"
            )


def _run(argv: list[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            argv,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE_S,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"{' '.join(argv)} did not end within {_PATIENCE_S:g} s") from None


def _said(done: subprocess.CompletedProcess[Any]) -> str:
    return " ".join((done.stderr or done.stdout or f"exit status {done.returncode}").split())


def _write(file: Path, content: bytes, tell: Callable[[Step], None]) -> bool:
    """True when the file was not so already. A crash leaves the old one or the new one."""
    try:
        before = file.read_bytes() if file.exists() else None
        if before == content:
            tell(Step("unchanged", f"{file} is as it should be"))
            return False
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f".{file.name}.new")
        new.write_bytes(content)
        # Others may read it, as they may any unit; what it carries of the environment holds no secret.
        new.chmod(0o644)
        new.replace(file)
    except OSError as error:
        raise Failed(f"cannot write {file}: {error.strerror}") from error
    tell(Step("done", f"{'wrote' if before is None else 'updated'} {file}"))
    return True


def _remove(file: Path, tell: Callable[[Step], None]) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise Failed(f"cannot remove {file}: {error.strerror}") from error
    tell(Step("done", f"removed {file}"))
