"""Settings: flags before the environment before the file before the defaults, and every mistake has its place."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemon import ROOT
from witsd.values.config import ConfigError, load


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "witsd.toml"


def test_without_a_file_all_is_default(file: Path) -> None:
    loaded = load(file, {"PATH": "/bin", "WITSD_HOME": "/somewhere", "WITSD_AGENT": "x"})
    assert loaded.settings.listen.http == "127.0.0.1:9487"
    assert loaded.settings.journal.synchronous == "FULL"
    assert set(loaded.origins.values()) == {"default"}


def test_flags_go_before_the_environment_before_the_file(file: Path) -> None:
    file.write_text(
        '[listen]\nhttp = "127.0.0.1:1"\n[limits]\nbatch = 10\n[journal]\nsynchronous = "NORMAL"\n'
        '[daemon]\ngrace_s = 1\n[models]\ndefault = "from-file"\n'
    )
    env = {
        "WITSD_LISTEN_HTTP": "127.0.0.1:2",
        "WITSD_LIMITS_BATCH": "20",
        "WITSD_MODELS_DEFAULT": "from-env",
        "WITSD_LISTEN_ALLOWED_ORIGINS": "http://a.example, http://b.example,",
        "WITSD_LISTEN_ALLOW_REMOTE": "true",
        "WITSD_DAEMON_GRACE_S": "2.5",
    }
    loaded = load(file, env, ["listen.http=127.0.0.1:3", "models.default=from-flag"])
    settings = loaded.settings
    assert settings.listen.http == "127.0.0.1:3"
    assert settings.limits.batch == 20
    assert settings.journal.synchronous == "NORMAL"
    assert settings.listen.allowed_origins == ("http://a.example", "http://b.example")
    assert settings.listen.allow_remote is True
    assert settings.daemon.grace_s == 2.5
    assert settings.models.default == "from-flag"
    assert loaded.origins["listen.http"] == "flag"
    assert loaded.origins["limits.batch"] == "environment WITSD_LIMITS_BATCH"
    assert loaded.origins["journal.synchronous"] == str(file)
    assert loaded.origins["limits.depth"] == "default"
    assert loaded.origins["models.default"] == "flag"
    assert load(file, {"WITSD_MODELS_DEFAULT": "from-env"}).settings.models.default == "from-env"
    assert load(file, {}).settings.models.default == "from-file"


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("[limits]\nbatch = 10\n\n[nonsense]\nx = 1\n", 4, "unknown section [nonsense]"),
        ("[limits]\nbatch = 10\nbitch = 10\n", 3, "unknown key `limits.bitch`"),
        ("# first\n[limits]\nbatch = 'ten'\n", 3, "`limits.batch`: expected `int`, got `str`"),
        ("[limits]\nbatch = 0\n", 2, "`limits.batch`: expected `int` >= 1"),
        ("[journal]\nsynchronous = 'Sometimes'\n", 2, "'Sometimes' is not valid here: say EXTRA, FULL, NORMAL or OFF"),
        ("[journal]\nmax_age_days = inf\n", 2, "`journal.max_age_days`: expected `float` <= 36500"),
        ("[daemon]\ngrace_s = nan\n", 2, "`daemon.grace_s`"),
        ("listen = 3\n", 1, "`listen` must be a table"),
        ("\nlisten.http = 5\n", 2, "`listen.http`: expected `str`, got `int`"),
        ("listen = { http = 5 }\n", 1, "`listen.http`"),
        ("[models]\nfavourite = 'x'\n", 2, "unknown key `models.favourite`"),
        ("[models]\ndefault = 5\n", 2, "`models.default`: write the model's name as a string"),
        ("models = 5\n", 1, "`models` must be a table"),
        ("providers = 5\n", 1, "`providers` must be a table"),
        ("[providers]\nx = 5\n", 2, "`providers.x` must be a table"),
        ("[providers.x]\nkind = 'openai'\nkey = 'sk-1'\n", 3, "unknown key `providers.x.key`"),
        ("[providers.x]\nkind = 'openai'\n[providers.y]\nkind = 'magic'\n", 4, "invalid enum value 'magic'"),
        ("[providers.x]\nkind = 'openai'\nretries = 99\n", 3, "`retries` must be from 0 to 10"),
        ("[providers.x]\nbase_url = 'http://h/v1'\n", 1, "missing required field `kind`"),
        ("[limits]\nbatch = \n", 2, "not valid TOML"),
        ("[limits]\nbatch = 1\nbatch = 2\n", 3, "not valid TOML"),
        ("[limits]\nx = '''never closed\n\n", 3, "not valid TOML"),
        (f"x = {'[' * 10_000}{']' * 10_000}\n", 0, "not valid TOML: nested too deeply"),
        (f"x = {'9' * 5000}\n", 0, "not valid TOML"),
        ("[routes.smart]\nmodels = []", 2, "at least one"),
        ('[routes.a]\nmodels = ["b"]\n[routes.b]\nmodels = ["x/y"]', 2, "not to another route"),
        ('[prices."up/m"]\ninput_usd = -1', 2, "from 0 to"),
        ('[providers.p]\nkind = "offline"\nconcurrency = 0', 3, "from 1 to 10000"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_line(file: Path, text: str, line: int, says: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError) as wrong:
        load(file, {})
    assert str(wrong.value).startswith(f"{file}:{line}: "), str(wrong.value)
    assert says in str(wrong.value)


def test_a_file_that_cannot_be_read(file: Path) -> None:
    file.mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        load(file, {})
    file.rmdir()
    file.write_bytes(b"# caf\xe9\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(file, {})


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"WITSD_LIMITS_BATCH": "ten"}, "WITSD_LIMITS_BATCH = 'ten': expected `int`"),
        ({"WITSD_LIMITS_IN_FLIGHT": "1"}, "WITSD_LIMITS_IN_FLIGHT = '1': expected `int` >= 64"),
        ({"WITSD_JOURNAL_SYNCHRONOUS": "full"}, "WITSD_JOURNAL_SYNCHRONOUS = 'full': 'full' is not valid here:"),
        ({"WITSD_LISTEN_ALLOW_REMOTE": "perhaps"}, "WITSD_LISTEN_ALLOW_REMOTE = 'perhaps'"),
        ({"WITSD_DAEMON_GRACE_S": "nan"}, "WITSD_DAEMON_GRACE_S = 'nan'"),
        ({"WITSD_LISTEN_HTPP": "127.0.0.1:1"}, "WITSD_LISTEN_HTPP: there is no such setting"),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(file: Path, env: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        load(file, env)
    assert says in str(wrong.value)


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("limits.batch=ten", "--set limits.batch = 'ten'"),
        ("limits.bitch=10", "there is no setting 'limits.bitch'"),
        ("limits.batch", "write SECTION.KEY=VALUE"),
    ],
)
def test_a_mistake_in_a_flag_is_named(file: Path, flag: str, says: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        load(file, {}, [flag])
    assert says in str(wrong.value)


def show(home: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    paths = f"{ROOT}:{ROOT / 'clients/python'}"
    return subprocess.run(
        [sys.executable, "-m", "witsd.daemon", "--show-config", *args],
        env={"PATH": "/usr/bin:/bin", "HOME": str(home), "WITSD_HOME": str(home), "PYTHONPATH": paths, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_show_config_says_where_each_value_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "witsd.toml"
    file.write_text("[limits]\nbatch = 10\n[providers.mine]\nkind = 'openai'\napi_key_env = 'SECRET_KEY'\n")
    shown = show(tmp_path, "--json", "--set", "limits.depth=64", WITSD_LISTEN_HTTP="127.0.0.1:1", SECRET_KEY="sk-1")
    assert shown.returncode == 0
    settings = {row["name"]: (row["value"], row["origin"]) for row in json.loads(shown.stdout)["settings"]}
    assert settings["limits.batch"] == (10, str(file))
    assert settings["limits.depth"] == (64, "flag")
    assert settings["listen.http"] == ("127.0.0.1:1", "environment WITSD_LISTEN_HTTP")
    assert settings["listen.unix"] == (str(tmp_path / "witsd.sock"), "default")
    assert settings["models.default"] == ("auto", "default")
    assert settings["providers.mine"] == ("openai", str(file))
    assert "sk-1" not in shown.stdout
    plain = show(tmp_path).stdout
    assert all(name in plain for name in settings)
    assert list(tmp_path.iterdir()) == [file], "looking makes nothing"


def test_a_wrong_setting_is_status_2_and_one_line(tmp_path: Path) -> None:
    (tmp_path / "witsd.toml").write_text("[limits]\nbitch = 10\n")
    refused = show(tmp_path)
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert refused.stderr == f"witsd: {tmp_path}/witsd.toml:2: unknown key `limits.bitch`\n"
