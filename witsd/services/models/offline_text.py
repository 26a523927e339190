"""What can be found in text by rules alone: sentences, a summary, what was said before.

Pure and deterministic; the rules are for English.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+|\n{2,}|\n(?=\s*(?:[-*#>]|\d+[.)]))")
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
#: Words that say nothing about what a text is about.
STOP_WORDS = frozenset(
    """
    a about above after again all also am an and any are as at be because been before being below
    between both but by can could did do does doing don't down during each few for from further had has
    have having he her here hers him his how i i'm if in into is it it's its itself just let me more
    most my no nor not now of off on once only or other our out over own please said same say she should
    so some such tell than that the their them then there these they this those through to too under
    until up us very was we were what what's when where which while who whom why will with would you
    your
    """.split()  # noqa: SIM905 - a list of one word a line would hide the code
)
_FENCE = re.compile(r"(?ms)^(`{3,}|~{3,})[^\n]*\n(.*?)^\1\s*$")


def words(text: str) -> list[str]:
    """The words in lower case."""
    return [match.group().lower().replace("\u2019", "'") for match in _WORD.finditer(text)]


def content_words(text: str) -> list[str]:
    """The words that carry meaning, a plural ``s`` dropped."""
    kept = (word.removesuffix("'s") for word in words(text) if word not in STOP_WORDS)
    return [
        word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
        for word in kept
    ]


def sentences(text: str) -> list[str]:
    """The sentences and list lines, blanks made single."""
    return [" ".join(part.split()) for part in _SENTENCE_END.split(text) if part.strip()]


def fenced(text: str) -> list[str]:
    """The contents of fenced blocks."""
    return [match.group(2).strip() for match in _FENCE.finditer(text[:400_000])]


def summary(text: str, count: int | None = None) -> list[str]:
    """The most telling sentences in the order of the text: about a fifth of them, 1 to 5.

    A sentence counts what its words' frequencies add up to, over the root of its length, so that long
    ones do not win by length alone; the first one counts a third more (leads carry the point).
    """
    found = sentences(text[:200_000])
    if count is None:
        count = max(1, min(5, round(len(found) / 5 + 0.5)))
    if len(found) <= count:
        return found
    bags = [content_words(sentence) for sentence in found]
    frequency = Counter(word for bag in bags for word in bag)
    scores = []
    for index, bag in enumerate(bags):
        score = sum(frequency[word] for word in bag) / max(1.0, len(bag) ** 0.5)
        scores.append((-(score * (4 / 3) if index == 0 else score), index))
    chosen = sorted(index for _, index in sorted(scores)[:count])
    return [found[index] for index in chosen]


def recall(question: str, said: Sequence[str]) -> str | None:
    """The latest earlier sentence that shares most of the question's words, two at least; else None."""
    asked = set(content_words(question))
    if len(asked) < 2:
        return None
    best: tuple[int, str] | None = None
    for text in said:
        for sentence in sentences(text[:100_000]):
            if sentence.endswith("?"):
                continue
            shared = len(asked & set(content_words(sentence)))
            if shared >= 2 and shared * 3 >= len(asked) * 2 and (best is None or shared >= best[0]):
                best = (shared, sentence)
    return best[1] if best else None
