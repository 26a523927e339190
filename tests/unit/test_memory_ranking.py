"""How candidates of words and of vectors become one list."""

from __future__ import annotations

import pytest

from witsd.services.memory.ranking import Candidate, Scored, blend, meaning_share


def order(scored: list[Scored]) -> list[int]:
    return [one.rowid for one in scored]


def test_nothing_gives_nothing() -> None:
    assert blend([], "anything") == []


def test_parts_sum_up_to_the_score_and_say_why() -> None:
    both = Candidate(1, bm25=-4.0, cosine=0.8, session_id="s", speaker="Ann")
    words = Candidate(2, bm25=-2.0, session_id="t")
    meaning = Candidate(3, cosine=0.4)
    scored = blend([meaning, words, both], "what did Ann paint?")
    assert order(scored) == [1, 2, 3]
    for one in scored:
        assert one.score == pytest.approx(sum(one.parts.values()))
    assert set(scored[0].parts) == {"words", "meaning", "session", "speaker"}
    assert scored[0].parts["words"] == scored[0].parts["meaning"] == 0.5
    assert set(scored[2].parts) == {"meaning"}


def test_who_is_missing_from_the_vectors_counts_as_their_last() -> None:
    scored = blend([Candidate(1, bm25=-4.0), Candidate(2, cosine=0.8), Candidate(3, cosine=0.4)], "q")
    assert {one.rowid: one.parts.get("meaning") for one in scored} == {1: 0.25, 2: 0.5, 3: 0.25}


def test_proportions_count_not_ranks() -> None:
    """A word hit far above all others stays first, whatever is a little nearer in meaning."""
    far_above = Candidate(1, bm25=-9.0, cosine=0.70)
    others = [Candidate(rowid, bm25=-1.0, cosine=0.71 + rowid / 1000) for rowid in range(2, 20)]
    assert order(blend([*others, far_above], "q"))[0] == 1


@pytest.mark.parametrize(("mode", "first"), [("keyword", 1), ("semantic", 2)])
def test_one_list_alone(mode: str, first: int) -> None:
    candidates = [Candidate(1, bm25=-4.0, cosine=0.1), Candidate(2, bm25=-1.0, cosine=0.9)]
    assert order(blend(candidates, "q", mode=mode))[0] == first  # type: ignore[arg-type]


def test_a_session_that_matches_well_lifts_its_records() -> None:
    """Between two equal records, the one of the session where more was found."""
    candidates = [
        Candidate(1, bm25=-2.0, session_id="a"),
        Candidate(2, bm25=-2.0, session_id="b"),
        Candidate(3, bm25=-1.5, session_id="b"),
        Candidate(4, bm25=-4.0, session_id="c"),
    ]
    found = order(blend(candidates, "q"))
    assert found.index(2) < found.index(1)


def test_what_stands_beside_a_good_match_is_lifted() -> None:
    """The answer to a question shares few words with it."""
    candidates = [
        Candidate(4, bm25=-4.0, session_id="a"),
        Candidate(5, bm25=-1.0, session_id="a"),
        Candidate(6, bm25=-1.0, session_id="a"),
        Candidate(7, bm25=-1.0),
        Candidate(8, bm25=-1.0),
    ]
    scored = {one.rowid: one.parts.get("around", 0) for one in blend(candidates, "q", mode="keyword")}
    assert scored == pytest.approx({4: 0.2 / 4, 5: 0.2, 6: 0.2 / 4, 7: 0, 8: 0})


def test_turns_that_only_ask_or_hardly_say_anything_come_later() -> None:
    long = "We have been at the lake all day, and in the evening there was a fire, with music, until it began to rain."
    same = [
        Candidate(1, bm25=-2.0, text="At the lake."),
        Candidate(2, bm25=-2.0, text=long),
        Candidate(3, bm25=-2.0, text=f"{long} Have you?"),
        Candidate(4, bm25=-2.0, text="\u6211\u4eec\u5728\u6e56\u8fb9\u5f85\u4e86\u4e00\u6574\u5929" * 4),
    ]
    scored = {one.rowid: one for one in blend(same, "q")}
    assert scored[2].score == scored[4].score > scored[3].score > scored[1].score
    assert set(scored[3].parts) == {"words", "asks"}
    assert set(scored[1].parts) == {"words", "short"}


def test_how_much_vectors_weigh_is_told() -> None:
    assert meaning_share("hash") < meaning_share("all-MiniLM-L6-v2") == 0.5
    both = [Candidate(1, bm25=-4.0, cosine=0.8)]
    assert blend(both, "q", meaning=0.2)[0].parts == pytest.approx({"words": 0.8, "meaning": 0.2})


def test_the_named_speaker_and_then_the_newer_come_first() -> None:
    same = [
        Candidate(1, bm25=-2.0, speaker="Ann", time_us=1),
        Candidate(2, bm25=-2.0, speaker="Tom", time_us=2),
        Candidate(3, bm25=-2.0, speaker="Tom", time_us=3),
    ]
    assert order(blend(same, "What does Ann's sister do?")) == [1, 3, 2]


def test_vectors_that_point_away_count_nothing() -> None:
    scored = blend([Candidate(1, cosine=-0.5), Candidate(2, cosine=-0.1)], "q")
    assert {one.score for one in scored} == {0}
