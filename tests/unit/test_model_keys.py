"""Keys: read only from private places, shown nowhere, and their absence explained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import msgspec
import pytest

from witsd.services.models.keys import (
    KeyUnavailable,
    Secret,
    read_environment,
    read_key,
    redact_key_like,
)
from witsd.values.config_models import ModelsConfig, ProviderConfig

KEY = "sk-unit-0123456789abcdef"


def config(**fields: Any) -> ProviderConfig:
    return ProviderConfig(**{"name": "p", "kind": "openai", "base_url": "http://127.0.0.1:1/v1", **fields})


def private(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_each_source(tmp_path: Path) -> None:
    private(tmp_path / "key", f"{KEY}\n")
    private(
        tmp_path / ".env", f"# keys\nexport OTHER='{KEY}.dotenv'\nEMPTY=\nOPENAI_API_KEY={KEY}.two # mine\n"
    )
    env = {"MINE": f"{KEY}.env", "CREDENTIALS_DIRECTORY": str(tmp_path), "EMPTY": ""}

    def found(**fields: Any) -> tuple[str, str]:
        secret = read_key(config(**fields), env, tmp_path)
        assert secret is not None
        return secret.reveal(), secret.source

    assert found(api_key_file="key") == (KEY, str(tmp_path / "key"))
    assert found(api_key_file=str(tmp_path / "key"))[0] == KEY
    assert found(api_key_credential="key")[0] == KEY
    assert found(api_key_env="MINE") == (f"{KEY}.env", "$MINE")
    assert found(api_key_env="OTHER") == (f"{KEY}.dotenv", f"OTHER in {tmp_path / '.env'}")
    assert found(base_url="")[0] == f"{KEY}.two"
    assert read_key(config(), env, tmp_path) is None


def test_a_key_changed_on_disk_is_the_key(tmp_path: Path) -> None:
    path = private(tmp_path / "key", "one")
    wanted = config(api_key_file="key")
    assert read_key(wanted, {}, tmp_path) == Secret("one", str(path))
    private(path, "two")
    assert read_key(wanted, {}, tmp_path) == Secret("two", str(path))


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [
        (KEY, 0o644, "chmod 600"),
        (KEY, 0o640, "mode 0640"),
        ("", 0o600, "is empty"),
        (f"{KEY} {KEY}", 0o600, "one word"),
        (f"{KEY}\n{KEY}", 0o600, "one word"),
        ("clé", 0o600, "one word"),
        ("x" * 100_000, 0o600, "too large"),
        (None, 0, "does not exist"),
    ],
)
def test_a_key_file_that_will_not_do(tmp_path: Path, text: str | None, mode: int, says: str) -> None:
    if text is not None:
        private(tmp_path / "key", text, mode)
    with pytest.raises(KeyUnavailable, match=says) as caught:
        read_key(config(api_key_file="key"), {}, tmp_path)
    assert KEY not in str(caught.value)


def test_an_open_dotenv_is_refused_as_a_whole(tmp_path: Path) -> None:
    private(tmp_path / ".env", f"OPENAI_API_KEY={KEY}", 0o604)
    environment = read_environment({}, tmp_path)
    assert environment.get("OPENAI_API_KEY") == ""
    assert "mode 0604" in str(environment.refused)
    with pytest.raises(KeyUnavailable, match=r"chmod 600 .*\.env"):
        read_key(config(api_key_env="OPENAI_API_KEY"), {}, tmp_path)


def test_a_folder_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "key").mkdir(mode=0o700)
    with pytest.raises(KeyUnavailable, match="not a regular file"):
        read_key(config(api_key_file="key"), {}, tmp_path)


def test_a_missing_key_says_where_it_may_be(tmp_path: Path) -> None:
    with pytest.raises(KeyUnavailable, match=r"set NOPE .* or in .*\.env"):
        read_key(config(api_key_env="NOPE"), {}, tmp_path)
    with pytest.raises(KeyUnavailable, match="LoadCredential=k:PATH"):
        read_key(config(api_key_credential="k"), {}, tmp_path)


def test_no_key_is_shown(tmp_path: Path) -> None:
    private(tmp_path / ".env", f"K={KEY}")
    shown = [
        Secret(KEY, "here"),
        read_environment({"OTHER": KEY}, tmp_path),
        attrs.asdict(config(api_key_env="K")),
    ]
    assert KEY not in f"{shown} {[str(one) for one in shown]}"
    quoted = Secret('a"b/c', "here")
    assert quoted.redact('x a"b/c y a\\"b/c z a%22b%2Fc') == "x [key] y [key] z [key]"
    assert (
        redact_key_like("Bearer abcdefghijkl and sk-proj-12345678 stay out")
        == "Bearer [key] and [key] stay out"
    )


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"base_url": "http://me:secret@host/v1"}, "base_url"),
        ({"base_url": "ftp://host"}, "base_url"),
        ({"base_url": "https://host/v1?key=1"}, "base_url"),
        ({"name": "a/b"}, "name"),
        ({"kind": "scripted"}, "script"),
        ({"api_key_credential": "../x"}, "api_key_credential"),
        ({"api_key_env": "sk-proj-1"}, "api_key_env"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"retries": 11}, "retries"),
        ({"models": [""]}, "models"),
    ],
)
def test_a_wrong_setting_is_named_as_it_is_decoded(fields: dict[str, Any], names: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=f"`{names}`") as caught:
        msgspec.convert({"name": "p", "kind": "openai", **fields}, ProviderConfig)
    assert "secret" not in str(caught.value)
    assert "sk-proj" not in str(caught.value)


def test_a_provider_is_named_once() -> None:
    with pytest.raises(ValueError, match="twice"):
        ModelsConfig(providers=(config(), config()))
