"""Agent definitions as files: every mistake has its file and line, and what is written is read back."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from witsd.supervise import definitions
from witsd.values.spec import AgentSpec, Grants, Limits, Restart, Skill
from witsd.values.toml_text import line_of
from witsd.values.wire.system import DefinitionError

GOOD = 'name = "digest"\nkind = "native"\ncommand = ["python", "digest.py"]\n'


def wrong(file: Path, text: str | bytes) -> tuple[int, str]:
    """The line and the message of what is wrong with ``text``."""
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    error = definitions.parse(file)
    assert isinstance(error, DefinitionError), error
    assert error.file == str(file)
    return error.line, error.message


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "digest.toml"


def test_a_good_one(file: Path) -> None:
    file.write_text(GOOD + '[restart]\npolicy = "never"\n[env]\nANY_NAME = "1"\n[options]\nfree = { form = [1] }\n')
    spec = definitions.parse(file)
    assert isinstance(spec, AgentSpec)
    assert spec.restart == Restart(policy="never")
    assert (spec.env, spec.options) == ({"ANY_NAME": "1"}, {"free": {"form": [1]}})


@pytest.mark.parametrize(
    ("added", "line", "says"),
    [
        ('comand = "x"\n', 4, "unknown key `comand`: remove it, or put it under [options]"),
        ('\n[restart]\npolicy = "never"\nbackof_s = 1\n', 7, "unknown key `restart.backof_s`"),
        ("[restart]\n\n# how fast\n  backoff_s = 'soon'\n", 7, "`restart.backoff_s`: expected `float`, got `str`"),
        ("restart.backoff_s = -1\n", 4, "`restart.backoff_s`: expected `float` >= 0.0"),
        ("restart = { policy = 'sometimes' }\n", 4, "`restart.policy`: 'sometimes' is not valid here: say always,"),
        ("[stop]\n[health]\naction = 'pray'\n", 6, "`health.action`: 'pray' is not valid here: say report or restart"),
        ('[limits]\n"concurrency" = 0\n', 5, "`limits.concurrency`: expected `int` >= 1"),
        ("[env]\nA = 'x'\nB = 5\n", 4, "`env[...]`: expected `str`, got `int`"),
        ("[[skills]]\nname = 'a'\n[[skills]]\nname = 5\n", 7, "`skills[1].name`: expected `str`, got `int`"),
        ("start = 'maybe'\nstream = 'no'\n", 4, "`start`: 'maybe' is not valid here: say boot, manual or on_demand"),
        ("[restart]\nwindow_s = nan\n", 5, "`restart.window_s`"),
        ("[limits]\ncpu_percent = inf\n", 5, "`limits.cpu_percent`: expected `float` <= 1000000.0"),
        ("[limits]\nmemory_bytes = 10_000_000_000_000_000_000\n", 5, "`limits.memory_bytes`: expected `int` <= "),
        ("[ready]\nwhen = 'tcp'\naddress = 'localhost'\n", 4, "`address` is to be HOST:PORT"),
        ("[ready]\nwhen = 'tcp'\naddress = 'x:65536'\n", 4, "`address` is to be HOST:PORT"),
        ("[ready]\nwhen = 'tcp'\naddress = 'x:y'\n", 4, "`address` is to be HOST:PORT"),
        ("[ready]\nwhen = 'http'\nurl = 'https://localhost/'\n", 4, "http alone, with a host"),
        ("[ready]\nwhen = 'http'\nurl = 'http://[::1/'\n", 4, "http alone, with a host"),
        ("[ready]\nwhen = 'http'\nurl = 'http://x:99999/'\n", 4, "http alone, with a host"),
        ("[ready]\nwhen = 'http'\nurl = 'http:///health'\n", 4, "http alone, with a host"),
        ("run_per_request = true\n", 0, "`run_per_request` is for kind 'exec'"),
        ("x = \n", 4, "not valid TOML: Invalid value"),
        ("kind = 'exec'\n", 4, "not valid TOML: Cannot overwrite a value"),
        ("x = '''never closed\n\n\n", 6, "not valid TOML: Expected \"'''\""),
        (f"options.deep = {'[' * 10_000}{']' * 10_000}\n", 0, "not valid TOML: nested too deeply"),
        (f"options.long = {'9' * 5000}\n", 0, "not valid TOML: Exceeds the limit"),
        ("options.day = 2026-02-31\n", 4, "not valid TOML"),
    ],
)
def test_a_mistake_is_named_with_its_line(file: Path, added: str, line: int, says: str) -> None:
    found, message = wrong(file, GOOD + added)
    assert says in message
    assert found == line


def test_what_is_missing_or_does_not_agree(file: Path) -> None:
    assert wrong(file, "") == (0, "the key `name` is required")
    assert wrong(file, 'name = "digest"\n') == (0, "the key `kind` is required")
    assert wrong(file, 'name = "digest"\nkind = "exec"\n')[1] == "`command` is required for kind 'exec'"
    line, message = wrong(file, "# mine\n" + GOOD.replace('"digest"', '"digests"'))
    assert line == 2
    assert message == "`name` is 'digests' but the file is called digest.toml: make them agree"
    assert wrong(file, GOOD.replace('"digest"', '"Digest"'))[0] == 1
    assert "no `command`" not in wrong(file, 'name = "digest"\nkind = "assistant"\ncommand = ["x"]\n')[1]
    assert "cannot be read" in wrong(file, b"name = 'caf\xe9'\n")[1]


@pytest.mark.parametrize("name", ["", "a" * 64, "-a", "A", "a b", "a/b", "..", "abc\n", "ä"])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"name": name, "kind": "exec", "command": ["x"]}, AgentSpec)


def test_a_folder_holds_the_good_and_names_the_bad(tmp_path: Path) -> None:
    assert definitions.load(tmp_path / "nowhere").specs == {}
    (tmp_path / "digest.toml").write_text(GOOD)
    (tmp_path / "broken.toml").write_text("x = \n")
    (tmp_path / "other.toml").write_text(GOOD)
    (tmp_path / ".digest.toml.new").write_text("half wri")
    (tmp_path / ".#digest.toml").symlink_to("somebody@somewhere.1234")  # what Emacs leaves beside an open file
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "notes.txt").write_text("no definition")
    found = definitions.load(tmp_path)
    assert set(found.specs) == {"digest"}
    assert [Path(error.file).name for error in found.errors] == ["broken.toml", "folder.toml", "other.toml"]
    assert found.broken == {"broken", "folder", "other"}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    spec = AgentSpec(
        name="digest",
        kind="native",
        command=("python", 'quotes " and \\ and\nlines', "ümläut 🙂"),
        env={"A": "", "B.C": "dots"},
        skills=(Skill("sum", "adds", {"type": "object", "properties": {}}), Skill("plain")),
        limits=Limits(concurrency=7),
        grants=Grants(tools=("*",)),
        stream=False,
        options={"nested": {"list": [1, 2.5, True, "x"]}, "empty": {}},
    )
    file = definitions.write(tmp_path / "agents", spec)
    assert definitions.parse(file) == spec
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert [p.name for p in file.parent.iterdir()] == ["digest.toml"], "nothing is left beside it"
    definitions.remove(file.parent, "digest")
    definitions.remove(file.parent, "digest")
    assert list(file.parent.iterdir()) == []


def test_a_value_that_toml_has_no_word_for_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    spec = AgentSpec(name="digest", kind="exec", command=("x",))
    file = definitions.write(tmp_path, spec)
    holds_null = msgspec.structs.replace(spec, options={"list": [None]})
    with pytest.raises(ValueError, match=re.escape("options.list[0]")):
        definitions.write(tmp_path, holds_null)
    assert definitions.parse(file) == spec


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("a", 1),
        ("b.c", 3),
        ("b.d.e", 4),
        ("b", 2),
        ("b.nowhere", 2),
        ("f.g", 5),
        ("h[0].i", 8),
        ("h[1].i", 10),
        ("h[1].nowhere", 9),
        ("quoted key.x", 12),
        ("m", 14),
        ("m.n", 14),
        ("nowhere", 0),
        ("", 0),
    ],
)
def test_where_a_key_stands(path: str, line: int) -> None:
    text = (
        "a = 1\n[b]\nc = 1\nd.e = 1\n[f] # g = 0\n".replace("[f] # g = 0\n", "[ f ] # g = 0\n")
        + "\n[[h]]\ni = 1\n[[h]]\ni = 2\n"
        + '["quoted key"]\n"x" = 1\n[l]\nm = 1\n[m]\nn = 1\n'
    )
    places = {"f.g": 5, "m": 15, "m.n": 16}
    assert line_of(text, path) == places.get(path, line)


def files(folder: Path, **needs: str) -> None:
    for name, line in needs.items():
        (folder / f"{name}.toml").write_text(f'name = "{name}"\nkind = "exec"\ncommand = ["true"]\n{line}\n')


def test_what_definitions_say_of_each_other(tmp_path: Path) -> None:
    files(tmp_path, db="", worker='requires = ["db"]', made='after = ["db@here"]', lost='requires = ["db", "gone"]')
    found = definitions.load(tmp_path)
    assert set(found.specs) == {"db", "worker", "made"}
    assert found.broken == {"lost"}
    assert [(Path(e.file).name, e.line, e.message) for e in found.errors] == [
        ("lost.toml", 4, "`requires` names 'gone', and there is no such agent")
    ]
    files(tmp_path, db='kind = "broken')
    assert definitions.load(tmp_path).broken == {"lost", "db"}, "a wrong file is a reason to wait, not to be wrong too"


def test_a_circle_is_everybodys_fault_who_is_in_it(tmp_path: Path) -> None:
    files(tmp_path, a='requires = ["b"]', b='after = ["c"]', c='requires = ["a"]', d='requires = ["a"]')
    found = definitions.load(tmp_path)
    assert found.broken == {"a", "b", "c"}
    assert set(found.specs) == {"d"}
    assert all("in a circle: " in error.message and error.line == 4 for error in found.errors)
    # The last good one of what is wrong takes part: here it makes the circle with a file that is fine by itself.
    last_good = definitions.load(tmp_path).specs["d"]
    files(tmp_path, a='requires = ["d"]', b="", c="", d='requires = ["nobody"]')
    assert definitions.load(tmp_path).broken == {"d"}
    assert definitions.load(tmp_path, {"d": last_good}).broken == {"a", "d"}


@pytest.mark.parametrize(
    ("one", "two", "broken"),
    [
        ('requires = ["two@x"]', 'after = ["one@x"]', {"one", "two"}),
        ('requires = ["one@x"]', "", {"one"}),
        ('requires = ["two@x"]', 'requires = ["one"]', {"one", "two"}),
        ('requires = ["two@x"]', 'requires = ["three"]', set()),
    ],
)
def test_a_circle_through_instances_is_one_too(tmp_path: Path, one: str, two: str, broken: set[str]) -> None:
    files(tmp_path, one=one, two=two, three="")
    found = definitions.load(tmp_path)
    assert found.broken == broken
    assert all("in a circle: " in error.message and error.line == 4 for error in found.errors)


def test_a_circle_through_an_instance_is_one_before_there_is_that_instance(tmp_path: Path) -> None:
    files(tmp_path, a='requires = ["b@x"]', b='requires = ["a"]', c='after = ["c@y"]', d='requires = ["b@x"]')
    found = definitions.load(tmp_path)
    assert found.broken == {"a", "b", "c"}
    assert set(found.specs) == {"d"}
    said = {Path(error.file).stem: error.message for error in found.errors}
    assert "in a circle: " in said["a"]
    assert "b@x" in said["b"]
    assert "c@y -> c@y" in said["c"]
    # With a file of its own it needs what that says, and nothing of its template's.
    (tmp_path / "b@x.toml").write_text('name = "b@x"\nkind = "exec"\ncommand = ["true"]\n')
    assert definitions.load(tmp_path).broken == {"c"}
    (tmp_path / "b@x.toml").write_text('name = "b@x"\nkind = "exec"\ncommand = ["true"]\nrequires = ["a"]\n')
    assert definitions.load(tmp_path).broken == {"a", "b@x", "c"}
