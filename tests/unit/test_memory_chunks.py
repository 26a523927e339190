"""Cutting long texts: nothing is lost, nothing is twice, and what belongs together stays together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from witsd.services.memory.chunks import LEAST, MOST, chunks

_PIECES = st.sampled_from(
    ["word ", "\n", "\n\n", "# A heading\n", "## Below it\n", "A sentence. ", "```\n", "日本", "x" * 700, "\t"]
)


@given(st.lists(_PIECES, max_size=200).map("".join))
def test_all_of_it_is_in_exactly_one_chunk(whole: str) -> None:
    end = 0
    for chunk in chunks(whole):
        assert whole[chunk.start : chunk.start + len(chunk.text)] == chunk.text
        assert not whole[end : chunk.start].strip(), "only white space between two"
        assert 0 < len(chunk.text) <= MOST
        end = chunk.start + len(chunk.text)
    assert not whole[end:].strip()


def test_a_chunk_says_under_which_headings_it_stands() -> None:
    found = chunks("before\n\n# One\n\na\n\n## Two\n\nb\n\n```\n# no heading\n```\n\n# Three\n\nc\n")
    assert [(c.heading, c.text) for c in found] == [
        ("", "before"),
        ("One", "# One\n\na"),
        ("One > Two", "## Two\n\nb\n\n```\n# no heading\n```"),
        ("Three", "# Three\n\nc"),
    ]


def test_it_is_cut_between_paragraphs_then_lines_then_sentences() -> None:
    paragraphs = chunks("\n\n".join(f"{n} " + "word " * 120 for n in range(4)))
    assert [c.text[:2] for c in paragraphs] == ["0 ", "1 ", "2 ", "3 "]
    sentences = chunks("This is a sentence. " * 200)
    assert all(c.text.endswith("sentence.") for c in sentences)
    assert len(chunks("x" * (3 * MOST))) == 3


HOSTILE = {
    "spaces in a heading": "# a" + " " * 200_000 + "b\n",
    "nothing but headings": "# a\n" * 200_000,
    "nothing but fences": "```\n```\n# a\n" * 50_000,
    "fences that stay open": "~~~\n" + "```\n" * 100_000,
    "number signs": "#" * 400_000,
    "a number sign, a space": "# " * 200_000,
    "lines of one space": "\n " * 200_000 + "x",
    "one word": "w" * 400_000,
}


@pytest.mark.parametrize("whole", HOSTILE.values(), ids=HOSTILE)
def test_a_text_that_is_meant_to_take_long_does_not(whole: str) -> None:
    """Each would take minutes, or rows without number, if something in it were looked at again and again."""
    found = chunks(whole)
    assert len(found) <= 4000 + len(whole) // LEAST
    assert sum(len(chunk.text) for chunk in found) <= len(whole)


def test_small_sections_of_a_text_that_has_no_end_of_them_go_together() -> None:
    few = "".join(f"# H{n}\nx\n" for n in range(20))
    assert [c.heading for c in chunks(few)] == [f"H{n}" for n in range(20)]
    many = "".join(f"# H{n}\nsome words of it\n" for n in range(30_000))
    found = chunks(many)
    assert 1000 < len(found) <= 4000 + len(many) // MOST
    assert found[0].text.count("# H") > 1
