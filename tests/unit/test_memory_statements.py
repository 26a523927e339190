"""What people say of themselves: found, and told from what only looks like it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from witsd.services.memory.statements import Statement, facts, may_state, only_statement, refers_back, statements


@pytest.mark.parametrize(
    ("text", "about", "value"),
    [
        ("My favourite colour is blue.", "favourite colour", "blue"),
        ("please remember that my favorite color is now dark green!", "favourite colour", "dark green"),
        ("Actually, my name is Ada", "name", "Ada"),
        ("Call me Ishmael.", "name", "Ishmael"),
        ("I now live in Oslo", "live", "in Oslo"),
        ("Green is my favourite colour.", "favourite colour", "Green"),
        ("Well, dark green is now my favorite color", "favourite colour", "dark green"),
        ("Actually, now green is my preferred colour", "preferred colour", "green"),
        ("I've just moved to New York.", "live", "in New York"),
        ("I am 34 years old", "age", "34"),
        ("I go by Bo", "name", "Bo"),
        ("I'd like to be called Bo", "name", "Bo"),
        ("my brother\u2019s name is Tom", "brother's name", "Tom"),
    ],
)
def test_one_statement_is_all_it_says(text: str, about: str, value: str) -> None:
    assert may_state(text)
    assert only_statement(text) == Statement(about, value)
    assert Statement(about, value).single


@pytest.mark.parametrize(
    "text",
    [
        "My name is Ada and my cat is called Tom.",
        "My favourite colour is blue. The spare key is under the pot.",
        "The doctor says that my age is no obstacle",
        "Is my name Ada?",
        "my name is what?",
        "I forgot which is my favourite colour.",
        "It is my favourite film",
        "I moved to the window",
        "The house is 34 years old",
        "I like what is my favourite tune",
        "It rains.",
        "",
    ],
)
def test_what_says_more_or_nothing_is_not_closed(text: str) -> None:
    assert only_statement(text) is None


@pytest.mark.parametrize("about", ["cat", "sister", "job", "brother"])
def test_of_some_things_one_says_many(about: str) -> None:
    assert not Statement(about, "x").single


@pytest.mark.parametrize("text", ["now it is green", "Actually it's green.", "No, it is now green"])
def test_it_is_what_was_spoken_of_before(text: str) -> None:
    assert may_state(text)
    assert refers_back(text)
    assert statements(text) == []
    assert facts(["My favourite colour is blue", text]) == {"favourite colour": "green"}
    assert facts(["What is my favourite colour?", text, "Now it is red"]) == {"favourite colour": "red"}
    assert facts(["My cat is called Tom", "The sky is nice", text]) == {"cat": "Tom"}


@given(st.lists(st.text() | st.sampled_from(["my", "is", "it's", "now", "I live in", ".", "?", "\n", "my my is is"])))
def test_any_text_is_read(parts: list[str]) -> None:
    text = " ".join(parts)
    found = statements(text, "name")
    assert all(one.value and one.about for one in found)
    if found and not refers_back(text):
        assert may_state(text)
