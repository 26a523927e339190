"""From text to words: what of a record stands in the text index, and what a question asks that index.

The index is an FTS5 table with two columns of ours: ``text`` holds who said it, when, and what was said; ``around`` the
turns before and after it, which count less. Both are made here and are read by nobody, so words are put there in the
form in which they are found best.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import attrs

from witsd.services.memory.lexicon import BASE_FORMS, STOP_WORDS
from witsd.services.memory.stems import TOKENIZE

__all__ = ("NEIGHBOURS", "TOKENIZE", "WEIGHTS", "Indexed", "date_words", "indexed", "match", "pieces", "query_words")

#: Weights of ``text`` and ``around`` for ``bm25()``.
WEIGHTS = (1.0, 0.3)
#: Turns before and after a record that ``around`` holds.
NEIGHBOURS = 2
#: So much of a question is looked at, and so many different words of it are asked for.
MAX_QUERY_CHARS = 10_000
MAX_QUERY_WORDS = 64

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Scripts written without spaces, and Hangul, whose particles stick to the word.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u3105-\u318f\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_RUN = re.compile(f"[{_UNSPACED}]+")
_PIECE = re.compile(f"(?P<run>[{_UNSPACED}]+)|(?P<word>[^\\W_{_UNSPACED}][^\\W_{_UNSPACED}\u0300-\u036f]*)")
#: What ``_PIECE`` finds in a text of ASCII alone, in a fifth of the time.
_ASCII_WORD = re.compile("[a-z0-9]+")
_SYMBOL = re.compile("[\u2190-\u2bff\U0001f000-\U0001faff]")
_LATIN = re.compile("[a-z]+")


@attrs.frozen
class Indexed:
    """What the two columns of the index hold for a record."""

    text: str
    around: str


def indexed(
    text: str, *, speaker: str = "", time_us: int | None = None, before: Sequence[str] = (), after: Sequence[str] = ()
) -> Indexed:
    """The columns for ``text``. ``time_us`` is in microseconds since 1970, UTC; ``before`` and ``after`` are the turns
    around it in the order in which they were said, of which the nearest ``NEIGHBOURS`` on each side are taken.
    """
    own = " ".join(filter(None, (speaker, "" if time_us is None else date_words(time_us), text)))
    near = (*before[-NEIGHBOURS:], *after[:NEIGHBOURS])
    return Indexed(text=fold(own), around="\n".join(map(_fold_near, near)))


def match(query: str) -> str | None:
    """An FTS5 expression that matches records with any word of ``query``; None when it has no word at all.

    It names no column. Words that say nothing are left out, unless there is no other.
    """
    return " OR ".join(map(_quoted, query_words(query))) or None


def query_words(query: str) -> list[str]:
    """The words of a question that the index is asked for, each once, folded as in the index."""
    every = list(dict.fromkeys(pieces(query[:MAX_QUERY_CHARS])))
    telling = [word for word in every if word not in STOP_WORDS]
    return (telling or every)[:MAX_QUERY_WORDS]


def pieces(text: str) -> Iterator[str]:
    """Every word of a text in its order, in small letters and folded as in the index; pairs of characters for scripts
    without spaces (a single one for a run of one).
    """
    if text.isascii():
        words = _ASCII_WORD.findall(text.lower())
        return map(BASE_FORMS.get, words, words)
    return _any_pieces(_SYMBOL.sub(_name, text))


def _any_pieces(text: str) -> Iterator[str]:
    for found in _PIECE.finditer(text.lower()):
        word = found[0]
        if found["run"] is None:
            yield BASE_FORMS.get(word, word)
        else:
            yield from (word[start : start + 2] for start in range(max(len(word) - 1, 1)))


def date_words(time_us: int) -> str:
    """The day of a moment as a person would ask for it: ``Monday 8 May 2023``. Nothing for a year beyond 1-9999."""
    return _day_words(time_us // 86_400_000_000)


@lru_cache(maxsize=1024)
def _day_words(days: int) -> str:
    try:
        day = _EPOCH + timedelta(days=days)
    except OverflowError:
        return ""
    return f"{day:%A} {day.day} {day:%B} {day.year}"


def fold(text: str) -> str:
    """Text as the index holds it: irregular forms under their base, scripts without spaces cut into overlapping pairs
    (and the last character, so that each character begins a piece), pictures by their names.
    """
    if not text.isascii():
        text = _SYMBOL.sub(_name, text)
        text = _RUN.sub(_pairs, text)
    text = text.lower()
    irregular = BASE_FORMS.keys() & set(_LATIN.findall(text))
    return _LATIN.sub(_base, text) if irregular else text


#: A turn stands around four others, one after the other.
_fold_near = lru_cache(maxsize=256)(fold)


def _base(found: re.Match[str]) -> str:
    return BASE_FORMS.get(found[0], found[0])


def _name(found: re.Match[str]) -> str:
    return f" {unicodedata.name(found[0], '')} "


def _pairs(found: re.Match[str]) -> str:
    run = found[0]
    return f" {' '.join(run[start : start + 2] for start in range(len(run)))} "


def _quoted(word: str) -> str:
    """One character of a script without spaces stands for every pair that begins with it."""
    return f'"{word}"*' if len(word) == 1 and _RUN.match(word) else f'"{word}"'
