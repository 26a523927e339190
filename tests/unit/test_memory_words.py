"""What is found by which words: the real FTS5 table, with the columns and the questions that words.py makes."""

from __future__ import annotations

from collections.abc import Iterator

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from witsd.services.memory.words import NEIGHBOURS, TOKENIZE, WEIGHTS, date_words, indexed, match, query_words

MAY_8_2023_US = 1_683_500_000_000_000 + 86_400_000_000


class Index:
    """One FTS5 table; ``ask`` gives the numbers of what matches, best first."""

    def __init__(self) -> None:
        self.db = apsw.Connection(":memory:")
        self.db.execute(f"CREATE VIRTUAL TABLE words USING fts5(text, around, tokenize='{TOKENIZE}')")

    def add(self, *texts: str, speaker: str = "", time_us: int | None = None) -> None:
        for text in texts:
            row = indexed(text, speaker=speaker, time_us=time_us)
            self.db.execute("INSERT INTO words (text, around) VALUES (?, ?)", (row.text, row.around))

    def ask(self, question: str) -> list[int]:
        expression = match(question)
        assert expression is not None, question
        sql = "SELECT rowid FROM words WHERE words MATCH ? ORDER BY bm25(words, ?, ?), rowid"
        return [rowid for (rowid,) in self.db.execute(sql, (expression, *WEIGHTS))]


@pytest.fixture
def index() -> Iterator[Index]:
    index = Index()
    yield index
    index.db.close()


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("We went camping by the lake", "When did they camp?"),
        ("I bought a kiln", "who will buy the kilns?"),
        ("Mum taught me to knit", "Who is teaching my mother?"),
        ("My favorite color is blue", "What is my favourite colour?"),
        ("Crème brûlée in Besançon", "creme brulee besancon"),
        ("我住在东京都的公寓里", "东京"),
        ("我住在东京都的公寓里", "里"),
        ("我住在东京都的公寓里", "谁的公寓在东京?"),
        ("コーヒーが好きです", "コーヒー"),
        ("저는 서울에서 살아요", "서울"),
        ("ฉันชอบกาแฟเย็น", "กาแฟ"),
        ("שלום לכולם", "שלום"),
        ("مرحبا بالعالم", "مرحبا"),
        ("हिन्दी में लिखा है", "हिन्दी"),
        ("happy 🎂 to you!", "cake"),
        ("happy 🎂 to you!", "🎂"),
        ("iPhone版を買った", "iphone"),
        ("call memory_search(limit=5)", "memory_search"),
        ("The code is 4711-B", "4711"),
        ("the who are a band", "who are they"),
    ],
)
def test_a_question_finds(index: Index, text: str, question: str) -> None:
    index.add("Nothing of the kind", text, "好的没问题")
    assert 2 in index.ask(question)
    assert index.ask(question)[0] == 2


def test_speaker_and_day_are_words_of_a_record(index: Index) -> None:
    index.add("I am tired", speaker="Tom", time_us=MAY_8_2023_US)
    index.add("I am tired", speaker="Ann", time_us=MAY_8_2023_US + 40 * 86_400_000_000)
    assert index.ask("What was with Ann?") == [2]
    assert index.ask("Who was tired in May?")[0] == 1
    assert date_words(MAY_8_2023_US) == "Monday 8 May 2023"
    assert date_words(2**62) == ""


def test_the_nearest_turns_around_are_kept() -> None:
    row = indexed("x", before=("b1", "b2", "b3"), after=("a1", "a2", "a3"))
    assert NEIGHBOURS == 2
    assert row.around.split() == ["b2", "b3", "a1", "a2"]


@pytest.mark.parametrize("question", ["", "  ", "?!", "\0", '"', "***", "()"])
def test_a_question_without_words_asks_nothing(question: str) -> None:
    assert match(question) is None


@given(st.text(max_size=200) | st.text(alphabet='"*()^:-+{}ab AND OR NOT NEAR\0'))
def test_any_text_can_be_asked_and_kept(text: str) -> None:
    index = Index()
    index.add(text)
    if match(text) is not None:
        index.ask(text)
    index.db.close()


def test_a_long_question_is_bounded() -> None:
    assert len(query_words(" ".join(f"word{number}" for number in range(10_000)))) == 64
    assert len(query_words("漢字" * 1_000_000)) <= 64


def test_an_operator_is_a_word_like_any_other(index: Index) -> None:
    index.add("NEAR the river", "a OR b", 'she said "hello*"')
    assert index.ask("NEAR(river hills, 2)")[0] == 1
    assert index.ask('"hello*" AND (') == [3]
