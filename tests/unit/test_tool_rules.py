"""What decides on a call before it is made: patterns of arguments, schemas of agents, names of their tools."""

from __future__ import annotations

from typing import Any

import pytest

from witsd.services.tools.builtin.files import file_write
from witsd.services.tools.builtin.shell import shell
from witsd.services.tools.foreign import BadArguments, schema_reader
from witsd.services.tools.guarded import is_public
from witsd.services.tools.policies import fits
from witsd.services.tools.registry import offered_name
from witsd.values.spec import ToolPolicy


def allows(tool: Any, arguments: dict[str, Any], *patterns: str) -> bool:
    return fits(tool, arguments, ToolPolicy(policy="allow", patterns=patterns))


def test_a_glob_without_a_name_allows_only_what_fits_as_a_whole() -> None:
    assert allows(shell, {"command": "git status"}, "git *")
    assert allows(shell, {"command": "git status", "timeout_s": 3}, "git *")
    assert not allows(shell, {"command": "rm -rf x", "stdin": "git status"}, "git *")
    assert not allows(file_write, {"path": "/etc/x", "text": "/home/a"}, "/home/*")
    denied = ToolPolicy(policy="deny", patterns=("*secret*",))
    assert fits(file_write, {"path": "/a", "text": "a secret"}, denied)


@pytest.mark.parametrize(
    ("pattern", "text", "fit"),
    [
        ("echo *", "echo a; b", False),
        ("echo ?*b", "echo a b", True),
        ("a*c*d", "abcabd", True),
        ("a*b*c", "ab", False),
        ("*a*", "bab", True),
        ("a**b", "ab", True),
        ("a?", "a", False),
        ("a.c", "abc", False),
    ],
)
def test_globs(pattern: str, text: str, fit: bool) -> None:
    assert allows(shell, {"command": text}, f"command={pattern}") is fit


def test_stars_and_a_long_argument_end() -> None:
    assert not allows(file_write, {"path": "p", "text": "secretkey" * 100_000}, "text=*secret*key*secret*zz*")


def test_a_schema_that_would_take_for_ever_is_given_up() -> None:
    defs: dict[str, Any] = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)}
    defs["d40"] = {"type": "object"}
    endless: tuple[dict[str, Any], ...] = (
        {"properties": {"a": {"type": "string", "pattern": "^(a|a)*$"}}},
        {"$defs": defs, "$ref": "#/$defs/d0"},
        {"$ref": "#"},
        {"patternProperties": {"^(a|a)*$": {}}},
    )
    for schema in endless:
        with pytest.raises(BadArguments, match="the tool's own schema"):
            schema_reader({"type": "object", **schema})({"a": "a" * 1000 + "!"})


def test_a_schema_is_checked_all_the_same() -> None:
    items = {"type": "array", "uniqueItems": True, "items": {"type": "string", "pattern": "^[a-z]+$"}}
    read = schema_reader({"type": "object", "properties": {"words": items}, "required": ["words"]})
    assert read({"words": ["a", "b"]}) == {"words": ["a", "b"]}
    for wrong, path in (({}, "words"), ({"words": ["a", "a"]}, "words"), ({"words": ["a", "1"]}, "words[1]")):
        with pytest.raises(BadArguments) as refused:
            read(wrong)
        assert refused.value.path == path


def test_no_agent_can_offer_what_is_called_like_anothers() -> None:
    assert offered_name("words", "count") == "words__count"
    assert offered_name("my_words", "_count") == "my_words___count"
    pairs = [("a", "b__c"), ("a__b", "c"), ("a_", "b"), ("a", "_b"), ("a@b", "c"), ("a_b", "c"), ("a-b", "c")]
    assert len({offered_name(agent, name) for agent, name in pairs}) == len(pairs)


@pytest.mark.parametrize("address", ["fec0::1", "::127.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b:1::1", "::1", "10.0.0.1"])
def test_addresses_of_a_site_or_for_nobody_are_not_public(address: str) -> None:
    assert not is_public(address)
    assert is_public("2606:4700::1111")
    assert is_public("64:ff9b::808:808")
