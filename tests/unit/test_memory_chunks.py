"""Cutting long texts: nothing is lost, nothing is twice, and what belongs together stays together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from witsd.services.memory.chunks import MOST, chunks

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
