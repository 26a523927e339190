"""A value that does not fit is answered with what would."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import pytest

from witsd.supervise.definitions import parse
from witsd.values.spec import NAME_RULE, AgentSpec
from witsd.values.wire.agents import AgentsDefineParams
from witsd.values.wire.sessions import SessionsUpdateParams
from witsd.values.wire.system import DefinitionError
from witsd.values.wording import reword


class Nested(msgspec.Struct):
    many: list[dict[str, Literal["a", "b"]]] = []
    number: Literal[1, 2] = 1


@pytest.mark.parametrize(
    ("root", "path", "value", "says"),
    [
        (
            AgentsDefineParams,
            "spec.kind",
            "odd",
            "'odd' is not valid here: say assistant, exec, external, langchain or native",
        ),
        (AgentSpec, "ready.when", "x", "'x' is not valid here: say http, log, notify, started or tcp"),
        (SessionsUpdateParams, "settings.memory", "maybe", "'maybe' is not valid here: say off or on"),
        (Nested, "many[...][...]", "c", "'c' is not valid here: say a or b"),
        (Literal["one"], "", "two", "'two' is not valid here: say one"),
    ],
)
def test_the_valid_words_are_named(root: Any, path: str, value: str, says: str) -> None:
    assert reword(f"Invalid enum value '{value}'", path, root) == says


def test_numbers_too() -> None:
    with pytest.raises(msgspec.ValidationError) as wrong:
        msgspec.convert({"number": 7}, Nested)
    message, _, _ = str(wrong.value).partition(" - at")
    assert reword(message, "number", Nested) == "7 is not valid here: say 1 or 2"


def test_a_long_word_is_not_given_back_whole() -> None:
    assert len(reword(f"Invalid enum value '{'x' * 10_000}'", "kind", AgentSpec)) < 150


@pytest.mark.parametrize("message", ["Expected `int`, got `str`", "Invalid enum value 'x'"])
def test_what_there_is_nothing_better_for_is_left_alone(message: str) -> None:
    assert reword(message, "no.such", AgentSpec) == message


def test_a_definition_on_disk_gets_the_same_words(tmp_path: Any) -> None:
    file = tmp_path / "x.toml"
    file.write_text('name = "Not Good"\nkind = "exec"\ncommand = ["true"]\n')
    assert getattr(parse(file), "message", "") == f"`name`: {NAME_RULE}"
    file.write_text('name = "x"\nkind = "native"\ncommand = ["true"]\n[restart]\npolicy = "often"\n')
    found = parse(file)
    assert isinstance(found, DefinitionError)
    assert found.line == 5
    assert found.message == "`restart.policy`: 'often' is not valid here: say always, never or on_failure"
