"""Cutting a long text by its structure: headings first, then paragraphs, lines, sentences, words."""

from __future__ import annotations

import re
from collections.abc import Iterator

import attrs

#: A text of more characters is found by its chunks, each of at most so many.
WHOLE = 2000
MOST = 1200
#: A paragraph that would make a chunk of fewer goes with the next one.
LEAST = 300

_HEADING = re.compile(r"^(#{1,6})[ \t]+(.+?)[ \t]*#*[ \t]*$", re.MULTILINE)
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
#: Where a text may be cut, best first.
_CUTS = (
    re.compile(r"\n[ \t]*\n"),
    re.compile(r"\n"),
    re.compile("(?<=[.!?\u3002\uff01\uff1f])\\s*"),
    re.compile(r"\s+"),
)


@attrs.frozen
class Chunk:
    """``text`` is ``whole[start : start + len(text)]``; ``heading`` the headings it stands under, ``A > B``."""

    text: str
    start: int
    heading: str


def chunks(whole: str) -> list[Chunk]:
    """The passages of ``whole``: all of it but white space is in exactly one."""
    found = []
    for start, end, heading in _sections(whole):
        for first, last in _pieces(whole, start, end):
            text = whole[first:last]
            stripped = text.strip()
            if stripped:
                found.append(Chunk(stripped, first + text.index(stripped), heading))
    return found


def _sections(whole: str) -> Iterator[tuple[int, int, str]]:
    """``(start, end, heading)`` of what stands between headings; those inside fenced code are none."""
    fenced = [found.span() for found in _FENCE.finditer(whole)]
    above: list[tuple[int, str]] = []
    start = 0
    heading = ""
    for found in _HEADING.finditer(whole):
        if any(first <= found.start() < last for first, last in fenced):
            continue
        if whole[start : found.start()].strip():
            yield start, found.start(), heading
        level = len(found[1])
        above = [*(one for one in above if one[0] < level), (level, found[2])]
        heading = " > ".join(title for _, title in above)[:300]
        start = found.start()
    if whole[start:].strip():
        yield start, len(whole), heading


def _pieces(whole: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Cuts of a section, none longer than ``MOST``."""
    while end - start > MOST:
        cut = _cut(whole, start, min(start + MOST, end))
        yield start, cut
        start = cut
    if start < end:
        yield start, end


def _cut(whole: str, start: int, end: int) -> int:
    """The best place to end a chunk that begins at ``start``, not beyond ``end``."""
    for pattern in _CUTS:
        last = 0
        for found in pattern.finditer(whole, start + LEAST, end):
            last = found.end()
        if last > start:
            return last
    return end
