"""The ``hash`` embedder: texts that share words, parts of words or what they belong to point the same way.

No weights, nothing to fetch. Each word's stem, each piece of 3 to 5 letters of it, and each group of ``concepts`` that
it is in is a feature; a feature's CRC-32 says which of the 384 numbers it changes, and in which direction (the hashing
trick of Weinberger et al., 2009; pieces of words as in fastText).
"""

from __future__ import annotations

from array import array
from collections import Counter
from functools import lru_cache
from math import log, sqrt
from zlib import crc32

from witsd.services.memory.concepts import groups_asked, groups_of
from witsd.services.memory.lexicon import STOP_WORDS
from witsd.services.memory.stems import stem
from witsd.services.memory.words import pieces

DIMENSIONS = 384
#: To be counted up with every change of what `embed` answers: vectors of two kinds are never compared.
VERSION = "3"
#: So much of a text is looked at: a longer one is for chunks.
MAX_CHARS = 20_000
#: What all pieces of a word weigh together, beside the word itself.
PIECES_SHARE = 0.6
#: What a group weighs: about as much as a long word.
GROUP_WEIGHT = 2.0


def embed(text: str, *, query: bool = False) -> array[float]:
    """A vector of unit length, of 32-bit floats. Of a text without any word it is the first axis.

    A ``query`` has the groups that it asks for, a record those that its words belong to.
    """
    sums = [0.0] * DIMENSIONS
    text = text[:MAX_CHARS]
    every = Counter(pieces(text))
    telling = {word: count for word, count in every.items() if word not in STOP_WORDS} or every
    for word, count in telling.items():
        often = 1.0 + log(count)
        for index, weight in _features(word):
            sums[index] += weight * often
    for group in groups_asked(telling, text) if query else groups_of(telling):
        index, weight = _feature(f"#{group}", GROUP_WEIGHT)
        sums[index] += weight
    length = sqrt(sum(value * value for value in sums))
    if not length:
        sums[0] = length = 1.0
    return array("f", [value / length for value in sums])


@lru_cache(maxsize=8192)
def _features(word: str) -> tuple[tuple[int, float], ...]:
    """Where a word counts, and how much: longer words are rarer, and say more."""
    weight = 1.0 + log(max(len(word), 1)) / 2
    marked = f"<{word}>"
    pieces = [marked[start : start + size] for size in (3, 4, 5) for start in range(len(marked) - size + 1)]
    features = [_feature(f"={stem(word)}", weight)]
    if pieces:
        share = weight * PIECES_SHARE / sqrt(len(pieces))
        features += [_feature(piece, share) for piece in pieces]
    return tuple(features)


def _feature(name: str, weight: float) -> tuple[int, float]:
    number = crc32(name.encode())
    return number % DIMENSIONS, weight if number & 0x8000_0000 else -weight
