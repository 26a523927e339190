"""The built-in embedder: the same everywhere, nearer for what shares words or parts of them."""

from __future__ import annotations

from math import isclose, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from witsd.services.memory.hashing import DIMENSIONS, embed


def cosine(one: str, other: str) -> float:
    return sum(a * b for a, b in zip(embed(one), embed(other), strict=True))


@given(st.text())
def test_any_text_has_a_vector_of_unit_length(text: str) -> None:
    vector = embed(text)
    assert len(vector) == DIMENSIONS == 384
    assert vector.itemsize == 4
    assert isclose(sqrt(sum(value * value for value in vector)), 1.0, abs_tol=1e-5)
    assert vector == embed(text)


def test_shared_words_and_shared_stems_are_near() -> None:
    question = "When did the gardener plant tulips?"
    assert cosine(question, "I planted tulips with the gardener") > 0.5
    assert cosine(question, "gardening and planting all day") > 0.1
    assert abs(cosine(question, "The train was late again, so I missed lunch")) < 0.1


@pytest.mark.parametrize(
    ("question", "text"),
    [
        ("Which pet do they have?", "a puppy from the shelter"),
        ("How does she commute?", "the bus was late again"),
        ("What is her profession?", "she is a nurse"),
        ("When do they begin?", "the twins came on Monday"),
        ("How many were there?", "12 of us, dancing"),
    ],
)
def test_a_question_is_near_what_belongs_to_it(question: str, text: str) -> None:
    asked = embed(question, query=True)
    assert sum(a * b for a, b in zip(asked, embed(text), strict=True)) > 0.1


def test_a_member_of_a_group_does_not_ask_for_the_others() -> None:
    asked = embed("Where is the cat?", query=True)
    assert abs(sum(a * b for a, b in zip(asked, embed("a puppy from the shelter"), strict=True))) < 0.1


def test_words_that_say_nothing_do_not_count() -> None:
    assert isclose(cosine("what is the kiln", "a kiln"), 1.0, abs_tol=1e-5)
    assert cosine("who are you", "who are you") > 0.99


def test_a_long_text_is_bounded() -> None:
    assert embed("kiln " * 4_000 + "x" * 5_000_000) == embed("kiln " * 4_000)
