"""Where provider keys come from, and how they stay out of everything else.

A key is read anew for each call, so that one that was changed on disk is used at once. Reading
is blocking: call it in a thread.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import attrs

from witsd.values.config_models import ProviderConfig

#: No key and no .env comes near this; it bounds what a wrong path can make us read.
_MAX_FILE_BYTES = 64 * 1024
#: What a header can carry: visible ASCII without blanks.
_KEY = re.compile(r"[\x21-\x7e]{1,4096}")
_DOTENV_LINE = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*?)\s*")
#: Where the key for a provider's own server is looked for, if its configuration does not say.
_KEY_OF = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}
#: Keys that a server might echo though they are not ours, by the shape the great providers give them.
_KEY_LIKE = re.compile(r"(?i)\b(bearer\s+)[^\s\"',]{8,}|\b(?:sk|pk|rk)-[A-Za-z0-9_*.-]{8,}")


class KeyUnavailable(Exception):
    """No key can be had; the text says what to do and never holds a key."""


@attrs.frozen
class Secret:
    """A key that no ``repr``, format or traceback shows. ``source`` says where it was found."""

    _value: str = attrs.field(repr=False)
    source: str

    def reveal(self) -> str:
        """The key itself, for the one header that needs it."""
        return self._value

    def redact(self, text: str) -> str:
        """``text`` without this key, also where it was quoted as JSON or in a URL."""
        for form in (self._value, json.dumps(self._value)[1:-1], quote(self._value, safe="")):
            text = text.replace(form, "[key]")
        return text


def redact_key_like(text: str) -> str:
    """``text`` without anything that has the shape of a key."""
    return _KEY_LIKE.sub(lambda m: (m.group(1) or "") + "[key]", text)


@attrs.frozen(kw_only=True)
class Environment:
    """The daemon's environment and, behind it, ``.env`` in the config folder.

    ``refused`` is why an existing ``.env`` was not read. Use ``read_environment``.
    """

    _env: Mapping[str, str] = attrs.field(repr=False)
    _dotenv: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    dotenv_path: Path
    refused: str | None = None

    def get(self, name: str) -> str:
        """The value, or an empty string: an empty variable counts as not set."""
        return self._env.get(name, "").strip() or self._dotenv.get(name, "").strip()

    def source(self, name: str) -> str:
        return f"${name}" if self._env.get(name, "").strip() else f"{name} in {self.dotenv_path}"


def read_environment(env: Mapping[str, str], config_dir: Path) -> Environment:
    """Read ``.env`` if it is there. One that others can read is refused, never half used."""
    path = config_dir / ".env"
    try:
        text = _read_private(path)
    except FileNotFoundError:
        return Environment(env=env, dotenv_path=path)
    except (KeyUnavailable, OSError) as error:
        return Environment(env=env, dotenv_path=path, refused=_reason(path, error))
    found = {}
    for line in text.splitlines():
        match = _DOTENV_LINE.fullmatch(line)
        if match:
            found[match.group(1)] = _unquote(match.group(2))
    return Environment(env=env, dotenv=found, dotenv_path=path)


def read_key(config: ProviderConfig, env: Mapping[str, str], config_dir: Path) -> Secret | None:
    """The provider's key; None where its configuration asks for none.

    Raises ``KeyUnavailable`` when one is asked for and none can be had.
    """
    if config.api_key_file:
        path = Path(config.api_key_file).expanduser()
        return _from_file(path if path.is_absolute() else config_dir / path, private=True)
    if config.api_key_credential:
        folder = env.get("CREDENTIALS_DIRECTORY", "")
        if not folder:
            raise KeyUnavailable(
                f"credential {config.api_key_credential!r}: $CREDENTIALS_DIRECTORY is not set; the daemon "
                f"must be started by systemd with LoadCredential={config.api_key_credential}:PATH"
            )
        # systemd guards this folder itself; with an ACL the group bits do not mean what they say.
        return _from_file(Path(folder) / config.api_key_credential, private=False)
    name = config.api_key_env or ("" if config.base_url else _KEY_OF.get(config.kind, ""))
    if not name:
        return None
    environment = read_environment(env, config_dir)
    value = environment.get(name)
    if not value:
        raise KeyUnavailable(
            environment.refused
            or f"no key: set {name} in the daemon's environment or in {environment.dotenv_path} (mode 0600)"
        )
    return _checked(value, environment.source(name))


def tool_key(options: Mapping[str, Any], env: Mapping[str, str], config_dir: Path) -> Secret | None:
    """The key that a tool's options name by ``api_key_file`` or ``api_key_env``. Raises ``KeyUnavailable``."""
    named = {name: str(options[name]) for name in ("api_key_file", "api_key_env") if options.get(name)}
    try:
        config = ProviderConfig(name="tool", kind="openai", base_url="https://tool.invalid", **named)  # type: ignore[arg-type]
    except ValueError as error:
        raise KeyUnavailable(str(error)) from None
    return read_key(config, env, config_dir)


def _from_file(path: Path, *, private: bool) -> Secret:
    try:
        text = _read_private(path, private=private)
    except FileNotFoundError:
        raise KeyUnavailable(f"the key file {path} does not exist") from None
    except OSError as error:
        raise KeyUnavailable(_reason(path, error)) from None
    return _checked(text.strip(), str(path))


def _checked(value: str, source: str) -> Secret:
    if not value:
        raise KeyUnavailable(f"the key in {source} is empty")
    if not _KEY.fullmatch(value):
        # httpx would name the whole value in its complaint.
        raise KeyUnavailable(
            f"the key in {source} has blanks, line breaks or non-ASCII in it: it must be one word"
        )
    return Secret(value, source)


def _read_private(path: Path, *, private: bool = True) -> str:
    """Read a small file whose permissions are those of the file actually read."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise KeyUnavailable(f"{path} is not a regular file")
        if private and info.st_mode & 0o077:
            mode = stat.S_IMODE(info.st_mode)
            raise KeyUnavailable(f"{path} can be read by others (mode {mode:04o}): chmod 600 {path}")
        if private and info.st_uid not in (os.geteuid(), 0):
            raise KeyUnavailable(f"{path} belongs to another user: chown it to yours")
        data = b""
        while len(data) <= _MAX_FILE_BYTES and (piece := os.read(fd, _MAX_FILE_BYTES + 1 - len(data))):
            data += piece
    finally:
        os.close(fd)
    if len(data) > _MAX_FILE_BYTES:
        raise KeyUnavailable(f"{path} is too large to hold a key")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise KeyUnavailable(f"{path} is not UTF-8 text") from None


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{path} cannot be read: {error.strerror or type(error).__name__}"
    return str(error)


def _unquote(value: str) -> str:
    """A value as shells write it: quoted, or bare with a comment behind a blank."""
    if len(value) >= 2 and value[0] in "'\"":
        end = value.find(value[0], 1)
        if end > 0:
            return value[1:end]
    return value.split(" #", 1)[0].rstrip()
